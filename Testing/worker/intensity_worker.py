"""A real worker on the real engine, with the tracker that needs no weights. Started by the tests as a program."""

from __future__ import annotations

import numpy as np
from medssl.foundation.intensity import IntensityTracker
from medssl.foundation.protocols import Prediction
from medssl.prompts import SlicePrompt
from medssl.serving.engine import EngineBackend
from medssl.volume import Window
from medssl.worker import Worker, claim_standard_streams


class BoxPredictor:
    """Calls everything bright in a box the object."""

    def set_image(self, slice_hu: np.ndarray, window: Window, spacing_rc_mm: tuple[float, float]) -> None:
        self._bright = window.apply(slice_hu) > 0.5

    def predict(self, prompt: SlicePrompt) -> Prediction:
        assert prompt.box_xyxy_px is not None
        return self.predict_boxes(prompt.box_xyxy_px[None])[0]

    def predict_boxes(self, boxes_xyxy_px: np.ndarray, hint: np.ndarray | None = None) -> list[Prediction]:
        answers = []
        for x0, y0, x1, y1 in boxes_xyxy_px.round().astype(int):
            mask = np.zeros_like(self._bright)
            mask[y0 : y1 + 1, x0 : x1 + 1] = self._bright[y0 : y1 + 1, x0 : x1 + 1]
            answers.append(Prediction(mask, 0.9, mask.astype(np.float32)))
        return answers


if __name__ == "__main__":
    incoming, outgoing = claim_standard_streams()
    engine = EngineBackend(
        threads=1,
        load_tracker=lambda model, device: IntensityTracker(),
        load_image_predictor=lambda model, device: BoxPredictor(),
    )
    Worker(engine, incoming, outgoing).run()
