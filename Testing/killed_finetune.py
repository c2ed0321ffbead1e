"""A fine-tuning run that is killed again and again, in a process of its own: ``python killed_finetune.py FOLDER SEED``.

Each life is a forked process that changes a case of the store, goes on with the run and dies by SIGKILL: at a chosen
step and so many writes, renames and removals later, or whenever the clock says. After each death everything on disk is
looked at. At the end the run is let through, and a line of JSON says what is left, beside a run that nobody killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medssl.cases import CaseStore, Vouched
from medssl.events import Log, Progress
from medssl.few_labels.finetune_run import FinetuneConfig, finetune
from medssl.few_labels.model_store import ModelStore
from medssl.few_labels.segmenter import read_model
from medssl.runs.run_folder import RunFolder
from medssl.segmentation import Segment, Segmentation
from medssl.volume import Volume

KILLS = 22
STEPS, CLOSING = 16, 4
ALL_STEPS = STEPS + CLOSING
_TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
_NEVER = 1 << 30


@dataclass
class Fate:
    """When a life ends: after a step, and so many more moments."""

    folder: str
    step: int
    moments: int
    reached: int = 0

    def watch(self) -> None:
        """From now on, each touch of a file of the folder is a moment too."""
        sys.addaudithook(
            lambda event, args: self.moment() if event in _TOUCHES and self._is_ours(args) else None
        )

    def moment(self) -> None:
        """Something happens now; it may be the end."""
        if self.reached < self.step:
            return
        if self.moments <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments -= 1

    def _is_ours(self, args: tuple[Any, ...]) -> bool:
        return bool(args) and isinstance(args[0], str | Path) and str(args[0]).startswith(self.folder)


def annotated(seed: int) -> tuple[Volume, Segmentation]:
    """A bright disc in a round body."""
    rng = np.random.default_rng(seed)
    shape = (5, 30, 28)
    image, labels = rng.normal(40, 20, shape), np.zeros(shape, np.uint8)
    rows, columns = np.indices(shape[1:])
    disc = (rows - 14 - seed) ** 2 + (columns - 12) ** 2 < 30
    labels[1:4, disc] = 1
    image[labels == 1] = 300
    image[:, (rows - 15) ** 2 + (columns - 14) ** 2 > 190] = -1000
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    volume = Volume(image.astype(np.int16), affine, f"case{seed}")
    return volume, Segmentation(labels, affine, (Segment("bright", 1, (1.0, 0.0, 0.0)),))


def fill(store: CaseStore) -> str:
    """Three cases to learn from and one that teaches something else, whose id is returned."""
    for seed in range(3):
        volume, labels = annotated(seed)
        store.add(volume, labels, [Vouched("bright", 0, (1, 2, 3))])
    volume, labels = annotated(9)
    other = dataclasses.replace(labels, segments=(Segment("other", 1, (0.0, 1.0, 0.0)),))
    return store.add(volume, other, [Vouched("other", 0, (2,))]).id


def live(folder: Path, run: str, other: str, fate: Fate) -> None:
    """Change a case, then go on with the run."""
    config = FinetuneConfig(
        out=folder / run, cases=folder / "cases", models=folder / f"models-{run}", name="bright", segments=("bright",),
        backbone="unet2d_4", steps=STEPS, closing=CLOSING / STEPS, validations=4, batch=2, size=(32, 32),
        spacing=(0.0, 2.0, 2.0), patience=0, device="cpu", save_every_minutes=1e-9, carry=False,
    )  # fmt: skip
    fate.watch()
    store = CaseStore(folder / "cases")
    case = store.case(other)
    store.update(other, case.segmentation(), [Vouched("other", 0, (1 + case.revision % 3,))])
    for event in finetune(config):
        if isinstance(event, Progress):
            fate.reached = ALL_STEPS - event.total + event.done
            fate.moment()
        elif isinstance(event, Log):
            fate.moment()


def look(folder: Path, run: str) -> None:
    """Read all there is; whatever is damaged raises."""
    problems: list[Log] = []
    cases = CaseStore(folder / "cases").cases(problems.append)
    assert len(cases) == 4
    assert all(case.segmentation().labels_kji.max() == 1 for case in cases)
    models = ModelStore(folder / f"models-{run}").models(problems.append)
    assert sum(len(model.versions) for model in models) <= 1
    assert not problems, problems
    if not (folder / run / "run.json").exists():
        return
    there = RunFolder.open(folder / run)
    there.load_resume()
    there.events()
    assert there.status.state in ("new", "lost", "done"), there.status
    if there.checkpoint.exists():
        read_model(there.checkpoint)


def one_life(folder: Path, run: str, other: str, fate: Fate, seconds: float | None = None) -> bool:
    """Fork a process that lives, and may be killed after so many seconds; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            live(folder, run, other, fate)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def fates(folder: Path, rng: np.random.Generator) -> list[Fate]:
    """The earliest before the first step, the last after the last one."""
    steps = sorted([0, 0, *rng.integers(1, ALL_STEPS, KILLS - 5).tolist(), *[ALL_STEPS] * 3])
    return [Fate(str(folder), step, int(rng.integers(0, 12 if step else 30))) for step in steps]


def digest(folder: Path, run: str) -> str:
    """SHA-256 (hex) of a run's model."""
    return hashlib.sha256((folder / run / "checkpoint.safetensors").read_bytes()).hexdigest()


def load_what_is_loaded_late() -> None:
    """Once for all lives: a part of torch that its optimisers load takes seconds."""
    import PIL.PngImagePlugin  # noqa: F401

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


def main() -> None:
    """Do as the top of this file says."""
    torch.set_num_threads(1)
    load_what_is_loaded_late()
    folder, rng = Path(sys.argv[1]), np.random.default_rng(int(sys.argv[2]))
    other = fill(CaseStore(folder / "cases"))
    kills = 0
    for n, fate in enumerate(fates(folder, rng)):
        seconds = float(rng.uniform(0.0, 0.6)) if n % 5 == 4 else None
        kills += one_life(folder, "killed", other, fate, seconds)
        look(folder, "killed")
    for run in ("killed", "whole"):
        assert not one_life(folder, run, other, Fate(str(folder), _NEVER, 0))
        look(folder, run)
    (model,) = ModelStore(folder / "models-killed").models()
    print(
        json.dumps(
            {
                "kills": kills,
                "killed": digest(folder, "killed"),
                "whole": digest(folder, "whole"),
                "kept": hashlib.sha256(model.in_use.path.read_bytes()).hexdigest(),
                "versions": [version.id for version in model.versions],
                "state": RunFolder.open(folder / "killed").status.state,
            }
        )
    )


if __name__ == "__main__":
    main()
