"""Fine-tuning learns from what somebody vouched for and nothing else, and goes on exactly where it was stopped."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medssl.backbones import build_backbone
from medssl.datasets.data import IGNORE, Scan, intensity_stats
from medssl.datasets.input_contract import InputContract
from medssl.datasets.labelled import LabelledCase
from medssl.errors import Cancelled, InputError, ModelError, StorageError
from medssl.events import Log, Progress
from medssl.few_labels.annotated_samples import (
    AnnotatedCase,
    AnnotatedSamples,
    by_scan,
    hold_out,
)
from medssl.few_labels.augmentation import Augmentation
from medssl.few_labels.finetune_run import FinetuneConfig, finetune
from medssl.few_labels.finetuning import (
    FinetuneMetric,
    FinetuneSettings,
    Fitted,
    automatic,
    fit,
    measure,
    parameter_groups,
)
from medssl.few_labels.model_store import ModelStore
from medssl.few_labels.segmentation_loss import segmentation_loss
from medssl.few_labels.segmenter import ModelInfo, SegmentationModel, Segmenter, read_model, write_model
from medssl.runs.run_folder import RunFolder, TrainingMetric, plain
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume
from torch import Tensor

CONTRACT = InputContract(size=(32, 32), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0)
QUICK = FinetuneSettings(
    steps=8, batch=3, validations=2, learning_rate=3e-3, augmentation=0.5, layer_decay=1.0
)


def scene(seed: int, shape: tuple[int, int, int] = (6, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc (1) and a dark one (2) in a round body."""
    rng = np.random.default_rng(seed)
    image = rng.normal(40, 20, shape)
    labels = np.zeros(shape, np.uint8)
    grid = np.indices(shape[1:])
    for label, place in ((1, (12, 12)), (2, (26, 24))):
        centre = np.array(place) + rng.integers(-3, 4, 2)
        inside = ((grid - centre[:, None, None]) ** 2).sum(0) < 36
        labels[1:, inside] = label
    image[labels == 1] = 300
    image[labels == 2] = -150
    image[:, ((grid - np.array([19.5, 17.5])[:, None, None]) ** 2).sum(0) > 320] = -1000
    return image.astype(np.int16), labels


def case(seed: int, known: tuple[bool, ...] = (True, True, True)) -> AnnotatedCase:
    image, labels = scene(seed)
    labels = np.where(np.isin(labels, np.flatnonzero(known)), labels, 0).astype(np.uint8)
    scan = Scan(
        f"{seed}", f"case{seed}", f"patient{seed}", image.shape, (3.0, 1.0, 1.0), intensity_stats(image)
    )
    return AnnotatedCase(scan, image, labels, np.array(known))


def network(seed: int = 0, backbone: str = "unet2d_4") -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(build_backbone(backbone), 2)


def run_fit(net: Segmenter, settings: FinetuneSettings = QUICK, **kwargs: object) -> list[object]:
    cases = [case(0), case(1)]
    return list(fit(net, cases, [case(2)], CONTRACT, ["bright", "dark"], settings, **kwargs))  # type: ignore[arg-type]


# ---- loss


def literal_loss(logits: Tensor, target: Tensor, name: str) -> float:
    """Voxel by voxel, all classes known."""
    probabilities = logits.softmax(1).double()
    ce, voxels = 0.0, 0
    overlap, size = np.zeros(3), np.zeros(3)
    for place in np.ndindex(*target.shape):
        label = int(target[place])
        if label == IGNORE:
            continue
        voxels += 1
        p = probabilities[(place[0], slice(None), *place[1:])]
        ce -= float(p[label].log())
        for n in range(3):
            overlap[n] += float(p[n]) * (label == n)
            size[n] += float(p[n]) + (label == n)
    dice = np.mean([(2 * overlap[n] + 1) / (size[n] + 1) for n in (1, 2)])
    return 1 - dice + (ce / voxels if name == "dice+ce" else 0.0)


@pytest.mark.parametrize("name", ["dice", "dice+ce"])
@pytest.mark.parametrize("sides", [(3, 4), (2, 3, 2)])
def test_the_loss_equals_a_literal_one(name: str, sides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, *sides), generator=generator)
    target = torch.randint(0, 3, (2, *sides), generator=generator, dtype=torch.uint8)
    target[0, 0] = IGNORE
    found = segmentation_loss(logits, target, torch.ones(2, 3, dtype=torch.bool), name)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(literal_loss(logits, target, name), rel=1e-5)


def test_what_nobody_vouched_for_has_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    target[:, 2:] = IGNORE
    segmentation_loss(logits, target, torch.ones(2, 3, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).any()


def test_nothing_vouched_for_is_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(
        logits, torch.full((1, 4, 4), IGNORE, dtype=torch.uint8), torch.ones(1, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_segment_a_case_does_not_know_may_hide_in_its_background() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    known = torch.tensor([[True, True, False]])
    losses = []
    for hidden in (-9.0, 9.0):  # surely background, surely the unknown segment
        logits = torch.zeros(1, 3, 4, 4)
        logits[:, 1], logits[:, 2] = -9.0, hidden
        losses.append(float(segmentation_loss(logits, target, known)))
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


# ---- samples


def test_samples_repeat_and_show_a_segment_often() -> None:
    samples = AnnotatedSamples([case(0)], CONTRACT, organ_share=1.0)
    one, two = (samples.draw(np.random.default_rng(7), 6) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    shown = [set(labels.unique().tolist()) & {1, 2} for labels in one.labels]
    assert all(shown)


def test_only_vouched_slices_are_drawn() -> None:
    sparse = case(0).only_slices([2])
    batch = AnnotatedSamples([sparse], CONTRACT, organ_share=0.0).draw(np.random.default_rng(0), 8)
    middle = batch.labels[:, 4:-4, 4:-4]
    assert all((labels != IGNORE).any() for labels in middle)


def test_no_augmentation_is_the_middle_of_the_sample() -> None:
    batch = AnnotatedSamples([case(0)], CONTRACT).draw(np.random.default_rng(0), 2)
    margin = (batch.images.shape[-1] - 32) // 2
    images, labels = Augmentation(strength=0.0)(batch.images, batch.labels, (32, 32), torch.Generator())
    inner = slice(margin, -margin)
    torch.testing.assert_close(images, batch.images[:, :, inner, inner], atol=1e-4, rtol=0)
    assert torch.equal(labels, batch.labels[:, inner, inner])


def test_augmentation_moves_labels_with_the_image() -> None:
    batch = AnnotatedSamples([case(0)], CONTRACT, organ_share=1.0).draw(np.random.default_rng(0), 6)
    turned = Augmentation(
        strength=1.0, flip_left_right=True, noise=0.0, blur=0.0, contrast=0.0, gamma=0.0, brightness=0.0
    )
    images, labels = turned(batch.images, batch.labels, (32, 32), torch.Generator().manual_seed(0))
    assert images[:, 0][labels == 1].mean() > 0.8
    assert images[:, 0][labels == 2].mean() < -0.8


def test_few_cases_hold_out_slices_and_more_hold_out_a_patient() -> None:
    learnt, held, words = hold_out([case(0)])
    assert len(held) == 1
    assert not set(held[0].vouched_slices) & set(learnt[0].vouched_slices)
    assert "slice" in words
    learnt, held, _ = hold_out([case(n) for n in range(5)], seed=1)
    assert len(held) == 1
    assert held[0].scan.patient not in {c.scan.patient for c in learnt}
    with pytest.raises(InputError, match=r"nobody is not possible.*case0"):
        hold_out([case(0), case(1)], validation=["case1", "nobody"])


def test_whoever_alone_shows_a_segment_is_not_held_out() -> None:
    bright = [case(seed, (True, True, False)) for seed in (0, 1)]
    for seed in range(6):
        learnt, held, _ = hold_out([*bright, case(2)], seed=seed)
        assert held[0].scan.name in ("case0", "case1")
        assert {label for part in learnt for label in np.unique(part.labels)} == {0, 1, 2}


def test_who_is_measured_on_can_be_named_by_file_folder_pattern_or_patient() -> None:
    def scan(n: int) -> AnnotatedCase:
        whole = case(n)
        return replace(whole, scan=replace(whole.scan, name=f"site/p{n}/ct.nii.gz"))

    cases = [scan(n) for n in range(4)]
    for word in ("site/p2/ct.nii.gz", "site/p2", "*/p2", cases[2].scan.patient):
        _, held, _ = hold_out(cases, validation=[word])
        assert [part.scan.name for part in held] == ["site/p2/ct.nii.gz"]


def without_segments(seed: int) -> AnnotatedCase:
    """A person on whose vouched slices there is nothing but background."""
    return replace(case(seed), labels=np.zeros_like(case(seed).labels))


def test_whoever_shows_no_segment_is_not_measured_on() -> None:
    healthy, ill = [without_segments(n) for n in range(4)], [case(4), case(5)]
    for seed in range(6):
        _, held, _ = hold_out([*healthy, *ill], seed=seed)
        assert held[0].scan.name in ("case4", "case5")
    learnt, held, words = hold_out([*healthy, case(4)])
    assert "slice" in words
    assert "case4" in words
    assert set(held[0].shown) == {1, 2}
    assert len(learnt) == 5
    with pytest.raises(InputError, match="no segment is on the slices vouched for"):
        hold_out([*healthy, *ill], validation=["case0"])


def test_a_segment_that_nothing_held_out_shows_has_no_dice() -> None:
    segments = ["bright", "dark"]
    only_bright = replace(case(0), labels=np.where(case(0).labels == 2, 0, case(0).labels).astype(np.uint8))
    dice, _ = measure(network(), [only_bright], CONTRACT, segments)
    assert set(dice) == {"bright"}
    with_healthy, _ = measure(network(), [only_bright, without_segments(1)], CONTRACT, segments)
    assert with_healthy == dice


def test_of_networks_that_are_equally_good_the_last_one_is_kept() -> None:
    net, state = network(), Fitted()
    frozen = replace(QUICK, steps=8, validations=4, learning_rate=1e-12, patience=3)
    metrics = [e for e in run_fit(net, frozen, state=state) if isinstance(e, FinetuneMetric)]
    assert len({metric.mean_dice for metric in metrics}) == 1
    assert [metric.best for metric in metrics] == [True] * 4
    assert (state.best_step, state.since_best) == (8, 3)


def in_parts(seed: int) -> list[AnnotatedCase]:
    """One scan of which some slices teach both segments, others the bright one alone."""
    whole = case(seed)
    alone = replace(case(seed, (True, True, False)).only_slices([1, 2]), scan=whole.scan)
    return [whole.only_slices([3, 4, 5]), alone]


def test_the_parts_of_a_scan_count_once_and_are_named_once() -> None:
    parts = [part for seed in range(3) for part in in_parts(seed)]
    assert {scan: len(of_it) for scan, of_it in by_scan(parts).items()} == {"0": 2, "1": 2, "2": 2}
    learnt, held, words = hold_out(parts)
    assert (len(by_scan(learnt)), len(by_scan(held))) == (2, 1)
    assert words == f"measured on {held[0].scan.name}"


def test_slices_are_held_out_of_every_part_that_has_three() -> None:
    bright = replace(case(0, (True, True, False)).only_slices([1, 2, 3]), scan=case(0).scan)
    dark = replace(case(0, (True, False, True)).only_slices([4, 5]), scan=case(0).scan)
    learnt, held, words = hold_out([bright, dark, case(1).only_slices([1])])
    assert [part.vouched_slices.tolist() for part in held] == [[2]]
    assert [part.vouched_slices.tolist() for part in learnt] == [[1, 3], [4, 5], [1]]
    assert words == "measured on 1 slice of case0, kept out of the learning"


def test_parts_are_drawn_as_often_as_they_have_slices() -> None:
    """Of 3 scans each comes in a third of the samples, and the parts of one share it 3 to 2."""
    cases = [*in_parts(0), case(1), case(2)]
    samples = AnnotatedSamples(cases, CONTRACT)
    rng = np.random.default_rng(0)
    counts = np.bincount([samples._which(rng) for _ in range(3000)]) / 3000
    np.testing.assert_allclose(counts, [0.2, 2 / 15, 1 / 3, 1 / 3], atol=0.03)


def test_slices_that_were_drawn_come_often_however_many_were_carried_from_them() -> None:
    drawn, carried = case(0).only_slices([2]), replace(case(0), is_carried=True)
    samples = AnnotatedSamples([drawn, carried, case(1)], CONTRACT)
    rng = np.random.default_rng(0)
    counts = np.bincount([samples._which(rng) for _ in range(3000)]) / 3000
    np.testing.assert_allclose(counts, [0.15, 0.35, 0.5], atol=0.03)


def test_a_scan_in_parts_is_measured_as_if_it_were_whole() -> None:
    net = network()
    segments = ["bright", "dark"]
    whole, _ = measure(net, [case(3).only_slices([1, 2, 4])], CONTRACT, segments)
    parts = [case(3).only_slices([1]), case(3).only_slices([2, 4])]
    found, preview = measure(net, parts, CONTRACT, segments)
    assert found == whole
    assert preview is not None
    assert preview.k in (1, 2, 4)


def test_nothing_annotated_is_refused() -> None:
    with pytest.raises(InputError, match="No slice"):
        AnnotatedSamples([case(0).only_slices([])], CONTRACT)


# ---- training


def test_a_network_learns_the_segments() -> None:
    events = run_fit(network(), replace(QUICK, steps=40, batch=4, learning_rate=1e-2, augmentation=0.2))
    metrics = [event for event in events if isinstance(event, FinetuneMetric)]
    assert max(metric.mean_dice for metric in metrics) > 0.5
    assert metrics[-1].loss < 0.7 * metrics[0].loss


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_stopped_run_goes_on_bit_for_bit(stop_at: int) -> None:
    whole = network()
    run_fit(whole)
    kept: list[Fitted] = []
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > stop_at

    with pytest.raises(Cancelled):
        run_fit(network(), on_checkpoint=lambda state: kept.append(copy.deepcopy(state)), cancelled=cancelled)
    again = network(seed=5)
    run_fit(again, state=kept[-1])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_run_stopped_while_measuring_measures_first_when_it_goes_on() -> None:
    whole = network()
    events = run_fit(whole)
    kept: list[Fitted] = []
    seen: list[object] = []

    def cancelled() -> bool:
        return len(seen) == 4  # the fourth step is done; what comes next is a validation

    stopped = fit(
        network(), [case(0), case(1)], [case(2)], CONTRACT, ["bright", "dark"], QUICK,
        on_checkpoint=lambda state: kept.append(copy.deepcopy(state)), cancelled=cancelled,
    )  # fmt: skip
    with pytest.raises(Cancelled, match="stopped at step 4"):
        seen.extend(event for event in stopped)
    assert (kept[-1].step, kept[-1].unmeasured, len(kept[-1].losses)) == (4, True, 4)
    again = network(seed=5)
    rest = run_fit(again, state=kept[-1])
    assert [e for e in rest if isinstance(e, FinetuneMetric)] == [
        e for e in events if isinstance(e, FinetuneMetric)
    ]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_is_saved_between_validations_goes_on_bit_for_bit() -> None:
    """What a kill -9 leaves behind is one of these states."""
    whole = network()
    kept: list[Fitted] = []
    events = run_fit(whole, save_every_s=0.0, on_checkpoint=lambda state: kept.append(copy.deepcopy(state)))
    assert [state.step for state in kept] == list(range(1, 9))
    for state in kept[::3]:
        to_come = [e for e in events if isinstance(e, FinetuneMetric) and e.step > state.step]
        again = network(seed=5)
        rest = run_fit(again, state=state)
        assert [e for e in rest if isinstance(e, FinetuneMetric)] == to_come
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_best_network_is_kept_and_training_stops_early() -> None:
    state = Fitted()
    net = network()
    list(fit(net, [case(0)], [case(1)], CONTRACT, ["bright", "dark"],
             replace(QUICK, steps=30, validations=30, patience=2, learning_rate=1e-9), state=state))  # fmt: skip
    assert state.stopped
    assert state.since_best == 2
    assert state.best_network is not None
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in state.best_network.items())


def test_few_slices_tell_a_dice_but_do_not_choose_among_networks() -> None:
    state = Fitted()
    list(fit(network(), [case(0)], [case(1).only_slices([2])], CONTRACT, ["bright", "dark"],
             replace(QUICK, steps=8, validations=8, patience=2, learning_rate=1e-9), state=state))  # fmt: skip
    assert (state.stopped, state.best_step) == (False, 8)
    assert state.best_dice


CLOSING = replace(QUICK, steps=6, validations=3, closing=0.5)


def closed(net: Segmenter, state: Fitted, stop_after: int = 100, learn_from: int = 0) -> list[Progress]:
    """Fine-tune on one case and, in three closing steps, on the measured one too; it may be stopped on the way."""
    told: list[Progress] = []
    with contextlib.suppress(Cancelled):
        for event in fit(net, [case(learn_from)], [case(1)], CONTRACT, ["bright", "dark"], CLOSING, state=state,
                         join=[case(learn_from), case(1)], cancelled=lambda: len(told) >= stop_after):  # fmt: skip
            if isinstance(event, Progress):
                told.append(event)
    return told


def test_in_the_closing_steps_what_was_measured_on_teaches_too_and_the_dice_stays() -> None:
    net, state, without = network(), Fitted(), Fitted()
    told = closed(net, state)
    list(fit(network(), [case(0)], [case(1)], CONTRACT, ["bright", "dark"], CLOSING, state=without))
    assert (len(told), told[-1].done, told[-1].total) == (9, 9, 9)
    assert state.closing_step == 3
    assert state.best_dice == without.best_dice
    assert state.best_network is not None
    assert not all(torch.equal(t, net.state_dict()[n]) for n, t in state.best_network.items())


@pytest.mark.parametrize("stop_after", [2, 6, 7, 8])
def test_a_run_stopped_in_its_closing_steps_goes_on_bit_for_bit(stop_after: int) -> None:
    whole, parted, state = network(), network(), Fitted()
    closed(whole, Fitted())
    assert len(closed(parted, state, stop_after)) == stop_after
    again = network(seed=5)
    assert len(closed(again, state)) == 9 - stop_after
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_loss_that_is_no_number_is_said() -> None:
    with pytest.raises(ModelError, match="learning rate"):
        run_fit(network(), replace(QUICK, steps=30, learning_rate=1e30))


def test_automatic_settings_grow_with_the_cases_and_can_be_overridden() -> None:
    steps = [automatic(FinetuneSettings(), network(), n, False).steps for n in (1, 3, 5, 20)]
    assert steps == sorted(steps)
    assert automatic(FinetuneSettings(batch=5, augmentation=0.0), network(), 3, False).augmentation == 0.0


def test_earlier_blocks_of_a_transformer_learn_more_slowly() -> None:
    net = network(backbone="vit_tiny")
    groups = parameter_groups(net, replace(QUICK, layer_decay=0.5))
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    of = {name: factor[id(p)] for name, p in net.named_parameters()}
    blocks = [of[f"backbone.encoder.blocks.{n}.mlp.fc1.weight"] for n in range(4)]
    assert blocks == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert of["backbone.encoder.patch_embed.weight"] == 0.5**5
    assert of["backbone.decoder.ups.0.weight"] == 1.0
    assert of["head.weight"] > 1.0


# ---- model files and runs


def test_a_model_file_gives_back_the_network_and_all_that_is_known(tmp_path: Path) -> None:
    info = ModelInfo(
        backbone="unet2d_4", contract=CONTRACT, segments=(Segment("liver", 1, (1.0, 0.5, 0.0)),),
        cases=("abc",), settings={"steps": 3}, dice={"liver": 0.9},
    )  # fmt: skip
    model = SegmentationModel.build(info)
    write_model(tmp_path / "m.safetensors", model)
    found = read_model(tmp_path / "m.safetensors")
    assert found.info == info
    assert not found.network.training
    assert all(
        torch.equal(a, b) for a, b in zip(found.network.parameters(), model.network.parameters(), strict=True)
    )


def labelled(seed: int) -> LabelledCase:
    image, labels = scene(seed)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    segments = (Segment("bright", 1, (1.0, 0.0, 0.0)), Segment("dark", 2, (0.0, 0.0, 1.0)))
    return LabelledCase(
        f"case{seed}", f"patient{seed}", Volume(image, affine, "v"), Segmentation(labels, affine, segments)
    )


def test_a_run_writes_a_model_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    cases = [labelled(n) for n in range(3)]
    common = {"data": tmp_path, "segments": ("bright", "dark"), "backbone": "unet2d_4", "steps": 6, "batch": 2,
              "size": (32, 32), "spacing": (0.0, 1.0, 1.0), "device": "cpu"}  # fmt: skip
    whole = FinetuneConfig(out=tmp_path / "whole", **common)  # type: ignore[arg-type]
    list(finetune(whole, cases=cases))
    parted = FinetuneConfig(out=tmp_path / "parted", **common)  # type: ignore[arg-type]
    steps: list[Progress] = []
    with pytest.raises(Cancelled):
        steps.extend(e for e in finetune(parted, lambda: len(steps) > 2, cases) if isinstance(e, Progress))
    assert RunFolder.open(parted.out).status.state == "stopped"
    list(finetune(parted, cases=cases))
    one, two = (read_model(config.out / "checkpoint.safetensors") for config in (whole, parted))
    assert one.info == two.info
    assert set(one.info.dice) == {"bright", "dark"}
    assert len(one.info.cases) == 2
    assert all(
        torch.equal(a, b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True)
    )
    assert RunFolder.open(whole.out).pictures()


def test_a_run_under_way_has_the_best_model_so_far_and_its_picture(tmp_path: Path) -> None:
    config = FinetuneConfig(data=tmp_path, out=tmp_path / "run", segments=("bright",), backbone="unet2d_4", steps=4,
                            validations=2, batch=2, size=(32, 32), spacing=(0.0, 1.0, 1.0), device="cpu")  # fmt: skip
    events = finetune(config, cases=[labelled(n) for n in range(3)])
    first = next(e for e in events if isinstance(e, TrainingMetric))
    run = RunFolder.open(config.out)
    assert read_model(run.checkpoint).info.dice == {"bright": first.values["dice bright"]}
    assert first.samples_per_second > 0
    next(events)
    assert [path.name for path in run.pictures()] == ["step-000002.png"]
    events.close()
    assert run.status.state == "stopped"
    assert read_model(run.checkpoint).info.names == ("bright",)


def test_a_run_does_not_go_on_with_other_cases(tmp_path: Path) -> None:
    config = FinetuneConfig(data=tmp_path, out=tmp_path / "run", segments=("bright",), backbone="unet2d_4", steps=4,
                            batch=2, size=(32, 32), spacing=(0.0, 1.0, 1.0), device="cpu",
                            save_every_minutes=1e-9)  # fmt: skip
    events = finetune(config, cases=[labelled(n) for n in range(3)])
    next(e for e in events if isinstance(e, Progress) and e.done == 2)
    events.close()
    with pytest.raises(InputError, match="cases have changed"):
        list(finetune(config, cases=[labelled(n) for n in range(4)]))


def test_a_spacing_of_two_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="three numbers above 0 mm"):
        InputContract(spacing_kji_mm=(2.0, 2.0))  # type: ignore[arg-type]


def test_a_shipped_encoder_keeps_its_name_and_a_file_its_place(tmp_path: Path) -> None:
    common = {"out": tmp_path, "data": tmp_path, "segments": ("bright",)}
    assert plain(FinetuneConfig(encoder="polycl-s", **common))["encoder"] == "polycl-s"  # type: ignore[arg-type]
    found = FinetuneConfig(encoder="mine.safetensors", **common).encoder  # type: ignore[arg-type]
    assert found == str(Path("mine.safetensors").absolute())


def test_another_setting_is_refused_when_going_on(tmp_path: Path) -> None:
    config = FinetuneConfig(data=tmp_path, out=tmp_path / "run", segments=("bright",), backbone="unet2d_4", steps=1,
                            size=(32, 32), spacing=(0.0, 1.0, 1.0), device="cpu")  # fmt: skip
    list(finetune(config, cases=[labelled(0)]))
    with pytest.raises(InputError, match="batch"):
        list(finetune(replace(config, batch=3), cases=[labelled(0)]))


@pytest.mark.parametrize(
    "changes", [{"seed": -1}, {"seed": 1 << 31}, {"weight_decay": math.nan}, {"augmentation": math.nan}]
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        FinetuneSettings(**changes)  # type: ignore[arg-type]


# ---- earlier models

TINY = {"backbone": "unet2d_4", "steps": 2, "batch": 2, "validations": 1, "size": (32, 32), "spacing": (0.0, 1.0, 1.0),
        "device": "cpu"}  # fmt: skip


def finetuned(folder: Path, out: str, segments: tuple[str, ...], **changes: object) -> list[str]:
    """Fine-tune on two cases and keep the result; what the run said."""
    common = {"data": folder, "out": folder / out, "models": folder / "models", "segments": segments}
    config = FinetuneConfig(**{**common, **TINY, **changes})  # type: ignore[arg-type]
    return [e.text for e in finetune(config, cases=[labelled(0), labelled(1)]) if isinstance(e, Log)]


def test_a_name_given_again_makes_the_next_version_and_says_so(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    assert "Kept as both:1, which 'both' now stands for." in finetuned(
        tmp_path, "1", ("bright",), name="both"
    )
    said = finetuned(tmp_path, "2", ("bright", "dark"), name="both")
    assert any("There is a model both already (both:1)" in text and "--from both" in text for text in said)
    first, second = store.models()[0].versions
    assert (first.info.follows, second.info.follows) == ("", "both:1")
    assert second.info.base == {}


def test_a_run_given_again_when_it_is_done_keeps_no_second_copy(tmp_path: Path) -> None:
    for expected in ("Kept as b:1, which 'b' now stands for.", "It is kept as b:1 already."):
        assert finetuned(tmp_path, "1", ("bright",), name="b")[-1] == expected
    assert len(ModelStore(tmp_path / "models").models()[0].versions) == 1


def test_a_models_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(StorageError, match=r"models could not be made .*; choose another"):
        finetuned(tmp_path, "1", ("bright",), name="b")
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("changes", "learnt"), [({}, 3), ({"closing": 0.0}, 2), ({"validation": ("case1",)}, 2)]
)
def test_a_held_out_case_is_learnt_from_at_last_unless_a_person_keeps_it_apart(
    tmp_path: Path, changes: dict[str, Any], learnt: int
) -> None:
    common = {"data": tmp_path, "out": tmp_path / "run", "segments": ("bright",)}
    config = FinetuneConfig(**{**common, **TINY, **changes})  # type: ignore[arg-type]
    said = [e.text for e in finetune(config, cases=[labelled(n) for n in range(3)]) if isinstance(e, Log)]
    assert any("learnt from too in the last steps" in text for text in said) is (learnt == 3)
    model = read_model(config.out / "checkpoint.safetensors")
    assert len(model.info.scans) == learnt
    assert model.info.dice


def test_an_earlier_model_is_where_training_begins(tmp_path: Path) -> None:
    finetuned(tmp_path, "1", ("bright",), name="b", steps=4)
    earlier = read_model(ModelStore(tmp_path / "models").resolve("b"))
    said = finetuned(
        tmp_path, "2", ("dark", "bright"), name="b", from_model="b", backbone=None, size=(), spacing=(),
        learning_rate=1e-12,
    )  # fmt: skip
    assert any(text.startswith("Begun with b:1: ") and "(100.0% of the encoder)" in text for text in said)
    assert any(text.endswith("it knew bright; new to it: dark") for text in said)
    version = ModelStore(tmp_path / "models").find("b:2")
    info = version.info
    assert info.base == {"model": "b:1", "scans": list(earlier.info.scans)}
    assert info.contract == earlier.info.contract
    assert len(info.scans) == 2
    assert info.spacing_kji_mm == ((3.0, 3.0), (1.0, 1.0), (1.0, 1.0))
    now = read_model(version.path)
    torch.testing.assert_close(now.network.backbone.state_dict(), earlier.network.backbone.state_dict())
    torch.testing.assert_close(now.network.head.weight[[0, 2]], earlier.network.head.weight)


def test_a_name_is_a_name_though_a_folder_beside_it_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")

    def start(name: str) -> str | None:
        return FinetuneConfig(out=tmp_path / "x", cases=tmp_path, from_model=name).from_model

    assert [start(name) for name in ("liver", "liver.v2", "liver:2")] == ["liver", "liver.v2", "liver:2"]
    assert [start(name) for name in ("run", "b.safetensors")] == [
        str(tmp_path / "run"), str(tmp_path / "b.safetensors"),
    ]  # fmt: skip


def test_an_earlier_model_with_another_network_is_refused_before_training(tmp_path: Path) -> None:
    finetuned(tmp_path, "1", ("bright",), name="b")
    path = str(tmp_path / "1")
    with pytest.raises(
        ModelError, match=r"cannot begin with checkpoint.safetensors, whose backbone is unet2d_4; leave"
    ):
        finetuned(tmp_path, "2", ("bright",), from_model=path, backbone="resunet18_4")
    with pytest.raises(InputError, match="There is no model 'heart'"):
        finetuned(tmp_path, "3", ("bright",), from_model="heart")
    with pytest.raises(InputError, match="not from both"):
        finetuned(tmp_path, "4", ("bright",), from_model="b", encoder="mae")


def test_what_an_earlier_model_has_learnt_from_is_no_fair_measure(tmp_path: Path) -> None:
    finetuned(tmp_path, "1", ("bright",), name="b", validation=("case1",))
    said = finetuned(tmp_path, "2", ("bright",), from_model="b:1", validation=("case0",))
    assert "b:1 has learnt from case0 before, so the Dice measured there is too good." in said


def test_a_run_goes_on_though_the_model_it_began_with_is_gone(tmp_path: Path) -> None:
    finetuned(tmp_path, "1", ("bright",), name="b")
    config = FinetuneConfig(
        data=tmp_path, out=tmp_path / "2", models=tmp_path / "models", segments=("bright",), from_model="b",
        **{**TINY, "steps": 4, "save_every_minutes": 1e-9},
    )  # type: ignore[arg-type]  # fmt: skip
    events = finetune(config, cases=[labelled(0), labelled(1)])
    next(e for e in events if isinstance(e, Progress) and e.done == 2)
    events.close()
    ModelStore(tmp_path / "models").delete("b")
    list(finetune(config, cases=[labelled(0), labelled(1)]))
    assert read_model(tmp_path / "2" / "checkpoint.safetensors").info.base["model"] == "b:1"
