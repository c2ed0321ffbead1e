"""The models the program knows, and where their files are; how these get here is in `model_files`.

``pretrained/registry.json`` lists every model and encoder. Shipped weights lie beside it, all others in the user's
model folder. A file is used only when its SHA-256 is the one in the registry.

Weights that the user has trained or been given lie in ``own/`` of that folder, each beside a registry entry of its own:
``own/<id>.json``, written last, makes a model appear.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from .errors import ModelError
from .storage import atomic_path

__all__ = [
    "DEFAULT_MODEL",
    "EncoderEntry",
    "ModelEntry",
    "bundled_folder",
    "find_entry",
    "is_available",
    "known_models",
    "load_encoders",
    "load_registry",
    "model_path",
    "own_folder",
    "refresh_bundled",
    "sha256_of",
    "shipped_encoder",
    "user_folder",
    "verified_path",
    "write_registry",
]

DEFAULT_MODEL = "medssl-nano"
"""The small model that is shipped with the program and needs no network."""

Kind = Literal["sam", "sam2", "nano"]
_KINDS: tuple[Kind, ...] = ("sam", "sam2", "nano")
_OWN = "own"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model of the registry."""

    id: str
    """What the user types, e.g. ``sam2.1-hiera-tiny``."""
    kind: Kind
    """Which code loads it: ``sam`` and ``sam2`` are the packages of that name, ``nano`` is ours."""
    config: str
    """Layout of the weights, in the words of the code that loads it."""
    title: str
    """Name for a menu."""
    purpose: str
    """One sentence: what it is good for."""
    file: str
    """File name of the weights."""
    size_bytes: int
    """Size of the file; 0 while a bundled model is not trained yet."""
    sha256: str
    """SHA-256 of the file, hex; empty while a bundled model is not trained yet."""
    license: str
    """Licence of the weights."""
    source_url: str | None
    """Where the file can be downloaded; None for a bundled model and for one of the user's own."""
    image_size: int
    """Side of the square the model sees, pixels."""
    bundled: bool
    """Shipped with the program."""
    acknowledge: bool
    """The licence restricts use, and the user must say that they know before it is downloaded."""
    citation: str
    """The paper to cite."""
    answers_prompts: bool = True
    """Whether it takes points and boxes on a slice; False for what was only taught to carry masks."""

    @property
    def propagates(self) -> bool:
        """Whether it carries masks from slice to slice."""
        return self.kind != "sam"

    @property
    def own(self) -> bool:
        """Weights of the user's own, which no other machine has to offer."""
        return not self.bundled and self.source_url is None


def bundled_folder() -> Path:
    """Folder of the registry and the shipped weights, in a checkout or in an installed module."""
    package = Path(__file__).resolve().parent
    for folder in (package.parents[1] / "pretrained", package.parent / "pretrained", package / "pretrained"):
        if (folder / "registry.json").is_file():
            return folder
    raise ModelError("The folder pretrained with registry.json is missing; install the program again.")


def user_folder() -> Path:
    """Folder of downloaded and imported weights: ``$MEDSSL_HOME/models``, else ``~/.medssl/models``; absolute."""
    home = os.environ.get("MEDSSL_HOME")
    return (Path(home).expanduser().absolute() if home else Path.home() / ".medssl") / "models"


def load_registry(path: str | Path | None = None) -> tuple[ModelEntry, ...]:
    """Read every model of a registry file (by default the program's own).

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path) if path else bundled_folder() / "registry.json"
    try:
        items = json.loads(path.read_text("utf-8"))["models"]
        entries = tuple(ModelEntry(**item) for item in items)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The model list {path} cannot be read ({error}); install the program again."
        ) from error
    for entry in entries:
        if entry.kind not in _KINDS:
            raise ModelError(
                f"The model list {path} calls {entry.id} a {entry.kind!r}; known are {', '.join(_KINDS)}."
            )
    return entries


def known_models() -> tuple[ModelEntry, ...]:
    """The program's models, and then the user's own by name.

    Raises:
        ModelError: the program's list is missing or damaged. A damaged entry of the user's is left out.
    """
    own = (_read_own(path) for path in sorted(own_folder().glob("*.json")))
    return (*load_registry(), *(entry for entry in own if entry is not None))


def own_folder() -> Path:
    """Where the user's own weights lie, below `user_folder`."""
    return user_folder() / _OWN


def _read_own(path: Path) -> ModelEntry | None:
    """An entry of the user's; None where it is damaged or made by another version, or its weights are gone."""
    try:
        entry = ModelEntry(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    texts = (entry.id, entry.file, entry.config, entry.title, entry.purpose, entry.sha256, entry.license)
    numbers = (entry.size_bytes, entry.image_size)
    if not all(isinstance(each, str) for each in texts) or not all(isinstance(each, int) for each in numbers):
        return None
    # What is described elsewhere than it lies was put here by hand: it must not reach out of the folder.
    weights = Path(entry.file)
    fits = entry.own and entry.kind in _KINDS and entry.id == path.stem
    inside = weights.parent == Path(_OWN) and weights.stem == entry.id
    return entry if fits and inside and model_path(entry).is_file() else None


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """A pre-trained encoder that is shipped; what it expects of its input is in the file."""

    method: str
    """What the user types, a key of METHODS."""
    file: str
    """Name inside the bundled folder."""
    size_bytes: int
    sha256: str
    """Hex, lower case."""
    license: str


def load_encoders(path: str | Path | None = None) -> tuple[EncoderEntry, ...]:
    """Read the shipped encoders of a registry file (by default the program's own).

    Returns:
        In the file's order: first comes the one that has helped most, which the front ends start from.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path) if path else bundled_folder() / "registry.json"
    try:
        items = json.loads(path.read_text("utf-8")).get("encoders", [])
        return tuple(EncoderEntry(**item) for item in items)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"The encoder list of {path} cannot be read ({error}); install the program again."
        ) from error


def shipped_encoder(method: str) -> Path:
    """Path of a shipped encoder after its SHA-256 was checked.

    Raises:
        ModelError: none is shipped for the method, or the file is not the registry's.
    """
    entries = {entry.method: entry for entry in load_encoders()}
    if method not in entries:
        raise ModelError(
            f"There is no file and no shipped encoder '{method}'; shipped are {', '.join(entries) or 'none'}."
        )
    path = bundled_folder() / entries[method].file
    if not path.is_file() or sha256_of(path) != entries[method].sha256:
        raise ModelError(f"The file {path} is not the shipped encoder {method}; install the program again.")
    return path


def find_entry(model_id: str) -> ModelEntry:
    """Find a model by its id.

    Raises:
        ModelError: there is none; the message lists those there are.
    """
    entries = known_models()
    for entry in entries:
        if entry.id == model_id:
            return entry
    raise ModelError(f"There is no model {model_id!r}; choose one of {', '.join(e.id for e in entries)}.")


def model_path(entry: ModelEntry) -> Path:
    """Where the model's file is, or will be."""
    return (bundled_folder() if entry.bundled else user_folder()) / entry.file


def is_available(entry: ModelEntry) -> bool:
    """Whether the model's file is on this machine, by name and size; `verified_path` checks the content."""
    path = model_path(entry)
    return path.is_file() and path.stat().st_size == entry.size_bytes


def verified_path(entry: ModelEntry) -> Path:
    """Path of the model's file after its SHA-256 was checked.

    Raises:
        ModelError: the file is not on this machine, or is not the registry's.
    """
    path = model_path(entry)
    if entry.own and not path.is_file():
        raise ModelError(f"The weights {path} of the model {entry.id} are gone; import them again.")
    if not path.is_file():
        raise ModelError(
            f"The model {entry.id} is not on this machine; run 'medssl models download {entry.id}',"
            f" or 'medssl models import FOLDER' with a folder that holds {entry.file}."
        )
    if sha256_of(path) != entry.sha256:
        raise ModelError(
            f"The file {path} is not the model {entry.id} (wrong SHA-256); delete it and get it again."
        )
    return path


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refresh_bundled(path: str | Path | None = None) -> tuple[ModelEntry, ...]:
    """Write the size and SHA-256 of the shipped weights into a registry file (by default the program's own).

    Args:
        path: ``registry.json``; the weights lie beside it. A model whose file is missing is left as it is.

    Returns:
        The models after the change.

    Raises:
        ModelError: the registry cannot be read.
        StorageError: it cannot be written.
    """
    path = Path(path) if path else bundled_folder() / "registry.json"
    entries = tuple(
        _measured(entry, path.parent) if entry.bundled else entry for entry in load_registry(path)
    )
    encoders = [_measured(entry, path.parent) for entry in load_encoders(path)]
    write_registry(path, entries, encoders)
    return entries


def write_registry(path: Path, models: Sequence[ModelEntry], encoders: Sequence[EncoderEntry]) -> None:
    """Replace a registry file in one step.

    Raises:
        StorageError: it cannot be written.
    """
    lists = {"models": [asdict(entry) for entry in models], "encoders": [asdict(entry) for entry in encoders]}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(lists, indent=2) + "\n", "utf-8")


_Entry = TypeVar("_Entry", ModelEntry, EncoderEntry)


def _measured(entry: _Entry, folder: Path) -> _Entry:
    file = folder / entry.file
    if not file.is_file():
        return entry
    return replace(entry, size_bytes=file.stat().st_size, sha256=sha256_of(file))
