"""The phantom in the Sample Data module: a synthetic CT that is computed on the spot, so it needs no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from medssl.scene.background import Task
from medssl.scene.nodes import add_volume_node

__all__ = ["PHANTOM", "loadPhantom", "registerSamples"]

PHANTOM = "MedSSLSegmentPhantom"
WINDOW_LEVEL = (400.0, 40.0)
"""Soft tissue, HU."""
TURN_S = 0.03
"""Between two turns of the event loop while the phantom is computed."""
THUMBNAIL = Path(__file__).resolve().parents[1] / "Resources" / "Icons" / f"{PHANTOM}.png"


def registerSamples() -> None:
    """Offer the phantom in the Sample Data module."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MedSSLSegment",
        sampleName=PHANTOM,
        thumbnailFileName=str(THUMBNAIL),
        uris="",
        fileNames=f"{PHANTOM}.nrrd",
        nodeNames=PHANTOM,
        customDownloader=loadPhantom,
    )


def loadPhantom(source: Any = None) -> list[Any]:
    """Compute the phantom, which takes some seconds, add it to the scene and show it; the views stay usable.

    Args:
        source: what the Sample Data module hands over; not used.

    Returns:
        The volume node.
    """
    from medssl.phantom import demo_case  # brings scipy, which nothing else here needs

    work = Task(demo_case)
    while not work.wait(TURN_S):
        slicer.app.processEvents()
    volume = replace(work.result().volume, name=PHANTOM)
    node = add_volume_node(slicer.mrmlScene, volume, WINDOW_LEVEL)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return [node]
