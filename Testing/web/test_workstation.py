"""The workstation in a real browser, with the real worker and the shipped weights: what a radiologist does."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from medssl.foundation.own import add_own
from medssl.metrics import dice
from medssl.model_files import remove_own
from medssl.phantom import Phantom
from medssl.registry import DEFAULT_MODEL, find_entry, model_path
from medssl.segmentation import read_segmentation

from .conftest import ORGAN, PATIENCE_S, SIZE_PX, Page, Running, centre, depth, wait_until

INDEX = 28
"""A slice through the middle of the liver."""
GOOD_DICE = 0.65
"""What one prompted slice and one rough stroke come to at least on so coarse a phantom; the shipped model is small."""


def mask_of(page: Page, folder: Path) -> np.ndarray:
    """The segment as it would be saved now."""
    return read_segmentation(page.saved(folder)).mask("Segment 1")


def watch_strip(page: Page) -> None:
    """Have the browser note how many slices the strip shows, whenever that changes."""
    page.page.evaluate(
        """() => {
          window.counts = new Set();
          const count = () => [...document.querySelectorAll('[data-test=strip] rect[width="1.03"]')]
            .filter((bar) => Number(bar.getAttribute('height')) > 0).length;
          const strip = document.querySelector('[data-test=strip]');
          new MutationObserver(() => window.counts.add(count())).observe(strip, {subtree: true, attributes: true});
        }"""
    )


def worker_of(running: Running) -> int:
    """Process id of the worker."""
    pid = running.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.is_file():
        pytest.skip("this system does not tell which processes belong to which")
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "medssl.worker" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    raise AssertionError("there is no worker")


def test_one_slice_becomes_the_organ_and_a_painted_correction_is_carried_on(
    page: Page, phantom: Phantom, ct_file: Path
) -> None:
    truth = phantom.segmentation.mask(ORGAN)
    page.begin()
    page.annotate(phantom, INDEX)
    watch_strip(page)
    page.click("propagate")
    page.wait_for("status", "written")
    assert len(page.page.evaluate("[...window.counts]")) >= 3
    found = mask_of(page, ct_file.parent)
    filled = wait_until(lambda: (n := page.bars()) > 5 and n, "the whole strip")

    page.click("undo")
    wait_until(lambda: page.bars() == 1, "the undone run")
    page.click("redo")
    wait_until(lambda: page.bars() == filled, "the run that was brought back")

    missed = truth & ~found
    missed[INDEX] = False
    index = max(range(len(missed)), key=lambda n: depth(missed[n]).max())
    page.go_to_slice(index)
    page.open_step(2)
    page.page.locator(".mdi-brush").first.click()
    page.page.locator("[data-test=step-2] .v-slider-thumb").first.press("Home")  # the smallest brush
    x, y = page.at(phantom, *centre(missed[index]))
    page.drag((x - 3, y), (x + 3, y))
    page.open_step(3)
    page.wait_for("references", f"Segment 1: {index}")
    page.click("redo-changed")
    page.wait_for("status", "written")
    corrected = mask_of(page, ct_file.parent)
    assert corrected[index].sum() > found[index].sum()
    assert dice(corrected, truth) > GOOD_DICE


def test_a_name_typed_in_haste_is_kept_whole_and_comes_back_with_the_labels(
    page: Page, phantom: Phantom, ct_file: Path
) -> None:
    page.begin()
    page.prompt(phantom, INDEX)
    page.page.keyboard.press("Enter")
    page.wait_for("prompt-message", "Accepted")
    page.open_step(1)
    field = page.page.locator(".medssl-segments input")
    field.click()
    page.page.keyboard.press("Control+A")
    page.page.keyboard.type("right lobe of the liver")
    page.page.keyboard.press("Enter")
    labels = page.saved(ct_file.parent)
    page.click("new-segmentation")
    wait_until(lambda: field.count() == 0, "the empty segmentation")
    page.listed(labels).locator("[data-test=open-as-labels]").click()
    wait_until(lambda: field.count() == 1, "the segment of the label file")
    assert field.input_value() == "right lobe of the liver"
    assert labels.name.removesuffix(".nii.gz") in page.text("segmentation")


def test_a_press_that_slips_from_open_as_labels_does_not_open_the_labels_as_an_image(
    page: Page, ct_file: Path
) -> None:
    row = page.listed(ct_file)
    button, name = row.locator("[data-test=open-as-labels]"), row.locator(".v-list-item-title")
    noticed = (
        "document.addEventListener('click', () => { window.wasLetGo = true; }, {capture: true, once: true})"
    )
    page.page.evaluate(noticed)
    button.hover()
    page.page.mouse.down()
    name.hover()
    page.page.mouse.up()
    page.page.wait_for_function("window.wasLetGo")
    page.page.locator("button[title='The folder above']").click()
    folder = page.page.locator("[data-test=file] .mdi-folder")
    folder.wait_for()  # the dialog is shown still
    page.page.keyboard.press("Escape")
    folder.wait_for(state="hidden")


def test_a_cancelled_run_leaves_what_had_arrived_and_undo_takes_it_back(page: Page, phantom: Phantom) -> None:
    page.begin()
    page.annotate(phantom, INDEX)
    page.click("propagate")
    wait_until(lambda: page.bars() > 2, "the first slices")
    page.click("cancel")
    written = page.wait_for("status", "cancelled")
    assert int(re.findall(r"\d+", written)[0]) > 0
    page.click("undo")
    wait_until(lambda: page.bars() == 1, "the undone run")


def test_reloading_in_the_middle_of_a_run_shows_the_same_work(page: Page, phantom: Phantom) -> None:
    page.begin()
    page.annotate(phantom, INDEX)
    page.click("propagate")
    wait_until(lambda: page.bars() > 2, "the first slices")
    page.open()
    assert page.shown_slice() == INDEX
    assert "Segment 1" in page.text("references")
    page.wait_for("status", "written")
    wait_until(lambda: page.bars() > 10, "the whole strip")
    page.click("next-slice")
    page.wait_for("suggestion", "Slice ")
    box = page.page.locator("[data-test=suggestion]").bounding_box()
    assert box
    assert box["y"] + box["height"] < SIZE_PX[1]


def test_a_model_that_was_imported_meanwhile_can_be_chosen_once_the_page_is_loaded_again(
    page: Page, workstation: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered() -> list[str]:
        page.open_step(3)
        page.page.locator("[data-test=step-3] .v-select", has_text="medssl-nano").click()
        page.rest()
        found = page.page.locator(".v-overlay--active .v-list-item").all_inner_texts()
        page.page.keyboard.press("Escape")
        page.page.wait_for_selector(".v-overlay--active .v-list-item", state="hidden")
        return [text.split(":")[0] for text in found]

    monkeypatch.setenv("MEDSSL_HOME", str(workstation.home))
    assert "ours" not in offered()
    entry = add_own(model_path(find_entry(DEFAULT_MODEL)), "ours")
    try:
        page.open()
        assert "ours" in offered()
    finally:
        remove_own(entry)


def test_a_worker_that_is_killed_is_said_to_be_gone_and_the_next_request_starts_it_again(
    page: Page, phantom: Phantom, workstation: Running
) -> None:
    page.begin()
    page.annotate(phantom, INDEX)
    page.click("propagate")
    wait_until(lambda: page.bars() > 2, "the first slices")
    os.kill(worker_of(workstation), signal.SIGKILL)
    page.wait_for("notice", "the next request starts it again")
    page.wait_for("worker", "gone")
    assert page.bars() > 2
    page.click("propagate")
    page.wait_for("status", "written")
    page.wait_for("worker", "ready")


def test_another_answer_to_a_click_is_shown_and_the_first_one_comes_back(
    page: Page, phantom: Phantom
) -> None:
    page.begin()
    page.open_step(2)
    page.go_to_slice(INDEX)
    page.take("point")
    page.page.mouse.click(*page.at(phantom, *centre(phantom.segmentation.mask("liver")[INDEX])))
    page.wait_for_preview("1 prompt")
    page.wait_for("prompt-message", "A shows another answer")
    page.page.wait_for_timeout(500)  # until the preview is drawn
    first = page.coloured()
    page.page.keyboard.press("a")
    wait_until(lambda: abs(page.coloured() - first) > 100, "another answer")
    page.page.keyboard.press("Backspace")
    wait_until(lambda: abs(page.coloured() - first) < 30, "the first answer")
    page.page.keyboard.press("Escape")


def test_prompts_can_be_taken_back_one_by_one_and_dropped(page: Page, phantom: Phantom) -> None:
    page.begin()
    page.prompt(phantom, INDEX)
    with_box = page.picture()
    page.page.keyboard.press("Backspace")
    page.wait_for_preview("1 prompt")
    wait_until(lambda: page.picture() != with_box, "the preview without the box")
    page.page.keyboard.down("Shift")
    page.page.mouse.click(*page.at(phantom, *centre(phantom.segmentation.mask("spleen").any(axis=0))))
    page.page.keyboard.up("Shift")
    page.wait_for_preview("2 prompts")
    page.page.keyboard.press("Escape")
    wait_until(lambda: page.page.locator("[data-test=drop]").is_disabled(), "no prompt any more")
    assert not page.page.locator("[data-test=accept]").is_enabled()


def test_notches_that_come_faster_than_pictures_become_one_jump_of_as_many_slices(page: Page) -> None:
    page.go_to_slice(10)
    page.page.evaluate(
        """() => {
          window.pictures = 0;
          const view = document.querySelector(".layout-grid-item .remote-controlled-area");
          view.addEventListener("load", () => { window.pictures += 1; }, true);
          for (let n = 0; n < 20; n += 1) {
            view.dispatchEvent(new WheelEvent("wheel", {deltaY: -100, bubbles: true, cancelable: true}));
          }
        }"""
    )
    wait_until(lambda: page.shown_slice() == 30, "the slice 20 notches further")
    wait_until(lambda: page.page.evaluate("window.pictures"), "its picture")
    assert page.page.evaluate("window.pictures") < 10


def test_a_link_to_it_works_in_a_page_of_another_site_and_leaves_no_secret_behind(
    page: Page, workstation: Running
) -> None:
    elsewhere = page.page.context.browser.new_context().new_page()
    elsewhere.route("http://mail.example/", lambda route: route.fulfill(
        content_type="text/html", body=f'<a href="{workstation.address}">the workstation</a>'
    ))  # fmt: skip
    elsewhere.goto("http://mail.example/")
    elsewhere.click("text=the workstation")
    elsewhere.wait_for_selector("text=1. Volume and segment", timeout=1000 * PATIENCE_S)
    assert elsewhere.url.endswith("/index.html")
    elsewhere.go_back()
    assert elsewhere.url == "http://mail.example/"
    elsewhere.context.close()


def test_the_keys_are_listed_and_do_what_the_list_says(page: Page) -> None:
    page.page.keyboard.press("?")
    page.page.wait_for_selector("text=Keys and the mouse")
    listed = page.page.inner_text(".v-dialog .v-card")
    page.page.keyboard.press("Escape")
    page.page.wait_for_selector("text=Keys and the mouse", state="hidden")
    assert "Window: Lung" in listed
    soft = page.picture()
    page.page.keyboard.press("2")
    page.wait_for("window", "Lung")
    wait_until(lambda: page.picture() != soft, "the lung window")
    page.page.keyboard.press("1")
    page.wait_for("window", "Soft tissue")


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_step_that_is_opened_comes_into_sight_unless_somebody_has_gone_on(
    page: Page, goes_on: bool
) -> None:
    for number in (3, 4):
        page.open_step(number)
    moved_px = page.page.evaluate(
        """async (goesOn) => {
          const panels = [...document.querySelectorAll(".v-expansion-panel")];
          const last = panels.at(-1);
          const scrolled = last.closest(".v-navigation-drawer__content");
          if (last.classList.contains("v-expansion-panel--active")) {
            last.querySelector(".v-expansion-panel-title").click();
          }
          await new Promise((resolve) => setTimeout(resolve, 1000));
          scrolled.scrollTop = 0;
          last.querySelector(".v-expansion-panel-title").click();
          if (goesOn) last.dispatchEvent(new PointerEvent("pointerdown", {bubbles: true}));
          await new Promise((resolve) => setTimeout(resolve, 1500));
          return scrolled.scrollTop;
        }""",
        goes_on,
    )
    assert (moved_px > 0) is not goes_on


def test_a_scene_that_is_opened_again_shows_in_the_slices_what_it_showed(
    page: Page, phantom: Phantom, ct_file: Path
) -> None:
    page.begin()
    page.go_to_slice(INDEX)
    plain = page.coloured()
    page.annotate(phantom, INDEX)
    wait_until(lambda: page.coloured() > plain + 500, "the segment")
    page.open_file(page.saved(ct_file.parent, ".mrb"))

    def shows_segment() -> bool:
        page.go_to_slice(INDEX)  # a scene that has just been read may still move its views
        return page.coloured() > plain + 500

    wait_until(shows_segment, "the segment of the opened scene")
    wait_until(lambda: page.marked() == INDEX, "the mark of the shown slice in the strip")


def test_a_run_can_be_stopped_resumed_and_stopped_again(page: Page) -> None:
    page.open_step(5)
    page.wait_for("cases", "liver")
    page.page.locator("[data-test=minutes] input").fill("2")
    page.click("finetune")
    for button in (
        "stop-run",
        "resume-run",
        "stop-run",
    ):  # each can be clicked once the run is where it has to be
        page.click(button)
    wait_until(
        lambda: page.page.locator("[data-test=resume-run]").is_enabled(), "the run that has stopped again"
    )


def test_two_cases_teach_a_model_that_finds_the_organ_in_a_third_stage_by_stage(
    page: Page, phantom: Phantom, ct_file: Path
) -> None:
    page.begin()
    page.open_step(5)
    page.wait_for("cases", "liver")
    page.page.locator("[data-test=minutes] input").fill("0.2")
    page.page.locator("[data-test=model-name] input").fill("liver")
    page.click("finetune")
    page.page.wait_for_selector("[data-test=curve] polyline[points*=',']", state="attached", timeout=180_000)
    page.wait_for("teach-message", "Done")
    page.click("keep-model")
    page.open_step(4)
    page.wait_for("model-card", "liver:1")
    page.click("predict")
    page.wait_for("status", "Found 1 segment")
    assert page.page.locator(".medssl-segments input").last.input_value() == "liver"
    truth = phantom.segmentation.mask(ORGAN)
    found = read_segmentation(page.saved(ct_file.parent)).mask(ORGAN)
    assert (found & truth).sum() > 0.5 * truth.sum()  # a few seconds to learn: too much is to be expected

    page.click("segment-everything")
    button = "[data-test=stages] button"
    page.page.wait_for_selector(f"{button}:has-text('propagated')", timeout=180_000)
    page.wait_for("status", "Found 1 segment")
    names = page.page.locator(button).all_inner_texts()
    assert names == ["coarse", "sharpened", "refined", "propagated", "final"]
    pictures = set()
    for name in names:  # final is shown at first: C goes round
        page.page.keyboard.press("c")
        page.page.wait_for_selector(f"{button}.v-btn--active:has-text('{name}')")
        pictures.add(page.picture())
    assert len(pictures) > 1
