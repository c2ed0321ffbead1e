"""Promptable models. The only package that touches ``segment_anything`` and ``sam2``."""

from __future__ import annotations
