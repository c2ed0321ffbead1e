"""`medssl app`."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError
from .command import Command

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="FILE", nargs="*", type=Path,
        help="volume (NIfTI, NRRD, MetaImage), DICOM folder, .seg.nrrd or scene (.mrb); files can be opened from their"
        " folders, and saved there [a phantom]",
    )  # fmt: skip
    parser.add_argument(
        "--cases", metavar="FOLDER", type=Path, help="case store [that of the other commands]"
    )
    parser.add_argument("--port", metavar="N", type=int, default=0, help="port on this machine [a free one]")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads to compute with [all cores]")


def _run(options: argparse.Namespace) -> None:
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]} is not there; give a volume, a DICOM folder, a .seg.nrrd or a scene.")
    with TemporaryDirectory(prefix="medssl-") as folder:
        _serve(options, options.paths or [_phantom(Path(folder))])


def _serve(options: argparse.Namespace, paths: list[Path]) -> None:
    from ..client import LocalCommand, WorkerClient

    if find_spec("trame_slicer") is None:
        raise InputError(
            "The workstation's packages are not installed; run: pip install 'medssl[engine,app]'"
        )
    from ..web.app import Workstation, WorkstationOptions

    with WorkerClient(LocalCommand(threads=options.threads)) as client:
        chosen = WorkstationOptions(paths=paths, cases=options.cases)
        workstation = Workstation(chosen, client)
        workstation.start(port=options.port, announce=_announce, open_browser=not options.no_browser)


def _announce(address: str) -> None:
    print(f"MedSSLSegment is at {address}", flush=True)
    print("The address is a key: whoever has it can work here. Ctrl-C ends the program.", flush=True)


def _phantom(folder: Path) -> Path:
    """The demonstration's CT, as a file."""
    from ..phantom import demo_case
    from ..volume import write_volume

    print("Making a phantom CT to try things on ...", file=sys.stderr, flush=True)
    path = folder / "phantom.nii.gz"
    write_volume(demo_case().volume, path)
    return path


COMMAND = Command(
    summary="open the workstation in a browser: annotate, propagate, correct, teach",
    configure=_configure,
    run=_run,
    examples="medssl app\nmedssl app ct.nii.gz --cases cases\nmedssl app dicom_folder --port 8080 --no-browser",
)
