"""Encoder files go in whole, are adapted to the input's channels, or are refused with the network untouched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medssl.backbones import BACKBONES, Backbone, build_backbone
from medssl.checkpoints import read_checkpoint, write_checkpoint
from medssl.datasets.data import UnlabelledVolumes
from medssl.datasets.input_contract import InputContract
from medssl.errors import InputError, ModelError
from medssl.learning.transfer import EncoderFile, adapt_stem, load_encoder, read_encoder, write_encoder
from medssl.methods import Anchor, Method, MethodInfo, Moment, Preset
from torch import Tensor, nn

SMALL = [name for name, spec in BACKBONES.items() if spec.small and spec.spatial_dims == 2]
CONTRACT = InputContract(size=(64, 64), window_hu=(-200.0, 400.0), spacing_kji_mm=(None, 4.0, 4.0))
META = {
    "method": "fake",
    "backbone": "unet2d_4",
    "data": ["ab" * 32],
    "step": 7,
    "seed": 3,
    "betas": (0.9, 0.99),
}


class FakeMethod(Method):
    """A head on the encoder, and nothing else."""

    info = MethodInfo(title="Fake", advice="never", citation="Nobody, 2024")

    def __init__(self, backbone: Backbone, contract: InputContract = CONTRACT, options: Any = None) -> None:
        super().__init__(backbone, contract, options)
        self.head = nn.Linear(4, 4)

    @staticmethod
    def presets() -> Mapping[str, Preset]:
        return {}

    def draw(self, volumes: UnlabelledVolumes, anchor: Anchor, rng: np.random.Generator) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        return {}


class FakeMethodWithDecoder(FakeMethod):
    """Keeps the decoder too."""

    transfers = ("encoder", "decoder")


def new(name: str, in_channels: int = 1, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone(name, in_channels).eval()


def saved(path: Path, backbone: Backbone, name: str, kind: type[FakeMethod] = FakeMethod) -> EncoderFile:
    write_encoder(path / "encoder.safetensors", kind(backbone), {**META, "backbone": name})
    return read_encoder(path / "encoder.safetensors")


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_file_says_how_the_weights_came_about_and_what_they_expect(tmp_path: Path) -> None:
    file = saved(tmp_path, new("unet2d_4"), "unet2d_4")
    assert (file.method, file.backbone, file.step, file.data) == ("fake", "unet2d_4", 7, ("ab" * 32,))
    assert file.contract == CONTRACT
    assert file.transfers == ("encoder",)
    assert file.meta["seed"] == 3
    assert file.meta["betas"] == [0.9, 0.99]
    assert file.meta["citation"] == "Nobody, 2024"
    assert file.meta["stem"] == ["encoder.stages.0.0.weight"]
    assert (file.meta["in_channels"], file.meta["divisor"]) == (1, 16)


@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_transfers_bit_for_bit_and_nothing_else_does(tmp_path: Path, name: str) -> None:
    """methods.md 1.4 (f), 2.8 (e): all of the encoder, no head, and a decoder that differs between seeds."""
    trained, fresh, another = new(name), new(name, seed=1), new(name, seed=2)
    file = saved(tmp_path, trained, name)
    assert all(tensor.startswith("encoder.") for tensor in file.tensors)
    report = load_encoder(fresh, file)
    load_encoder(another, file)
    assert same(fresh.encoder, trained.encoder)
    assert same(another.encoder, trained.encoder)
    assert not same(fresh.decoder, trained.decoder)
    assert not same(fresh.decoder, another.decoder)
    assert report.fraction == 1.0
    assert set(report.transferred) == set(file.tensors)
    assert report.missing == report.unexpected == report.mismatched == ()
    assert "(100.0% of the encoder) transferred; first layer as it was" in str(report)


def test_the_decoder_transfers_where_the_method_keeps_it(tmp_path: Path) -> None:
    """methods.md 5.6 (g)."""
    trained, fresh = new("mit_tiny_unet"), new("mit_tiny_unet", seed=1)
    file = saved(tmp_path, trained, "mit_tiny_unet", FakeMethodWithDecoder)
    report = load_encoder(fresh, file)
    assert same(fresh, trained)
    assert file.transfers == ("encoder", "decoder")
    assert set(report.transferred) == set(fresh.state_dict())


def test_a_file_of_another_backbone_is_refused_and_the_network_stays_as_it_was(tmp_path: Path) -> None:
    file = saved(tmp_path, new("unet2d_4"), "unet2d_4")
    for name in ("resunet18_4", "vit_tiny", "unet2d_16"):
        fresh = new(name, seed=1)
        with pytest.raises(ModelError, match=r"belongs to the backbone 'unet2d_4'.*90% must fit"):
            load_encoder(fresh, file)
        assert same(fresh, new(name, seed=1))


def test_what_does_not_fit_is_named_where_less_than_all_is_enough(tmp_path: Path) -> None:
    file = saved(tmp_path, new("unet2d_4"), "unet2d_4")
    tensors = dict(file.tensors)
    del tensors["encoder.stages.1.0.bias"]
    tensors["encoder.stages.0.3.bias"] = torch.zeros(5)
    tensors["encoder.old"] = torch.zeros(1)
    part = EncoderFile(tensors, file.method, file.backbone, CONTRACT, file.transfers, file.data, 7, {})
    fresh = new("unet2d_4", seed=1)
    report = load_encoder(fresh, part)
    assert report.missing == ("encoder.stages.1.0.bias",)
    assert report.mismatched == ("encoder.stages.0.3.bias",)
    assert report.unexpected == ("encoder.old",)
    assert report.fraction == pytest.approx(1 - (4 + 8) / sum(t.numel() for t in file.tensors.values()))
    with pytest.raises(ModelError, match="100% must fit"):
        load_encoder(fresh, part, min_fraction=1.0)


@pytest.mark.parametrize(
    ("name", "had", "wanted"),
    [
        (name, had, wanted)
        for name in SMALL
        for had, wanted in [(1, 3), (3, 1), (3, 9), (3, 2)]
        if wanted % had == 0
        or name != "transunet_small"  # whose standardised filters lose their scale in a sum
    ],
)
def test_equal_channels_give_the_maps_they_gave_before_another_number_of_channels(
    tmp_path: Path, name: str, had: int, wanted: int
) -> None:
    trained, fresh = new(name, had), new(name, wanted, seed=1)
    report = load_encoder(fresh, saved(tmp_path, trained, name), min_fraction=1.0)
    assert str(had) in report.stem
    assert str(wanted) in report.stem
    image = torch.randn(2, 1, 64, 64)
    before = trained.encoder(image.expand(-1, had, -1, -1))
    after = fresh.encoder(image.expand(-1, wanted, -1, -1))
    for first, second, width in zip(before, after, trained.encoder.widths, strict=True):
        if width != had:  # a ViT's first map is the image itself
            torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-4)


def test_first_layers_are_repeated_and_scaled_or_summed() -> None:
    weight = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    repeated, _ = adapt_stem(weight, 6)
    assert torch.equal(repeated[:, :3], weight / 2)
    assert torch.equal(repeated[:, 3:], weight / 2)
    assert torch.equal(adapt_stem(weight, 1)[0], weight.sum(1, keepdim=True))
    assert torch.equal(adapt_stem(weight, 3)[0], weight)
    for channels in range(1, 8):
        torch.testing.assert_close(adapt_stem(weight, channels)[0].sum(1), weight.sum(1))
    assert adapt_stem(torch.ones(2, 1, 3, 3, 3), 4)[0].shape == (2, 4, 3, 3, 3)


def test_the_networks_type_is_kept(tmp_path: Path) -> None:
    fresh = new("unet2d_4", seed=1).to(torch.bfloat16)
    load_encoder(fresh, saved(tmp_path, new("unet2d_4"), "unet2d_4"))
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("missing", ["method", "backbone", "data", "step"])
def test_a_file_that_would_not_say_enough_is_not_written(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(InputError, match=f"must say its {missing}"):
        write_encoder(path, FakeMethod(new("unet2d_4")), {n: v for n, v in META.items() if n != missing})
    assert not path.exists()


def test_a_run_folder_stands_for_the_encoder_that_it_made(tmp_path: Path) -> None:
    file = saved(tmp_path, new("unet2d_4"), "unet2d_4")
    (tmp_path / "encoder.safetensors").rename(tmp_path / "checkpoint.safetensors")
    assert read_encoder(tmp_path).meta == file.meta


def test_files_that_are_no_encoder_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(ModelError, match="does not exist"):
        read_encoder(path)
    write_checkpoint(path, {"a": torch.ones(1)}, {})
    with pytest.raises(ModelError, match="not a pre-trained encoder; make one with 'medssl pretrain'"):
        read_encoder(path)
    saved(tmp_path, new("unet2d_4"), "unet2d_4")
    tensors, meta = read_checkpoint(path)
    write_checkpoint(path, tensors, {**meta, "format_version": 2})
    with pytest.raises(ModelError, match=r"format version 2.*update the program"):
        read_encoder(path)
    write_checkpoint(path, tensors, {n: v for n, v in meta.items() if n != "contract"})
    with pytest.raises(ModelError, match=r"incomplete \('contract'\)"):
        read_encoder(path)
    for contract in ({"size": [1, 2, 3]}, {"window_hu": [0.0]}, {"size": "64"}, {"std_hu": None}, 3):
        write_checkpoint(path, tensors, {**meta, "contract": contract})
        with pytest.raises(ModelError, match="input contract cannot be used"):
            read_encoder(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="damaged"):
        read_encoder(path)
    torch.save({"step": 1}, tmp_path / "resume.pt")
    with pytest.raises(ModelError, match=r"is no encoder: .* give the folder of the run"):
        read_encoder(tmp_path / "resume.pt")
