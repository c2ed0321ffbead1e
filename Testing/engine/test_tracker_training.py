from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from medssl.cases import CaseStore, Vouched
from medssl.checkpoints import read_checkpoint, read_weights, write_checkpoint
from medssl.datasets.sources import exclusions
from medssl.errors import Cancelled, InputError, ModelError
from medssl.events import Log, Progress
from medssl.formats.imagefile import write_image
from medssl.foundation.nano_boxes import box_guesses
from medssl.foundation.nano_fusion import Fusion
from medssl.foundation.nano_model import (
    PROMPTS,
    NanoConfig,
    NanoModel,
    load_nano,
    load_prompted,
    prompted_model,
)
from medssl.phantom import phantom_ct
from medssl.registry import DEFAULT_MODEL, find_entry, model_path
from medssl.runs.detached import resume_detached
from medssl.runs.run_folder import RunFolder, TrainingMetric
from medssl.tracker.clips import ClipSampler, LabelledVolume, ObjectChooser
from medssl.tracker.data import read_data
from medssl.tracker.lessons import coarse_masks, guessed_in_boxes, prompt_loss, tracking_loss
from medssl.tracker.prompt_samples import PromptSampler
from medssl.tracker.training import (
    PROMPTS_RUN,
    TRACKER_RUN,
    PromptTrainConfig,
    TrackerTrainConfig,
    new_model,
    train_prompts,
    train_tracker,
)
from medssl.volume import write_volume

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = NanoConfig(image_size=64, embed_dim=8, model_dim=64, memory_dim=32, memories=3, edge_width=4)
HOLDOUT = Path(__file__).parents[1] / "benchmarks" / "holdout.json"
DEVELOPMENT = HOLDOUT.with_name("development.json")
DIES_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch

def half_a_file(state, path):
    Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)

sys.path.insert(0, sys.argv[3])
from test_tracker_training import TINY, a_config, train_tracker
torch.save = half_a_file
list(train_tracker(a_config(Path(sys.argv[1]), Path(sys.argv[2]), steps=2), model_config=TINY))
"""


def a_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    k, j, i = np.ogrid[:14, :36, :40]
    labels = np.zeros((14, 36, 40), np.uint8)
    labels[((k - 6) / 5) ** 2 + ((j - 14) / 8) ** 2 + ((i - 14 - seed) / 9) ** 2 <= 1] = 1
    labels[((k - 7) / 5) ** 2 + ((j - 27) / 6) ** 2 + ((i - 30) / 5) ** 2 <= 1] = 2
    noise = np.random.default_rng(seed).normal(0, 15, labels.shape)
    image = (np.array([-80, 60, 140])[labels] + noise).astype(np.int16)
    image[:, :3] = -1000  # air: it looks like a CT
    return image, labels


def save(array_kji: np.ndarray, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(array_kji)
    image.SetSpacing((2.0, 2.0, 3.0))
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled cases."""
    for seed in range(2):
        case = tmp_path / "data" / f"case_{seed}"
        case.mkdir(parents=True)
        image, labels = a_case(seed)
        save(image, case / "ct.nii.gz")
        save(labels, case / "label.nii.gz")
    return tmp_path / "data"


def a_config(data: Path, out: Path, **changes: Any) -> TrackerTrainConfig:
    config = TrackerTrainConfig(data=data, out=out, steps=4, batch=2, slices=3, phantoms=0, device="cpu")
    return replace(config, **changes)


def train(config: TrackerTrainConfig) -> list[Progress | TrainingMetric | Log]:
    return list(train_tracker(config, model_config=TINY))


def train_and_stop(config: TrackerTrainConfig, after: int) -> None:
    """Train and be stopped after some steps."""
    asked = itertools.count()
    with pytest.raises(Cancelled, match=f"after step {after} of {config.steps}.*medssl runs resume"):
        list(train_tracker(config, lambda: next(asked) == after, TINY))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses_while_learning(loss_of: Callable[[NanoModel], tuple[torch.Tensor, Any]]) -> list[float]:
    """Of 25 steps on one batch."""
    torch.manual_seed(0)
    model = new_model(TINY, None).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss, _ = loss_of(model)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(data: Path, tmp_path: Path) -> None:
    whole, parts = a_config(data, tmp_path / "whole"), a_config(data, tmp_path / "parts")

    events = train(whole)
    train_and_stop(parts, after=2)
    half_way = read_weights(parts.out / "checkpoint.safetensors")
    train(parts)

    weights, meta = read_checkpoint(whole.out / "checkpoint.safetensors")
    resumed, resumed_meta = read_checkpoint(parts.out / "checkpoint.safetensors")
    assert same(weights, resumed)
    assert not same(half_way, resumed)
    assert meta == resumed_meta
    assert meta["step"] == 4
    states = [torch.load(run.out / "resume.pt", weights_only=True) for run in (whole, parts)]
    assert same(states[0]["model"], states[1]["model"])
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert [type(event) for event in events if not isinstance(event, Progress)] == [Log, TrainingMetric]
    assert load_nano(whole.out / "checkpoint.safetensors", torch.device("cpu"))[0].config == TINY


def test_a_run_that_dies_while_saving_keeps_its_last_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_and_stop(a_config(data, out, steps=2), after=1)
    before = {name: (out / name).read_bytes() for name in ("resume.pt", "checkpoint.safetensors")}

    command = [sys.executable, "-c", DIES_WHILE_SAVING, str(data), str(out), str(Path(__file__).parent)]
    died = subprocess.run(command, capture_output=True, check=False)

    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert {name: (out / name).read_bytes() for name in before} == before
    metric = next(event for event in train(a_config(data, out, steps=2)) if isinstance(event, TrainingMetric))
    assert metric.step == 2


def test_a_run_is_seen_by_others_and_stopped_by_them(data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path / "run", steps=60)
    states: list[str] = []

    def watch() -> None:
        for event in train_tracker(config, model_config=TINY):
            run = RunFolder.open(config.out)
            states.append(run.status.state)
            if isinstance(event, TrainingMetric):
                run.ask_to_stop()

    with pytest.raises(Cancelled):
        watch()

    run = RunFolder.open(config.out)
    assert set(states) == {"running"}
    assert (run.kind, run.status.state) == ("train tracker", "stopped")
    metrics = run.metrics()
    assert [metric.step for metric in metrics] == [25]
    assert metrics[0].values.keys() == {"loss", "dice", "presence"}
    assert read_checkpoint(run.checkpoint)[1]["step"] == 25


def test_a_run_goes_on_in_the_background_with_the_words_of_its_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    RunFolder.create(out, TRACKER_RUN, a_config(data, out, steps=1, exclude=("case_1",)))

    run = resume_detached(out)
    deadline = time.monotonic() + 120.0
    while run.status.state == "running" and time.monotonic() < deadline:
        time.sleep(0.1)

    assert run.status.state == "done", run.log.read_text()
    meta = read_checkpoint(run.checkpoint)[1]
    assert (meta["step"], meta["excluded"]["count"]) == (1, 1)


def test_other_settings_or_other_data_do_not_go_on_with_a_run(data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path / "run", steps=2)
    train_and_stop(config, after=1)

    with pytest.raises(InputError, match="began with batch = 2, not 3"):
        train(replace(config, batch=3))
    (data / "case_1" / "label.nii.gz").unlink()
    with pytest.raises(InputError, match="began with data = 2 labelled"):
        train(config)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved(data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path / "run", steps=3, save_every=1, learning_rate=1e38)

    with pytest.raises(InputError, match=r"no longer a number at step \d; .*lower --learning-rate"):
        train(config)

    assert RunFolder.open(config.out).status.state == "failed"
    assert read_checkpoint(config.out / "checkpoint.safetensors")[1]["step"] >= 1


def test_the_loss_falls_on_one_repeated_batch() -> None:
    image, labels = a_case(0)
    sampler = ClipSampler(
        ObjectChooser([(1.0, [LabelledVolume(image, labels, (3.0, 2.0, 2.0))])]), [], 0.0, TINY.image_size
    )
    batch = sampler.batch(np.random.default_rng(0), 2, 3)

    losses = losses_while_learning(lambda model: tracking_loss(model, *batch, np.random.default_rng(0)))

    assert np.mean(losses[-3:]) < 0.75 * losses[0]


def test_a_coarse_mask_is_another_one_that_still_shows_its_object() -> None:
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = (((rows - 64) / 26) ** 2 + ((columns - 64) / 34) ** 2 < 1).float().expand(20, 1, 128, 128)
    for seed in range(3):
        coarse = coarse_masks(disc, np.random.default_rng(seed))
        dice = 2 * (coarse * disc).sum((1, 2, 3)) / (coarse.sum((1, 2, 3)) + disc.sum((1, 2, 3)))
        assert set(coarse.unique().tolist()) == {0.0, 1.0}
        assert float(dice.min()) >= 0.3
        assert float(dice.mean()) < 0.95
    speck = torch.zeros(1, 1, 128, 128)
    speck[..., 60:63, 60:63] = 1.0
    assert torch.equal(coarse_masks(speck, np.random.default_rng(0)), speck), "too little would be left of it"


def test_excluded_cases_are_never_read_and_are_not_named_in_the_weights(data: Path, tmp_path: Path) -> None:
    held_out = data / "held_out"
    held_out.mkdir()
    (held_out / "ct.nii.gz").write_text("no image")
    config = a_config(data, tmp_path / "run", steps=1, exclude=("held*", "another"))

    events = train(config)

    text = config.out.joinpath("checkpoint.safetensors").read_bytes()
    meta = read_checkpoint(config.out / "checkpoint.safetensors")[1]
    assert meta["excluded"] == exclusions(["another", "held*"])
    assert b"held" not in text
    assert meta["recipe"]["steps"] == 1
    assert events[0] == Log("2 labelled and 0 unlabelled CTs, 0 drawn volumes.")
    with pytest.raises(InputError, match="held_out"):
        train(replace(config, exclude=(), out=tmp_path / "other"))


def test_any_layout_will_do_and_what_is_no_ct_is_left_out_by_name(data: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for folder in ("imagesTr", "labelsTr"):
        (pool / folder).mkdir(parents=True)
    for seed in range(2):
        shutil.copy(data / f"case_{seed}" / "ct.nii.gz", pool / "imagesTr" / f"p{seed}_0000.nii.gz")
        shutil.copy(data / f"case_{seed}" / "label.nii.gz", pool / "labelsTr" / f"p{seed}.nii.gz")
    (pool / "mr").mkdir()
    save(np.abs(a_case(3)[0]), pool / "mr" / "mr.nii.gz")
    save(a_case(3)[1], pool / "mr" / "label.nii.gz")

    read = read_data(pool, (), phantoms=1, seed=0)

    assert len(read) == 3
    assert read.description == (
        "2 labelled and 0 unlabelled CTs, 1 drawn volumes. Left out, no CT: mr/mr.nii.gz (a meta.json beside it may"
        " say otherwise)."
    )


def test_of_a_case_store_only_what_is_vouched_for_is_learnt(tmp_path: Path) -> None:
    phantom = phantom_ct(3, (48, 48, 56), (6.0, 8.0, 8.0))
    truth = phantom.segmentation
    wanted = ("liver", "spleen", "heart")
    kept = replace(
        truth,
        labels_kji=np.sum([truth.mask(name) * truth.segment(name).label for name in wanted], axis=0).astype(
            np.uint8
        ),
        segments=tuple(truth.segment(name) for name in wanted),
    )
    store = CaseStore(tmp_path / "store")
    liver = int(truth.mask("liver").sum(axis=(1, 2)).argmax())
    spleen = np.flatnonzero(truth.mask("spleen").sum(axis=(1, 2)) >= 5).tolist()
    assert len(spleen) >= 5
    vouched = [Vouched("liver", 0, (liver,)), Vouched("spleen", 0, tuple(spleen), "propagated")]
    store.add(phantom.volume, kept, vouched, name="one")

    read = read_data(store.folder, (), phantoms=0, seed=0)

    known = {
        tuple(np.flatnonzero(areas >= 0)) for volume in read.coarse for areas in volume.outlines.values()
    }
    assert known == {(liver,), tuple(spleen)}
    followed = [key for volume in read.coarse for key in volume.objects]
    assert followed == [(1, 0)], "the spleen, across the axis it was vouched for on"
    read.clips(0.0, 64).draw(np.random.default_rng(0), 4)
    read.prompts(0.0, 64).batch(np.random.default_rng(0), 8)
    with pytest.raises(InputError, match="holds no CT"):
        read_data(store.folder, ("one",), phantoms=0, seed=0)
    other = replace(phantom.volume, voxels_kji=phantom.volume.voxels_kji[::-1])
    lost = store.add(other, kept, vouched, name="two")
    (lost.folder / "case.json").write_text("{", "utf-8")
    described = read_data(store.folder, (), phantoms=0, seed=0).description
    assert "Left out, damaged: " in described
    assert "two" in described
    with pytest.raises(InputError, match=r"holds no CT.*Left out, damaged: .*two"):
        read_data(store.folder, ("one",), phantoms=0, seed=0)


def test_slices_with_something_to_ignore_are_not_learnt(tmp_path: Path) -> None:
    phantom = phantom_ct(3, (48, 48, 56), (6.0, 8.0, 8.0))
    liver = phantom.segmentation.mask("liver")
    shown = np.flatnonzero(liver.any(axis=(1, 2)))
    labels = liver.astype(np.uint8)
    labels[: shown[3]] = 2
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    write_volume(phantom.volume, tmp_path / "imagesTr" / "a_0000.nii.gz")
    write_image(tmp_path / "labelsTr" / "a.nii.gz", labels, phantom.volume.ijk_to_ras)
    names = {"labels": {"background": 0, "liver": 1, "ignore": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(names))

    (volume,) = read_data(tmp_path, (), phantoms=0, seed=0).coarse

    assert set(volume.objects) == {(1, 0)}, "across the other axes every slice has something to ignore"
    areas = volume.objects[1, 0]
    assert (areas[: shown[3]] < 0).all()
    np.testing.assert_array_equal(areas[shown[3] :], liver[shown[3] :].sum(axis=(1, 2)))


def test_images_without_labels_and_labels_without_images_are_used_too(data: Path, tmp_path: Path) -> None:
    (data / "case_0" / "label.nii.gz").unlink()
    (data / "case_1" / "ct.nii.gz").unlink()

    events = train(a_config(data, tmp_path / "run", steps=1))

    assert events[0] == Log("0 labelled and 1 unlabelled CTs, 4 drawn volumes.")


def test_a_clinic_adapts_trained_weights_as_they_are(data: Path, tmp_path: Path) -> None:
    train(a_config(data, tmp_path / "first", steps=1))
    start = tmp_path / "first" / "checkpoint.safetensors"

    assert same(new_model(TINY, start).state_dict(), read_weights(start))


def test_adapted_weights_are_settled_as_those_they_started_from(data: Path, tmp_path: Path) -> None:
    train(a_config(data, tmp_path / "first", steps=1))
    scratch = tmp_path / "first" / "checkpoint.safetensors"
    tensors, meta = read_checkpoint(scratch)
    fitted = replace(Fusion(), memory=0.3)
    start = tmp_path / "fitted.safetensors"
    write_checkpoint(start, tensors, {**meta, "fusion": fitted.to_meta()})

    train(a_config(data, tmp_path / "second", steps=1, start_from=start))

    assert load_nano(scratch, torch.device("cpu"))[1] == Fusion()
    assert load_nano(tmp_path / "second" / "checkpoint.safetensors", torch.device("cpu"))[1] == fitted


# --------------------------------------------------------------------------------------------------------- prompts


@pytest.fixture
def tracker(data: Path, tmp_path: Path) -> Path:
    """Weights that were taught to carry masks, and how they are settled."""
    train(a_config(data, tmp_path / "tracker", steps=1))
    tensors, meta = read_checkpoint(tmp_path / "tracker" / "checkpoint.safetensors")
    path = tmp_path / "tracker.safetensors"
    write_checkpoint(path, tensors, {**meta, "fusion": replace(Fusion(), memory=0.3).to_meta()})
    return path


def prompts_config(data: Path, out: Path, tracker: Path, **changes: Any) -> PromptTrainConfig:
    config = PromptTrainConfig(
        data=data, out=out, steps=4, batch=2, phantoms=0, device="cpu", start_from=tracker
    )
    return replace(config, **changes)


def test_weights_taught_prompts_carry_masks_as_before(data: Path, tmp_path: Path, tracker: Path) -> None:
    config = prompts_config(data, tmp_path / "prompts", tracker, exclude=("another",))

    events = list(train_prompts(config))

    path = config.out / "checkpoint.safetensors"
    before, before_meta = read_checkpoint(tracker)
    after, after_meta = read_checkpoint(path)
    assert same(before, {name: tensor for name, tensor in after.items() if not name.startswith(PROMPTS)})
    assert {**after_meta, "prompts": None} == {**before_meta, "prompts": None}
    assert after_meta["prompts"]["step"] == 4
    assert after_meta["prompts"]["excluded"] == exclusions(["another"])
    assert load_nano(path, torch.device("cpu"))[1].memory == 0.3
    (metric,) = (event for event in events if isinstance(event, TrainingMetric))
    assert metric.values.keys() == {"loss", "dice", "second"}


def test_only_what_answers_prompts_is_kept_twice_and_in_half_precision(
    data: Path, tmp_path: Path, tracker: Path
) -> None:
    config = prompts_config(data, tmp_path / "prompts", tracker)
    list(train_prompts(config))

    own = {
        name: tensor
        for name, tensor in read_weights(config.out / "checkpoint.safetensors").items()
        if name.startswith(PROMPTS)
    }

    assert own
    assert {tensor.dtype for tensor in own.values()} == {torch.float16}
    assert not any("memory_" in name for name in own)
    assert any("image_encoder" in name for name in own)


def test_a_stopped_prompts_run_goes_on_as_if_it_had_never_stopped(
    data: Path, tmp_path: Path, tracker: Path
) -> None:
    whole, parts = (prompts_config(data, tmp_path / name, tracker) for name in ("whole", "parts"))
    list(train_prompts(whole))
    asked = itertools.count()
    with pytest.raises(Cancelled, match=r"after step 2 of 4.*medssl runs resume"):
        list(train_prompts(parts, lambda: next(asked) == 2))
    list(train_prompts(parts))

    assert RunFolder.open(parts.out).kind == PROMPTS_RUN
    assert same(
        read_weights(whole.out / "checkpoint.safetensors"), read_weights(parts.out / "checkpoint.safetensors")
    )


def test_teaching_goes_on_from_what_was_taught_before(data: Path, tmp_path: Path, tracker: Path) -> None:
    config = prompts_config(data, tmp_path / "prompts", tracker)
    list(train_prompts(config))
    taught = config.out / "checkpoint.safetensors"

    first, again = (prompted_model(*read_checkpoint(path)) for path in (tracker, taught))

    assert same(first.state_dict(), read_weights(tracker))
    assert not same(first.state_dict(), again.state_dict())
    assert same(again.state_dict(), load_prompted(taught, torch.device("cpu")).state_dict())


def test_a_run_that_has_ended_can_be_written_anew_as_a_mean_with_what_it_began_with(
    data: Path, tmp_path: Path, tracker: Path
) -> None:
    config = prompts_config(data, tmp_path / "prompts", tracker, steps=2)
    written = config.out / "checkpoint.safetensors"

    def answers(**changed: Any) -> dict[str, torch.Tensor]:
        list(train_prompts(replace(config, **changed)))
        return prompted_model(*read_checkpoint(written)).state_dict()

    start = prompted_model(*read_checkpoint(tracker)).state_dict()
    taught, mean = answers(), answers(start_share=0.25)

    assert not same(taught, start)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.25 * start[name] + 0.75 * taught[name], rtol=2e-3, atol=1e-5)
    assert read_checkpoint(written)[1]["prompts"]["recipe"]["start_share"] == 0.25
    assert same(answers(start_share=1.0), start)
    with pytest.raises(InputError, match=r"lies in 0 \.\. 1"):
        replace(config, start_share=1.5)


def test_a_tracker_that_is_adapted_answers_prompts_as_before(
    data: Path, tmp_path: Path, tracker: Path
) -> None:
    config = prompts_config(data, tmp_path / "prompts", tracker, steps=1)
    list(train_prompts(config))
    taught = config.out / "checkpoint.safetensors"
    train(a_config(data, tmp_path / "adapted", steps=1, start_from=taught))
    adapted = tmp_path / "adapted" / "checkpoint.safetensors"

    before, after = (
        {n: t for n, t in read_weights(p).items() if n.startswith(PROMPTS)} for p in (taught, adapted)
    )
    assert same(before, after)
    assert read_checkpoint(adapted)[1]["prompts"] == read_checkpoint(taught)[1]["prompts"]


def test_weights_that_were_never_taught_prompts_say_how_to(tracker: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"medssl train prompts --data FOLDER --out FOLDER --start-from .*tracker\.safetensors",
    ):
        load_prompted(tracker, torch.device("cpu"))


def test_prompts_are_taught_to_a_small_model_only(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_checkpoint(other, {"weight": torch.zeros(2)}, {"kind": "other"})

    for start, words in (
        (other, "not the weights of a small model"),
        (tmp_path / "resume.pt", "no small model to teach"),
    ):
        with pytest.raises(ModelError, match=words):
            list(train_prompts(prompts_config(data, tmp_path / "run", start)))
    assert not (tmp_path / "run").exists()


def test_the_loss_of_prompts_falls_on_one_repeated_batch() -> None:
    image, labels = a_case(0)
    volume = LabelledVolume(image, labels, (3.0, 2.0, 2.0))
    chooser = ObjectChooser([(1.0, [volume])], on_single_slices=True)
    batch = PromptSampler(chooser, [], 0.0, TINY.image_size).batch(np.random.default_rng(0), 6)

    losses = losses_while_learning(lambda model: prompt_loss(model, batch, np.random.default_rng(0)))

    assert np.mean(losses[-3:]) < 0.75 * losses[0]


def test_boxes_are_taught_from_every_guess_that_is_tried_at_work_and_half_of_them_from_the_ellipse() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(0, 100, (300, 1, 32, 32)).astype(np.float32))
    points = torch.tensor([[4.0, 6.0], [25.0, 28.0]]).expand(300, 2, 2), torch.tensor([[2, 3]]).expand(300, 2)
    boxed = torch.arange(300) < 200
    before = torch.rand(300, 1, 32, 32)

    guess = guessed_in_boxes(before, image, points, boxed, rng)

    assert torch.equal(guess[200:], before[200:])
    tried = box_guesses(image, *points)[:200]
    share = (tried == guess[:200]).all((2, 3)).double().mean(0)
    assert float(share[0]) == pytest.approx(0.5, abs=0.1)
    assert bool((share[1:] > 0.05).all())
    assert float(share.sum()) == pytest.approx(1.0)
    assert torch.equal(guessed_in_boxes(before, image, points, ~boxed & boxed, rng), before)


@pytest.mark.parametrize("phantoms", [0, 6])
def test_a_folder_without_cases_is_one_clear_error(tmp_path: Path, phantoms: int) -> None:
    (tmp_path / "data" / "empty_case").mkdir(parents=True)

    with pytest.raises(InputError, match=r"holds no CT to train on; .*ct\.nii\.gz"):
        train(a_config(tmp_path / "data", tmp_path / "run", phantoms=phantoms))


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        train(a_config(tmp_path / "nowhere", tmp_path / "run"))


def test_labels_that_do_not_lie_on_their_image_are_refused(data: Path, tmp_path: Path) -> None:
    save(a_case(0)[1][:-1], data / "case_0" / "label.nii.gz")

    with pytest.raises(InputError, match=r"label\.nii\.gz"):
        train(a_config(data, tmp_path / "run"))


@pytest.mark.parametrize("damage", ["half a file", "another model"])
def test_a_damaged_training_state_is_one_clear_error(data: Path, tmp_path: Path, damage: str) -> None:
    config = a_config(data, tmp_path / "run", steps=2)
    train_and_stop(config, after=1)
    state = config.out / "resume.pt"
    if damage == "half a file":
        state.write_bytes(b"half a file")
    else:
        torch.save({"model": {}, "step": 1}, state)

    with pytest.raises(ModelError, match=r"The training state .* is damaged"):
        train(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch": 0},
        {"slices": 1},
        {"save_every": 0},
        {"pseudo_share": 1.5},
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, changes: dict[str, float]) -> None:
    with pytest.raises(InputError):
        a_config(tmp_path, tmp_path, **changes)


def test_the_shipped_weights_have_never_seen_the_patients_that_judge_them() -> None:
    path = model_path(find_entry(DEFAULT_MODEL))
    if not path.is_file():
        pytest.skip("The shipped weights are not in pretrained/.")
    held_out = json.loads(HOLDOUT.read_text())
    judges = {case for cases in held_out.values() if isinstance(cases, list) for case in cases}

    development = json.loads(DEVELOPMENT.read_text())["cases"]
    meta = read_checkpoint(path)[1]
    left_out = exclusions(sorted([*judges, *development]))
    assert meta["excluded"] == left_out
    assert meta["prompts"]["excluded"] == left_out
