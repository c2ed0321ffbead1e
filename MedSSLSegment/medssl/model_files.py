"""How model files come and go: downloads, imports from a folder, and weights of the user's own.

A download goes on where an earlier one broke off. Nothing counts before its SHA-256 has been compared.
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
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from .errors import Cancelled, ModelError, StorageError
from .events import Eta, Progress
from .registry import (
    ModelEntry,
    is_available,
    known_models,
    load_registry,
    model_path,
    own_folder,
    sha256_of,
    user_folder,
    verified_path,
)
from .storage import atomic_path, move, one_at_a_time

__all__ = ["download", "import_from_folder", "keep_own", "remove_own"]

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_ERRORS = (*_DISK_IS_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)


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
        ModelError: no network, the server refuses, the connection broke, the file is not the registry's, another
            download of it is under way, or a restricted licence was not acknowledged.
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
    busy = ModelError(
        f"The model {entry.id} is being downloaded already; wait for it, or stop that download."
    )
    locks = user_folder().parent / "locks"
    _make_folder(locks)
    with one_at_a_time(locks / f"{target.name}.lock", busy):
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
    # What lies there and cannot be read is not written over either.
    beside = own_folder().iterdir() if own_folder().is_dir() else ()
    taken = {known.id.lower() for known in known_models()} | {path.stem.lower() for path in beside}
    if entry.id.lower() in taken:
        raise ModelError(
            f"There is a model {entry.id} already; give another --name, or take that out first with:"
            f" medssl models delete {entry.id}"
        )
    entry = replace(
        entry,
        file=f"{own_folder().name}/{entry.id}{source.suffix or '.pt'}",
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
    removed = own_folder() / "removed"
    _make_folder(removed)
    for path in (model_path(entry), _description(entry)):
        kept = removed / f"{entry.sha256[:8]}-{path.name}"
        kept.unlink(missing_ok=True)  # the same weights, taken out before
        move(path, kept)
    return removed


def _description(entry: ModelEntry) -> Path:
    return own_folder() / f"{entry.id}.json"
