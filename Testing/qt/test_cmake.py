"""The CMake files configured as a Slicer build would, with the few Slicer macros they call stood in for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

if shutil.which("cmake") is None or shutil.which("cc") is None or shutil.which("make") is None:
    pytest.skip("cmake, make and a C compiler are needed", allow_module_level=True)

SLICER_CONFIG = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
"""
USE_SLICER = """
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
option(BUILD_TESTING "" ON)
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  foreach(file ${MODULE_SCRIPTS} ${MODULE_RESOURCES})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "no such file: ${file}")
    endif()
  endforeach()
  file(WRITE ${CMAKE_BINARY_DIR}/scripts.txt "${MODULE_SCRIPTS}")
  file(WRITE ${CMAKE_BINARY_DIR}/resources.txt "${MODULE_RESOURCES}")
endmacro()
function(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT" "" ${ARGN})
  file(APPEND ${CMAKE_BINARY_DIR}/tests.txt "${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT};")
endfunction()
"""


def configure(source: Path, folder: Path) -> Path:
    """Configure and build `source` against the stand-in Slicer; returns the build folder."""
    slicer, build = folder / "slicer", folder / "build"
    slicer.mkdir()
    (slicer / "SlicerConfig.cmake").write_text(SLICER_CONFIG)
    (slicer / "UseSlicer.cmake").write_text(USE_SLICER)
    (slicer / "Nothing.cmake").write_text("")
    command = ["cmake", "-S", source, "-B", build, f"-DSlicer_DIR={slicer}", "-G", "Unix Makefiles"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return build


def listed(path: Path) -> list[str]:
    return [name for name in path.read_text().split(";") if name]


@pytest.fixture(scope="module")
def a_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configure(REPOSITORY, tmp_path_factory.mktemp("cmake"))


def test_every_python_file_of_the_module_is_installed_under_its_own_path(a_build: Path) -> None:
    module = REPOSITORY / "MedSSLSegment"
    expected = {str(path.relative_to(module)) for path in module.rglob("*.py")}
    scripts = listed(a_build / "scripts.txt")
    assert set(scripts) == expected
    assert len(scripts) == len(expected)


def test_every_resource_is_installed(a_build: Path) -> None:
    resources = REPOSITORY / "MedSSLSegment" / "Resources"
    expected = {str(path.relative_to(resources.parent)) for path in resources.rglob("*") if path.is_file()}
    assert set(listed(a_build / "resources.txt")) == expected


def test_the_model_list_and_weights_lie_where_the_registry_looks_for_them(a_build: Path) -> None:
    built = a_build / "lib/Slicer-5.12/qt-scripted-modules/medssl/pretrained"
    shipped = {path.name for path in (REPOSITORY / "pretrained").iterdir()}
    assert {path.name for path in built.iterdir()} == shipped
    installed = (a_build / "MedSSLSegment/cmake_install.cmake").read_text()
    assert "lib/Slicer-5.12/qt-scripted-modules/medssl/pretrained" in installed


def test_the_tests_for_slicer_exist(a_build: Path) -> None:
    tests = [Path(path) for path in listed(a_build / "tests.txt")]
    assert [path.name for path in tests] == ["MedSSLSegment.py", "MedSSLSegmentPanelTest.py"]
    assert all(path.is_file() for path in tests)
