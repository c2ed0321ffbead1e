"""`medssl cases`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .command import Command
from .files import read_pair
from .options import add_axis, add_json, add_series, add_store, chosen_axis
from .printed import note, print_json
from .terminal import ProgressBar

if TYPE_CHECKING:
    from ..cases import Case, CaseStore, Vouched
    from ..events import Log, Progress
    from ..segmentation import Segmentation
    from ..volume import Volume

__all__ = ["COMMAND"]

_LOOKS_FINISHED = 8
"""Drawn slices of a segment from which it may well be all of it."""


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="put a volume and its annotated slices into the store")
    add.add_argument("volume", help="image file, or folder of DICOM files")
    add.add_argument("labels", help="label map on the volume's grid")
    add.add_argument(
        "--slices", choices=["annotated", "all"], default="annotated",
        help="which slices you vouch for: those where a segment is drawn, each segment for itself, or all of the"
        " volume, also where nothing is drawn [%(default)s]",
    )  # fmt: skip
    add_axis(add)
    add_series(add)
    add.add_argument(
        "--name", default="", help="what to call the case [the volume's name without its suffix]"
    )
    add.add_argument(
        "--patient",
        default="",
        help="key that keeps a patient's cases together [DICOM: from the PatientID, which is not kept]",
    )
    add.add_argument(
        "--reference", action="store_true", help="do not copy the volume, which then must stay where it is"
    )
    listing = actions.add_parser(
        "list", help="every case, and on how many slices each segment is vouched for"
    )
    add_json(listing)
    remove = actions.add_parser("remove", help="take a case out; it is kept and can be restored")
    remove.add_argument("case", help="id, as `medssl cases list` shows it")
    restore = actions.add_parser("restore", help="bring a removed case back")
    restore.add_argument("removed", help="name that `medssl cases remove` printed")
    importing = actions.add_parser(
        "import", help="add finished segmentations: a folder of images with labels, or DICOM SEG"
    )
    importing.add_argument(
        "folder", help="cases in folders, images and labels, or with --dicom-seg the DICOM series"
    )
    importing.add_argument("--dicom-seg", metavar="FILE", help="segmentation of the series in the folder")
    importing.add_argument("--reference", action="store_true", help="do not copy the volumes")
    add_series(importing)
    export = actions.add_parser("export", help="write the store as a data set of another program")
    export.add_argument("folder", help="new folder")
    export.add_argument(
        "--format",
        choices=["nnunet", "monai"],
        default="nnunet",
        help="raw nnU-Net v2, or a MONAI datalist [%(default)s]",
    )
    export.add_argument("--segments", metavar="NAME", nargs="+", help="only these segments [all]")
    for action in (add, listing, remove, restore, importing, export):
        add_store(action)


def _run(options: argparse.Namespace) -> None:
    from ..cases import CaseStore

    actions = {
        "add": _add, "list": _list, "remove": _remove, "restore": _restore, "import": _import, "export": _export,
    }  # fmt: skip
    actions[options.action](CaseStore(options.store), options)


def _add(store: CaseStore, options: argparse.Namespace) -> None:
    from ..datasets.sources import image_stem
    from ..volume import shift_problem

    volume, labels = read_pair(options.volume, options.labels, options.series)
    if options.reference and Path(options.volume).is_dir():
        raise InputError("A DICOM folder is copied into the store; leave --reference out.")
    vouched = _vouched(volume, labels, options.slices, chosen_axis(volume, options.axis))
    if not vouched:
        raise InputError(
            f"{options.labels} shows no segment on any slice; annotate one first, or say with --slices all that nothing"
            " is there."
        )
    case = store.add(
        volume, labels, vouched, name=options.name or image_stem(volume.name),
        patient=options.patient or _patient_in(Path(options.volume), options.series),
        reference=options.volume if options.reference else None,
    )  # fmt: skip
    print(f"Added {case.id}. {case.summary()}.")
    if shift := shift_problem(volume):
        note(f"the case is kept as MR, but {shift}, remove the case and add it again")
    if (
        options.slices == "annotated"
        and max(case.vouched_slices(name) for name in labels.names) >= _LOOKS_FINISHED
    ):
        note(
            "slices where a segment is not drawn teach nothing about it; if all of it is drawn, remove the case and add"
            " it again with --slices all"
        )


def _patient_in(path: Path, series: str | None) -> str:
    """Key of the patient in a DICOM folder; "" for an image file."""
    from ..formats.dicom import choose_series, patient_of

    return patient_of(choose_series(path, series)) if path.is_dir() else ""


def _vouched(volume: Volume, labels: Segmentation, slices: str, axis: int | None) -> list[Vouched]:
    """What is vouched for: each segment on the slices where it is drawn, or everything."""
    from ..cases import Vouched, vouch_for_all
    from ..pipeline import annotated_slices, choose_axis
    from ..volume import as_stack

    if slices == "all":
        return vouch_for_all(labels, "drawn")
    axis = choose_axis(volume, labels) if axis is None else axis
    drawn = {name: annotated_slices(as_stack(labels.mask(name), axis)) for name in labels.names}
    return [Vouched(name, axis, tuple(indices)) for name, indices in drawn.items() if indices]


def _list(store: CaseStore, options: argparse.Namespace) -> None:
    from ..serving.facts import case_facts

    cases = store.cases(note)
    if options.json:
        print_json([case_facts(case) for case in cases])
    elif not cases:
        print(f"The case store {store.folder} is empty; add a case with: medssl cases add")
    else:
        for case in cases:
            print(f"{case.id}\n    {case.summary()}")


def _remove(store: CaseStore, options: argparse.Namespace) -> None:
    kept = store.remove(options.case)
    print(f"Removed {options.case}; bring it back with: medssl cases restore {kept.name}")


def _restore(store: CaseStore, options: argparse.Namespace) -> None:
    print(f"Restored {store.restore(options.removed).id}.")


def _import(store: CaseStore, options: argparse.Namespace) -> None:
    from ..case_exchange import Pair, import_dicom_seg, import_pairs
    from ..datasets.labelled import find_cases

    folder = Path(options.folder)
    if options.dicom_seg:
        case = import_dicom_seg(store, Path(options.dicom_seg), folder, options.series)
        print(f"Added {case.id}. {case.summary()}.")
        return
    pairs = [
        Pair(found.image, found.labels, found.name, found.patient, found.names, found.ignored)
        for found in find_cases(folder)
        if isinstance(found.image, Path) and isinstance(found.labels, Path)
    ]
    added = _shown("Importing", import_pairs(store, pairs, copy=not options.reference))
    print(f"Added {len(added)} of {len(pairs)} cases to {store.folder}.")


def _export(store: CaseStore, options: argparse.Namespace) -> None:
    from ..case_exchange import export_monai, export_nnunet

    write = {"nnunet": export_nnunet, "monai": export_monai}[options.format]
    _shown("Exporting", write(store, Path(options.folder), options.segments))
    print(f"Written: {options.folder}")


def _shown(title: str, events: Iterable[Case | Log | Progress]) -> list[Case]:
    """Show what comes, and return the cases among it."""
    from ..cases import Case
    from ..events import Progress

    cases = []
    with ProgressBar(sys.stderr, title) as bar:
        for event in events:
            if isinstance(event, Progress):
                bar(event)
            elif isinstance(event, Case):
                cases.append(event)
            else:
                bar.say(event.text)
    return cases


COMMAND = Command(
    summary="keep annotated slices in a case store, to train models of your own",
    configure=_configure,
    run=_run,
    examples="medssl cases add ct.nii.gz slices.nii.gz\n"
    "medssl cases add ct.nii.gz organs.seg.nrrd --slices all --name patient_7\n"
    "medssl cases list\nmedssl cases remove patient_7-1a2b3c4d\n"
    "medssl cases import folder_of_cases\nmedssl cases export Dataset501_Mine --format nnunet",
)
