"""A worker whose click model has random weights, which serve for timing. `bench_click.py` starts it."""

from __future__ import annotations

import sys

from medssl.serving.engine import EngineBackend
from medssl.worker import Worker, claim_standard_streams


def load_random(model: str, device: str) -> object:
    """SAM 2.1 Hiera-T at 512 px."""
    import torch
    from medssl.foundation.sam2_build import build_sam2_model
    from medssl.foundation.sam2_image import Sam2ImagePredictor

    torch.manual_seed(0)
    return Sam2ImagePredictor(build_sam2_model("configs/sam2.1/sam2.1_hiera_t.yaml", 512, device=device))


if __name__ == "__main__":
    incoming, outgoing = claim_standard_streams()
    Worker(
        EngineBackend(threads=int(sys.argv[1]), load_image_predictor=load_random),  # type: ignore[arg-type]
        incoming,
        outgoing,
    ).run()
