"""The folders a page may open files from, and save them to: those named on the command line, and what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

__all__ = ["Entry", "Folders"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mrb", ".mrml")
"""Files that can be opened; .seg.nrrd is an .nrrd."""

_NO_PATH = (OSError, RuntimeError, ValueError)
"""For a link that leads to itself, a name that is too long, or one with a zero in it."""


@dataclass(frozen=True)
class Entry:
    """One line of a folder's list."""

    name: str
    path: str
    """What `Folders.resolve` takes."""
    is_folder: bool


class Folders:
    """A door to some folders and nothing else.

    Args:
        roots: folders; of a file, the folder it is in.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        resolved = (path.resolve() for path in roots)
        folders = (path if path.is_dir() else path.parent for path in resolved)
        self.roots = tuple(dict.fromkeys(folders))

    def resolve(self, path: str) -> Path:
        """A path that a page names.

        Raises:
            InputError: it leads out of the folders, also through a link, is not there, or cannot be a path.
        """
        try:
            found, exists = Path(path).resolve(), Path(path).exists()
        except _NO_PATH as error:
            raise InputError(f"{_printable(path)} cannot be reached ({_printable(str(error))}).") from error
        if not self.holds(found):
            raise InputError(f"{path} is not in a folder that was named when the workstation was started.")
        if not exists:
            raise InputError(f"{path} is not there any more; open the folder again.")
        return found

    def holds(self, path: Path) -> bool:
        """Whether a path, of which nothing needs to be there, leads into one of the folders, also through a link."""
        found = path.resolve()
        return any(found.is_relative_to(root) for root in self.roots)

    def resolve_folder(self, path: str) -> Path:
        """A folder that a page names.

        Raises:
            InputError: as `resolve`, or nothing was named, or it is a file.
        """
        if not path.strip():
            raise InputError("Type the path of a folder that was named when the workstation was started.")
        folder = self.resolve(path.strip())
        if not folder.is_dir():
            raise InputError(f"{path} is a file; name a folder.")
        return folder

    def entries(self, path: str = "") -> list[Entry]:
        """What can be opened in a folder: folders first, then files; the roots for an empty path.

        A name that is no text (an old one in Latin-1) is not among them: no page could ask for it.

        Raises:
            InputError: as `resolve`, or it is not a folder, or may not be read.
        """
        if not path:
            return [Entry(str(root), str(root), True) for root in self.roots]
        folder = self.resolve(path)
        if not folder.is_dir():
            raise InputError(f"{path} is a file; open it, or choose a folder.")
        try:
            shown = [child for child in folder.iterdir() if self._is_shown(child)]
        except OSError as error:
            raise InputError(f"The folder {path} cannot be read ({error.strerror}).") from error
        shown.sort(key=lambda child: (not child.is_dir(), child.name.lower()))
        return [Entry(child.name, str(child), child.is_dir()) for child in shown]

    def parent(self, path: str) -> str:
        """The folder above; empty, for the list of roots, above a root."""
        folder = self.resolve(path)
        return "" if folder in self.roots else str(folder.parent)

    def _is_shown(self, child: Path) -> bool:
        if child.name.startswith(".") or _printable(child.name) != child.name:
            return False
        try:
            return self.holds(child) and (child.is_dir() or child.name.lower().endswith(SUFFIXES))
        except _NO_PATH:  # a link that leads to itself
            return False


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
