"""What the contrastive methods share: embeddings of slices, and losses on them.

B slices of this process, N of all processes, D embedding dimensions. Losses are computed in float32 (float64 for
float64) whatever the precision of the forward pass, and their mean over the processes is the loss of the joined batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..backbones.base import Backbone
from ..datasets.data import fit_slice
from ..datasets.input_contract import InputContract
from ..errors import InputError
from ..learning.averaging import follow, frozen_copy
from ..learning.distributed import gather, own_rows
from ..learning.recipe import Recipe
from .augment import ViewOptions, input_range, two_views
from .base import Anchor, Method, Moment, without_dropout

if TYPE_CHECKING:
    from ..datasets.data import UnlabelledVolumes

__all__ = [
    "CPU_CONTRACT",
    "CPU_RECIPE",
    "GPU_RECIPE",
    "PUBLISHED_RECIPE",
    "WHOLE_SLICE",
    "Contrastive",
    "ContrastiveOptions",
    "Momentum",
    "cosine",
    "info_nce",
    "mlp",
    "nt_xent",
    "pooled",
    "spread",
    "sup_con",
    "triplet_loss",
    "unit",
]

WHOLE_SLICE = InputContract(size=(256, 256), fit="resize")
"""Input of the "paper" and "gpu" presets: PolyCL, with its window."""
PUBLISHED_RECIPE = Recipe(
    epochs=100, batch=20, optimiser="adam", learning_rate=1e-4, schedule="cosine-restarts", restart_epochs=10
)
"""Training of PolyCL and of the baselines it was compared with."""
GPU_RECIPE = Recipe(
    epochs=100, batch=128, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=5, precision="bf16"
)
"""Training of the "gpu" presets that profit from large batches."""
CPU_CONTRACT = InputContract(
    size=(64, 64), spacing_kji_mm=(None, 4.0, 4.0), window_hu=(-200.0, 400.0), mean_hu=100.0, std_hu=200.0
)
"""Input of the "cpu" presets."""
CPU_RECIPE = Recipe(epochs=10, batch=16, optimiser="adam", learning_rate=1e-3, warmup_epochs=0.5)
"""Training of the "cpu" presets."""
_PICTURE_ROWS = 6
_PICTURE_NEIGHBOURS = 5
_PICTURE_GAP_PX = 4
_PICTURE_TILE_PX = 128


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(ViewOptions):
    """Options of methods that tell positives from negatives."""

    temperature: float = 0.1
    """Of the loss: the lower, the more the hardest negatives count."""
    dimensions: int = 256
    """Of an embedding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or self.dimensions < 1:
            raise InputError("temperature and dimensions must be above 0.")


class Contrastive(Method):
    """A method that compares slices by one embedding of each: deepest map -> 2 x 2 maximum -> mean -> head.

    A sample is two views of a slice, {"views": (2, C, H, W)}; a method that pairs slices otherwise draws otherwise. The
    decoder takes no part and no gradient.

    Args:
        backbone: of two dimensions.
        contract: of its input.
        options: of the method; `ViewOptions` among them where views are drawn.
        head: (B, widths[-1]) to (B, D); None for a single linear layer, as in PolyCL.
    """

    def __init__(
        self, backbone: Backbone, contract: InputContract, options: Any, head: nn.Module | None = None
    ) -> None:
        super().__init__(backbone, contract, options)
        if backbone.spatial_dims != 2 or contract.spatial_dims != 2:
            raise InputError(f"{self.info.title} compares slices; choose a backbone and an input of 2D.")
        smallest = 2 * backbone.encoder.divisor
        if min(contract.size) < smallest:
            raise InputError(
                f"Slices of {contract.size} pixels are too small for this backbone, which needs {smallest} a side."
            )
        backbone.decoder.requires_grad_(False)
        if not options.dropout:
            without_dropout(backbone)
        if head is None:
            head = nn.Linear(backbone.encoder.widths[-1], options.dimensions)
        self.head = head

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D)."""
        embedding: Tensor = self.head(pooled(self.backbone.encoder(images)[-1]))
        return embedding

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        """Two views of the slice."""
        image = self.slice_image(volumes, anchor, rng)
        return {"views": two_views(image, self.options, input_range(self.contract), rng)}

    def slice_image(
        self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator | None = None
    ) -> Tensor:
        """(C, H, W) slice at the contract's size; a crop lies where `rng` says, in the middle without one."""
        image = volumes.image(self.contract, anchor.scan, anchor.k)
        fill = self.contract.background(volumes.scans[anchor.scan].stats)
        return torch.from_numpy(fit_slice(image, self.contract.size, self.contract.fit, rng, fill))

    def pictured(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, C, H, W) images among which `picture` looks for neighbours, those it looks from first."""
        return batch["views"][:, 0]

    @torch.no_grad()
    def picture(self, batch: Mapping[str, Tensor], moment: Moment) -> NDArray[np.uint8] | None:
        """A slice a row, beside it the slices of the batch whose embeddings are nearest, nearest first."""
        images = self.pictured(batch)
        if len(images) < 2:
            return None
        training = self.training
        self.eval()
        embedded = unit(self.embed(images))
        self.train(training)
        nearest = (embedded @ embedded.T).fill_diagonal_(-2.0).argsort(dim=1, descending=True)
        order = nearest[:_PICTURE_ROWS, : min(_PICTURE_NEIGHBOURS, len(images) - 1)].cpu().numpy()
        return _tiled(_grey(images, input_range(self.contract)), order)


class Momentum(nn.Module):
    """Encoder and head that follow those of a method slowly; no gradient, no dropout."""

    def __init__(self, method: Contrastive) -> None:
        super().__init__()
        self.encoder = frozen_copy(method.backbone.encoder)
        self.head = frozen_copy(method.head)
        self.train()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D)."""
        embedding: Tensor = self.head(pooled(self.encoder(images)[-1]))
        return embedding

    def follow(self, method: Contrastive, decay: float) -> None:
        """Move a step towards the method's weights; decay 1 stays, 0 takes them over."""
        follow(self.encoder, method.backbone.encoder, decay)
        follow(self.head, method.head, decay)

    def train(self, mode: bool = True) -> Momentum:
        """Norms go by the batch's statistics as in the published codes; dropout stays off."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        return self


def mlp(inputs: int, hidden: int, outputs: int, norm: type[nn.Module] | None = None) -> nn.Sequential:
    """Two linear layers; behind the first a norm, if any, and a ReLU. (B, inputs) to (B, outputs)."""
    between = [] if norm is None else [norm(hidden)]
    return nn.Sequential(nn.Linear(inputs, hidden), *between, nn.ReLU(), nn.Linear(hidden, outputs))


def pooled(deepest: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C): maximum over 2 x 2, where there are as many, then the mean.

    The maximum comes first because a mean directly after an instance norm without weights would always be 0.
    """
    window = [min(2, side) for side in deepest.shape[2:]]
    return F.max_pool2d(deepest, window).mean(dim=(2, 3))


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of telling the positive from one negative (PolyCL, equation 4), mean over the batch.

    -log(e^p / (e^p + e^n)) = softplus(n - p) with p, n the cosines over the temperature; this form cannot overflow.

    Args:
        anchor: (B, D) embeddings.
        positive: (B, D).
        negative: (B, D).
        temperature: above 0.
    """
    return F.softplus((cosine(anchor, negative) - cosine(anchor, positive)) / temperature).mean()


def nt_xent(first: Tensor, second: Tensor, temperature: float | Tensor, symmetric: bool = True) -> Tensor:
    """SimCLR's loss: find the other view of a slice among all 2N - 1 other views; mean over the anchors.

    Args:
        first: (B, D) embeddings of one view of each slice.
        second: (B, D) of the other.
        temperature: above 0; a tensor where it is learnt.
        symmetric: all 2B views are anchors; otherwise the first ones only, as in PolyCL's published baseline.
    """
    logits, own, others = _similarities(first, second, temperature)
    count = len(first) * (2 if symmetric else 1)
    return F.cross_entropy(logits[:count].scatter(1, own[:count, None], -torch.inf), others[:count])


def sup_con(first: Tensor, second: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss, positives outside the logarithm (Khosla et al. 2020, equation 2).

    Args:
        first: (B, D) embeddings of one view of each slice.
        second: (B, D) of the other.
        labels: (B,) views of equal label are positives of each other.
        temperature: above 0.
    """
    logits, own, _ = _similarities(first, second, temperature)
    oneself = torch.zeros_like(logits, dtype=torch.bool).scatter(1, own[:, None], True)
    log_share = logits - logits.masked_fill(oneself, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = (labels.repeat(2)[:, None] == gather(labels).repeat(2)) & ~oneself
    return -(log_share * positive).sum(dim=1).div(positive.sum(dim=1)).mean()


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: find a query's key among it and the queue; mean over the batch.

    Args:
        queries: (B, D) embeddings.
        keys: (B, D) of the other views, without gradient.
        queue: (Q, D) of other slices.
        temperature: above 0.
    """
    with torch.autocast(queries.device.type, enabled=False):
        query, key = unit(queries), unit(keys)
        found = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([found, query @ unit(queue).T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) cosine similarity of rows."""
    return (unit(a) * unit(b)).sum(dim=1)


def spread(embeddings: Tensor) -> Tensor:
    """How far unit embeddings spread: 1 when uniform on the sphere, 0 when all are one (collapsed)."""
    return (1.0 - unit(embeddings.detach()).mean(dim=0).square().sum()).clamp_min(0.0).sqrt()


def _similarities(
    first: Tensor, second: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines over the temperature.

    Returns:
        (2B, 2N) of this process's views to all, and for each of its rows the columns (2B,) of the view itself and of
        the slice's other view.
    """
    with torch.autocast(first.device.type, enabled=False):
        a, b = unit(first), unit(second)
        everyone = torch.cat([gather(a), gather(b)])  # (2N, D)
        logits = torch.cat([a, b]) @ everyone.T / temperature
    own = own_rows(torch.arange(len(everyone) // 2, device=logits.device))
    other = own + len(everyone) // 2
    return logits, torch.cat([own, other]), torch.cat([other, own])


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in float32 or better."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


def _grey(images: Tensor, limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """(B, H, W) of the middle channel, black to white over the limits, or over the batch's own range."""
    values = images[:, images.shape[1] // 2].float().cpu().numpy()
    low, high = limits or (float(values.min()), float(values.max()))
    grey: NDArray[np.uint8] = np.clip((values - low) / max(high - low, 1e-6) * 255.0, 0.0, 255.0).astype(
        np.uint8
    )
    return grey


def _tiled(tiles: NDArray[np.uint8], order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(H, W, 3): row n shows tile n, a wider gap, and the tiles of order[n]. The last row of an image is at the top.

    Rows of a canonical slice rise to anterior and columns to right, so both are turned for radiologists' eyes.
    """
    enlarged = max(1, _PICTURE_TILE_PX // max(tiles.shape[1:]))
    facing = tiles[:, ::-1, ::-1].repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    height = facing.shape[1]
    gap = np.full((height, _PICTURE_GAP_PX), 96, np.uint8)
    lines = []
    for n, neighbours in enumerate(order):
        cells = [facing[n], gap]
        for neighbour in neighbours:
            cells += [gap, facing[neighbour]]
        lines += [np.hstack(cells), np.full((_PICTURE_GAP_PX, sum(c.shape[1] for c in cells)), 96, np.uint8)]
    return np.repeat(np.vstack(lines[:-1])[..., None], 3, axis=-1)
