"""PolyCL: which slices are drawn as partners, and what is said when there are none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods import METHODS
from medssl.methods.base import Anchor, Moment
from medssl.methods.polycl import PolyCLM, PolyCLO, PolyCLOptions, PolyCLS, legacy_norm

CONTRACT = InputContract(size=(32, 32), window_hu=(0.0, 4000.0), mean_hu=0.0, std_hu=1.0)
VARIANTS = (PolyCLS, PolyCLO, PolyCLM)
TABLE = ("00111100", "0110", "0001110", "10110")  # one scan a word, one slice a letter; 1 shows the organ


def marked(table: Sequence[str] = TABLE, told: bool = True) -> UnlabelledVolumes:
    """Scans whose slices say where they come from: every voxel is 100 x scan + k + 1."""
    arrays = [
        np.stack([np.full((32, 32), 100 * n + k + 1) for k in range(len(word))])
        for n, word in enumerate(table)
    ]
    presence = [np.array([letter == "1" for letter in word]) for word in table]
    return UnlabelledVolumes.from_arrays(arrays, presence=presence if told else None)


def build(kind: type[PolyCLS | PolyCLO | PolyCLM], **options: object) -> PolyCLS | PolyCLO | PolyCLM:
    return kind(build_backbone("unet2d_4"), CONTRACT, PolyCLOptions(**options))  # type: ignore[arg-type]


def drawn(
    method: PolyCLS | PolyCLO | PolyCLM, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator
) -> tuple[Anchor, Anchor, int]:
    """Positive, negative and fallbacks of one draw, read off the voxels."""
    sample = method.draw(volumes, anchor, rng)
    where = [divmod(int(sample[name].max()) - 1, 100) for name in ("anchor", "positive", "negative")]
    assert Anchor(*where[0]) == anchor
    return Anchor(*where[1]), Anchor(*where[2]), int(sample["fallbacks"])


def shows(anchor: Anchor, table: Sequence[str] = TABLE) -> bool:
    return table[anchor.scan][anchor.k] == "1"


def legal(kind: type, anchor: Anchor, eq3: bool = False) -> tuple[set[Anchor], set[Anchor]]:
    """Positives and negatives by the literal sets of equations 1 to 3."""
    every = {Anchor(n, k) for n, word in enumerate(TABLE) for k in range(len(word))}
    same = {x for x in every if x.scan == anchor.scan}
    alike = {x for x in every if shows(x) == shows(anchor)}
    positives = {PolyCLS: same, PolyCLO: alike, PolyCLM: same & alike}[kind] - {anchor}
    negatives = {PolyCLS: every - same, PolyCLO: every - alike, PolyCLM: (every - same) - alike}[kind]
    return positives, (same - alike) if eq3 else negatives


@pytest.mark.parametrize(
    ("kind", "eq3"), [(PolyCLS, False), (PolyCLO, False), (PolyCLM, False), (PolyCLM, True)]
)
def test_partners_are_exactly_those_of_the_equations(kind: type, eq3: bool) -> None:
    """methods.md 2.8 a: 10 000 draws; every partner is legal, and every legal one comes."""
    volumes, rng = marked(), np.random.default_rng(0)
    method = build(kind, negatives="eq3" if eq3 else "code")
    slices = method._slices(volumes)
    anchors = [a for a in method.anchors(volumes) if legal(kind, a, eq3)[0] and legal(kind, a, eq3)[1]]
    seen: dict[Anchor, tuple[set[Anchor], set[Anchor]]] = {a: (set(), set()) for a in anchors}
    for n in range(10_000):
        anchor = anchors[n % len(anchors)]
        partners = method.partners(slices, anchor, rng)
        assert partners.fallbacks == 0
        seen[anchor][0].add(slices.anchors[partners.positive])
        seen[anchor][1].add(slices.anchors[partners.negative])
    assert seen == {a: legal(kind, a, eq3) for a in anchors}


def test_partners_are_drawn_uniformly() -> None:
    volumes, rng = marked(), np.random.default_rng(1)
    method = build(PolyCLO)
    slices, anchor = method._slices(volumes), Anchor(1, 1)
    counts = np.bincount([method.partners(slices, anchor, rng).positive for _ in range(11_000)], minlength=24)
    chosen = counts[counts > 0]
    assert len(chosen) == 11  # twelve slices show the organ
    assert chosen.min() > 850
    assert chosen.max() < 1150


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_sample_holds_the_images_of_its_slices(kind: type) -> None:
    volumes, method = marked(), build(kind)
    for n, anchor in enumerate(method.anchors(volumes)):
        positive, negative, fallbacks = drawn(method, volumes, anchor, np.random.default_rng(n))
        wanted = legal(kind, anchor)
        assert positive in wanted[0] or fallbacks
        assert negative in wanted[1]


def test_a_slice_without_partner_in_its_scan_gets_one_elsewhere_and_is_counted() -> None:
    table = ("0100", "0110", "1100")
    volumes, method = marked(table), build(PolyCLM)
    for n in range(20):
        positive, negative, fallbacks = drawn(method, volumes, Anchor(0, 1), np.random.default_rng(n))
        assert shows(positive, table)
        assert positive.scan != 0
        assert not shows(negative, table)
        assert negative.scan != 0
        assert fallbacks == 1
    batch = {k: v[None] for k, v in method.draw(volumes, Anchor(0, 1), np.random.default_rng(0)).items()}
    assert float(method(batch, Moment(0, 1, 0, 1))["fallbacks"]) == 1.0


def test_no_slice_is_dropped_where_a_scan_shows_nothing_but_the_organ() -> None:
    table = ("1111", "0110", "0000")
    volumes = marked(table)
    for negatives in ("code", "eq3"):
        method = build(PolyCLM, negatives=negatives)
        assert len(method.anchors(volumes)) == 12
        _, negative, fallbacks = drawn(method, volumes, Anchor(0, 1), np.random.default_rng(0))
        assert not shows(negative, table)
        assert fallbacks == (negatives == "eq3")


@pytest.mark.parametrize("kind", VARIANTS)
def test_fixed_triplets_are_the_same_in_every_epoch(kind: type) -> None:
    volumes = marked()
    fixed, free = build(kind, fixed_triplets=True), build(kind)
    anchor = Anchor(0, 3)
    epochs = [np.random.default_rng([7, epoch, 3]) for epoch in range(8)]
    assert len({drawn(fixed, volumes, anchor, rng) for rng in epochs}) == 1
    assert len({drawn(free, volumes, anchor, rng) for rng in epochs}) > 1


def test_fixed_triplets_differ_from_run_to_run() -> None:
    volumes = marked()
    partners = set()
    for seed in range(8):
        method = build(PolyCLS, fixed_triplets=True)
        method.seed = seed
        partners.add(drawn(method, volumes, Anchor(0, 3), np.random.default_rng(0)))
    assert len(partners) > 1


def test_only_the_middle_of_a_scan_is_drawn_from() -> None:
    volumes = marked(("0" * 100, "0" * 5), told=False)
    method = build(PolyCLS, slice_fraction=0.3)
    anchors = method.anchors(volumes)
    assert anchors == (*(Anchor(0, k) for k in range(35, 65)), Anchor(1, 1), Anchor(1, 2))
    slices = method._slices(volumes)
    rng = np.random.default_rng(0)
    partners = [method.partners(slices, Anchor(1, 2), rng) for _ in range(200)]
    assert {slices.anchors[p.positive] for p in partners} == {Anchor(1, 1)}
    assert {slices.anchors[p.negative].k for p in partners} <= set(range(35, 65))


def test_an_anchor_may_come_from_another_set_of_volumes_next() -> None:
    method = build(PolyCLS)
    for table in (("000", "000"), ("00000", "0000", "000")):
        assert len(method.anchors(marked(table, told=False))) == sum(len(word) for word in table)


def test_a_method_keeps_no_volumes() -> None:
    volumes, method = marked(), build(PolyCLM)
    method.anchors(volumes)
    known = weakref.ref(volumes)
    del volumes
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("kind", [PolyCLS, PolyCLM])
def test_one_scan_is_too_few_to_tell_scans_apart(kind: type) -> None:
    with pytest.raises(InputError, match="two or more; there is one, scan 0"):
        build(kind).anchors(marked(("00110",)))


def test_one_scan_suffices_where_negatives_come_from_it() -> None:
    volumes = marked(("00110",))
    assert len(build(PolyCLO).anchors(volumes)) == 5
    assert len(build(PolyCLM, negatives="eq3").anchors(volumes)) == 5


def test_a_scan_of_one_slice_is_named() -> None:
    with pytest.raises(InputError, match="scan 1 offers one"):
        build(PolyCLS).anchors(marked(("000", "0"), told=False))


@pytest.mark.parametrize("kind", [PolyCLO, PolyCLM])
@pytest.mark.parametrize(
    ("table", "text"), [(("111", "11"), "5 show it and 0 do not"), (("000", "10"), "1 show it")]
)
def test_an_organ_that_is_always_or_never_there_is_said_to_have_no_negatives(
    kind: type, table: tuple[str, ...], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        build(kind).anchors(marked(table))


@pytest.mark.parametrize("kind", [PolyCLO, PolyCLM])
def test_without_a_presence_table_it_is_said_how_to_make_one(kind: type) -> None:
    with pytest.raises(InputError, match="medssl presence"):
        build(kind).anchors(marked(told=False))


def test_weak_supervision_is_stated() -> None:
    assert PolyCLS.info.supervision == "none"
    assert {PolyCLO.info.supervision, PolyCLM.info.supervision} == {"presence"}
    assert [METHODS[f"polycl-{letter}"] for letter in "som"] == list(VARIANTS)


def test_the_published_head_has_65_792_numbers() -> None:
    method = PolyCLS.build(PolyCLS.presets()["paper"])
    assert sum(weight.numel() for weight in method.head.parameters()) == 65_792


def test_the_published_input_spans_a_twentieth_of_the_range() -> None:
    contract = legacy_norm(InputContract())
    ends = contract.apply(np.array([[-1000.0, 1000.0]])).ravel()
    assert ends == pytest.approx([0.3265, 0.3717], abs=1e-4)


def test_views_may_differ_from_their_slices_when_asked() -> None:
    volumes = marked()
    method = build(PolyCLS)
    changing = PolyCLS(method.backbone, CONTRACT, replace(PolyCLOptions(), noise=0.1))
    plain, noisy = (m.draw(volumes, Anchor(0, 3), np.random.default_rng(0)) for m in (method, changing))
    assert len(torch.unique(plain["anchor"])) == 1
    assert len(torch.unique(noisy["anchor"])) > 100
