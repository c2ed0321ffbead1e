"""The model store: a folder of models a user has trained, every version kept until it is deleted.

    models/<name>/model.json       the version in use
    models/<name>/v003.safetensors weights and, in the header, all that is known of them (`ModelInfo`)
    models/removed/...             deleted versions; nothing else is ever thrown away

A version is one file, so exporting is copying. A model is asked for as "name" (the version in use), "name:3", or by the
path of a file outside the store.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import read_checkpoint, read_header
from ..errors import InputError, ModelError, StorageError
from ..events import Log
from ..home import models_folder
from ..runs.run_folder import RunFolder
from ..storage import atomic_path, make_folder, move, one_at_a_time
from .segmenter import ModelInfo

__all__ = ["ModelStore", "ModelVersion", "StoredModel", "model_file", "require_model_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_VERSION_FILE = re.compile(r"v(\d{3,})\.safetensors")
_REMOVED = "removed"
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class ModelVersion:
    """One state of a model."""

    name: str
    number: int
    """1, 2, 3 ..."""
    path: Path
    created: float
    """Seconds since 1970."""
    info: ModelInfo

    @property
    def id(self) -> str:
        """E.g. "liver:3"."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True)
class StoredModel:
    """A model with all its versions."""

    name: str
    versions: tuple[ModelVersion, ...]
    """Oldest first, at least one."""
    in_use: ModelVersion
    """The version that the bare name stands for."""


class ModelStore:
    """A folder of models; it is made when the first one is added."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()

    def models(self, on_problem: Callable[[Log], None] = lambda log: None) -> list[StoredModel]:
        """All models by name; a damaged version is left out and named to `on_problem`."""
        if not self.folder.is_dir():
            return []
        found = (self._read(folder, on_problem) for folder in self._folders())
        return [model for model in found if model is not None]

    def find(self, model: str) -> ModelVersion:
        """Look up "name" or "name:3".

        Raises:
            InputError: there is none; the message lists those there are.
            ModelError: its file is damaged; no other version is taken for it.
        """
        name, _, number = model.partition(":")
        stored = self._stored(name)
        versions = {str(version.number): version for version in stored.versions}
        wanted = number or str(_chosen(self.folder / name) or stored.in_use.number)
        if wanted in versions:
            return versions[wanted]
        if any(str(_number(path)) == wanted for path in _version_files(self.folder / name)):
            raise ModelError(
                f"The file of {name}:{wanted} is damaged; go back with: medssl models use {stored.in_use.id}"
            )
        if not number:
            return stored.in_use
        raise InputError(f"Model {name} has no version {number}; it has {', '.join(versions)}.")

    def resolve(self, model: str) -> Path:
        """Path of the weights of "name", "name:3" or a file.

        Raises:
            InputError: neither a stored model nor a file.
        """
        if model.endswith(".safetensors") and Path(model).is_file():
            return Path(model)
        return self.find(model).path

    def add(self, file: str | Path, name: str) -> ModelVersion:
        """Keep a model file as the next version of a model, and use it from now on.

        Raises:
            InputError: the name cannot be one.
            ModelError: the file holds no model, or is damaged.
            StorageError: no space or no permission, or another program keeps one; the model stays as it was.
        """
        require_model_name(name)
        ModelInfo.from_json(read_checkpoint(file)[1])
        make_folder(self.folder)
        with self._alone():
            number = self._keep(file, name)
        return self.find(f"{name}:{number}")

    def _alone(self) -> AbstractContextManager[None]:
        """As the only program that changes the store."""
        busy = StorageError(
            f"Another program has been writing the models of {self.folder} for a minute; try again."
        )
        if not self.folder.is_dir():  # nothing is there, which whoever asks will say
            return nullcontext()
        return one_at_a_time(self.folder / ".lock", busy, _PATIENCE_S)

    def _keep(self, file: str | Path, name: str) -> int:
        folder = self.folder / name
        make_folder(folder)
        taken = (_number(path) for path in _version_files(folder, self.folder / _REMOVED / name))
        number = max(taken, default=0) + 1
        with atomic_path(folder / f"v{number:03d}.safetensors") as temporary:
            shutil.copyfile(file, temporary)
        self._use(folder, number)
        return number

    def twin(self, file: str | Path, name: str) -> ModelVersion | None:
        """The version of a model that is this very file, byte for byte; None where there is none."""
        folder = self.folder / name
        same = (path for path in _version_files(folder) if filecmp.cmp(path, file, shallow=False))
        path = next(same, None)
        return None if path is None else self.find(f"{name}:{_number(path)}")

    def in_use(self, name: str) -> str:
        """What a name stands for now, e.g. "liver:2"; empty where there is no such model."""
        numbers = [_number(path) for path in _version_files(self.folder / name)]
        chosen = _chosen(self.folder / name)
        return f"{name}:{chosen if chosen in numbers else numbers[-1]}" if numbers else ""

    def use(self, model: str) -> ModelVersion:
        """Go back (or forward) to a version: "name:2".

        Raises:
            InputError: there is none.
            StorageError: no permission, or another program keeps a model.
        """
        with self._alone():
            version = self.find(model)
            self._use(self.folder / version.name, version.number)
        return version

    def delete(self, model: str) -> None:
        """Take out a version ("name:2"), or with a bare name all of a model; the files are kept in ``removed/``.

        Raises:
            InputError: there is none.
            StorageError: no permission, or another program keeps a model.
        """
        with self._alone():
            self._delete(model)

    def _delete(self, model: str) -> None:
        name, _, number = model.partition(":")
        files = _version_files(self._folder(name))
        chosen = [path for path in files if number in ("", str(_number(path)))]
        if not chosen:
            known = ", ".join(str(_number(path)) for path in files)
            raise InputError(f"Model {name} has no version {number}; it has {known or 'none'}.")
        in_use = _chosen(self.folder / name)
        make_folder(self.folder / _REMOVED / name)
        for path in chosen:
            move(path, self.folder / _REMOVED / name / path.name)
        left = [_number(path) for path in files if path not in chosen]
        if not left:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        elif in_use not in left:
            self._use(self.folder / name, left[-1])

    def export(self, model: str, path: str | Path) -> None:
        """Write a version as one file that `add` takes on any machine.

        Raises:
            InputError: there is no such model, or the path does not end in .safetensors.
            ModelError: its file is damaged.
            StorageError: no space or no permission.
        """
        if Path(path).suffix != ".safetensors":
            raise InputError(f"A model is exported to a .safetensors file, not to {Path(path).name}.")
        version = self.find(model)
        read_checkpoint(version.path)  # better found here than on the other machine
        with atomic_path(path) as temporary:
            shutil.copyfile(version.path, temporary)

    def _folders(self) -> list[Path]:
        """Of the models, by name."""
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [folder for folder in found if folder.is_dir() and folder.name != _REMOVED]

    def _stored(self, name: str) -> StoredModel:
        """One model, without a look at the others.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        problems: list[Log] = []
        stored = self._read(self._folder(name), problems.append)
        if stored is not None:
            return stored
        why = problems[0].text if problems else "its folder is empty."
        raise InputError(f"No version of the model '{name}' can be read: {why}")

    def _folder(self, name: str) -> Path:
        """Of one model.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        folders = {folder.name: folder for folder in self._folders()}
        if name not in folders:
            raise InputError(f"There is no model '{name}'; the store holds {', '.join(folders) or 'none'}.")
        return folders[name]

    def _read(self, folder: Path, on_problem: Callable[[Log], None]) -> StoredModel | None:
        versions = []
        for path in _version_files(folder):
            try:
                info = ModelInfo.from_json(read_header(path))
            except ModelError as error:
                on_problem(Log(str(error)))
                continue
            versions.append(ModelVersion(folder.name, _number(path), path, path.stat().st_mtime, info))
        if not versions:
            return None
        wanted = _chosen(folder)  # none: nothing is lost, the newest is what one would want
        in_use = next((version for version in versions if version.number == wanted), versions[-1])
        return StoredModel(folder.name, tuple(versions), in_use)

    def _use(self, folder: Path, number: int) -> None:
        with atomic_path(folder / "model.json") as temporary:
            temporary.write_text(json.dumps({"in_use": number, "since": time.time()}), "utf-8")


def require_model_name(name: str) -> None:
    """Refuse what cannot be a model's name.

    Raises:
        InputError: it is not one.
    """
    if not _NAME.fullmatch(name) or name == _REMOVED:
        raise InputError(f"'{name}' cannot name a model; use letters, digits, dots, dashes and underscores.")


def _chosen(folder: Path) -> int | None:
    """Number of the version in use, as a model's folder states it."""
    try:
        return int(json.loads((folder / "model.json").read_text("utf-8"))["in_use"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _version_files(*folders: Path) -> list[Path]:
    files = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return sorted((path for path in files if _VERSION_FILE.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    match = _VERSION_FILE.fullmatch(path.name)
    return int(match[1]) if match else 0


def model_file(model: str, store: str = "") -> Path:
    """Find the weights a request means.

    Args:
        model: "liver", "liver:3", a model file, or a run folder, which stands for what the run keeps.
        store: model store; empty for the usual one.

    Raises:
        InputError: there is no such model, or the run has kept none yet.
    """
    if (Path(model) / "run.json").is_file():
        run = RunFolder.open(model)
        if not run.checkpoint.is_file():
            raise InputError(
                f"The run {run.path} has not made a model yet; wait until it is done, or resume it."
            )
        return run.checkpoint
    return ModelStore(store or models_folder()).resolve(model)
