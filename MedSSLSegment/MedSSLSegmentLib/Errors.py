"""Errors, as a person sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import slicer.util
from medssl.errors import MedSSLError
from slicer.i18n import tr as _

__all__ = ["errorsShown"]


@contextmanager
def errorsShown(waitCursor: bool = False) -> Iterator[None]:
    """Show what the user can do something about as one sentence; anything else as an error of the program."""
    message = None
    with slicer.util.tryWithErrorDisplay(_("MedSSLSegment failed unexpectedly."), waitCursor=waitCursor):
        try:
            yield
        except MedSSLError as error:
            message = str(error)
    if message is not None:
        slicer.util.errorDisplay(message)
