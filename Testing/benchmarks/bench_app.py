"""Time the workstation as a person meets it: in the browser, from the mouse to the picture on the page.

    bench_app.py                       a 512 x 512 phantom of 64 slices
    bench_app.py --clicks 5            a quick look

`medssl app` runs with the real worker and the shipped model; headless Chromium, 1280 x 800, stands for the person's.
The page itself notes when the button is released, and when a new picture of the axial view has been decoded; a click's
preview is there with the first picture that has enough more coloured pixels than the one before the click. Writes
RESULTS_APP.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor
from medssl.phantom import Phantom, phantom_ct
from medssl.volume import write_volume

_HERE = Path(__file__).resolve().parent
_SHAPE_KJI, _SPACING_KJI_MM = (64, 512, 512), (4.0, 0.75, 0.75)
_ORGAN = "spleen"
_NOTCH_S = 1 / 60
"""Between two notches of a wheel that is spun."""
_PREVIEW_PX = 300
"""So many pixels of the picture must take on colour, however faint: more than the mark of a prompt has."""
_PATIENCE_S = 15.0
"""A click without a preview by then has found nothing."""
_QUIET_S = 1.0
"""So long without a new picture, and the view has caught up."""
_REST_S = 0.25
"""So long a mouse rests where it is clicked: an assumption. In flight it does not rest at all."""
_BUSY_LOAD = 2.0
_WATCH = """
() => {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const axial = () => document.querySelector(".layout-grid-item img");
  const coloured = (image) => {
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    context.drawImage(image, 0, 0);
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let n = 0; n < data.length; n += 4) {
      count += Math.max(data[n], data[n + 1], data[n + 2]) - Math.min(data[n], data[n + 1], data[n + 2]) > 16;
    }
    return count;
  };
  const seen = window.bench = {frames: [], colours: [], released: 0, counts: false, now: () => coloured(axial())};
  document.addEventListener("load", ({target}) => {
    if (target !== axial()) return;
    seen.frames.push(performance.now());
    if (seen.counts) seen.colours.push([performance.now(), coloured(target)]);
  }, true);
  document.addEventListener("pointerup", () => { seen.released = performance.now(); }, true);
}
"""


@dataclass(frozen=True)
class Scrolling:
    """The wheel, spun over the axial view."""

    notches: int
    frames: int
    """Pictures of the axial view that arrived."""
    seconds: float
    """From the first notch to the last picture."""
    lag_s: float
    """Of these, after the last notch."""
    received_bytes: int
    """By the page, for all views."""


@dataclass(frozen=True)
class Measured:
    """Everything on the page of results."""

    opening_s: float
    """From the address to the first pictures, the volume being open already."""
    opening_bytes: int
    click_s: Sequence[float]
    """From the release of the button to the preview's picture, after the mouse has rested there."""
    in_flight_s: Sequence[float]
    """The same of clicks with a mouse that has just come."""
    unanswered: int
    """Clicks the model found nothing for."""
    click_bytes: int
    """Received, for all clicks."""
    scrolling: Scrolling


def places(labels_kji: np.ndarray, label: int, count: int) -> list[tuple[int, float, float]]:
    """Where to click: in the middle of an organ, on slices spread over it.

    Args:
        labels_kji: (K, J, I).
        label: of the organ.
        count: how many, at least 1.

    Returns:
        (slice, row, column) of pixels of the organ, by slice.
    """
    present = np.flatnonzero((labels_kji == label).any(axis=(1, 2)))
    chosen = present[np.linspace(0, len(present) - 1, count + 2).round().astype(int)[1:-1]]
    found = []
    for index in chosen:
        pixels = np.argwhere(labels_kji[index] == label)
        row, column = pixels[((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        found.append((int(index), float(row), float(column)))
    return found


class Bench:
    """A workstation's page, and what is counted there.

    Args:
        page: Testing/web's page, not yet open.
        phantom: what the workstation shows.
    """

    def __init__(self, page: Any, phantom: Phantom) -> None:
        self._page, self._phantom = page, phantom
        self._received = 0
        page.page.on("websocket", lambda socket: socket.on("framereceived", self._on_received))

    def _on_received(self, payload: str | bytes) -> None:
        self._received += len(payload)

    def run(self, clicks: int, scroll_s: float) -> Measured:
        """Open the page, click, scroll."""
        opening_s, opening_bytes = self._open()
        self._page.begin()
        self._page.open_step(2)
        self._page.take("point")
        liver = self._phantom.segmentation.segment(_ORGAN).label
        self._click(*places(self._phantom.segmentation.labels_kji, liver, 1)[0])  # loads the model
        chosen = places(self._phantom.segmentation.labels_kji, liver, clicks)
        in_flight = [self._click(*place, rest_s=0.0) for place in chosen]
        before = self._received
        seconds = [self._click(*place) for place in chosen]
        click_bytes = self._received - before
        answered = [each for each in seconds if each is not None]
        return Measured(
            opening_s,
            opening_bytes,
            answered,
            [each for each in in_flight if each is not None],
            len(seconds) - len(answered),
            click_bytes,
            self._scroll(scroll_s),
        )

    def _open(self) -> tuple[float, int]:
        began_s = time.perf_counter()
        self._page.open()
        opening_s = time.perf_counter() - began_s
        files = self._page.page.evaluate(
            "performance.getEntries().reduce((sum, entry) => sum + (entry.transferSize || 0), 0)"
        )
        self._page.page.evaluate(_WATCH)
        return opening_s, int(files) + self._received

    def _click(self, index: int, row: float, column: float, rest_s: float = _REST_S) -> float | None:
        """Seconds from the release of the button to the preview; None when nothing was found."""
        from playwright.sync_api import TimeoutError as PreviewTimeout

        page = self._page.page
        self._page.go_to_slice(index)
        self._wait_for_quiet()
        plain = page.evaluate("() => { bench.colours = []; bench.counts = true; return bench.now(); }")
        x, y = self._page.at(self._phantom, row, column)
        page.mouse.move(x, y, steps=5)
        time.sleep(rest_s)
        page.mouse.click(x, y)
        try:
            shown_ms = page.wait_for_function(
                "(least) => (bench.colours.find((each) => each[1] >= least) || [0])[0]",
                arg=plain + _PREVIEW_PX,
                timeout=1e3 * _PATIENCE_S,
            ).json_value()
            seconds = 1e-3 * (shown_ms - page.evaluate("bench.released"))
        except PreviewTimeout:
            seconds = None
        page.evaluate("() => { bench.counts = false; }")
        page.keyboard.press("Escape")
        self._wait_for_quiet()
        return seconds

    def _scroll(self, seconds: float) -> Scrolling:
        """Spin the wheel there and back."""
        page, box = self._page.page, self._page.axial_view()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self._page.go_to_slice(0)
        self._wait_for_quiet()
        received = self._received
        page.evaluate("() => { bench.frames = []; }")
        began_ms, began_s, notches = page.evaluate("performance.now()"), time.perf_counter(), 0
        turn = self._phantom.volume.shape_kji[0] - 1
        while (now_s := time.perf_counter() - began_s) < seconds:
            page.mouse.wheel(0, -100 if notches // turn % 2 == 0 else 100)
            notches += 1
            time.sleep(max(0.0, notches * _NOTCH_S - now_s))
        ended_ms = page.evaluate("performance.now()")
        self._wait_for_quiet()
        frames_ms = [each for each in page.evaluate("bench.frames") if each >= began_ms]
        return Scrolling(
            notches,
            len(frames_ms),
            1e-3 * (frames_ms[-1] - began_ms),
            max(0.0, 1e-3 * (frames_ms[-1] - ended_ms)),
            self._received - received,
        )

    def _wait_for_quiet(self) -> None:
        """Until no picture has arrived for a while."""
        self._page.page.wait_for_function(
            "(quiet) => performance.now() - (bench.frames.at(-1) || 0) > quiet", arg=1e3 * _QUIET_S
        )


def measure(options: argparse.Namespace) -> Measured:
    """Start a workstation and a browser, and measure."""
    sys.path.append(str(_HERE.parent))
    from web.conftest import SIZE_PX, Page, launched_browser, running_workstation

    phantom = phantom_ct(9001, _SHAPE_KJI, _SPACING_KJI_MM)
    with tempfile.TemporaryDirectory() as home:
        ct = Path(home) / "data" / "phantom.nii.gz"
        ct.parent.mkdir()
        write_volume(phantom.volume, ct)
        arguments = (ct, "--cases", Path(home) / "cases", "--threads", options.threads)
        with running_workstation(*arguments, home=Path(home)) as running, launched_browser() as browser:
            shown = browser.new_page(viewport={"width": SIZE_PX[0], "height": SIZE_PX[1]})
            return Bench(Page(shown, running), phantom).run(options.clicks, options.scroll_seconds)


def report(measured: Measured, options: argparse.Namespace, load: float) -> str:
    """The markdown page.

    Args:
        measured: the figures.
        options: of the command line.
        load: processes that wanted to run before the benchmark began, averaged over a minute.
    """
    click_ms, scrolling = 1e3 * np.array(measured.click_s), measured.scrolling
    in_flight_ms = 1e3 * np.array(measured.in_flight_s)
    rows = [
        ("opening the page, to the first pictures", f"{measured.opening_s:.1f} s"),
        ("received by then", f"{measured.opening_bytes / 1e6:.1f} MB"),
        (
            f"click to preview, {len(click_ms)} clicks, p50",
            f"{np.median(click_ms):.0f} ms" if click_ms.size else "-",
        ),
        ("click to preview, p95", f"**{np.percentile(click_ms, 95):.0f} ms**" if click_ms.size else "-"),
        ("in flight, p50", f"{np.median(in_flight_ms):.0f} ms" if in_flight_ms.size else "-"),
        ("in flight, p95", f"{np.percentile(in_flight_ms, 95):.0f} ms" if in_flight_ms.size else "-"),
        ("clicks that found nothing", f"{measured.unanswered}"),
        (
            "received per click",
            f"{measured.click_bytes / 1e3 / max(1, len(click_ms) + measured.unanswered):.0f} kB",
        ),
        ("frames per second while scrolling", f"**{scrolling.frames / scrolling.seconds:.1f}**"),
        (
            "notches of the wheel per second",
            f"{scrolling.notches / (scrolling.seconds - scrolling.lag_s):.1f}",
        ),
        ("last notch to last frame", f"{1e3 * scrolling.lag_s:.0f} ms"),
        (
            "received per frame, all views together",
            f"{scrolling.received_bytes / 1e3 / scrolling.frames:.1f} kB",
        ),
        (
            "received while scrolling",
            f"{scrolling.received_bytes / 1e6:.1f} MB in {scrolling.seconds:.1f} s",
        ),
    ]
    return "\n".join(
        [
            "# The workstation in the browser",
            "",
            f"Written by `{_command(options)}`; do not edit.",
            "",
            f"{processor()}, {os.cpu_count()} cores, {options.threads} threads for the worker, Python"
            f" {platform.python_version()}, no graphics card; {datetime.date.today().isoformat()}."
            f" Load before the run: {load:.1f}.{_warning(load)}",
            "",
            f"A phantom of {_SHAPE_KJI[0]} slices of 512 x 512, the shipped model, one page of 1280 x 800 with its"
            " four views in headless Chromium, which draws and decodes on the same cores. A click is timed from the"
            " release of the button to the decoded picture that shows the preview, each on a slice of its own, with"
            f" the model loaded. The mouse has rested there for {_REST_S:g} s, an assumption, in which the worker"
            f" answers ahead; *in flight*: not at all. The wheel is spun for {options.scroll_seconds:g} s.",
            "",
            "| what | figure |",
            "|---|---|",
            *(f"| {what} | {figure} |" for what, figure in rows),
            "",
        ]
    )


def _command(options: argparse.Namespace) -> str:
    clicks = "" if options.clicks == _CLICKS else f" --clicks {options.clicks}"
    return f"python Testing/benchmarks/bench_app.py{clicks}"


def _warning(load: float) -> str:
    if load <= _BUSY_LOAD:
        return ""
    return " **Other programs kept the machine busy: every time below is too long, to be measured again.**"


_CLICKS = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    options = _arguments(argv)
    load = os.getloadavg()[0]
    options.results.write_text(report(measure(options), options, load))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, default=_CLICKS, help="how many (default: %(default)s)")
    parser.add_argument("--scroll-seconds", type=float, default=10.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of the worker (default: all)"
    )
    parser.add_argument("--results", type=Path, default=_HERE / "RESULTS_APP.md", help="markdown file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
