"""How the image predictors of the packages segment-anything and sam2 are asked, for both of which it is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from medssl.prompts import SlicePrompt


def official_answer(theirs: Any, prompt: SlicePrompt) -> tuple[np.ndarray, float, np.ndarray]:
    """Mask, score and logits as in the packages' notebooks: further points go with the logits found before."""
    box, xy, labels = prompt.box_xyxy_px, prompt.points_xy_px, prompt.point_labels
    if box is not None:
        masks, scores, logits = theirs.predict(box=box, multimask_output=False)
        further = len(xy) > 0
    else:
        masks, scores, logits = theirs.predict(
            point_coords=xy[:1], point_labels=labels[:1], multimask_output=True
        )
        further = len(xy) > 1
    best = int(scores.argmax())
    if further:
        masks, scores, logits = theirs.predict(
            point_coords=xy,
            point_labels=labels,
            box=box,
            mask_input=logits[best][None],
            multimask_output=False,
        )
        best = 0
    return masks[best].astype(bool), float(scores[best]), logits[best]
