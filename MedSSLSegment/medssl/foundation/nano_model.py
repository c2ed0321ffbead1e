"""The small default model: SAM 2 from the ``sam2`` package at a small size, with two additions.

It sees seven channels instead of three (`nano_inputs`), because at this size the mask memory alone loses the contour,
and a three-layer edge head redraws the stride-4 mask at stride 2. Everything between - Hiera trunk, neck, memory
attention, memory encoder, prompt encoder, two-way mask decoder, object score - is the package's own code.

Axis letters: B rows, S side of the crop, D model width, H = W = S / 16 the coarsest feature map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import load_into, read_checkpoint
from ..errors import ModelError
from .nano_fusion import Fusion
from .nano_inputs import CHANNELS, halved
from .sam2_build import build_sam2_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PROMPTS",
    "Decoded",
    "Encoded",
    "NanoConfig",
    "NanoModel",
    "load_nano",
    "load_prompted",
    "prompt_tensors",
    "prompted_model",
]

PROMPTS = "prompts."
"""What the names of the tensors begin with that answer prompts, where they differ from those that track."""


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """Size of the model; everything needed to build it again.

    Raises:
        ModelError: no such model can be built.
    """

    image_size: int = 128
    """Side of the square crop, pixels; a multiple of 32."""
    embed_dim: int = 32
    """Width of the first Hiera stage; doubles with each stage."""
    stages: tuple[int, int, int, int] = (1, 2, 3, 1)
    """Hiera blocks in each stage; at least 3 in the third, whose last two look at the whole slice."""
    model_dim: int = 128
    """Width of neck, memory attention and mask decoder."""
    memory_dim: int = 64
    """Width of a memory."""
    memories: int = 4
    """Slices remembered: the reference slice and the latest ones."""
    edge_width: int = 16
    """Width of the edge head."""

    def __post_init__(self) -> None:
        if len(self.stages) != 4 or min(self.stages) < 1 or self.stages[2] < 3:
            raise ModelError(
                "The model needs four stages of at least 1 block, and 3 in the third stage;"
                f" {self.stages} does not do."
            )

    def to_meta(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> NanoConfig:
        """The inverse of `to_meta`.

        Raises:
            ModelError: there is no description, or it has other fields than this version knows.
        """
        if not meta:
            raise ModelError(
                "These are not the weights of a small model as medssl train tracker writes them."
            )
        known = {field.name for field in fields(cls)}
        if set(meta) != known:
            raise ModelError(
                f"The model was made by another version: its size is described by {sorted(meta)}, not {sorted(known)}."
            )
        return cls(**{**meta, "stages": tuple(meta["stages"])})


@dataclass
class Encoded:
    """Features of one slice."""

    tokens: Tensor
    """(H * W, B, D) coarsest features."""
    position: Tensor
    """(H * W, B, D) their position encoding."""
    fine: list[Tensor]
    """(B, D / 8, S / 4, S / 4) and (B, D / 4, S / 8, S / 8) features for the mask decoder."""
    channels: Tensor
    """(B, 7, S, S) the input."""


@dataclass
class Decoded:
    """What the model says about one slice."""

    logits: Tensor
    """(B, 1, S, S) mask logits after the edge head, whether or not the object is there."""
    coarse_logits: Tensor
    """(B, 1, S / 4, S / 4) mask logits of SAM's decoder."""
    presence_logit: Tensor
    """(B, 1) > 0 where the object is on the slice."""
    quality: Tensor
    """(B, 1) the model's estimate of its mask's IoU, 0 .. 1."""
    pointer: Tensor
    """(B, D) object pointer for the memory."""


class NanoModel(nn.Module):
    """SAM 2 at a small size over seven channels, with an edge head."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.sam = build_sam2_model(
            "configs/sam2.1/sam2.1_hiera_t.yaml", config.image_size, overrides=_overrides(config)
        )
        first = self.sam.image_encoder.trunk.patch_embed
        first.proj = nn.Conv2d(CHANNELS, config.embed_dim, 7, stride=4, padding=3)
        self.edge = _EdgeHead(config.edge_width)

    def encode(self, channels: Tensor) -> Encoded:
        """Features of (B, 7, S, S) slices.

        What ``sam.forward_image`` answers, without what the tracker has no use for: position encodings of the fine
        maps, and fine maps of full width, which the mask decoder's projection narrows at once.
        """
        image_encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        level_4, level_8, level_16, level_32 = image_encoder.trunk(channels)
        lateral_32, lateral_16, lateral_8, lateral_4 = (layer.conv for layer in image_encoder.neck.convs)
        coarse = lateral_16(level_16) + F.interpolate(lateral_32(level_32), scale_factor=2.0, mode="nearest")
        position = image_encoder.neck.position_encoding(coarse)
        fine = [
            _in_turn(level_4, lateral_4, decoder.conv_s0),
            _in_turn(level_8, lateral_8, decoder.conv_s1),
        ]
        tokens, positions = (part.flatten(2).permute(2, 0, 1) for part in (coarse, position))
        return Encoded(tokens, positions, fine, channels)

    def alone(self, encoded: Encoded) -> Tensor:
        """Features of a slice nothing is remembered about yet. (B, D, H, W)"""
        return self._as_map(encoded.tokens + self.sam.no_mem_embed)

    def recall(
        self, encoded: Encoded, step: int, reference: dict[str, Any], recent: dict[int, dict[str, Any]]
    ) -> Tensor:
        """Features of a slice in the light of the memories.

        Args:
            encoded: the slice's features.
            step: how many slices it lies from its reference slice, >= 1.
            reference: the reference slice's memory, from `remember`.
            recent: the latest slices' memories by step.

        Returns:
            (B, D, H, W).
        """
        size = self.config.image_size // 16
        features: Tensor = self.sam._prepare_memory_conditioned_features(
            frame_idx=step,
            is_init_cond_frame=False,
            current_vision_feats=[encoded.tokens],
            current_vision_pos_embeds=[encoded.position],
            feat_sizes=[(size, size)],
            output_dict={"cond_frame_outputs": {0: reference}, "non_cond_frame_outputs": recent},
            num_frames=1 << 30,
        )
        return features

    def decode(
        self,
        features: Tensor,
        encoded: Encoded,
        points: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Decoded:
        """Ask for the object's mask.

        Args:
            features: (B, D, H, W) from `alone` or `recall`.
            encoded: the slice's features.
            points: (B, P, 2) x, y in crop pixels and (B, P) labels: 1 on, 0 off, 2 and 3 box corners, -1 padding.
            mask: (B, 1, S, S) probability, as a dense prompt.
        """
        batch = features.shape[0]
        dense = None if mask is None else F.interpolate(20.0 * mask - 10.0, scale_factor=0.25, mode="area")
        prompt_encoder = self.sam.sam_prompt_encoder
        sparse_embedding, dense_embedding = prompt_encoder(points=points, boxes=None, masks=dense)
        if points is None:  # SAM 2 tracks with one point that is none, which its encoder pads with another
            sparse_embedding = prompt_encoder.not_a_point_embed.weight.expand(batch, 2, -1)
            dense_embedding = dense_embedding.expand(batch, -1, -1, -1)
        masks, quality, tokens, presence = self.sam.sam_mask_decoder(
            image_embeddings=features,
            image_pe=self.sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse_embedding,
            dense_prompt_embeddings=dense_embedding,
            multimask_output=False,
            repeat_image=False,
            high_res_features=encoded.fine,
        )
        pointer = self.sam.obj_ptr_proj(tokens[:, 0])
        there = (presence > 0).to(pointer.dtype)
        pointer = there * pointer + (1.0 - there) * self.sam.no_obj_ptr
        return Decoded(self.edge(masks, encoded.channels), masks, presence, quality, pointer)

    def remember(
        self, encoded: Encoded, probability: Tensor, presence_logit: Tensor, pointer: Tensor
    ) -> dict[str, Any]:
        """Turn a slice and its mask into a memory.

        Args:
            encoded: the slice's features.
            probability: (B, 1, S, S) of the mask.
            presence_logit: (B, 1).
            pointer: (B, D).
        """
        features, position = self.sam._encode_new_memory(
            current_vision_feats=[encoded.tokens],
            feat_sizes=[(self.config.image_size // 16,) * 2],
            pred_masks_high_res=torch.logit(probability.float(), 1e-4),
            object_score_logits=presence_logit,
            is_mask_from_pts=False,
        )
        return {"maskmem_features": features, "maskmem_pos_enc": position, "obj_ptr": pointer}

    def _as_map(self, tokens: Tensor) -> Tensor:
        size = self.config.image_size // 16
        return tokens.permute(1, 2, 0).reshape(tokens.shape[1], tokens.shape[2], size, size)


def load_nano(path: Path, device: torch.device) -> tuple[NanoModel, Fusion]:
    """Read a small model, and how it is settled with the intensity tracker, from its checkpoint.

    Raises:
        ModelError: the file is missing, damaged, or not a model of this kind.
    """
    tensors, meta = read_checkpoint(path)
    model = NanoModel(NanoConfig.from_meta(meta.get("config", {})))
    load_into(model, tensors, min_fraction=1.0)
    return model.to(device).eval(), Fusion.from_meta(meta)


def load_prompted(path: Path, device: torch.device) -> NanoModel:
    """Read what a small model answers prompts with from its checkpoint.

    Raises:
        ModelError: the file is missing, damaged, not of a model of this kind, or of one that was never taught prompts.
    """
    tensors, meta = read_checkpoint(path)
    if "prompts" not in meta:
        raise ModelError(
            f"The model {path.name} only carries masks from slice to slice; teach it clicks and boxes with:"
            f" medssl train prompts --data FOLDER --out FOLDER --start-from {path}"
        )
    return prompted_model(tensors, meta).to(device).eval()


def prompted_model(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> NanoModel:
    """What a checkpoint answers prompts with; where it was taught none, what it tracks with.

    Raises:
        ModelError: it is not one of a model of this kind.
    """
    model = NanoModel(NanoConfig.from_meta(meta.get("config", {})))
    own = {name.removeprefix(PROMPTS): t.float() for name, t in tensors.items() if name.startswith(PROMPTS)}
    load_into(model, {**tensors, **own}, min_fraction=1.0)
    return model


def prompt_tensors(tracker: Mapping[str, Tensor], prompted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a tracker's checkpoint holds besides, so that prompts are answered by weights of their own.

    Only where the two differ, under names of their own, and in half precision: what answers prompts has no memory.

    Args:
        tracker: state dict of the weights that track.
        prompted: state dict of the weights that answer prompts.
    """
    return {
        PROMPTS + name: tensor.detach().half()
        for name, tensor in prompted.items()
        if tensor.is_floating_point() and not torch.equal(tensor.cpu(), tracker[name].cpu())
    }


class _EdgeHead(nn.Module):
    """Redraws a stride-4 mask at stride 2 from the input channels; begins as plain upsampling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS + 1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, coarse_logits: Tensor, channels: Tensor) -> Tensor:
        logits = F.interpolate(coarse_logits.float(), scale_factor=2, mode="bilinear", align_corners=False)
        hidden = torch.cat([halved(channels), logits.clamp(-8.0, 8.0) / 4.0], dim=1)
        hidden = F.relu(self.first(hidden))
        hidden = hidden + F.relu(self.second(hidden))
        redrawn = logits + self.last(hidden).float()  # (B, 1, S / 2, S / 2)
        return F.interpolate(redrawn, size=channels.shape[-2:], mode="bilinear", align_corners=False)


def _in_turn(image: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Two convolutions of one pixel each, as one."""
    weight = second.weight.flatten(1) @ first.weight.flatten(1)
    bias = None
    if first.bias is not None and second.bias is not None:
        bias = second.weight.flatten(1) @ first.bias + second.bias
    return F.conv2d(image, weight[..., None, None], bias)


def _overrides(config: NanoConfig) -> list[str]:
    dim, size = config.model_dim, config.image_size // 16
    widths = [config.embed_dim * 2**stage for stage in (3, 2, 1, 0)]
    attention_start = config.stages[0] + config.stages[1]
    last_of_third = attention_start + config.stages[2] - 1
    model = {
        "image_encoder.trunk.embed_dim": config.embed_dim,
        "image_encoder.trunk.num_heads": 1,
        "image_encoder.trunk.stages": list(config.stages),
        "image_encoder.trunk.global_att_blocks": [last_of_third - 1, last_of_third],
        "image_encoder.trunk.window_spec": [8, 4, 8, 4],
        "image_encoder.neck.d_model": dim,
        "image_encoder.neck.backbone_channel_list": widths,
        "image_encoder.neck.position_encoding.num_pos_feats": dim,
        "memory_attention.d_model": dim,
        "memory_attention.num_layers": 1,
        "memory_attention.layer.d_model": dim,
        "memory_attention.layer.dim_feedforward": 2 * dim,
        "memory_attention.layer.dropout": 0.0,
        "memory_attention.layer.self_attention.embedding_dim": dim,
        "memory_attention.layer.self_attention.feat_sizes": [size, size],
        "memory_attention.layer.self_attention.dropout": 0.0,
        "memory_attention.layer.cross_attention.embedding_dim": dim,
        "memory_attention.layer.cross_attention.feat_sizes": [size, size],
        "memory_attention.layer.cross_attention.kv_in_dim": config.memory_dim,
        "memory_attention.layer.cross_attention.dropout": 0.0,
        "memory_encoder.out_dim": config.memory_dim,
        "memory_encoder.in_dim": dim,
        "memory_encoder.position_encoding.num_pos_feats": config.memory_dim,
        "memory_encoder.mask_downsampler.embed_dim": dim,
        "memory_encoder.fuser.layer.dim": dim,
        "memory_encoder.fuser.layer.layer_scale_init_value": 0.1,  # the stock 1e-6 is too small for a short run
        "num_maskmem": config.memories,
        "max_obj_ptrs_in_encoder": config.memories,
        "multimask_output_in_sam": False,
        "multimask_output_for_tracking": False,
        "use_multimask_token_for_obj_ptr": False,
        "add_tpos_enc_to_obj_ptrs": False,
        "proj_tpos_enc_in_obj_ptrs": False,
        "use_signed_tpos_enc_to_obj_ptrs": False,
    }
    return [f"++model.{key}={value}".replace(" ", "") for key, value in model.items()]
