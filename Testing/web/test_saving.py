"""Saving from the browser changes nothing that it should not."""

from __future__ import annotations

from pathlib import Path

from .conftest import Page, wait_until


def test_a_page_that_lies_about_its_folder_opens_and_saves_nothing_outside(
    page: Page, tmp_path: Path
) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    page.click("save")
    page.page.evaluate(
        """(place) => {
          const key = Object.keys(trame.state.state).find((each) => each.endsWith("__place"));
          trame.state.set(key, place);
        }""",
        str(tmp_path),
    )
    page.page.locator("[data-test=save-name] input").fill("outside")
    page.click("write")
    page.wait_for("notice", "is not in a folder that was named")
    page.page.keyboard.press("Escape")
    wait_until(lambda: page.page.locator("[data-test=write]").is_hidden(), "the closed dialog")
    assert [each.name for each in tmp_path.iterdir()] == ["ct.nii.gz"]
