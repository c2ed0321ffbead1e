"""Takes the README's pictures of the workstation: the real one in headless Chromium, at work on the phantom.

    python Testing/web/take_screenshots.py [folder]

Writes workstation-*.png, 1280 x 800, and workstation.webp: a click on the liver, accepted and propagated, the slices
filling in. Worker and models are those that are shipped. Takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import ORGAN, SIZE_PX, Page, centre, launched_browser, running_workstation, wait_until
from medssl.phantom import Phantom, phantom_ct
from medssl.volume import write_volume
from PIL import Image, ImageOps

REPOSITORY = Path(__file__).resolve().parents[2]
COLOR_BITS = 7
"""Of a picture; the last one is noise, and a fifth of the file."""
FILM_SIZE_PX, FILM_QUALITY = (800, 500), 60
SHORT_MS, LONG_MS, LAST_MS = 140, 900, 2500
"""How long a frame of something that moves is shown, one to be read, and the last."""
_POINTER = """
document.addEventListener("DOMContentLoaded", () => {
  const pointer = document.createElement("div");
  pointer.style.cssText = "position: fixed; z-index: 99999; pointer-events: none; left: -40px; top: -40px";
  pointer.innerHTML = `<svg width="26" height="26" viewBox="0 0 24 24">
    <path d="M4 1 L4 19 L9 14.5 L12.2 22 L15 20.8 L11.8 13.5 L18 13 Z" fill="white" stroke="black"/></svg>`;
  document.body.append(pointer);
  document.addEventListener("mousemove", (event) => {
    pointer.style.left = `${event.clientX - 4}px`;
    pointer.style.top = `${event.clientY - 1}px`;
  }, true);
});
"""
"""A headless browser draws no pointer."""


class Film:
    """Frames of the page, for a short animation.

    Args:
        page: what is filmed.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[Image.Image] = []
        self._shown_ms: list[int] = []

    def frame(self, shown_ms: int) -> None:
        """Take a frame; one that is like the frame before makes that last longer."""
        picture = _screenshot(self._page).resize(FILM_SIZE_PX, Image.Resampling.LANCZOS)
        if self._frames and np.array_equal(np.asarray(picture), np.asarray(self._frames[-1])):
            self._shown_ms[-1] += shown_ms
            return
        self._frames.append(picture)
        self._shown_ms.append(shown_ms)

    def until(self, is_so: Callable[[], bool], shown_ms: int = SHORT_MS) -> None:
        """Take frames until something is so."""

        def is_filmed() -> bool:
            self.frame(shown_ms)
            return is_so()

        wait_until(is_filmed, "the end of the film")

    def save(self, path: Path) -> None:
        """Write all frames."""
        first, *others = self._frames
        first.save(
            path, save_all=True, append_images=others, duration=self._shown_ms, loop=0, quality=FILM_QUALITY,
            method=6,
        )  # fmt: skip


def _screenshot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")


class Photographer:
    """Goes through the work of a radiologist, and takes pictures.

    Args:
        page: the workstation's.
        phantom: what is open there.
        folder: where the pictures go.
    """

    def __init__(self, page: Page, phantom: Phantom, folder: Path) -> None:
        self._page, self._phantom, self._folder = page, phantom, folder
        self._truth = phantom.segmentation.mask(ORGAN)
        self._index = int(self._truth.sum(axis=(1, 2)).argmax())

    def take_all(self) -> None:
        """Every picture, in the order of the work."""
        film = Film(self._page)
        self._begin()
        self._prompt(film)
        self._propagate(film)
        film.save(self._folder / "workstation.webp")
        self._keys()

    def shoot(self, name: str) -> None:
        """Save what the page shows."""
        picture = ImageOps.posterize(_screenshot(self._page), COLOR_BITS)
        picture.save(self._folder / f"workstation-{name}.png", optimize=True)

    def _begin(self) -> None:
        page = self._page
        page.click("add-segment")
        name = page.page.locator(".medssl-segments input").last
        name.fill(ORGAN)
        name.press("Tab")
        page.go_to_slice(self._index)

    def _prompt(self, film: Film) -> None:
        page, mouse = self._page, self._page.page.mouse
        page.take("point")
        x, y = page.at(self._phantom, *centre(self._truth[self._index]))
        mouse.move(x + 150, y + 110)
        film.frame(LONG_MS)
        mouse.move(x, y)
        film.frame(2 * SHORT_MS)
        mouse.click(x, y)
        page.wait_for_preview("1 prompt")
        film.frame(LONG_MS)
        rows, columns = np.nonzero(self._truth[self._index])
        start = page.at(self._phantom, rows.min(), columns.min())
        end = page.at(self._phantom, rows.max(), columns.max())
        self._drag(film, start, end)
        page.wait_for_preview("2 prompts")
        film.frame(LONG_MS)
        self.shoot("annotate")
        page.page.keyboard.press("Enter")
        page.wait_for("prompt-message", "Accepted")
        film.frame(LONG_MS)

    def _drag(self, film: Film, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self._page.page.mouse
        mouse.move(*start)
        mouse.down()
        for share in (0.25, 0.5, 0.75, 1.0):
            x, y = ((1 - share) * a + share * b for a, b in zip(start, end, strict=True))
            mouse.move(x, y)
            film.frame(SHORT_MS)
        mouse.up()

    def _propagate(self, film: Film) -> None:
        page = self._page
        for step in (1, 2):
            page.page.click(f"[data-test=step-{step}] .v-expansion-panel-title")
        page.open_step(3)
        wait_until(lambda: page.bars() == 1, "the accepted slice in the strip")
        page.page.keyboard.press("D")
        film.frame(LONG_MS)
        page.click("propagate")
        film.until(lambda: "written in" in page.text("status"))
        wait_until(lambda: page.bars() > 10, "the whole strip")
        page.page.keyboard.press("F")
        page.page.wait_for_timeout(1000)
        film.frame(LAST_MS)
        self.shoot("propagated")

    def _keys(self) -> None:
        self._page.page.keyboard.press("?")
        self._page.page.wait_for_selector("text=Keys and the mouse")
        self._page.page.wait_for_timeout(500)
        self.shoot("keys")


def main() -> None:
    """Take every picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "Resources/Screenshots")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    phantom = phantom_ct(7, (78, 136, 184), (5.0, 2.0, 2.0), "LPS", noise_hu=6.0, lesions=2, phase="arterial")
    with tempfile.TemporaryDirectory() as home:
        ct = Path(home) / "data" / "phantom.nii.gz"
        ct.parent.mkdir()
        write_volume(phantom.volume, ct)
        with (
            running_workstation(ct, "--cases", Path(home) / "cases", home=Path(home)) as running,
            launched_browser() as browser,
        ):
            shown = browser.new_page(viewport={"width": SIZE_PX[0], "height": SIZE_PX[1]})
            shown.add_init_script(_POINTER)
            page = Page(shown, running)
            page.open()
            Photographer(page, phantom, folder).take_all()


if __name__ == "__main__":
    main()
