"""Self-supervised pre-training: one loop for every method, resumable, on the CPU, a GPU, or several with torchrun.

Read `pretrain` first. All that is random comes from the seed and the step (`sampling`, `optimisation.seed_step`,
`Moment.generator`), and all schedules from the step, so a run that was killed and goes on ends with the same weights as
one that never stopped: bit for bit on the CPU.
"""

from __future__ import annotations

import copy
import math
import os
import queue
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .datasets.data import UnlabelledVolumes
from .datasets.sources import exclusions
from .errors import Cancelled, InputError, ModelError, NotEnoughMemory
from .events import Eta, Log, Progress, drain, duration, never
from .foundation.runtime import pick_device
from .home import cache_folder
from .learning.distributed import rank, world_size
from .learning.optimisation import autocast, gradient_scaler, make_optimiser, seed_step, set_learning_rate
from .learning.pretrain_config import PretrainConfig, choose_preset, lasting
from .learning.recipe import Recipe
from .learning.sampling import Samples, StepPlan, load_parts
from .learning.transfer import write_encoder
from .memory import gigabytes, used_bytes
from .methods import Method, Moment, Preset, find_method
from .runs.run_folder import RunFolder, TrainingMetric, plain

__all__ = ["Estimate", "estimate", "pretrain"]

_MAY_CHANGE = ("out", "data", "device", "workers", "cache", "save_every_minutes", "save_every_steps")
"""Settings that a resumed run may be given anew; the scans themselves are compared when it goes on."""
_MOST_STEPS_BETWEEN_REPORTS = 25
_REPORTS = 100
_MEASURED_STEPS = 3
_LONG_STEP_S = 20.0
_LONGEST_WAIT = timedelta(hours=24)
"""Of a process for the others: the first one prepares all scans while they wait."""

_Event = Progress | Log | TrainingMetric
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Estimate:
    """What a run will cost, from a step that was measured."""

    steps: int
    step_seconds: float
    batch: int
    bytes: int
    """On the GPU, or of the process where it computes on the CPU."""

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.steps * self.step_seconds

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.steps} steps of {self.batch} samples will take about {duration(self.seconds)}"
            f" ({self.batch / self.step_seconds:.3g} samples/s) and {gigabytes(self.bytes)} of memory."
        )


def pretrain(
    config: PretrainConfig,
    cancelled: Callable[[], bool] = never,
    volumes: UnlabelledVolumes | None = None,
    preset: Preset | None = None,
) -> Iterator[Progress | Log | TrainingMetric]:
    """Train an encoder, or go on where the run in `config.out` was left.

    Under torchrun every process calls it; the one of rank 0 writes the run folder and yields the events.

    Args:
        config: method, data, run folder and settings.
        cancelled: asked before each step.
        volumes: prepared already, in place of those in `config.data`.
        preset: complete settings, in place of those that `config` leads to.

    Yields:
        Log, Progress and TrainingMetric as they come.

    Raises:
        InputError: a setting cannot be, the data do not suit the method, the run is another's, or the loss is no
            longer a number.
        ModelError: the run's state is damaged or of another network.
        NotEnoughMemory: a step does not fit on the GPU.
        StorageError: no space; what was saved last stays.
        Cancelled: `cancelled` or `medssl runs stop` said so; the run can be resumed.
    """
    with ExitStack() as until_the_end:
        device = until_the_end.enter_context(_processes(config.device))
        settings = preset or choose_preset(config, device.type)
        run = _enter_run(config, until_the_end)
        until_the_end.enter_context(_memory_explained(settings.recipe))
        for event in _train(config, settings, run, device, volumes, lambda: cancelled() or run.stop_asked):
            if rank() > 0:
                continue
            run.record(event)
            yield event


def _train(
    config: PretrainConfig,
    settings: Preset,
    run: RunFolder,
    device: torch.device,
    volumes: UnlabelledVolumes | None,
    cancelled: Callable[[], bool],
) -> Iterator[_Event]:
    # What is trained on what, and for how long.
    if volumes is None:
        with run.stopped_while("preparing the scans"):
            volumes = yield from _read_volumes(config, settings, cancelled)
    job = _set_up(config, settings, volumes, device)
    facts = _facts(config.method, settings, volumes)
    saved = run.load_resume()
    if saved is None:
        yield Log(f"{job.description} Measuring a step on {device} ...")
        cost = _measure(job, config)
        yield Log(str(cost))
        first, steps = 0, cost.steps
    else:
        run.require_same(saved["facts"], facts)
        first, steps = _restore(run, saved, job), int(saved["steps"])
        yield Log(f"{job.description} Going on after step {first} of {steps}.")
    state, meta = {"facts": facts, "steps": steps}, _meta(config, job, facts, volumes)
    if first == steps:  # it may have been ended between the last state and the encoder file
        _save(run, job, state, meta, steps)
    per_epoch = job.plan.steps_per_epoch
    recipe = lasting(job.recipe, steps / per_epoch)
    report_every = max(1, min(steps // _REPORTS, _MOST_STEPS_BETWEEN_REPORTS))

    # The loop.
    model = _shared(job.method, device)
    parts = load_parts(job.samples, replace(job.plan, first=first, last=steps), config.workers, device)
    eta, pace, saved_at = Eta(steps - first), time.monotonic(), time.monotonic()
    pending: list[Mapping[str, Tensor]] = []
    loss = math.nan
    for step in range(first, steps):
        if _any_process(cancelled(), device):
            _check_finite(pending, run, config)
            _save(run, job, state, meta, step)
            raise Cancelled(
                f"Stopped after step {step} of {steps}; go on with: medssl runs resume {run.path}"
            )
        moment = Moment(step, steps, step // per_epoch, -(-steps // per_epoch), config.seed, rank())
        learning_rate = recipe.learning_rate_at(step / per_epoch)
        set_learning_rate(job.optimiser, learning_rate)
        job.method.before_step(moment)
        batch = [_moved(next(parts), device) for _ in range(recipe.accumulate)]
        pending.append(_descend(model, job, batch, moment))
        job.method.after_step(moment)
        done = step + 1
        if done % per_epoch == 0:
            job.method.after_epoch(moment)

        if done % report_every == 0 or done == steps:
            _check_finite(pending, run, config)
            now = time.monotonic()
            speed = recipe.batch * len(pending) / max(now - pace, 1e-9)
            values = _mean_over_processes(pending, device)
            loss = values["loss"]
            yield TrainingMetric(done, done / per_epoch, values, learning_rate, speed)
            pending, pace = [], now
        text = f"step {done} of {steps}" + ("" if math.isnan(loss) else f", loss {loss:.4g}")
        yield replace(eta.step(done - first, text), done=done, total=steps)
        if _is_time_to_save(config, done, steps, saved_at):
            _check_finite(pending, run, config)
            _save(run, job, state, meta, done, (batch[0], moment))
            saved_at = time.monotonic()


def estimate(
    config: PretrainConfig, volumes: UnlabelledVolumes | None = None, preset: Preset | None = None
) -> Estimate:
    """Measure a real training step and say what the whole run will cost; writes nothing but the cache of scans.

    Raises:
        InputError: a setting cannot be, or the data do not suit the method.
        NotEnoughMemory: a step does not fit on the GPU.
    """
    device = pick_device(config.device)
    settings = preset or choose_preset(config, device.type)
    if volumes is None:
        volumes = drain(_read_volumes(config, settings, never), lambda event: None)
    with _memory_explained(settings.recipe):
        return _measure(_set_up(config, settings, volumes, device), config)


# ---------------------------------------------------------------------------------------------------------- set up


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything a step needs."""

    method: Method
    recipe: Recipe
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    samples: Samples
    plan: StepPlan
    backbone: str
    device: torch.device
    scans: int

    @property
    def description(self) -> str:
        """One line for a person."""
        return (
            f"{self.method.info.title} on {self.backbone}: {self.scans} scans, {len(self.samples)} samples an epoch,"
            f" {self.plan.steps_per_epoch} steps."
        )


def _set_up(
    config: PretrainConfig, settings: Preset, volumes: UnlabelledVolumes, device: torch.device
) -> _Job:
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    method = find_method(config.method).build(settings)
    method.seed = config.seed
    _check_size(method, settings)
    on_the_cpu = method if device.type == "cpu" or not config.workers else copy.deepcopy(method)
    samples = Samples(on_the_cpu, volumes, config.seed)
    recipe = settings.recipe
    plan = StepPlan(
        len(samples), recipe.batch, config.seed, accumulate=recipe.accumulate, rank=rank(), world=world_size()
    )
    method.to(device)
    optimiser, scaler = make_optimiser(method, recipe), gradient_scaler(recipe, device)
    return _Job(
        method, recipe, optimiser, scaler, samples, plan, settings.backbone, device, len(volumes.scans)
    )


def _check_size(method: Method, settings: Preset) -> None:
    divisor = method.backbone.encoder.divisor
    size = settings.contract.size
    if any(side % divisor for side in size):
        nearest = " ".join(str(max(1, round(side / divisor)) * divisor) for side in size)
        raise InputError(
            f"The size {size} does not fit the backbone {settings.backbone}, whose sides are multiples of {divisor};"
            f" use --size {nearest}."
        )
    method.backbone.encoder.require_size(size)


def _read_volumes(
    config: PretrainConfig, settings: Preset, cancelled: Callable[[], bool]
) -> Generator[_Event, None, UnlabelledVolumes]:
    """Prepare the scans; with several processes the first one does, and the others find them in the cache."""
    from .datasets.presence import read_presence, with_presence
    from .datasets.volume_cache import prepare_volumes

    rows = None if config.presence is None else read_presence(config.presence)

    def read(on_event: Callable[[_Event], None]) -> UnlabelledVolumes:
        volumes = prepare_volumes(
            config.data,
            settings.contract,
            config.cache or cache_folder(),
            exclude=config.exclude,
            mixed_modalities=config.mixed_modalities,
            on_event=on_event,
            cancelled=cancelled,
        )
        return volumes if rows is None else with_presence(volumes, rows, on_event)

    if rank() > 0:
        _barrier()
        return read(lambda event: None)
    volumes = yield from _streamed(read)
    _barrier()
    return volumes


def _streamed(work: Callable[[Callable[[_Event], None]], _Result]) -> Generator[_Event, None, _Result]:
    """Yield what work in a thread reports, as it does; return its result."""
    events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, events.put)
        future.add_done_callback(lambda done: events.put(None))
        while (event := events.get()) is not None:
            yield event
        return future.result()


def _facts(method: str, settings: Preset, volumes: UnlabelledVolumes) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    content = sha256("".join(scan.id for scan in volumes.scans).encode())
    if find_method(method).info.supervision == "presence":
        for number in range(len(volumes.scans)):
            content.update(np.ascontiguousarray(volumes.presence(number)).tobytes())
    return {
        "method": method,
        "backbone": settings.backbone,
        "input": plain(settings.contract),
        "recipe": plain(settings.recipe),
        "options": plain(settings.options) if settings.options is not None else {},
        "scans": len(volumes.scans),
        "data": content.hexdigest(),
    }


# ------------------------------------------------------------------------------------------------------------ a step


def _descend(
    model: nn.Module, job: _Job, batch: Sequence[Mapping[str, Tensor]], moment: Moment
) -> dict[str, Tensor]:
    """One optimiser step; the mean values of its parts, which stay on the device."""
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(batch):
        here = replace(moment, part=number)
        seed_step(here.seed, here.step, here.rank, here.part)
        last = number == len(batch) - 1
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with autocast(job.recipe, job.device):
                values: dict[str, Tensor] = model(part, here)
            torch.autograd.backward(job.scaler.scale(values["loss"] / len(batch)))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / len(batch)
    if job.recipe.clip_norm is not None:
        job.scaler.unscale_(job.optimiser)
        nn.utils.clip_grad_norm_(model.parameters(), job.recipe.clip_norm)
    job.scaler.step(job.optimiser)
    job.scaler.update()
    job.optimiser.zero_grad(set_to_none=True)
    return sums


def _moved(part: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}


def _check_finite(pending: Sequence[Mapping[str, Tensor]], run: RunFolder, config: PretrainConfig) -> None:
    """Refuse to go on, and above all to save, once the loss is no number."""
    losses = [float(values["loss"]) for values in pending]
    if all(math.isfinite(loss) for loss in losses):
        return
    kept = run.load_resume()
    state = "nothing was saved yet" if kept is None else f"the state after step {kept['step']} is kept"
    raise InputError(
        f"The loss is no longer a number; {state}. Start again in another folder with a lower --learning-rate"
        + (", or with --precision fp32." if config.device != "cpu" else ".")
    )


def _measure(job: _Job, config: PretrainConfig) -> Estimate:
    """Train a copy for a few steps; the real one stays as it is."""
    trial = copy.deepcopy(job.method)
    scaler = gradient_scaler(job.recipe, job.device)  # its scale moves with every step
    job = replace(job, method=trial, optimiser=make_optimiser(trial, job.recipe), scaler=scaler)
    on_gpu = job.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(job.device)
    most_bytes, seconds = 0, math.inf
    parts = load_parts(job.samples, replace(job.plan, last=_MEASURED_STEPS), 0, job.device)
    for step in range(_MEASURED_STEPS):
        begun = time.perf_counter()
        drawn = [next(parts) for _ in range(job.recipe.accumulate)]
        ready = time.perf_counter()
        moment = Moment(step, _MEASURED_STEPS, 0, 1, config.seed, rank())
        trial.before_step(moment)
        _descend(trial, job, [_moved(part, job.device) for part in drawn], moment)
        trial.after_step(moment)
        most_bytes = max(most_bytes, used_bytes())
        if on_gpu:
            torch.cuda.synchronize(job.device)
            most_bytes = torch.cuda.max_memory_allocated(job.device)
        drawing, computing = ready - begun, time.perf_counter() - ready
        together = max(drawing / config.workers, computing) if config.workers else drawing + computing
        seconds = min(seconds, together)
        if together > _LONG_STEP_S and world_size() == 1:
            break
    if world_size() > 1:  # all processes must count the same steps
        seconds = _over_processes(seconds, job.device, dist.ReduceOp.MAX)
    steps = _count_steps(config, job, seconds)
    return Estimate(steps, seconds, job.recipe.batch, most_bytes)


def _count_steps(config: PretrainConfig, job: _Job, step_seconds: float) -> int:
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return max(1, int(60.0 * config.minutes / step_seconds))
    return max(1, round(job.recipe.epochs * job.plan.steps_per_epoch))


# ------------------------------------------------------------------------------------------------------- run folder


def _enter_run(config: PretrainConfig, until_the_end: ExitStack) -> RunFolder:
    """Hold the run folder; with several processes the first one does."""
    if rank() > 0:
        _barrier()
        return RunFolder.open(config.out)
    run = RunFolder.create_or_open(config.out, "pretrain", config, _MAY_CHANGE)
    until_the_end.enter_context(run.occupied())
    _barrier()
    return run


def _is_time_to_save(config: PretrainConfig, done: int, steps: int, saved_at: float) -> bool:
    by_step = config.save_every_steps is not None and done % config.save_every_steps == 0
    return by_step or done == steps or time.monotonic() - saved_at >= 60.0 * config.save_every_minutes


def _save(
    run: RunFolder,
    job: _Job,
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    step: int,
    sample: tuple[Mapping[str, Tensor], Moment] | None = None,
) -> None:
    """Write resume.pt, then the encoder file, then a picture of a sample; in the first process only."""
    if rank() > 0:
        return
    run.save_resume({
        **state,
        "step": step,
        "method": job.method.state_dict(),
        "optimiser": job.optimiser.state_dict(),
        "scaler": job.scaler.state_dict(),
    })  # fmt: skip
    write_encoder(run.checkpoint, job.method, {**meta, "step": step})
    if sample is None:
        return
    with torch.no_grad(), autocast(job.recipe, job.device), _evaluating(job.method):
        picture = job.method.picture(*sample)
    if picture is not None:
        run.save_picture(step, picture)


@contextmanager
def _evaluating(method: Method) -> Iterator[None]:
    """Switch to evaluation, so that looking changes nothing, and back to what each part was in."""
    before = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _restore(run: RunFolder, saved: Mapping[str, Any], job: _Job) -> int:
    """Put a saved state back; the number of steps it had done."""
    try:
        job.method.load_state_dict(saved["method"])
        job.optimiser.load_state_dict(saved["optimiser"])
        job.scaler.load_state_dict(saved["scaler"])
        step = int(saved["step"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"The training state in {run.path} is damaged or of another network; start again in another folder."
        ) from error
    if rank() == 0:
        run.forget_after(step)
    return step


def _meta(
    config: PretrainConfig, job: _Job, facts: Mapping[str, Any], volumes: UnlabelledVolumes
) -> dict[str, Any]:
    """What the encoder file says of its making; no paths."""
    return {
        "method": config.method,
        "backbone": job.backbone,
        "data": [scan.id for scan in volumes.scans],
        "seed": config.seed,
        "recipe": facts["recipe"],
        "options": facts["options"],
        "excluded": exclusions(config.exclude),
    }


# --------------------------------------------------------------------------------------------------------- processes


@contextmanager
def _processes(device_name: str) -> Iterator[torch.device]:
    """The device of this process; under torchrun, joined with the others."""
    device = pick_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _shared(method: Method, device: torch.device) -> nn.Module:
    """The method with gradients averaged over the processes."""
    if world_size() == 1:
        return method
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=ids, find_unused_parameters=True)


def _any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    return flag if world_size() == 1 else _over_processes(float(flag), device, dist.ReduceOp.MAX) > 0.0


def _over_processes(value: float, device: torch.device, how: dist.ReduceOp.RedOpType) -> float:
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number, how)
    return float(number)


def _mean_over_processes(pending: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, float]:
    names = list(pending[0])
    means = torch.stack([torch.stack([values[name] for values in pending]).mean() for name in names])
    if world_size() > 1:
        dist.all_reduce(means)
        means /= world_size()
    return dict(zip(names, means.tolist(), strict=True))


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextmanager
def _memory_explained(recipe: Recipe) -> Iterator[None]:
    """Turn PyTorch's pages on memory into one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemory(
            f"A step of {recipe.batch} samples in {recipe.accumulate} parts does not fit in the GPU's memory; give a"
            f" larger --accumulate, such as {2 * recipe.accumulate}, or a smaller --batch or --size."
        ) from error
