"""Gets a model that is not on this computer yet, after asking."""

from __future__ import annotations

import threading

import qt
import slicer
import slicer.util
from medssl.errors import Cancelled
from medssl.events import Progress
from medssl.model_files import download
from medssl.registry import ModelEntry, find_entry, is_available, user_folder
from medssl.scene.background import Task
from slicer.i18n import tr as _

from .WorkerPython import chosenHost

__all__ = ["ensureModel", "isHere", "modelTitle", "sizeText"]

PROGRESS_STEPS = 1000
TURN_S = 0.02
"""Between two turns of the event loop while a model arrives: a server that keeps silent keeps nothing else waiting."""


def ensureModel(modelId: str) -> bool:
    """Have a model on this computer, where it is what computes; asks the user before downloading it.

    Returns:
        Whether it is there, or a host is asked, which says itself what it lacks; False when the user said no or
        cancelled.

    Raises:
        ModelError: the download failed, or a model that should have come with the program is missing.
        StorageError: no space or no permission.
    """
    entry = find_entry(modelId)
    if isHere(entry):
        return True
    if entry.source_url and not slicer.util.confirmOkCancelDisplay(_question(entry), _("Download a model")):
        return False
    return _download(entry)


def isHere(entry: ModelEntry) -> bool:
    """Whether a model needs no download: it is on this computer, or a host is asked, which has models of its own."""
    return bool(chosenHost()) or is_available(entry)


def sizeText(entry: ModelEntry) -> str:
    """Size of a model's file for a person, e.g. "156 MB"."""
    return _("{count} MB").format(count=round(entry.size_bytes / 1e6))


def modelTitle(entry: ModelEntry) -> str:
    """Title of a model in a list, and whether it is still to be downloaded."""
    if isHere(entry):
        return entry.title
    if entry.bundled:
        return _("{title} (missing: install the program again)").format(title=entry.title)
    return _("{title} (to be downloaded, {size})").format(title=entry.title, size=sizeText(entry))


def _question(entry: ModelEntry) -> str:
    return _(
        "{title} is not on this computer. Download it now ({size}) from {url}?\n\n"
        "License of the model: {license}. By downloading it you confirm that you know its terms.\n\n"
        "Without a network, cancel and put the file {file} into {folder}."
    ).format(
        title=entry.title,
        size=sizeText(entry),
        url=entry.source_url,
        license=entry.license,
        file=entry.file,
        folder=user_folder(),
    )


def _download(entry: ModelEntry) -> bool:
    dialog = slicer.util.createProgressDialog(
        maximum=PROGRESS_STEPS,
        labelText=_("Downloading {title}...").format(title=entry.title),
        windowTitle=_("Download a model"),
        windowModality=qt.Qt.ApplicationModal,
    )

    arrived, stop = [0.0], threading.Event()

    def hear(progress: Progress) -> None:
        arrived[0] = progress.done / progress.total

    work = Task(lambda: download(entry, hear, stop.is_set, acknowledged=True))
    try:
        while not work.wait(TURN_S):
            dialog.value = round(PROGRESS_STEPS * arrived[0])
            slicer.app.processEvents()
            if dialog.wasCanceled:
                stop.set()
        work.result()
    except Cancelled:
        return False
    finally:
        dialog.close()
    return True
