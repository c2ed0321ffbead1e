"""The pre-training loop: repeatable, resumable, honest about its cost, clear about what went wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medssl.backbones import BACKBONES
from medssl.datasets.data import UnlabelledVolumes
from medssl.errors import Cancelled, InputError, ModelError, NotEnoughMemory
from medssl.events import Log, Progress
from medssl.learning.optimisation import epoch_order, make_optimiser
from medssl.learning.pretrain_config import PretrainConfig, choose_preset
from medssl.learning.recipe import Recipe
from medssl.learning.sampling import Samples, StepPlan, load_parts
from medssl.learning.transfer import read_encoder
from medssl.methods import METHODS, Moment
from medssl.methods.simclr import SimCLR
from medssl.runs.run_folder import RunFolder, TrainingMetric
from medssl.training import estimate, pretrain
from small_method import SMALL, Fill, small_volumes
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
STEPS = 8
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "small", SMALL)
    monkeypatch.setitem(METHODS, "fill", Fill)


@pytest.fixture(scope="module")
def volumes() -> UnlabelledVolumes:
    return small_volumes()


def a_config(out: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"method": "fill", "data": out, "device": "cpu", "steps": STEPS}
    return PretrainConfig(out=out, **{**settings, **changes})


def train(config: PretrainConfig, volumes: UnlabelledVolumes, stop_at: int | None = None) -> list[Any]:
    """Run to the end, or until it has been asked to stop before a step."""
    asked = iter(range(10_000))
    events = []
    try:
        for event in pretrain(config, lambda: next(asked) == stop_at, volumes):
            events.append(event)
    except Cancelled:
        assert stop_at is not None
    return events


def state(out: Path) -> dict[str, Any]:
    loaded = RunFolder.open(out).load_resume()
    assert loaded is not None
    return loaded


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, whatever they are made of."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, volumes: UnlabelledVolumes) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "small", SMALL)
        patch.setitem(METHODS, "fill", Fill)
        train(a_config(out), volumes)
    return out


# ------------------------------------------------------------------------------------------------ the same every time


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path, stop_at: int
) -> None:
    """Methods 6: resume equals uninterrupted, bit for bit on the CPU; the optimiser, teacher and counters too."""
    config = a_config(tmp_path / "parts")

    train(config, volumes, stop_at)
    half_way = state(config.out)
    assert RunFolder.open(config.out).status.state == "stopped"
    train(config, volumes)

    assert half_way["step"] == stop_at
    assert not same(half_way["method"], state(whole)["method"])
    assert same(state(config.out), state(whole))
    assert same(dict(read_encoder(config.out / "checkpoint.safetensors").tensors),
                dict(read_encoder(whole / "checkpoint.safetensors").tensors))  # fmt: skip
    assert metrics(config.out) == metrics(whole)


def metrics(out: Path) -> list[tuple[int, float]]:
    return [(metric.step, metric.values["loss"]) for metric in RunFolder.open(out).metrics()]


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    """Kill -9 at whatever step, here in the middle of one, long after the last save."""
    config = a_config(tmp_path / "killed", save_every_steps=3)
    dies = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = {PATHS!r}
import torch
torch.set_num_threads(1)
import small_method
from medssl.learning.pretrain_config import PretrainConfig
from medssl.training import pretrain
small_method.register()
class Dying(small_method.Fill):
    def after_step(self, moment):
        if moment.step == 4 and moment.steps == {STEPS}:
            os.kill(os.getpid(), signal.SIGKILL)
        super().after_step(moment)
small_method.METHODS["fill"] = Dying
out = Path({str(config.out)!r})
config = PretrainConfig(method="fill", data=out, out=out, device="cpu", steps={STEPS}, save_every_steps=3)
list(pretrain(config, volumes=small_method.small_volumes()))
"""
    killed = subprocess.run([sys.executable, "-c", dies], capture_output=True, text=True, check=False)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert RunFolder.open(config.out).status.state == "lost"
    assert state(config.out)["step"] == 3
    assert [step for step, _ in metrics(config.out)] == [1, 2, 3, 4]
    train(config, volumes)
    assert same(state(config.out), state(whole))
    assert metrics(config.out) == metrics(whole)


def test_a_run_killed_while_it_saves_keeps_the_state_before(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_config(tmp_path / "run", save_every_steps=3)
    write = torch.save

    def half_a_file(content: dict[str, Any], path: Path) -> None:
        if content["step"] == 6:
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt
        write(content, path)

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(KeyboardInterrupt):
        train(config, volumes)
    monkeypatch.setattr(torch, "save", write)

    assert state(config.out)["step"] == 3
    train(config, volumes)
    assert same(state(config.out)["method"], state(whole)["method"])


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_draws_the_same_batches(volumes: UnlabelledVolumes, workers: int) -> None:
    samples = Samples(Fill.build(Fill.presets()["cpu"]), volumes, 5)
    plan = StepPlan(len(samples), 4, 5, first=3, last=7, accumulate=2)

    alone = list(load_parts(samples, plan, 0, CPU))
    together = list(load_parts(samples, plan, workers, CPU))

    assert same(alone, together)
    assert len(alone) == 8


def test_another_seed_gives_another_run(whole: Path, volumes: UnlabelledVolumes, tmp_path: Path) -> None:
    train(a_config(tmp_path / "run", seed=1), volumes)
    assert not same(state(tmp_path / "run")["method"], state(whole)["method"])


def test_looking_at_the_weights_does_not_change_them(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    """Saves and pictures fall on other steps in a resumed run."""
    train(a_config(tmp_path / "run", save_every_steps=1), volumes)
    assert same(state(tmp_path / "run")["method"], state(whole)["method"])
    assert len(RunFolder.open(tmp_path / "run").pictures()) == STEPS


# ------------------------------------------------------------------------------------------------------------ samples


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    plan = StepPlan(12, 4, 3, last=6)
    keys = [key for part in plan for key in part]
    epochs = [[index for epoch, index in keys if epoch == wanted] for wanted in (0, 1)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(12, 3, 0)
    assert list(replace(plan, first=2)) == list(plan)[2:]


def test_fewer_samples_than_a_batch_are_drawn_several_times_each_differently() -> None:
    (step,) = StepPlan(3, 7, 0, last=1)
    assert sorted(index % 3 for _, index in step[:6]) == [0, 0, 1, 1, 2, 2]
    assert len(set(step)) == 7


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_processes_samples_joined_are_those_of_one_process(accumulate: int) -> None:
    alone = list(StepPlan(40, 8, 1, last=4, accumulate=accumulate))
    ranks = [list(StepPlan(40, 8, 1, last=4, accumulate=accumulate, rank=r, world=2)) for r in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(InputError, match="batch of 6 cannot be shared out equally to 4 processes"):
        StepPlan(40, 6, 0, world=4)


# ------------------------------------------------------------------------------------------------------ optimisation


def test_accumulated_parts_give_the_gradient_of_their_mean(
    volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    """One step of plain SGD against the same by hand."""
    rate = 0.05
    preset = Fill.presets()["cpu"]
    recipe = Recipe(
        batch=8, accumulate=2, optimiser="sgd", betas=(0.0, 0.9), learning_rate=rate, schedule="constant"
    )
    preset = replace(preset, recipe=recipe, options=replace(preset.options, dropout=0.0))
    config = a_config(tmp_path / "run", steps=1)
    list(pretrain(config, volumes=volumes, preset=preset))

    torch.manual_seed(0)
    method = Fill.build(preset)
    samples = Samples(method, volumes, 0)
    parts = load_parts(samples, StepPlan(len(samples), 8, 0, last=1, accumulate=2), 0, CPU)
    for number, part in enumerate(parts):
        (0.5 * method(part, Moment(0, 1, 0, 1, part=number))["loss"]).backward()
    trained = state(config.out)["method"]
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(trained[name], parameter.detach() - rate * parameter.grad)


def test_weight_decay_spares_biases_and_norms() -> None:
    method = Fill.build(Fill.presets()["cpu"])
    optimiser = make_optimiser(method, Recipe(weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}

    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert len(decays) == len(trained)
    assert all(decays[id(p)] == (0.3 if p.ndim > 1 else 0.0) for p in trained.values())
    assert not any("teacher" in name for name in trained)


def test_the_learning_rate_follows_the_recipe_step_by_step(whole: Path) -> None:
    recipe = replace(Fill.presets()["cpu"].recipe)  # 4 epochs of 2 steps
    rates = [metric.learning_rate for metric in RunFolder.open(whole).metrics()]
    assert rates == [recipe.learning_rate_at(step / 2) for step in range(STEPS)]


def test_the_loss_falls(volumes: UnlabelledVolumes, tmp_path: Path) -> None:
    events = train(a_config(tmp_path / "run", steps=60, learning_rate=0.02), volumes)
    losses = [event.values["loss"] for event in events if isinstance(event, TrainingMetric)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


# ------------------------------------------------------------------------------------------------------- what is told


def test_a_run_says_what_it_will_cost_and_how_far_it_is(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    events = train(a_config(tmp_path / "run"), volumes)

    logs = [event.text for event in events if isinstance(event, Log)]
    assert "2 scans, 22 samples an epoch" in logs[0]
    assert "8 steps of 8 samples will take about" in logs[1]
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(p.done, p.total) for p in progress] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert progress[-1].seconds_left == 0.0
    first = next(event for event in events if isinstance(event, TrainingMetric))
    assert first.values["loss"] > 0
    assert first.samples_per_second > 0


def test_the_estimate_is_measured_and_leaves_nothing_behind(
    volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    cost = estimate(a_config(tmp_path / "run", steps=None, epochs=10), volumes)

    assert cost.steps == 20
    assert cost.seconds == pytest.approx(20 * cost.step_seconds)
    assert cost.step_seconds > 0
    assert cost.bytes > 1e6
    assert not (tmp_path / "run").exists()


def test_a_budget_in_minutes_becomes_a_number_of_steps(volumes: UnlabelledVolumes, tmp_path: Path) -> None:
    cost = estimate(a_config(tmp_path / "run", steps=None, minutes=1), volumes)
    assert cost.steps == int(60 / cost.step_seconds)


def test_the_encoder_file_says_how_it_was_made(whole: Path, volumes: UnlabelledVolumes) -> None:
    file = read_encoder(whole / "checkpoint.safetensors")

    assert (file.method, file.backbone, file.step) == ("fill", "small", STEPS)
    assert file.data == tuple(scan.id for scan in volumes.scans)
    assert file.contract == Fill.presets()["cpu"].contract
    assert file.meta["recipe"]["batch"] == 8
    assert all(name.startswith("encoder.") for name in file.tensors)


def test_the_encoder_file_does_not_name_what_was_left_out(volumes: UnlabelledVolumes, tmp_path: Path) -> None:
    """Patterns may be names of patients; their number and hash still tell whether two runs left out the same."""
    headers = []
    for n, patterns in enumerate((("Miller_*", "Jones"), ("Jones", "Miller_*"), ("Jones",))):
        config = a_config(tmp_path / str(n), steps=1, exclude=patterns)
        train(config, volumes)
        headers.append(read_encoder(config.out / "checkpoint.safetensors").meta)
    assert not any("Miller" in str(header) or "Jones" in str(header) for header in headers)
    assert [header["excluded"]["count"] for header in headers] == [2, 2, 1]
    assert headers[0]["excluded"] == headers[1]["excluded"] != headers[2]["excluded"]


def test_the_last_step_leaves_a_picture(whole: Path) -> None:
    (picture,) = RunFolder.open(whole).pictures()
    assert picture.read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(
    volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    config = a_config(tmp_path / "run", options=("broken_after=5",), save_every_steps=2)

    with pytest.raises(
        InputError, match=r"no longer a number; the state after step 4 is kept.*--learning-rate"
    ):
        train(config, volumes)

    assert RunFolder.open(config.out).status.state == "failed"
    assert all(torch.isfinite(t).all() for t in state(config.out)["method"].values())


def test_a_stop_request_is_honoured_within_a_step(
    whole: Path, volumes: UnlabelledVolumes, tmp_path: Path
) -> None:
    config = a_config(tmp_path / "run")
    training = pretrain(config, volumes=volumes)
    for event in training:
        if isinstance(event, Progress) and event.done == 3:
            RunFolder.open(config.out).ask_to_stop()
            break
    with pytest.raises(Cancelled, match="Stopped after step 3 of 8; go on with: medssl runs resume"):
        next(training)
    train(config, volumes)
    assert same(state(config.out), state(whole))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 4}, "batch = None, not 4"),
        ({"seed": 3}, "seed = 0, not 3"),
        ({"steps": 9}, "steps = 8, not 9"),
        ({"options": ("noise=0.1",)}, r"options = \[\], not \['noise=0.1'\]"),
    ],
)
def test_going_on_with_other_settings_is_refused_by_name(
    whole: Path, volumes: UnlabelledVolumes, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=f"began with {named}"):
        train(a_config(whole, **changes), volumes)
    assert RunFolder.open(whole).status.state == "done"


def test_going_on_with_other_scans_is_refused(whole: Path, volumes: UnlabelledVolumes) -> None:
    with pytest.raises(InputError, match="began with scans = 2, not 1"):
        train(a_config(whole), volumes.only([0]))


def test_a_changed_preset_is_named_too(whole: Path, volumes: UnlabelledVolumes) -> None:
    preset = Fill.presets()["cpu"]
    preset = replace(preset, recipe=replace(preset.recipe, clip_norm=1.0))
    with pytest.raises(InputError, match=r"recipe\.clip_norm = None, not 1"):
        list(pretrain(a_config(whole), volumes=volumes, preset=preset))


def test_a_finished_run_is_not_trained_again(whole: Path, volumes: UnlabelledVolumes) -> None:
    before = state(whole)
    (whole / "checkpoint.safetensors").unlink()

    events = train(a_config(whole, workers=1), volumes)

    assert not any(isinstance(event, Progress) for event in events)
    assert same(state(whole), before)
    assert read_encoder(whole / "checkpoint.safetensors").step == STEPS


def test_a_damaged_state_is_one_clear_error(volumes: UnlabelledVolumes, tmp_path: Path) -> None:
    config = a_config(tmp_path / "run")
    train(config, volumes, stop_at=2)
    (config.out / "resume.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"resume\.pt is damaged"):
        train(config, volumes)


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_later(
    tmp_path: Path, volumes: UnlabelledVolumes
) -> None:
    """A limit on the size of files stands in for the full disk; it comes into force after the first save."""
    config = a_config(tmp_path / "run", save_every_steps=2)
    code = f"""
import resource, sys
from pathlib import Path
sys.path[:0] = {PATHS!r}
import small_method
from medssl.events import Progress
from medssl.errors import StorageError
from medssl.learning.pretrain_config import PretrainConfig
from medssl.training import pretrain
small_method.register()
out = Path({str(config.out)!r})
config = PretrainConfig(method="fill", data=out, out=out, device="cpu", steps={STEPS}, save_every_steps=2)
try:
    for event in pretrain(config, volumes=small_method.small_volumes()):
        if isinstance(event, Progress) and event.done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "resume.pt could not be written" in done.stdout
    assert "Traceback" not in done.stderr
    assert state(config.out)["step"] == 2
    assert not list(config.out.glob(".*"))
    train(config, volumes)
    assert state(config.out)["step"] == STEPS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dreams"}, "no method 'dreams'; choose one of .*polycl-s"),
        ({"preset": "moon"}, "no preset 'moon'; choose one of auto, "),
        ({"backbone": "unet-9000"}, "no backbone 'unet-9000'; choose one of"),
        ({"size": (15, 16)}, r"multiples of 2; use --size \d+ 16"),
        ({"size": (16,)}, "2D input needs 2 sizes"),
        ({"options": ("loudness=3",)}, "option 'loudness=3' cannot be used.*noise"),
        ({"options": ("noise=high",)}, "noise=high cannot be used: it should be a number, e.g. noise=0.3"),
        ({"preset": "paper", "batch": 7, "accumulate": 2}, "batch of 7 cannot be computed in 2 equal parts"),
        ({"epochs": 3}, "only one of epochs and steps"),
        ({"steps": 0}, "steps above 0"),
        ({"spacing": (1.0, 1.0)}, "needs three numbers"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_made(
    volumes: UnlabelledVolumes, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, ModelError), match=message):
        train(a_config(tmp_path / "run", **changes), volumes)


def test_a_step_that_does_not_fit_in_memory_says_what_to_change(
    volumes: UnlabelledVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory, and a page of numbers")

    monkeypatch.setattr(Fill, "forward", full)
    with pytest.raises(NotEnoughMemory, match=r"step of 8 samples .* --accumulate, such as 2"):
        train(a_config(tmp_path / "run"), volumes)


def test_a_preset_takes_what_the_configuration_changes(tmp_path: Path) -> None:
    config = a_config(
        tmp_path, steps=None, epochs=8, batch=4, size=(32, 24), spacing=(0, 2, 2), options=("noise=1",)
    )
    preset = choose_preset(config, "cpu")
    assert preset.contract.size == (32, 24)
    assert preset.contract.spacing_kji_mm == (None, 2, 2)
    assert (preset.recipe.epochs, preset.recipe.batch, preset.recipe.warmup_epochs) == (8, 4, 2)
    assert preset.options.noise == 1.0


@pytest.mark.parametrize(
    ("method", "option", "complaint"),
    [
        ("polycl-m", "negatives=eq-3", "one of code, eq3"),
        ("anatomask", "rank_space=Official", "one of intensity, normalised, official"),
        ("anatomask", "decoder_width=wide", "a whole number or None"),
        ("medssl-vit", "grid=4.5", "a whole number"),
        ("medssl-vit", "temperature=1e999", "a number"),
        ("medssl-vit", "jitter=2", "jitter in 0"),
        ("mae", "normalise=1", "True or False"),
        ("mae", "decoder_heads=5", "multiple of 4 and of its heads"),
        ("amlp", "last_ratio=1.5", "not go from 0.25 to 1.5"),
        ("tcs-mae", "ratio=2", "masked share"),
        ("tcs-mae", "intervals=0", "intervals"),
        ("tcs-mae", "mask_range_hu=(500,-1000)", "must rise"),
        ("tcs-mae", "mask_range_hu=500", "2 numbers"),
        ("simclr", "temperatur=1", "one of the names"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_anything_is_read(
    method: str, option: str, complaint: str, tmp_path: Path
) -> None:
    config = PretrainConfig(method=method, data=tmp_path, out=tmp_path, options=(option,))
    with pytest.raises(InputError, match=complaint):
        choose_preset(config, "cpu")


def test_an_option_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    words = ("mask_range_hu=(-200,300)", "consistency=cosine", "ratio=0.5", "dropout=False")
    config = PretrainConfig(method="tcs-mae", data=tmp_path, out=tmp_path, options=words)
    options = choose_preset(config, "cpu").options
    assert (options.mask_range_hu, options.consistency) == ((-200, 300), "cosine")
    assert (options.ratio, options.dropout) == (0.5, False)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_of_a_method_can_be_named(method: str, tmp_path: Path) -> None:
    for name, preset in METHODS[method].presets().items():
        config = PretrainConfig(method=method, data=tmp_path, out=tmp_path, preset=name)
        assert choose_preset(config, "cpu") == preset


# ---------------------------------------------------------------------------------------------------------- torchrun


def test_two_processes_train_as_one_does_on_the_joined_batch(
    tmp_path: Path, volumes: UnlabelledVolumes
) -> None:
    """Methods 6, DDP: the loss of the first step is that of one process, and both processes end alike."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = {PATHS!r}
import torch
torch.set_num_threads(1)
from test_training import contrastive_run
contrastive_run(Path(sys.argv[1]))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "two")],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    contrastive_run(tmp_path / "one")
    errors = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    (one, *_), (two, *_) = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two[1] == pytest.approx(one[1], rel=1e-4)
    weights = [state(tmp_path / name)["method"] for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=5e-5, msg=name)
    assert len(metrics(tmp_path / "two")) == len(metrics(tmp_path / "one"))


class WithoutDropout(SimCLR):
    """Dropout differs by process."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        for module in self.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0


def contrastive_run(out: Path) -> None:
    """Two steps of plain descent by a method whose negatives come from the whole batch."""
    config = a_config(out, method="simclr", steps=2, size=(32, 32))
    recipe = Recipe(batch=4, optimiser="sgd", learning_rate=0.1, betas=(0.0, 0.9))
    preset = replace(choose_preset(config, "cpu"), recipe=recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "simclr", WithoutDropout)
        list(pretrain(config, volumes=small_volumes(), preset=preset))
