"""A running workstation and a browser that looks at it; the real worker, the shipped weights, a phantom.

with running_workstation(ct, home=folder) as workstation:
    page.goto(workstation.address)
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from medssl.cases import CaseStore, Vouched
from medssl.phantom import Phantom, phantom_ct
from medssl.segmentation import Segmentation
from medssl.volume import write_volume
from PIL import Image

T = TypeVar("T")

PATIENCE_S = 120.0
LOOK_S = 0.05
LOOKS = int(PATIENCE_S / LOOK_S)
"""So often something is looked for in vain: where other programs keep the machine busy a look takes longer."""
COME_TO_REST = """([parts, later]) => new Promise((rested) => setTimeout(async () => {
  const moving = [...document.querySelectorAll(parts)].flatMap((part) => part.getAnimations({subtree: true}))
    .filter((each) => Number.isFinite(each.effect.getComputedTiming().endTime));
  await Promise.allSettled(moving.map((each) => each.finished));
  rested();
}, later))"""
"""A step or dialog that was opened grows: a button that is pressed meanwhile is somewhere else when it is let go, and
nobody has clicked on it."""
LATER_THAN_ITS_SCROLL_MS = 400
"""To a step that was opened the page scrolls (`steps.js`, after 350 ms)."""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZE_PX = (1280, 800)
ORGAN = "liver"


@dataclass
class Running:
    """A workstation in a process of its own."""

    address: str
    """What it printed: the secret is in it."""
    process: subprocess.Popen[str]
    home: Path
    """Its folder for models, cases and runs."""
    lines: list[str] = field(default_factory=list)
    """What it has said so far."""

    @property
    def port(self) -> int:
        """Where it listens."""
        found = re.search(r":(\d+)/", self.address)
        assert found
        return int(found.group(1))


@contextmanager
def running_workstation(*arguments: object, home: Path) -> Iterator[Running]:
    """`medssl app ARGUMENTS`, until the block ends.

    Args:
        arguments: of the command line.
        home: the user's folder for models, cases and runs.
    """
    command = [sys.executable, "-m", "medssl.cli", "--traceback", "app", *map(str, arguments), "--no-browser"]
    environment = {**os.environ, "MEDSSL_HOME": str(home)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    running = Running("", process, home)
    reader = threading.Thread(target=lambda: running.lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        running.address = _address(running)
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert process.stdout
        process.stdout.close()


def _address(running: Running) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for line in list(running.lines):
            if found := re.search(r"http://\S+", line):
                return found.group()
        assert running.process.poll() is None, "".join(running.lines)
        time.sleep(0.05)
    raise AssertionError("".join(running.lines))


def wait_until(is_so: Callable[[], Any], what: str, sign_of_life: Callable[[], Any] = lambda: None) -> Any:
    """The first true answer; fails with `what` when there is none.

    Args:
        is_so: asked again and again.
        what: is waited for.
        sign_of_life: as long as its answer changes, what is waited for is on its way.
    """
    looks, sign = 0, sign_of_life()
    while looks < LOOKS:
        if answer := is_so():
            return answer
        time.sleep(LOOK_S)
        looks += 1
        if (latest := sign_of_life()) != sign:
            looks, sign = 0, latest
    raise AssertionError(f"{what} did not happen though it was looked for {LOOKS} times")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run in a thread: the loop of this one is playwright's once a browser was started."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """A person whose middle slice goes through the liver."""
    return phantom_ct(seed=7, shape_kji=(64, 96, 112), spacing_kji_mm=(6.0, 4.0, 4.0), phase="portal")


@pytest.fixture(scope="session")
def ct_file(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as a file, in a folder of its own."""
    path = tmp_path_factory.mktemp("data") / "phantom.nii.gz"
    write_volume(phantom.volume, path)
    return path


@pytest.fixture(scope="session")
def case_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two other people, whose liver somebody has drawn."""
    store = CaseStore(tmp_path_factory.mktemp("cases"))
    for seed in (8, 9):
        person = phantom_ct(
            seed=seed, shape_kji=(32, 72, 84), spacing_kji_mm=(12.0, 5.3, 5.3), phase="portal"
        )
        drawn = np.flatnonzero(person.segmentation.mask(ORGAN).any(axis=(1, 2)))
        liver = person.segmentation.segment(ORGAN)
        labels = np.where(person.segmentation.mask(ORGAN), liver.label, 0)
        store.add(
            person.volume,
            Segmentation(labels, person.volume.ijk_to_ras, (liver,)),
            [Vouched(ORGAN, 0, tuple(map(int, drawn)), origin="drawn")],
        )
    return store.folder


@pytest.fixture(scope="session")
def workstation(
    ct_file: Path, case_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One workstation for all tests, with the phantom open."""
    pytest.importorskip("trame_slicer")
    home = tmp_path_factory.mktemp("home")
    with running_workstation(ct_file, "--cases", case_store, "--threads", 1, home=home) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine; `make test` installs one where it may")
    with launched_browser() as launched:
        yield launched


@contextmanager
def launched_browser() -> Iterator[Any]:
    """Chromium without a window, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


class Page:
    """The workstation's page, as a person uses it.

    Args:
        page: of playwright.
        running: what it shows.
    """

    def __init__(self, page: Any, running: Running) -> None:
        self.page = page
        self.running = running
        self.complaints: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _on_console(self, message: Any) -> None:
        # Harmless, and kept quiet by errors.js, which may come later than the first picture.
        if message.type == "error" and "ResizeObserver loop" not in message.text:
            self.complaints.append(message.text)

    def open(self) -> None:
        """Go to the address, and wait for the views."""
        self.page.goto(self.running.address)
        self.page.wait_for_selector("text=1. Volume and segment", timeout=1000 * PATIENCE_S)
        wait_until(
            lambda: len(self.page.query_selector_all(".layout-grid-item img")) >= 3, "the first picture"
        )
        self.page.wait_for_selector(".medssl-loading.v-overlay--active", state="hidden")
        self.wait_for("label-Red", "/")
        # What was said last lies over the first view for a while.
        self.page.wait_for_selector("[data-test=notice]", state="hidden")

    def text(self, name: str) -> str:
        """What a named part of the page says."""
        return str(self.page.inner_text(f"[data-test={name}]"))

    def click(self, name: str) -> None:
        """Click a named part of the page, as soon as that is possible."""
        self.page.click(f"[data-test={name}]", timeout=1000 * PATIENCE_S)

    def open_step(self, number: int) -> None:
        """Open one of the five steps, if it is not."""
        panel = self.page.locator(f"[data-test=step-{number}]")
        if "v-expansion-panel--active" not in (panel.get_attribute("class") or ""):
            panel.locator(".v-expansion-panel-title").click()
            self.rest(f"[data-test=step-{number}]", LATER_THAN_ITS_SCROLL_MS)

    def rest(self, parts: str = ".v-overlay--active", later_ms: int = 0) -> None:
        """Wait until parts of the page, the open dialogs and menus if nothing else is said, no longer move."""
        self.page.evaluate(COME_TO_REST, [parts, later_ms])

    def wait_for(self, name: str, words: str) -> str:
        """What a named part of the page says, once that holds these words."""
        try:
            return str(
                wait_until(
                    lambda: words in (said := self.text(name)) and said,
                    f"'{words}' in {name}",
                    lambda: (self.text(name), self.text("status")),
                )
            )
        except AssertionError as error:
            raise AssertionError(
                f"{error}; it says '{self.text(name)}', status '{self.text('status')}', notice"
                f" {self.page.locator('[data-test=notice]').all_inner_texts()}, terminal:"
                f" {''.join(self.running.lines[-40:])}"
            ) from error

    def axial_view(self) -> dict[str, float]:
        """Where the first view lies: x, y, width, height, in pixels of the page."""
        box = self.page.locator(".layout-grid-item").first.bounding_box()
        assert box
        return dict(box)

    def at(self, phantom: Phantom, row: float, column: float) -> tuple[float, float]:
        """Where a pixel of an axial slice of the phantom lies on the page, as long as the view is fitted."""
        box, (_, rows, columns) = self.axial_view(), phantom.volume.shape_kji
        _, height_mm, width_mm = phantom.volume.spacing_kji_mm
        scale = max(columns * width_mm / box["width"], rows * height_mm / box["height"])
        right, anterior = phantom.volume.ijk_to_ras[0, 0] > 0, phantom.volume.ijk_to_ras[1, 1] > 0
        x = (column - (columns - 1) / 2) * width_mm / scale * (-1 if right else 1)
        y = (row - (rows - 1) / 2) * height_mm / scale * (-1 if anterior else 1)
        return box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y

    def go_to_slice(self, index: int) -> None:
        """Turn the wheel over the axial view until it shows a slice."""
        box = self.axial_view()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        while (shown := self.shown_slice()) != index:
            self.page.mouse.wheel(0, -100 if shown < index else 100)
            wait_until(lambda before=shown: self.shown_slice() != before, "a turn of the wheel")

    def shown_slice(self) -> int:
        """Index of the slice in the axial view."""
        found = re.match(r"Axial (\d+) /", self.text("label-Red"))
        assert found
        return int(found.group(1))

    def bars(self) -> int:
        """On how many slices the strip shows something."""
        return int(
            self.page.evaluate(
                "[...document.querySelectorAll('[data-test=strip] rect[width=\"1.03\"]')]"
                ".filter((bar) => Number(bar.getAttribute('height')) > 0).length"
            )
        )

    def marked(self) -> int:
        """Which slice the strip marks as the one that is shown; -1 for none."""
        return int(
            self.page.evaluate(
                """() => {
                  const mark = document.querySelector('[data-test=strip] rect[fill="#ffffff"]');
                  return mark ? Math.floor(Number(mark.getAttribute("x"))) : -1;
                }"""
            )
        )

    def begin(self) -> None:
        """Begin a new segmentation with one segment."""
        self.open_step(1)
        before = self.text("segmentation")
        self.click("new-segmentation")
        wait_until(lambda: self.text("segmentation") != before, "the new segmentation")
        self.click("add-segment")
        self.page.wait_for_selector(".medssl-segments .v-list-item")

    def prompt(self, phantom: Phantom, index: int) -> None:
        """Click on the middle of the organ on a slice, then drag a box around it, with the same tool."""
        self.open_step(2)
        self.go_to_slice(index)
        self.take("point")
        truth = phantom.segmentation.mask(ORGAN)[index]
        self.page.mouse.click(*self.at(phantom, *centre(truth)))
        self.wait_for_preview("1 prompt")
        rows, columns = np.nonzero(truth)
        self.drag(self.at(phantom, rows.min(), columns.min()), self.at(phantom, rows.max(), columns.max()))
        self.wait_for_preview("2 prompts")

    def wait_for_preview(self, count: str) -> None:
        """Wait for the answer to so many prompts."""
        self.wait_for("prompt-message", f"{count}.")
        self.wait_for("prompt-message", "sure")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move, release."""
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=5)
        self.page.mouse.up()

    def annotate(self, phantom: Phantom, index: int) -> None:
        """Prompt the organ on a slice, and accept the preview."""
        self.prompt(phantom, index)
        self.page.keyboard.press("Enter")
        self.wait_for("prompt-message", "Accepted")
        self.open_step(3)
        wait_until(lambda: self.bars() == 1, "the accepted slice in the strip")

    def take(self, tool: str) -> None:
        """Take one of the prompt tools."""
        button = self.page.locator(f"[data-test=tool-{tool}]")
        if "v-btn--active" not in (button.get_attribute("class") or ""):
            button.click()
            wait_until(lambda: "v-btn--active" in (button.get_attribute("class") or ""), f"the tool {tool}")

    def ask_to_save(self, name: str, suffix: str = ".nii.gz") -> None:
        """Fill in the dialog, up to its button."""
        self.click("save")
        chosen = self.page.locator("[data-test=save-format]")
        chosen.wait_for()
        self.rest()
        chosen.click()
        offered = self.page.locator(".v-overlay--active .v-list-item", has_text=f"({suffix}").first
        offered.wait_for()
        self.rest()
        offered.click()
        self.page.locator("[data-test=save-name] input").fill(name)

    def saved(self, folder: Path, suffix: str = ".nii.gz") -> Path:
        """Save into the folder the phantom was opened from; returns the file."""
        name = f"saved {time.monotonic_ns()}"
        self.ask_to_save(name, suffix)
        self.click("write")
        path = folder / f"{name}{suffix}"
        wait_until(path.is_file, f"{path.name}", lambda: self.text("status"))
        self.page.wait_for_selector("[data-test=write]", state="hidden")
        return path

    def picture(self) -> bytes:
        """The first view as it is shown now."""
        return bytes(self.page.locator(".layout-grid-item").first.screenshot())

    def coloured(self) -> int:
        """How many pixels of the first view have a colour: those of segments, the image being grey."""
        rgb = np.asarray(Image.open(io.BytesIO(self.picture())).convert("RGB"), int)
        return int((rgb.max(axis=2) - rgb.min(axis=2) > 30).sum())

    def listed(self, path: Path) -> Any:
        """The line of a file in the dialog of what can be opened, which is shown for it."""
        self.page.keyboard.press("o")
        line = self.page.locator("[data-test=file]", has_text=path.name)
        line.wait_for()
        self.rest()
        return line

    def open_file(self, path: Path) -> None:
        """Open a file of the folder the phantom was opened from, and wait until it is read."""
        self.listed(path).locator(".v-list-item").click()
        self.page.wait_for_selector("[data-test=loading]", state="visible")
        self.page.wait_for_selector("[data-test=loading]", state="hidden", timeout=1000 * PATIENCE_S)


@pytest.fixture
def page(browser: Any, workstation: Running) -> Iterator[Page]:
    """The page in a fresh browser; fails if the browser has complained of anything."""
    with opened_page(browser, workstation) as shown:
        yield shown


@contextmanager
def opened_page(browser: Any, running: Running) -> Iterator[Page]:
    """A workstation's page in a fresh browser, which must not complain of anything until the block ends."""
    context = browser.new_context(viewport={"width": SIZE_PX[0], "height": SIZE_PX[1]})
    shown = Page(context.new_page(), running)
    shown.open()
    yield shown
    context.close()
    assert shown.complaints == []


def depth(mask: np.ndarray) -> np.ndarray:
    """How many pixels each one lies inside a mask."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(mask))


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Row and column of a pixel well inside a mask."""
    row, column = np.unravel_index(int(depth(mask).argmax()), mask.shape)
    return float(row), float(column)
