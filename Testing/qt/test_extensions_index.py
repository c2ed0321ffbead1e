"""The entry for the Extensions Index, and what its checks look at in the repository.

Follows scripts/check_description_files.py and the checklist of Slicer/ExtensionsIndex 07f1d1b.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "Resources/ExtensionsIndex/MedSSLSegment.json"
RAW = "https://raw.githubusercontent.com/MedSSLSegment/SlicerMedSSLSegment/main/"
KNOWN_KEYS = {
    "$schema",
    "build_dependencies",
    "build_subdirectory",
    "category",
    "dicom_support_rule",
    "enabled",
    "scm_revision",
    "scm_type",
    "scm_url",
    "tier",
}
"""The properties of slicer-extension-catalog-entry-schema-v1.0.1.json, which allows no others."""


@pytest.fixture
def entry() -> dict[str, object]:
    parsed: dict[str, object] = json.loads(ENTRY.read_bytes())
    return parsed


@pytest.fixture
def cmake() -> dict[str, str]:
    """What the top CMakeLists.txt sets, read as the Index reads it: by regular expressions, so without variables."""
    text = (REPOSITORY / "CMakeLists.txt").read_text("utf-8")
    found = dict(re.findall(r'set\s*\((EXTENSION_\w+)\s*"([^"]+)"[ ]*\)', text))
    return {**found, "project": re.findall(r"project\s*\(\s*([^\s)]+)", text)[0]}


def test_the_entry_has_the_fields_the_schema_asks_for_and_no_others(entry: dict[str, object]) -> None:
    assert {"$schema", "category", "scm_url"} <= set(entry) <= KNOWN_KEYS
    assert str(entry["$schema"]).endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert b"\r" not in ENTRY.read_bytes()


def test_names_are_as_the_index_wants_them(entry: dict[str, object], cmake: dict[str, str]) -> None:
    assert not ENTRY.stem.startswith("Slicer")
    assert cmake["project"] == ENTRY.stem
    assert re.fullmatch(r"https://github\.com/[\w-]+/Slicer" + ENTRY.stem + r"\.git", str(entry["scm_url"]))
    assert f"{cmake['EXTENSION_HOMEPAGE']}.git" == entry["scm_url"]


def test_the_entry_and_cmake_say_the_same(entry: dict[str, object], cmake: dict[str, str]) -> None:
    assert cmake["EXTENSION_CATEGORY"] == entry["category"] == "Segmentation"
    assert cmake["EXTENSION_DEPENDS"] == "NA"
    assert entry["build_dependencies"] == []
    assert "patent" in cmake["EXTENSION_DESCRIPTION"]


def test_icon_and_screenshots_are_addresses_of_pictures_that_are_in_the_repository(
    cmake: dict[str, str],
) -> None:
    addresses = [cmake["EXTENSION_ICONURL"], *cmake["EXTENSION_SCREENSHOTURLS"].split()]
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith(RAW)
        picture = REPOSITORY / address.removeprefix(RAW)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_licence_name_and_pictures_are_on_the_homepage() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert "Apache License" in (REPOSITORY / "LICENSE.txt").read_text("utf-8")
    assert "Apache-2.0" in readme
    assert "# MedSSLSegment" in readme
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert [p for p in pictures if not (REPOSITORY / p).is_file()] == []


def test_the_tutorial_shows_every_picture_and_says_what_they_are() -> None:
    tutorial = REPOSITORY / "Resources/Tutorial.md"
    text = tutorial.read_text("utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    taken = {f"Screenshots/{path.name}" for path in (REPOSITORY / "Resources/Screenshots").glob("[0-9]*.png")}
    assert set(shown) == taken
    assert "not pictures of the 3D Slicer application" in text
    assert "MedSSLSegmentPhantom" in text


def test_the_repository_stays_small_enough() -> None:
    pictures = sum(path.stat().st_size for path in (REPOSITORY / "Resources").rglob("*.png"))
    weights = sum(path.stat().st_size for path in (REPOSITORY / "pretrained").iterdir())
    assert pictures + weights < 90e6
