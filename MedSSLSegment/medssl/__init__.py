"""MedSSLSegment's engine: one annotated slice of a CT becomes the organ in the whole volume.

Importing this package is cheap: no torch, no SimpleITK. ``medssl.pipeline`` tells the whole story in a few calls.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
