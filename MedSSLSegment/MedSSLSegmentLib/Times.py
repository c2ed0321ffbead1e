"""Times, as a person reads them."""

from __future__ import annotations

from slicer.i18n import tr as _

__all__ = ["timeLeftText"]


def timeLeftText(seconds: float | None) -> str:
    """Time left for a person, e.g. "about 20 s left"; empty when it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return _("about {count} s left").format(count=max(1, round(seconds)))
    return _("about {count} min left").format(count=round(seconds / 60))
