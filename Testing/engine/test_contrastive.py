"""Contrastive losses against literal references, and what the methods make of slices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError
from medssl.methods.augment import ViewOptions, input_range, random_view, two_views
from medssl.methods.base import Anchor, Method, Moment
from medssl.methods.byol import BYOL, BYOLOptions, decay_at
from medssl.methods.contrastive import (
    Contrastive,
    ContrastiveOptions,
    info_nce,
    nt_xent,
    pooled,
    spread,
    sup_con,
    triplet_loss,
)
from medssl.methods.moco import MoCo, MoCoOptions
from medssl.methods.polycl import PolyCLOptions, PolyCLS
from medssl.methods.simclr import SimCLR, SimCLROptions
from medssl.methods.supcon import SupCon, SupConOptions
from torch import Tensor

CONTRACT = InputContract(size=(32, 32), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)
NOW = Moment(step=0, steps=10, epoch=0, epochs=1)
OPTIONS: dict[type[Contrastive], ViewOptions] = {
    PolyCLS: PolyCLOptions(),
    SimCLR: SimCLROptions(),
    SupCon: SupConOptions(),
    MoCo: MoCoOptions(hidden=16, queue=12),
    BYOL: BYOLOptions(hidden=16),
}


def embeddings(count: int, rows: int = 5, dimensions: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, dimensions, dtype=torch.float64, generator=generator) for _ in range(count)]


def similarity(a: Tensor, b: Tensor) -> float:
    return float(((a @ b) / (a.norm() * b.norm())).detach())


def scans(count: int = 3, depth: int = 6) -> UnlabelledVolumes:
    rng = np.random.default_rng(0)
    coarse = [rng.normal(100.0, 300.0, (depth, 5, 5)) for _ in range(count)]
    arrays = [np.kron(block, np.ones((1, 8, 8))).astype(np.int16) for block in coarse]
    return UnlabelledVolumes.from_arrays(arrays, presence=[np.arange(depth) > 2 for _ in range(count)])


def build(kind: type[Contrastive], seed: int = 0, **options: object) -> Contrastive:
    torch.manual_seed(seed)
    backbone = build_backbone("unet2d_4", CONTRACT.in_channels)
    return kind(backbone, CONTRACT, replace(OPTIONS[kind], **options))  # type: ignore[arg-type]


def batch_of(method: Method, volumes: UnlabelledVolumes, count: int = 6) -> dict[str, Tensor]:
    anchors = method.anchors(volumes)
    samples = [method.draw(volumes, anchors[n], np.random.default_rng(n)) for n in range(count)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize("kind", OPTIONS)
def test_dropout_can_be_left_out_of_pre_training(kind: type[Contrastive]) -> None:
    slices = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for dropout in (True, False):
        method = build(kind, dropout=dropout).train()
        one, other = (method.embed(slices) for _ in range(2))
        assert torch.equal(one, other) is not dropout


def test_triplet_loss_is_equation_4() -> None:
    """methods.md 2.8 b."""
    anchor, positive, negative = embeddings(3)
    literal = []
    for z, p, n in zip(anchor, positive, negative, strict=True):
        top = math.exp(similarity(z, p) / 0.05)
        literal.append(-math.log(top / (top + math.exp(similarity(z, n) / 0.05))))
    assert float(triplet_loss(anchor, positive, negative, 0.05)) == pytest.approx(np.mean(literal), abs=1e-10)


def test_triplet_loss_of_the_best_and_the_worst_triplet() -> None:
    """methods.md 2.8 b."""
    (z,) = embeddings(1)
    best = torch.nn.functional.softplus(torch.tensor(-2.0 / 0.05, dtype=torch.float64))
    assert float(triplet_loss(z, z, -z, 0.05)) == pytest.approx(float(best), rel=1e-9)
    assert float(triplet_loss(z, -z, z, 0.05)) == pytest.approx(2.0 / 0.05)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_triplet_loss_and_its_gradient_are_finite_in_half_precision(precision: torch.dtype) -> None:
    """methods.md 2.8 b: the literal form would overflow."""
    z = embeddings(1)[0].to(precision).requires_grad_()
    for positive, negative in ((z, -z), (-z, z)):
        loss = triplet_loss(z, positive.detach(), negative.detach(), 0.05)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.dtype == torch.float32
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_losses_do_not_depend_on_the_length_of_an_embedding(which: int) -> None:
    """methods.md 2.8 c."""
    one = embeddings(3)
    other = [z * 17.0 if n == which else z for n, z in enumerate(one)]
    for loss in (
        lambda a, b, c: triplet_loss(a, b, c, 0.05),
        lambda a, b, c: nt_xent(a, b, 0.1),
        lambda a, b, c: info_nce(a, b, c, 0.2),
        lambda a, b, c: sup_con(a, b, torch.arange(5) > 2, 0.07),
    ):
        assert float(loss(*other)) == pytest.approx(float(loss(*one)), rel=1e-10)


def test_nt_xent_has_2n_minus_1_terms() -> None:
    first, second = embeddings(2)
    views = [*first, *second]
    literal = []
    for n, view in enumerate(views):
        others = [math.exp(similarity(view, v) / 0.1) for m, v in enumerate(views) if m != n]
        assert len(others) == 2 * len(first) - 1
        partner = math.exp(similarity(view, views[(n + len(first)) % len(views)]) / 0.1)
        literal.append(-math.log(partner / sum(others)))
    assert float(nt_xent(first, second, 0.1)) == pytest.approx(np.mean(literal), abs=1e-10)


def test_asymmetric_nt_xent_has_the_slices_as_only_anchors() -> None:
    anchors, positives = embeddings(2)
    literal = []
    for n, anchor in enumerate(anchors):
        others = [a for m, a in enumerate(anchors) if m != n]
        total = sum(math.exp(similarity(anchor, v) / 0.1) for v in [*others, *positives])
        literal.append(-math.log(math.exp(similarity(anchor, positives[n]) / 0.1) / total))
    assert float(nt_xent(anchors, positives, 0.1, symmetric=False)) == pytest.approx(
        np.mean(literal), abs=1e-10
    )


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 1, 2, 3, 4]])
def test_sup_con_takes_the_mean_over_positives_outside_the_logarithm(labels: list[int]) -> None:
    first, second = embeddings(2)
    views, classes = [*first, *second], labels * 2
    literal = []
    for n, view in enumerate(views):
        others = [m for m in range(len(views)) if m != n]
        total = sum(math.exp(similarity(view, views[m]) / 0.07) for m in others)
        terms = [
            math.log(math.exp(similarity(view, views[m]) / 0.07) / total)
            for m in others
            if classes[m] == classes[n]
        ]
        literal.append(-sum(terms) / len(terms))
    assert float(sup_con(first, second, torch.tensor(labels), 0.07)) == pytest.approx(
        np.mean(literal), abs=1e-10
    )


def test_sup_con_of_slices_that_are_all_different_is_nt_xent() -> None:
    first, second = embeddings(2)
    assert float(sup_con(first, second, torch.arange(5), 0.1)) == pytest.approx(
        float(nt_xent(first, second, 0.1))
    )


def test_info_nce_finds_the_key_among_itself_and_the_queue() -> None:
    queries, keys, queue = embeddings(3)
    literal = []
    for query, key in zip(queries, keys, strict=True):
        found = math.exp(similarity(query, key) / 0.2)
        literal.append(-math.log(found / (found + sum(math.exp(similarity(query, k) / 0.2) for k in queue))))
    assert float(info_nce(queries, keys, queue, 0.2)) == pytest.approx(np.mean(literal), abs=1e-10)


def test_losses_stay_in_full_precision_under_autocast() -> None:
    first, second, queue = (z.float() for z in embeddings(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = [nt_xent(first, second, 0.1), info_nce(first, second, queue, 0.2)]
    plain = [nt_xent(first, second, 0.1), info_nce(first, second, queue, 0.2)]
    assert [float(x) for x in lowered] == [float(x) for x in plain]


def test_spread_tells_collapse() -> None:
    (z,) = embeddings(1, rows=400)
    assert float(spread(z)) > 0.95
    assert float(spread(z[:1].repeat(9, 1) * torch.arange(1, 10)[:, None])) == pytest.approx(0.0, abs=1e-6)


def test_maximum_is_taken_before_the_mean() -> None:
    deepest = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert float(pooled(deepest)) == (5 + 7 + 13 + 15) / 4
    assert float(pooled(torch.full((1, 1, 1, 1), 3.0))) == 3.0


@pytest.mark.parametrize("kind", OPTIONS)
def test_embeddings_differ_between_slices(kind: type[Contrastive]) -> None:
    """methods.md 2.8 d."""
    volumes, method = scans(), build(kind).eval()
    images = torch.stack([method.slice_image(volumes, Anchor(n, 2)) for n in range(3)])
    embedded = method.embed(images).detach()
    assert float(torch.pdist(embedded).min()) > 1e-3


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_sample_is_repeated_by_the_same_generator_only(kind: type[Contrastive]) -> None:
    volumes = scans()
    method = build(kind)
    one, again, other = (method.draw(volumes, Anchor(1, 3), np.random.default_rng(n)) for n in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_step_trains_the_encoder_and_the_head_and_leaves_the_decoder(kind: type[Contrastive]) -> None:
    method = build(kind).train()
    method(batch_of(method, scans()), NOW)["loss"].backward()
    trained = {name for name, weight in method.named_parameters() if weight.grad is not None}
    wanted = {name for name, weight in method.named_parameters() if weight.requires_grad}
    assert trained == wanted
    assert any(name.startswith("backbone.encoder") for name in trained)
    assert any(name.startswith("head") for name in trained)
    assert not any(name.startswith(("backbone.decoder", "momentum")) for name in trained)


@pytest.mark.parametrize("kind", OPTIONS)
def test_only_the_encoder_is_worth_keeping(kind: type[Contrastive]) -> None:
    """methods.md 2.8 e: the head is left behind."""
    method = build(kind)
    kept = method.transferable()
    assert set(kept) == {f"encoder.{name}" for name in method.backbone.encoder.state_dict()}


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_picture_shows_six_slices_and_leaves_the_training_mode(kind: type[Contrastive]) -> None:
    method = build(kind).train()
    modes = [module.training for module in method.modules()]
    picture = method.picture(batch_of(method, scans(), 8), NOW)
    assert picture is not None
    assert (picture.dtype, picture.shape[0], picture.shape[2]) == (np.uint8, 6 * 128 + 5 * 4, 3)
    assert [module.training for module in method.modules()] == modes


def test_the_picture_puts_the_nearest_slice_beside_each() -> None:
    method = build(SimCLR)
    views = torch.rand(4, 2, 1, 32, 32) * 3.0 - 1.5
    views[3, 0] = views[0, 0] * 1.001
    picture = method.picture({"views": views}, NOW)
    assert picture is not None
    query, nearest = picture[:128, :128].astype(int), picture[:128, 136:264].astype(int)
    assert np.abs(query - nearest).max() <= 1


@pytest.mark.parametrize("kind", OPTIONS)
def test_three_dimensions_are_refused(kind: type[Contrastive]) -> None:
    with pytest.raises(InputError, match="2D"):
        kind(build_backbone("unet2d_4"), InputContract(spatial_dims=3, size=(16, 16, 16)), OPTIONS[kind])


def test_slices_that_the_encoder_would_shrink_to_one_pixel_are_refused() -> None:
    with pytest.raises(InputError, match="needs 32 a side"):
        SimCLR(build_backbone("unet2d_4"), InputContract(size=(32, 16)), SimCLROptions())


@pytest.mark.parametrize("present", [True, False])
def test_sup_con_says_that_there_is_nothing_to_compare(present: bool) -> None:
    volumes = scans().with_presence([np.full(6, present)] * 3)
    with pytest.raises(InputError, match="with and without the organ"):
        build(SupCon).anchors(volumes)


def test_sup_con_without_a_presence_table_says_how_to_make_one() -> None:
    volumes = UnlabelledVolumes.from_arrays([np.arange(4096).reshape(4, 32, 32)])
    with pytest.raises(InputError, match="medssl presence"):
        build(SupCon).anchors(volumes)


def test_the_asymmetric_simclr_keeps_the_slice_itself() -> None:
    volumes = scans()
    method = SimCLR(build_backbone("unet2d_4"), CONTRACT, SimCLROptions(asymmetric=True))
    rng = np.random.default_rng(0)
    views = method.draw(volumes, Anchor(0, 1), rng)["views"]
    assert torch.equal(views[0], method.slice_image(volumes, Anchor(0, 1), np.random.default_rng(0)))
    assert not torch.equal(views[0], views[1])


def test_the_queue_holds_the_latest_keys_and_is_saved() -> None:
    method, volumes = build(MoCo).train(), scans()
    batch = batch_of(method, volumes)
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for step in range(3):
        keys = method.momentum(batch["views"][:, 1])
        before = method.queue
        method(batch, replace(NOW, step=step))
        assert torch.allclose(method.queue[:6], torch.nn.functional.normalize(keys, dim=1), atol=1e-6)
        assert step == 0 or torch.equal(method.queue[6:], before[:6])
    assert torch.equal(method.state_dict()["queue"], method.queue)
    method.eval()(batch, replace(NOW, step=3))
    assert torch.equal(method.state_dict()["queue"], method.queue)


def test_the_queue_starts_with_slices_not_with_noise() -> None:
    method = build(MoCo).train()
    method(batch_of(method, scans()), NOW)
    assert len(torch.unique(method.queue, dim=0)) == 6


def test_the_following_encoder_moves_by_the_momentum_after_a_step() -> None:
    method = build(MoCo)
    name, weight = next(iter(method.backbone.encoder.named_parameters()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    method.after_step(NOW)
    moved = dict(method.momentum.encoder.named_parameters())[name]
    assert torch.allclose(moved, before + (1.0 - method.options.momentum), atol=1e-6)
    assert not moved.requires_grad


def test_the_decay_of_byol_rises_to_one_along_a_cosine() -> None:
    assert decay_at(0.0, 0.99) == pytest.approx(0.99)
    assert decay_at(0.5, 0.99) == pytest.approx(0.995)
    assert decay_at(1.0, 0.99) == pytest.approx(1.0)


def test_byol_predicts_each_view_from_the_other() -> None:
    method = build(BYOL).eval()
    batch = batch_of(method, scans())
    first, second = batch["views"].unbind(1)
    expected = 0.0
    for seen, hidden in ((first, second), (second, first)):
        guess, target = method.predictor(method.embed(seen)), method.momentum(hidden)
        expected += np.mean([2.0 - 2.0 * similarity(g, t) for g, t in zip(guess, target, strict=True)])
    assert float(method(batch, NOW)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_options_out_of_range_are_refused() -> None:
    for bad in (
        lambda: ViewOptions(smallest_area=0.0),
        lambda: ViewOptions(brightness=1.0),
        lambda: ViewOptions(noise=-1.0),
        lambda: ContrastiveOptions(temperature=0.0),
        lambda: MoCoOptions(momentum=1.0),
        lambda: BYOLOptions(decay=1.5),
        lambda: PolyCLOptions(slice_fraction=0.0),
    ):
        with pytest.raises(InputError):
            bad()


LEAVE = ViewOptions(smallest_area=1.0, angle_deg=0.0, brightness=0.0, contrast=0.0, noise=0.0, blur_px=0.0)


def ramp() -> Tensor:
    return torch.linspace(-1.5, 1.5, 30 * 40).reshape(1, 30, 40)


def test_options_that_change_nothing_give_the_slice_itself() -> None:
    assert torch.equal(random_view(ramp(), LEAVE, (-1.5, 1.5), np.random.default_rng(0)), ramp())


def test_a_flip_exchanges_left_and_right() -> None:
    view = random_view(ramp(), replace(LEAVE, flip=1.0), (-1.5, 1.5), np.random.default_rng(0))
    assert torch.allclose(view, ramp().flip(2), atol=1e-5)


def test_a_crop_lies_within_the_slice() -> None:
    rng = np.random.default_rng(0)
    inside = torch.full((1, 30, 40), 0.7)
    for _ in range(50):
        view = random_view(inside, replace(LEAVE, smallest_area=0.2), (-1.5, 1.5), rng)
        assert torch.allclose(view[:, 1:-1, 1:-1], inside[:, 1:-1, 1:-1], atol=1e-5)


def test_a_rotation_turns_by_no_more_than_the_angle_and_fills_with_air() -> None:
    rng = np.random.default_rng(2)
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    bar = (((rows.abs() < 2) & (columns.abs() < 25)).float() * 3.0 - 1.5)[None]
    for _ in range(10):
        view = random_view(bar, replace(LEAVE, angle_deg=20.0), (-1.5, 1.5), rng)[0]
        weight = (view + 1.5).clamp_min(0.0)
        covariance = float((weight * rows * columns).sum() / (weight * columns * columns).sum())
        assert abs(math.degrees(math.atan(covariance))) <= 21.0
        assert float(view.min()) >= -1.5
        assert float(weight.sum()) == pytest.approx(float((bar + 1.5).sum()), rel=0.05)


@pytest.mark.parametrize("limits", [(-1.5, 1.5), None])
def test_views_stay_within_the_limits_and_differ(limits: tuple[float, float] | None) -> None:
    views = two_views(ramp(), ViewOptions(flip=0.5), limits, np.random.default_rng(1))
    assert views.shape == (2, 1, 30, 40)
    assert views.dtype == torch.float32
    assert float(views.min()) >= -1.5 - 1e-5
    assert float(views.max()) <= 1.5 + 1e-5
    assert not torch.allclose(views[0], views[1], atol=0.05)


def test_a_slice_of_air_gives_finite_views() -> None:
    views = two_views(torch.full((1, 16, 16), -1.5), ViewOptions(), None, np.random.default_rng(1))
    assert bool(torch.isfinite(views).all())


def test_the_range_of_the_input_follows_the_contract() -> None:
    assert input_range(CONTRACT) == (-1.5, 1.5)
    assert input_range(InputContract(channels="chest")) == (0.0, 1.0)
    assert input_range(InputContract(scale="volume")) is None
