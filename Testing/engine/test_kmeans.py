"""Two clusters per image, against plain loops."""

from __future__ import annotations

import numpy as np
import torch
from medssl.methods.kmeans import hashed_uniform, squared_distances, two_means


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k-means of one image until nothing changes; an empty cluster starts at the worst-fitting point."""
    for _ in range(100):
        distances = ((points[:, None] - centres[None]) ** 2).sum(2)
        labels = distances.argmin(1)
        new = centres.copy()
        for n in range(2):
            chosen = points[labels == n]
            new[n] = chosen.mean(0) if len(chosen) else points[distances.min(1).argmax()]
        if np.allclose(new, centres):
            return labels, new
        centres = new
    raise AssertionError


def test_the_batch_ends_where_plain_loops_end() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, 30, 4, generator=generator)
    points[:, :8] += 4.0
    keys = torch.arange(6)
    found = two_means(points, keys, rounds=40)
    start = two_means(points, keys, rounds=0).centres
    for n in range(6):
        labels, centres = _lloyd(points[n].double().numpy(), start[n].double().numpy())
        assert np.array_equal(found.labels[n].numpy(), labels)
        np.testing.assert_allclose(found.centres[n].numpy(), centres, atol=1e-5)


def test_starts_are_two_of_the_points_and_differ_where_points_do() -> None:
    points = torch.zeros(50, 10, 2)
    points[:, 3] = 1.0  # the only point apart: k-means++ must take it, first or second
    centres = two_means(points, torch.arange(50), rounds=0).centres
    assert (centres.sum(dim=(1, 2)) == 2.0).all()


def test_an_image_is_clustered_alike_in_any_batch_and_differently_with_another_seed() -> None:
    points = torch.randn(8, 20, 3)
    keys = torch.arange(8) * 1_000_003
    together = two_means(points, keys, seed=3, rounds=1)
    alone = two_means(points[5:6], keys[5:6], seed=3, rounds=1)
    torch.testing.assert_close(together.centres[5:6], alone.centres)
    other = two_means(points, keys, seed=4, rounds=1)
    assert not torch.allclose(together.centres, other.centres)


def test_an_empty_cluster_starts_again() -> None:
    points = torch.tensor([[[0.0], [0.0], [0.0], [5.0]]])
    for key in range(20):
        found = two_means(points, torch.tensor([key]))
        assert sorted(found.centres.flatten().tolist()) == [0.0, 5.0]


def test_constant_images_are_said_to_be_so() -> None:
    points = torch.cat([torch.full((1, 9, 4), 3.0), torch.randn(1, 9, 4)])
    found = two_means(points, torch.arange(2))
    assert found.constant.tolist() == [True, False]
    assert found.labels[0].sum() == 0
    assert torch.isfinite(found.centres).all()


def test_hashed_numbers_are_uniform_and_independent_of_the_batch() -> None:
    keys = torch.arange(2000)
    numbers = hashed_uniform(keys, 5, 11, 3)
    assert ((numbers >= 0) & (numbers < 1)).all()
    histogram = torch.histc(numbers.float(), 10, 0.0, 1.0)
    assert (histogram - 1000).abs().max() < 5 * 30  # 5 standard deviations
    correlation = np.corrcoef(numbers.numpy().T) - np.eye(5)
    assert np.abs(correlation).max() < 0.1
    assert torch.equal(hashed_uniform(keys[[70, 5]], 5, 11, 3), numbers[[70, 5]])
    assert not torch.equal(hashed_uniform(keys, 5, 11, 4), numbers)
    assert not torch.equal(hashed_uniform(keys, 5, 3, 11), numbers)


def test_distances_are_squared_and_euclidean() -> None:
    distances = squared_distances(torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[4.0, 0.0], [0.0, 3.0]]]))
    assert distances.tolist() == [[[25.0, 0.0]]]
