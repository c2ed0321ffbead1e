"""What every backbone offers: an encoder that gives feature maps and a decoder that takes them to full resolution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Backbone", "BackboneSpec", "Decoder", "Encoder"]


class Encoder(nn.Module):
    """Image to feature maps, finest first."""

    spatial_dims: int
    """2 or 3."""
    in_channels: int
    """Channels of the input."""
    widths: tuple[int, ...]
    """Channels of each feature map, finest first; a level without channels is 0 (SegFormer's first)."""
    strides: tuple[int, ...]
    """Input pixels per pixel of each feature map, finest first."""
    divisor: int
    """Every side of the input must be a multiple of this."""
    stem: tuple[str, ...]
    """Names, in the encoder's state dict, of the weights that see the input's channels (axis 1)."""
    fixed_size: bool = False
    """Whether it is at its best on inputs of the size it was trained on: positions are part of what it has learnt."""

    def require_size(self, size: Sequence[int]) -> None:
        """Check the sides of an input.

        Raises:
            InputError: the network cannot take it; the message says which sizes it takes.
        """
        if any(side % self.divisor for side in size) or all(side == self.divisor for side in size):
            raise InputError(
                f"The input's sides {tuple(size)} must be multiples of {self.divisor}, and one of them at least"
                f" {2 * self.divisor}, for this network."
            )

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, *S) to one (B, widths[n], *S / strides[n]) per level, finest first."""


class Decoder(nn.Module):
    """Feature maps to one map at full resolution."""

    width: int
    """Channels of the result."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """An encoder's maps, finest first, to (B, width, *S)."""


class Backbone(nn.Module):
    """An encoder and its decoder. A segmentation network is a backbone and a 1 x 1 convolution."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.encoder.spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *S) to (B, decoder.width, *S)."""
        result: Tensor = self.decoder(self.encoder(x))
        return result


@dataclass(frozen=True)
class BackboneSpec:
    """A line of `BACKBONES`."""

    title: str
    """One line for a person: what it is, its size, when to choose it."""
    spatial_dims: Literal[2, 3]
    build: Callable[[int], Backbone]
    """Takes the number of input channels; weights are random, drawn from torch's generator."""
    source: str
    """Paper or code it follows."""
    small: bool = False
    """Trains on two CPU cores."""
