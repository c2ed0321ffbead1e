"""Models are listed, downloaded, resumed, verified and imported; a wrong file never becomes a model."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from medssl import model_files, registry
from medssl.errors import Cancelled, ModelError, StorageError
from medssl.events import Progress
from medssl.registry import ModelEntry

CONTENT = np.random.default_rng(0).bytes(3_500_000)
EXAMPLE = ModelEntry(
    id="example",
    kind="sam2",
    config="configs/example.yaml",
    title="Example",
    purpose="Tests.",
    file="example.pt",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    license="Apache-2.0",
    source_url="https://example.org/example.pt",
    image_size=64,
    bundled=False,
    acknowledge=False,
    citation="None.",
)


@dataclass
class FakeServer:
    """A file server on this machine that can misbehave."""

    content: bytes = CONTENT
    ranges: bool = True
    break_after: int | None = None
    redirect_to: str | None = None
    asked: list[str | None] = field(default_factory=list)
    """The Range header of each request."""
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.redirect_to:
            handler.send_response(302)
            handler.send_header("Location", self.redirect_to)
            handler.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start > len(self.content):
            handler.send_error(416, "Range Not Satisfiable")
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.end_headers()
        handler.wfile.write(body[: self.break_after])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("no_proxy", "*")
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/example.pt":
                self.send_error(404, "Not Found")
                return
            fake.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
    thread.start()
    fake.url = f"http://127.0.0.1:{http_server.server_address[1]}/example.pt"
    yield fake
    http_server.shutdown()
    thread.join()
    http_server.server_close()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's model folder."""
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def download(server: FakeServer, entry: ModelEntry = EXAMPLE, **more: object) -> Path:
    return model_files.download(
        replace(entry, source_url=server.url),
        allow_loopback_http=True,
        **more,  # type: ignore[arg-type]
    )


def test_the_registry_lists_the_shipped_model_and_the_official_ones() -> None:
    entries = {e.id: e for e in registry.load_registry()}
    assert registry.DEFAULT_MODEL in entries
    assert {"sam2.1-hiera-tiny", "sam2.1-hiera-large", "medsam2", "sam-vit-b", "sam-vit-h", "medsam"} <= set(
        entries
    )
    assert len({e.file for e in entries.values()}) == len(entries)
    for entry in entries.values():
        assert entry.bundled == (entry.source_url is None)
        if not entry.bundled:
            assert entry.source_url is not None
            assert entry.source_url.startswith("https://")
            assert entry.source_url.endswith(entry.file)
            assert len(entry.sha256) == 64
            assert entry.size_bytes > 1e8


def test_every_shipped_file_is_the_one_in_the_registry() -> None:
    for entry in registry.load_registry():
        path = registry.model_path(entry)
        if entry.bundled and path.is_file():
            assert registry.verified_path(entry) == path
            assert entry.size_bytes == path.stat().st_size < 25e6


def test_models_of_restricted_licence_are_never_the_default_and_need_acknowledgement(models: Path) -> None:
    assert not registry.find_entry(registry.DEFAULT_MODEL).acknowledge
    with pytest.raises(ModelError, match=r"medsam2 have a restricted licence .*research.*confirm"):
        model_files.download(registry.find_entry("medsam2"))
    assert not models.exists()


def test_an_unknown_model_is_refused_with_the_known_names() -> None:
    with pytest.raises(ModelError, match=r"no model 'sam9'; choose one of medssl-nano, sam2\.1-hiera-tiny"):
        registry.find_entry("sam9")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"models": [{"id": "x"}]}', json.dumps({"models": [asdict(EXAMPLE) | {"kind": "yolo"}]})],
)
def test_a_damaged_registry_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(ModelError, match=r"registry\.json"):
        registry.load_registry(tmp_path / "registry.json")


def test_a_model_that_is_not_here_says_how_to_get_it(models: Path) -> None:
    assert not registry.is_available(EXAMPLE)
    with pytest.raises(ModelError, match=r"medssl models download example.*import FOLDER.*example\.pt"):
        registry.verified_path(EXAMPLE)


def test_a_download_arrives_whole_and_tells_its_progress(server: FakeServer, models: Path) -> None:
    seen: list[Progress] = []
    path = download(server, progress=seen.append)
    assert path == models / "example.pt"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in models.iterdir()] == ["example.pt"]
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == len(CONTENT)
    assert seen[-1].seconds_left == 0
    assert registry.verified_path(EXAMPLE) == path
    assert server.asked == [None]


def test_a_model_that_is_here_is_not_downloaded_again(server: FakeServer, models: Path) -> None:
    download(server)
    download(server)
    assert len(server.asked) == 1


def test_a_model_that_is_being_downloaded_is_not_downloaded_a_second_time(
    server: FakeServer, models: Path
) -> None:
    refused: list[str] = []

    def again(progress: Progress) -> None:
        if not refused:
            with pytest.raises(ModelError) as told:
                download(server)
            refused.append(str(told.value))

    assert download(server, progress=again).read_bytes() == CONTENT
    assert refused == ["The model example is being downloaded already; wait for it, or stop that download."]
    assert server.asked == [None]


def test_a_broken_download_goes_on_where_it_stopped(server: FakeServer, models: Path) -> None:
    server.break_after = 2_000_000
    with pytest.raises(ModelError, match=r"run .* to go on"):
        download(server)
    part = models / "example.pt.part"
    assert not (models / "example.pt").exists()
    have = part.stat().st_size
    assert 0 < have <= 2_000_000
    assert part.read_bytes() == CONTENT[:have]
    server.break_after = None
    seen: list[Progress] = []
    assert download(server, progress=seen.append).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]
    assert seen[0].done > have
    assert not part.exists()


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: FakeServer, models: Path) -> None:
    models.mkdir(parents=True)
    (models / "example.pt.part").write_bytes(CONTENT[:1_000_000])
    server.ranges = False
    assert download(server).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]


def test_a_part_that_is_already_whole_is_only_verified(server: FakeServer, models: Path) -> None:
    models.mkdir(parents=True)
    (models / "example.pt.part").write_bytes(CONTENT)
    assert download(server).read_bytes() == CONTENT
    assert server.asked == []


def test_a_file_with_a_wrong_hash_is_refused_and_removed(server: FakeServer, models: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(ModelError, match="wrong SHA-256"):
        download(server)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT + b"more", b"<html>Please log in</html>"])
@pytest.mark.parametrize("have", [0, 10])
def test_a_page_of_another_size_is_not_taken_for_a_part_of_the_file(
    server: FakeServer, models: Path, content: bytes, have: int
) -> None:
    models.mkdir(parents=True)
    (models / "example.pt.part").write_bytes(CONTENT[:have])
    server.content = content
    with pytest.raises(ModelError, match=rf"offers {len(content)} bytes instead of the {len(CONTENT)}"):
        download(server)
    server.content = CONTENT
    assert download(server).read_bytes() == CONTENT


def test_a_server_that_has_less_than_we_do_is_asked_from_the_start_the_next_time(
    server: FakeServer, models: Path
) -> None:
    models.mkdir(parents=True)
    (models / "example.pt.part").write_bytes(CONTENT[:1000])
    server.content = b"<html>Please log in</html>"
    with pytest.raises(ModelError, match="answers 416"):
        download(server)
    server.content = CONTENT
    assert download(server).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_damaged_part_is_found_out_and_the_next_try_starts_afresh(server: FakeServer, models: Path) -> None:
    models.mkdir(parents=True)
    (models / "example.pt.part").write_bytes(b"rubbish" * 1000)
    with pytest.raises(ModelError, match="wrong SHA-256"):
        download(server)
    assert download(server).read_bytes() == CONTENT


def test_a_cancelled_download_keeps_what_has_arrived(server: FakeServer, models: Path) -> None:
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        download(server, cancelled=lambda: next(answers))
    assert 0 < (models / "example.pt.part").stat().st_size < len(CONTENT)
    assert download(server).read_bytes() == CONTENT


def test_an_answer_that_is_not_the_file_is_reported(server: FakeServer, models: Path) -> None:
    server.url = server.url.replace("example.pt", "gone.pt")
    with pytest.raises(ModelError, match=r"gone\.pt answers 404"):
        download(server)
    assert not list(models.iterdir())


def test_no_network_is_one_clear_sentence(server: FakeServer, models: Path) -> None:
    entry = replace(EXAMPLE, source_url="http://127.0.0.1:1/example.pt")
    with pytest.raises(ModelError, match=r"download of example .*Connection refused.*check the network"):
        model_files.download(entry, allow_loopback_http=True)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/example.pt", "http://example.org/example.pt", "file:///etc/passwd"]
)
def test_only_https_is_downloaded(models: Path, url: str) -> None:
    with pytest.raises(ModelError, match="is not https"):
        model_files.download(replace(EXAMPLE, source_url=url))


@pytest.mark.parametrize("target", ["http://example.org/example.pt", "ftp://127.0.0.1/example.pt"])
def test_a_redirect_away_from_https_is_not_followed(server: FakeServer, models: Path, target: str) -> None:
    server.redirect_to = target
    with pytest.raises(ModelError, match="is not https"):
        download(server)


def test_too_little_space_is_said_before_anything_is_asked(
    server: FakeServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1_000_000))
    with pytest.raises(StorageError, match=r"needs 4 MB .* where 1 MB are free"):
        download(server)
    assert server.asked == []


def test_a_disk_that_fills_up_leaves_nothing_behind(
    server: FakeServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        download(server)
    assert list(models.iterdir()) == []


def test_a_model_folder_that_cannot_be_made_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDSSL_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set MEDSSL_HOME to another folder"):
        model_files.download(EXAMPLE)


def test_a_shipped_model_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="install the program again"):
        model_files.download(replace(EXAMPLE, bundled=True, source_url=None, file="not there"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the example the only model there is."""
    monkeypatch.setattr(model_files, "load_registry", lambda path=None: (EXAMPLE,))


@pytest.mark.parametrize("name", ["example.pt", "renamed by someone.bin"])
def test_a_folder_is_imported_by_name_or_by_content(
    tmp_path: Path, models: Path, known: None, name: str
) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    (tmp_path / "other.bin").write_bytes(CONTENT[::-1])
    assert model_files.import_from_folder(tmp_path) == (EXAMPLE,)
    assert registry.verified_path(EXAMPLE).read_bytes() == CONTENT


def test_a_corrupted_file_is_not_imported(tmp_path: Path, models: Path, known: None) -> None:
    (tmp_path / "example.pt").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelError, match=r"example\.pt is not the model example \(wrong SHA-256\)"):
        model_files.import_from_folder(tmp_path)
    assert list(models.iterdir()) == []


def test_an_import_that_is_cancelled_leaves_nothing_behind(tmp_path: Path, models: Path, known: None) -> None:
    (tmp_path / "example.pt").write_bytes(CONTENT)
    with pytest.raises(Cancelled):
        model_files.import_from_folder(tmp_path, cancelled=lambda: True)
    assert list(models.iterdir()) == []


def test_a_folder_without_models_says_what_it_looked_for(tmp_path: Path, models: Path, known: None) -> None:
    with pytest.raises(ModelError, match=r"holds none of example\.pt"):
        model_files.import_from_folder(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        model_files.import_from_folder(tmp_path / "nowhere")


def test_a_restricted_model_is_imported_only_when_acknowledged(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(EXAMPLE, acknowledge=True, license="Research only")
    monkeypatch.setattr(model_files, "load_registry", lambda path=None: (entry,))
    (tmp_path / "example.pt").write_bytes(CONTENT)
    with pytest.raises(ModelError, match="Research only"):
        model_files.import_from_folder(tmp_path)
    assert model_files.import_from_folder(tmp_path, acknowledged=True) == (entry,)


def test_a_file_changed_on_disk_is_found_out(tmp_path: Path, models: Path) -> None:
    models.mkdir(parents=True)
    (models / "example.pt").write_bytes(CONTENT[:-1] + b"x")
    assert registry.is_available(EXAMPLE)
    with pytest.raises(ModelError, match="wrong SHA-256"):
        registry.verified_path(EXAMPLE)


def test_refreshing_writes_size_and_hash_of_shipped_files_only(tmp_path: Path) -> None:
    shipped = replace(EXAMPLE, bundled=True, source_url=None, size_bytes=0, sha256="")
    untrained = replace(shipped, id="later", file="later.safetensors")
    elsewhere = replace(EXAMPLE, id="elsewhere", file="elsewhere.pt")
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"models": [asdict(e) for e in (shipped, untrained, elsewhere)]}))
    (tmp_path / "example.pt").write_bytes(b"new weights")
    (tmp_path / "elsewhere.pt").write_bytes(b"not ours")
    entries = registry.refresh_bundled(path)
    assert entries == registry.load_registry(path)
    assert entries[0] == replace(shipped, size_bytes=11, sha256=hashlib.sha256(b"new weights").hexdigest())
    assert entries[1:] == (untrained, elsewhere)


def test_the_registry_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, medssl.registry as r; r.load_registry(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
