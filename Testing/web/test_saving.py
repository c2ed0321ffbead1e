"""Saving from the browser changes nothing that it should not."""

from __future__ import annotations

from pathlib import Path

from .conftest import Page, wait_until


def set_place(page: Page, folder: str) -> None:
    """Have the page name a folder that it does not offer."""
    page.page.evaluate(
        """(place) => {
          const key = Object.keys(trame.state.state).find((each) => each.endsWith("__place"));
          trame.state.set(key, place);
        }""",
        folder,
    )


def close(page: Page) -> None:
    """Close the dialog."""
    page.page.keyboard.press("Escape")
    wait_until(lambda: page.page.locator("[data-test=write]").is_hidden(), "the closed dialog")


def test_the_image_and_what_a_link_leads_to_cannot_be_saved_over(
    page: Page, ct_file: Path, tmp_path: Path
) -> None:
    elsewhere, before = tmp_path / "elsewhere.nii.gz", ct_file.read_bytes()
    elsewhere.write_bytes(b"precious")
    (ct_file.parent / "link.nii.gz").symlink_to(elsewhere)
    page.begin()
    for name in ("phantom", "link"):
        page.ask_to_save(name)
        page.click("write")
        page.wait_for("notice", f"{name}.nii.gz is an image that is open, or leads elsewhere")
        close(page)
    (ct_file.parent / "link.nii.gz").unlink()
    assert ct_file.read_bytes() == before
    assert elsewhere.read_bytes() == b"precious"


def test_a_file_that_is_there_is_replaced_only_when_asked_twice(page: Page, ct_file: Path) -> None:
    there = ct_file.parent / "there.nii.gz"
    there.write_bytes(b"precious")
    page.begin()
    page.ask_to_save("there")
    page.click("write")
    page.wait_for("notice", "there.nii.gz is there already; press Save again to replace it")
    assert there.read_bytes() == b"precious"
    page.click("write")
    wait_until(lambda: there.read_bytes() != b"precious", "the replaced file")
    page.page.wait_for_selector("[data-test=write]", state="hidden")


def test_a_page_that_lies_about_its_folder_opens_and_saves_nothing_outside(
    page: Page, ct_file: Path, tmp_path: Path
) -> None:
    before = str(ct_file.parent)
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    page.ask_to_save("outside")
    set_place(page, str(tmp_path))
    page.click("write")
    page.wait_for("notice", "is not in a folder that was named")
    close(page)
    set_place(page, before)
    page.saved(ct_file.parent)  # the stories that follow save there: the workstation has to know it by then
    assert [each.name for each in tmp_path.iterdir()] == ["ct.nii.gz"]


def test_while_something_is_written_the_page_says_so(page: Page, ct_file: Path) -> None:
    page.begin()
    page.ask_to_save("said")
    page.page.evaluate(
        """() => {
          const button = document.querySelector("[data-test=write]");
          new MutationObserver(() => {
            window.saidSaving ||= button.classList.contains("v-btn--loading");
          }).observe(button, {attributes: true});
        }"""
    )
    page.click("write")
    page.page.wait_for_selector("[data-test=write]", state="hidden")
    assert page.page.evaluate("window.saidSaving")
    assert (ct_file.parent / "said.nii.gz").is_file()
