"""Every error the program raises on purpose; the message is one sentence that names what, the value and the fix.

MedSSLError
 |- InputError        a file, array, annotation, prompt or option the user gave cannot be used
 |- ModelError        a model is unknown, missing, damaged, or refused
 |- StorageError      something could not be written: no space, no permission
 |- NotEnoughMemory   the request would not fit; says what is needed and what there is
 |- Cancelled         the user asked to stop
 `- WorkerError       the worker could not do what was asked
     |- WorkerDied    the worker's process ended: killed, out of memory, unreachable host
     `- ProtocolError a message from the other end was damaged or cut short
"""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "InputError",
    "MedSSLError",
    "ModelError",
    "NotEnoughMemory",
    "ProtocolError",
    "StorageError",
    "WorkerDied",
    "WorkerError",
]


class MedSSLError(Exception):
    """Base of every error raised on purpose."""


class InputError(MedSSLError, ValueError):
    """A file, array, annotation, prompt or option the user gave cannot be used."""


class ModelError(MedSSLError):
    """A model is unknown, missing, damaged, or refused."""


class StorageError(MedSSLError):
    """Something could not be written: no space, no permission."""


class NotEnoughMemory(MedSSLError):  # noqa: N818 - reads as a sentence where it is raised
    """The request would not fit in memory; the message says what is needed and what there is."""


class Cancelled(MedSSLError):  # noqa: N818 - reads as a sentence where it is raised
    """The user asked to stop."""


class WorkerError(MedSSLError):
    """The worker could not do what was asked."""


class WorkerDied(WorkerError):  # noqa: N818 - reads as a sentence where it is raised
    """The worker's process ended: killed, out of memory, unreachable host."""


class ProtocolError(WorkerError):
    """A message from the other end was damaged or cut short."""
