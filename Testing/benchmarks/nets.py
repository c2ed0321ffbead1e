"""Trains the small nets of the settlement; `fit_fusion.py` and `mixing.py` say on what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from medssl.foundation.nano_fusion import LogitNet
from numpy.typing import NDArray

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the (b,) logits of some rows and the (b,) numbers of these rows, to a scalar."""


def train_net(
    features: NDArray[np.float64],
    loss: Loss,
    *,
    units: int = 16,
    steps: int = 500,
    batch: int = 1024,
    rate: float = 1e-2,
    decay: float = 1e-2,
) -> LogitNet:
    """The net whose logits of (n, features) have the least loss, by seeded AdamW on rows drawn at random.

    The first feature is the constant; the others are scaled to unit spread, and the weights scaled back.
    """
    middle, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    middle[0], spread[0] = 0.0, 1.0
    scaled = torch.from_numpy((features - middle) / spread)

    random = torch.Generator().manual_seed(0)
    count = features.shape[1]
    linear = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    hidden = (torch.randn(units, count, generator=random, dtype=torch.float64) / count**0.5).requires_grad_()
    out = (torch.randn(units, generator=random, dtype=torch.float64) / units**0.5).requires_grad_()
    optimiser = torch.optim.AdamW([linear, hidden, out], lr=rate, weight_decay=decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(0, len(scaled), (batch,), generator=random)
        optimiser.zero_grad()
        torch.autograd.backward(loss(scaled[rows] @ linear + torch.tanh(scaled[rows] @ hidden.T) @ out, rows))
        optimiser.step()
        falling.step()

    def unscaled(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        plain = weights / spread
        plain[..., 0] -= (weights * (middle / spread)).sum(axis=-1)
        return np.round(plain, 4)

    return LogitNet(
        linear=tuple(unscaled(linear.detach().numpy()).tolist()),
        units=tuple(map(tuple, unscaled(hidden.detach().numpy()).tolist())),
        out=tuple(np.round(out.detach().numpy(), 4).tolist()),
    )
