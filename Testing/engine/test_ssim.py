"""Structural similarity against scipy's filters and a literal sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medssl.methods.ssim import ssim
from scipy import ndimage


def _weights(window: int, sigma: float) -> np.ndarray:
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()


def _reference(x: np.ndarray, y: np.ndarray, window: int, mode: str) -> np.ndarray:
    def blur(image: np.ndarray) -> np.ndarray:
        taps = _weights(window, 1.5)
        return ndimage.correlate1d(ndimage.correlate1d(image, taps, 0, mode=mode), taps, 1, mode=mode)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )


@pytest.mark.parametrize("window", [7, 15])
@pytest.mark.parametrize(("reflect", "mode"), [(False, "constant"), (True, "mirror")])
def test_it_is_what_scipy_computes(window: int, reflect: bool, mode: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 2, 3, 20, 17))
    found = ssim(torch.from_numpy(x), torch.from_numpy(y), window, 1.5, reflect)
    expected = np.array(
        [[_reference(a, b, window, mode) for a, b in zip(*p, strict=True)] for p in zip(x, y, strict=True)]
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_one_pixel_is_the_printed_formula() -> None:  # eq. 15
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 9, 9))
    weights = np.outer(_weights(7, 1.5), _weights(7, 1.5))
    a, b = x[1:8, 1:8], y[1:8, 1:8]
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    found = ssim(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], window=7)
    assert found[0, 0, 4, 4].item() == pytest.approx(expected, abs=1e-5)


def test_an_image_is_like_itself_and_likeness_is_mutual() -> None:  # 5.6 (c)
    x, y = torch.rand(2, 2, 1, 16, 16)
    torch.testing.assert_close(ssim(x, x), torch.ones_like(x))
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    flat = torch.full_like(x, 0.4)
    torch.testing.assert_close(ssim(flat, flat), torch.ones_like(x))
    assert (ssim(x, y) <= 1.0 + 1e-5).all()


def test_half_precision_inputs_are_compared_in_fp32_and_gradients_are_finite() -> None:
    x = torch.rand(1, 1, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ssim(x, torch.zeros(1, 1, 16, 16))
    assert result.dtype == torch.float32
    result.mean().backward()
    assert torch.isfinite(x.grad).all()
