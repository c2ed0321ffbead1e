"""The models the program knows, where their files are, and how they get here.

``pretrained/registry.json`` lists every model and encoder. Shipped weights lie beside it; all others are downloaded on
request, or imported from a folder on a machine without a network, and kept in the user's model folder. A file
is used only when its SHA-256 is the one in the registry.

Weights that the user has trained or been given lie in ``own/`` of that folder, each beside a registry entry of its own:
``own/<id>.json``, written last, makes a model appear.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal, TypeVar

from .errors import Cancelled, ModelError, StorageError
from .events import Eta, Progress
from .storage import atomic_path, move

__all__ = [
    "DEFAULT_MODEL",
    "EncoderEntry",
    "ModelEntry",
    "bundled_folder",
    "download",
    "find_entry",
    "import_from_folder",
    "is_available",
    "keep_own",
    "known_models",
    "load_encoders",
    "load_registry",
    "model_path",
    "refresh_bundled",
    "remove_own",
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
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_ERRORS = (*_DISK_IS_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)


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
    """Folder of downloaded and imported weights: ``$MEDSSL_HOME/models``, else ``~/.medssl/models``."""
    home = os.environ.get("MEDSSL_HOME")
    return (Path(home) if home else Path.home() / ".medssl") / "models"


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
    own = (_read_own(path) for path in sorted(_own_folder().glob("*.json")))
    return (*load_registry(), *(entry for entry in own if entry is not None))


def keep_own(source: str | Path, entry: ModelEntry, check: Callable[[ModelEntry], None]) -> ModelEntry:
    """Copy weights into the user's model folder, where every front end finds them by their id.

    Args:
        source: the weights' file.
        entry: what is known of them; file, size and SHA-256 are filled in here.
        check: is given the copy's entry before the model appears, and raises what is wrong with it.

    Returns:
        The entry that was kept.

    Raises:
        ModelError: the file is missing or the id is taken; and whatever `check` finds.
        StorageError: no space or no permission.
    """
    source = Path(source)
    if not source.is_file():
        raise ModelError(f"The weights file {source} does not exist.")
    beside = (
        _own_folder().iterdir() if _own_folder().is_dir() else ()
    )  # what cannot be read is not written over either
    taken = {known.id.lower() for known in known_models()} | {_id_of(path).lower() for path in beside}
    if entry.id.lower() in taken:
        raise ModelError(
            f"There is a model {entry.id} already; give another --name, or take that out first with:"
            f" medssl models delete {entry.id}"
        )
    entry = replace(
        entry,
        file=f"{_OWN}/{entry.id}{source.suffix or '.pt'}",
        size_bytes=source.stat().st_size,
        sha256=sha256_of(source),
        source_url=None,
        bundled=False,
    )
    try:
        _copy_verified(entry, source, _ignore, _never)
        check(entry)
        with atomic_path(_description(entry)) as temporary:
            temporary.write_text(json.dumps(asdict(entry), indent=2) + "\n", "utf-8")
    except BaseException:
        model_path(entry).unlink(missing_ok=True)
        raise
    return entry


def remove_own(entry: ModelEntry) -> Path:
    """Take out a model of the user's own.

    Returns:
        The folder that keeps its weights.

    Raises:
        ModelError: it is one of the program's.
        StorageError: no permission.
    """
    if not entry.own:
        raise ModelError(f"The model {entry.id} is one of the program's and stays.")
    removed = _own_folder() / "removed"
    _make_folder(removed)
    for path in (model_path(entry), _description(entry)):
        kept = removed / f"{entry.sha256[:8]}-{path.name}"
        kept.unlink(missing_ok=True)  # the same weights, taken out before
        move(path, kept)
    return removed


def _id_of(path: Path) -> str:
    return path.name.removesuffix(path.suffix)


def _own_folder() -> Path:
    return user_folder() / _OWN


def _description(entry: ModelEntry) -> Path:
    return _own_folder() / f"{entry.id}.json"


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
    fits = entry.own and entry.kind in _KINDS and entry.id == _id_of(path)
    inside = weights.parent == Path(_OWN) and _id_of(weights) == entry.id
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


def import_from_folder(
    folder: str | Path,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    acknowledged: bool = False,
) -> tuple[ModelEntry, ...]:
    """Copy every known model found in a folder into the user's model folder: for machines without a network.

    A file counts by its name, or under any name by its size and SHA-256.

    Args:
        folder: is searched itself, not its sub-folders.
        progress: is told the bytes copied so far, per file.
        cancelled: asked between blocks.
        acknowledged: the user knows the terms of models with a restricted licence.

    Returns:
        The models that were copied.

    Raises:
        ModelError: nothing known is there, a file has a model's name but another content, or a restricted
            licence was not acknowledged.
        StorageError: no space or no permission.
        Cancelled: the user asked to stop.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"The folder {folder} does not exist.")
    wanted = [entry for entry in load_registry() if not entry.bundled]
    found = [(entry, source) for entry in wanted if (source := _find_in(folder, entry))]
    if not found:
        raise ModelError(f"The folder {folder} holds none of {', '.join(e.file for e in wanted)}.")
    for entry, _ in found:
        _check_acknowledged(entry, acknowledged)
    for entry, source in found:
        _copy_verified(entry, source, progress or _ignore, cancelled or _never)
    return tuple(entry for entry, _ in found)


def _find_in(folder: Path, entry: ModelEntry) -> Path | None:
    if (folder / entry.file).is_file():
        return folder / entry.file
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size == entry.size_bytes and sha256_of(path) == entry.sha256:
            return path
    return None


def _copy_verified(
    entry: ModelEntry, source: Path, progress: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> None:
    target = model_path(entry)
    _make_folder(target.parent)
    with atomic_path(target) as temporary, source.open("rb") as reader, Path(temporary).open("wb") as writer:
        digest = _pump(reader, writer, entry, hashlib.sha256(), 0, progress, cancelled)
        if digest != entry.sha256:
            raise ModelError(f"The file {source} is not the model {entry.id} (wrong SHA-256); get it again.")


def download(
    entry: ModelEntry,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    acknowledged: bool = False,
    allow_loopback_http: bool = False,
) -> Path:
    """Download a model into the user's model folder, going on where an earlier try stopped.

    What has arrived is kept in ``<file>.part`` until the whole file is there and its SHA-256 is right.

    Args:
        entry: the model; one that is there already is not downloaded again.
        progress: is told the bytes that have arrived.
        cancelled: asked between blocks; what has arrived is kept for the next try.
        acknowledged: the user knows the terms of a model with a restricted licence.
        allow_loopback_http: also take a plain http address on this very machine (tests).

    Returns:
        Path of the file.

    Raises:
        ModelError: no network, the server refuses, the connection broke, the file is not the registry's, or a
            restricted licence was not acknowledged.
        StorageError: no space or no permission.
        Cancelled: the user asked to stop.
    """
    target = model_path(entry)
    if is_available(entry) and sha256_of(target) == entry.sha256:
        return target
    if entry.own:
        return verified_path(entry)
    if entry.source_url is None:
        raise ModelError(f"The model {entry.id} is shipped with the program; install the program again.")
    _check_acknowledged(entry, acknowledged)
    _make_folder(target.parent)
    part = target.with_name(target.name + ".part")
    digest = _fetch(
        entry, entry.source_url, part, progress or _ignore, cancelled or _never, allow_loopback_http
    )
    if digest != entry.sha256:
        part.unlink()
        raise ModelError(
            f"What {entry.source_url} sent is not the model {entry.id} (wrong SHA-256); try again later."
        )
    os.replace(part, target)
    return target


def _fetch(
    entry: ModelEntry,
    url: str,
    part: Path,
    progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
    allow_loopback_http: bool,
) -> str:
    """Bring `part` to its full size; return the SHA-256 of the whole."""
    have = part.stat().st_size if part.is_file() else 0
    if have == entry.size_bytes:
        return sha256_of(part)
    if have > entry.size_bytes:
        have = 0
    _check_space(part.parent, entry, entry.size_bytes - have)
    try:
        with _open(url, have, allow_loopback_http) as response:
            _check_announced_size(response, entry, url)
            if response.status != http.client.PARTIAL_CONTENT:
                have = 0  # the server sends the whole file again
            digest = hashlib.sha256()
            with part.open("r+b" if have else "wb") as writer:
                while writer.tell() < have:
                    digest.update(writer.read(min(_CHUNK_BYTES, have - writer.tell())))
                whole = _pump(response, writer, entry, digest, have, progress, cancelled)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # the server has less than we do: start again
        raise ModelError(f"{url} answers {error.code} {error.reason}; try again later.") from error
    except (OSError, http.client.HTTPException) as error:
        raise _stopped(entry, url, part, error) from error
    received = part.stat().st_size
    if received < entry.size_bytes:
        raise ModelError(
            f"The connection to {url} broke after {received} of {entry.size_bytes} bytes;"
            " run the download again to go on."
        )
    return whole


def _check_announced_size(response: http.client.HTTPResponse, entry: ModelEntry, url: str) -> None:
    """Find out a page that is not the file (a login page, a moved file) before it is taken for a part of it."""
    if response.status == http.client.PARTIAL_CONTENT:
        announced = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) != entry.size_bytes:
        raise ModelError(
            f"{url} offers {announced} bytes instead of the {entry.size_bytes} of {entry.id}; try again later,"
            " or import the file from a folder."
        )


def _stopped(entry: ModelEntry, url: str, part: Path, error: Exception) -> ModelError | StorageError:
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        if error.errno in _DISK_IS_FULL:
            part.unlink(missing_ok=True)
        return StorageError(
            f"{part} could not be written ({error.strerror}); free some space or allow writing."
        )
    reason = getattr(error, "reason", error) or type(error).__name__
    return ModelError(
        f"The download of {entry.id} from {url} stopped ({reason}); check the network and run it again to go on."
    )


def _pump(
    reader: IO[bytes] | http.client.HTTPResponse,
    writer: IO[bytes],
    entry: ModelEntry,
    digest: hashlib._Hash,
    have: int,
    progress: Callable[[Progress], None],
    cancelled: Callable[[], bool],
) -> str:
    """Copy blocks until the reader ends or the model's size is passed; return the SHA-256 of all there is."""
    eta = Eta(entry.size_bytes - have)
    done = have
    while done <= entry.size_bytes and (block := reader.read(_CHUNK_BYTES)):
        if cancelled():
            raise Cancelled(f"Getting {entry.id} was cancelled.")
        writer.write(block)
        digest.update(block)
        done += len(block)
        pace = eta.step(done - have)
        progress(Progress(min(done, entry.size_bytes), entry.size_bytes, pace.seconds_left, entry.file))
    writer.flush()
    os.fsync(writer.fileno())
    return digest.hexdigest()


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that would have been taken in the first place."""

    def __init__(self, allow_loopback_http: bool) -> None:
        self._allow_loopback_http = allow_loopback_http

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_address(newurl, self._allow_loopback_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int, allow_loopback_http: bool) -> http.client.HTTPResponse:
    _check_address(url, allow_loopback_http)
    headers = {"User-Agent": "medssl", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    opener = urllib.request.build_opener(_CheckedRedirects(allow_loopback_http))
    response: http.client.HTTPResponse = opener.open(
        urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
    )
    return response


def _check_address(url: str, allow_loopback_http: bool) -> None:
    address = urllib.parse.urlsplit(url)
    loopback = address.hostname in ("127.0.0.1", "localhost")
    if address.scheme != "https" and not (address.scheme == "http" and loopback and allow_loopback_http):
        raise ModelError(f"The address {url} is not https, so nothing was downloaded from it.")


def _check_acknowledged(entry: ModelEntry, acknowledged: bool) -> None:
    if entry.acknowledge and not acknowledged:
        raise ModelError(
            f"The weights of {entry.id} have a restricted licence ({entry.license});"
            " confirm that you know its terms first."
        )


def _check_space(folder: Path, entry: ModelEntry, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{entry.id} needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free;"
            " free some space or set MEDSSL_HOME to another folder."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The model folder {folder} cannot be made ({error.strerror}); set MEDSSL_HOME to another folder."
        ) from error


def _ignore(progress: Progress) -> None:
    pass


def _never() -> bool:
    return False


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
