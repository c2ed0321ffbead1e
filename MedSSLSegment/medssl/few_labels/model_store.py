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
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import read_header
from ..errors import InputError, ModelError
from ..events import Log
from ..home import models_folder
from ..runs.run_folder import RunFolder
from ..storage import atomic_path, make_folder, move
from .segmenter import ModelInfo

__all__ = ["ModelStore", "ModelVersion", "StoredModel", "model_file", "require_model_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_VERSION_FILE = re.compile(r"v(\d{3,})\.safetensors")
_REMOVED = "removed"


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
        """
        name, _, number = model.partition(":")
        stored = self._stored(name)
        if not number:
            return stored.in_use
        versions = {str(version.number): version for version in stored.versions}
        if number not in versions:
            raise InputError(f"Model {name} has no version {number}; it has {', '.join(versions)}.")
        return versions[number]

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
            ModelError: the file holds no model.
            StorageError: no space or no permission; the model stays as it was.
        """
        require_model_name(name)
        ModelInfo.from_json(read_header(file))
        folder = self.folder / name
        make_folder(folder)
        number = (
            max((_number(path) for path in _version_files(folder, self.folder / _REMOVED / name)), default=0)
            + 1
        )
        with atomic_path(folder / f"v{number:03d}.safetensors") as temporary:
            shutil.copyfile(file, temporary)
        self._use(folder, number)
        return self.find(f"{name}:{number}")

    def twin(self, file: str | Path, name: str) -> ModelVersion | None:
        """The version of a model that is this very file, byte for byte; None where there is none."""
        folder = self.folder / name
        same = (path for path in _version_files(folder) if filecmp.cmp(path, file, shallow=False))
        path = next(same, None)
        return None if path is None else self.find(f"{name}:{_number(path)}")

    def in_use(self, name: str) -> str:
        """What a name stands for now, e.g. "liver:2"; empty where there is no such model."""
        return self.find(name).id if (self.folder / name).is_dir() else ""

    def use(self, model: str) -> ModelVersion:
        """Go back (or forward) to a version: "name:2".

        Raises:
            InputError: there is none.
        """
        version = self.find(model)
        self._use(self.folder / version.name, version.number)
        return version

    def delete(self, model: str) -> None:
        """Take out a version ("name:2"), or with a bare name all of a model; the files are kept in ``removed/``.

        Raises:
            InputError: there is none.
        """
        version = self.find(model)
        stored = self._stored(version.name)
        chosen = [version] if ":" in model else list(stored.versions)
        make_folder(self.folder / _REMOVED / version.name)
        for each in chosen:
            move(each.path, self.folder / _REMOVED / version.name / each.path.name)
        left = [each.number for each in stored.versions if each not in chosen]
        if not left:
            shutil.rmtree(self.folder / version.name, ignore_errors=True)
        elif stored.in_use in chosen:
            self._use(self.folder / version.name, left[-1])

    def export(self, model: str, path: str | Path) -> None:
        """Write a version as one file that `add` takes on any machine.

        Raises:
            InputError: there is no such model, or the path does not end in .safetensors.
            StorageError: no space or no permission.
        """
        if Path(path).suffix != ".safetensors":
            raise InputError(f"A model is exported to a .safetensors file, not to {Path(path).name}.")
        with atomic_path(path) as temporary:
            shutil.copyfile(self.find(model).path, temporary)

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
        folder = next((folder for folder in self._folders() if folder.name == name), None)
        stored = None if folder is None else self._read(folder, problems.append)
        if stored is not None:
            return stored
        if problems:
            raise InputError(f"No version of the model '{name}' can be read: {problems[0].text}")
        known = ", ".join(folder.name for folder in self._folders())
        raise InputError(f"There is no model '{name}'; the store holds {known or 'none'}.")

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
        try:
            wanted = json.loads((folder / "model.json").read_text("utf-8"))["in_use"]
        except (OSError, ValueError, KeyError):
            wanted = versions[-1].number  # nothing is lost: the newest is what one would want
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
