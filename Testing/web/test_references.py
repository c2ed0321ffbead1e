"""Files that name other files are refused before anything beyond the allowed folders is read."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest

pytest.importorskip("trame_slicer")

from medssl.errors import InputError
from medssl.web.folders import Folders
from medssl.web.references import check_references

NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
SCENE = '<MRML version="Slicer4.4.0"><VolumeArchetypeStorage id="a" {}></VolumeArchetypeStorage></MRML>'


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """A folder that is allowed, a secret beside it, and a link from the one to the other."""
    folder = tmp_path / "allowed"
    (folder / "series").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "out").symlink_to(tmp_path)
    return folder


def check(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text, newline="")
    check_references(path, Folders([folder]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.nhdr", NRRD + "data file: a.raw\n"),
        ("a.nhdr", NRRD + "data file: series/a%03d.raw 1 3 1\n"),
        ("a.nhdr", NRRD + "data file: LIST\nseries/1.raw\nseries/2.raw\n"),
        ("a.nrrd", NRRD + "\n\x00\x01data file: /etc/passwd\n"),
        ("a.nrrd", NRRD + "data file:=/etc/passwd is a note\n\n"),
        ("a.mhd", META + "ElementDataFile = a.raw\n"),
        ("a.mhd", META + "ElementDataFile = LIST\nseries/1.raw\nseries/2.raw\n"),
        ("a.mha", META + "ElementDataFile = LOCAL\n\x00\x01ElementDataFile = /etc/passwd\n"),
        ("a.mrml", SCENE.format('fileName="series/a.raw" uri=""')),
        ("a.nii", "ElementDataFile = /etc/passwd\n"),
    ],
)
def test_what_lies_in_the_folder_may_be_named(allowed: Path, name: str, text: str) -> None:
    check(allowed, name, text)


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "../secret.raw", "series/../../secret.raw", "link.raw", "out/secret.raw"]
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.nhdr", NRRD + "data file: {}\n"),
        ("a.nrrd", NRRD + "Data File :   {}\r\n\r\n"),
        ("a.nhdr", NRRD + "datafile: LIST 2\nseries/1.raw\n{}\n"),
        ("a.seg.nrrd", NRRD + "data file: LIST\n{}\n"),
        ("a.mhd", META + "ElementDataFile = {}\n"),
        ("a.mhd", META + "ElementDataFile={}"),
        ("a.mhd", META + "ElementDataFile : LIST 2\nseries/1.raw\n{}\n"),
        ("a.mha", META + "ElementDataFile = {}\n"),
        ("a.mrml", SCENE.format('fileName="{}"')),
        ("a.mrml", SCENE.format('fileName="series/1.raw" fileListMember1="{}"')),
    ],
)
def test_what_leads_out_of_the_folder_is_refused_in_one_sentence(
    allowed: Path, name: str, text: str, named: str
) -> None:
    with pytest.raises(
        InputError, match=r"names .*, which is in no folder that was named .*; it was not opened\.$"
    ):
        check(allowed, name, text.format(named))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.nhdr", NRRD + "data file: out/secret%s 1 2 1\n"),
        ("a.nhdr", NRRD + "data file: a%n.raw 1 2 1\n"),
        ("a.nhdr", NRRD + "data file: a%d.raw 1 999999999 1\n"),
        ("a.nhdr", NRRD + "data file: -\n"),
        ("a.nhdr", NRRD.replace("\n", "\r") + "data file: /etc/passwd\r"),
        ("a.mhd", META + "ElementDataFile = a%d.raw\n"),
        ("a.mhd", META.replace("\n", "\r") + "ElementDataFile = /etc/passwd\r"),
        ("a.mrml", "<MRML>"),
        ("a.mrb", "no archive"),
    ],
)
def test_what_cannot_be_told_is_refused(allowed: Path, name: str, text: str) -> None:
    with pytest.raises(InputError, match=r"not opened\.$|cannot be read as a scene"):
        check(allowed, name, text)


def test_a_pattern_that_leads_out_through_one_of_its_numbers_is_refused(allowed: Path) -> None:
    (allowed / "part2").symlink_to("/etc")
    with pytest.raises(InputError, match="names 'part2/passwd'"):
        check(allowed, "a.nhdr", NRRD + "data file: part%d/passwd 1 3 1\n")


@pytest.mark.parametrize(
    "address", ["http://elsewhere.example/a.nrrd", "file:///etc/passwd", "%2e%2e/secret.raw"]
)
def test_a_scene_fetches_nothing_and_hides_nothing_in_escapes(allowed: Path, address: str) -> None:
    with pytest.raises(InputError, match="it was not opened"):
        check(allowed, "a.mrml", SCENE.format(f'uri="{address}"'))


def test_a_header_that_a_scene_names_is_looked_into(allowed: Path) -> None:
    (allowed / "ct.nhdr").write_text(NRRD + "data file: /etc/passwd\n")
    with pytest.raises(InputError, match=r"ct\.nhdr names '/etc/passwd'"):
        check(allowed, "a.mrml", SCENE.format('fileName="ct.nhdr"'))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("work/work.mrml", SCENE.format('fileName="/etc/passwd"')),
        ("work/work.mrml", SCENE.format('fileName="../../secret.raw"')),
        ("work/Data/ct.nhdr", NRRD + "data file: ../../../secret.raw\n"),
        ("work/Data/ct.mhd", META + "ElementDataFile = /etc/passwd\n"),
        ("../work.mrml", SCENE.format("")),
        ("/work.mrml", SCENE.format("")),
    ],
)
def test_a_bundle_names_only_what_is_in_it(allowed: Path, member: str, text: str) -> None:
    path = allowed / "work.mrb"
    with ZipFile(path, "w") as bundle:
        bundle.writestr("work/Data/good.nrrd", NRRD + "\n")
        bundle.writestr(member, text)
    with pytest.raises(InputError, match=r"^work\.mrb names .*not opened\.$"):
        check_references(path, Folders([allowed]))


def test_a_bundle_with_a_link_in_it_is_refused(allowed: Path) -> None:
    path, link = allowed / "work.mrb", ZipInfo("work/ct.raw")
    link.external_attr = 0o120777 << 16
    with ZipFile(path, "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="leads out of the bundle"):
        check_references(path, Folders([allowed]))
