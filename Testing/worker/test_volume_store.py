from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from medssl import memory
from medssl.errors import InputError, NotEnoughMemory, ProtocolError
from medssl.messages import PutVolume, VolumePart
from medssl.serving.volume_store import VolumeNotHeld, VolumeStore
from medssl.volume import Volume


def announcement(volume: Volume) -> PutVolume:
    return PutVolume(volume.content_hash, volume.shape_kji, "int16", volume.ijk_to_ras)


def put(store: VolumeStore, volume: Volume, slices_per_part: int = 7) -> tuple[str, ...]:
    dropped = store.announce(announcement(volume))
    for first in range(0, len(volume.voxels_kji), slices_per_part):
        part = volume.voxels_kji[first : first + slices_per_part]
        store.add_part(VolumePart(volume.content_hash, first, part))
    return dropped


@pytest.mark.parametrize("slices_per_part", [1, 7, 50, 99])
def test_a_volume_sent_in_parts_is_the_volume(slices_per_part: int, volume: Volume) -> None:
    store = VolumeStore()
    put(store, volume, slices_per_part)
    held = store.get(volume.content_hash)
    np.testing.assert_array_equal(held.voxels_kji, volume.voxels_kji)
    np.testing.assert_array_equal(held.ijk_to_ras, volume.ijk_to_ras)
    assert held.name == ""


def test_a_volume_is_not_held_before_its_last_slice(volume: Volume) -> None:
    store = VolumeStore()
    store.announce(announcement(volume))
    store.add_part(VolumePart(volume.content_hash, 0, volume.voxels_kji[:-1]))
    with pytest.raises(VolumeNotHeld, match="send it first"):
        store.get(volume.content_hash)


def test_the_volume_used_longest_ago_makes_room(make_volume: Callable[..., Volume]) -> None:
    volumes = [make_volume(seed=seed) for seed in range(3)]
    hashes = [volume.content_hash for volume in volumes]
    store = VolumeStore(budget_bytes=2 * volumes[0].voxels_kji.nbytes)
    assert put(store, volumes[0]) == ()
    assert put(store, volumes[1]) == ()
    store.get(hashes[0])
    assert put(store, volumes[2]) == (hashes[1],)
    assert store.hashes == (hashes[0], hashes[2])


def test_a_volume_over_the_budget_is_held_alone(make_volume: Callable[..., Volume]) -> None:
    store = VolumeStore(budget_bytes=10)
    first, second = make_volume(seed=1), make_volume(seed=2)
    put(store, first)
    assert put(store, second) == (first.content_hash,)
    assert store.hashes == (second.content_hash,)


def test_a_volume_that_does_not_fit_in_memory_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000_000)
    store = VolumeStore()
    with pytest.raises(NotEnoughMemory, match=r"needs 4\.0 GB of memory and 2\.0 GB is free"):
        store.announce(PutVolume("abc", (1000, 1000, 2000), "int16", np.eye(4)))
    store.add_part(VolumePart("abc", 0, np.zeros((1, 1000, 2000), np.int16)))
    assert store.hashes == ()


def test_parts_out_of_order_are_refused_and_the_volume_forgotten(volume: Volume) -> None:
    store = VolumeStore()
    store.announce(announcement(volume))
    with pytest.raises(ProtocolError, match=r"Slices 2 \.\. 3 .* do not fit in"):
        store.add_part(VolumePart(volume.content_hash, 2, volume.voxels_kji[2:4]))
    store.add_part(VolumePart(volume.content_hash, 0, volume.voxels_kji))
    assert store.hashes == ()


def test_a_volume_that_is_not_what_its_hash_says_is_refused(volume: Volume) -> None:
    store = VolumeStore()
    store.announce(announcement(volume))
    with pytest.raises(ProtocolError, match="arrived as"):
        store.add_part(VolumePart(volume.content_hash, 0, volume.voxels_kji + np.int16(1)))
    assert store.hashes == ()


def test_a_volume_the_engine_cannot_use_is_refused() -> None:
    store = VolumeStore()
    store.announce(PutVolume("abc", (2, 3, 4), "int16", np.eye(4)))
    with pytest.raises(InputError, match="constant"):
        store.add_part(VolumePart("abc", 0, np.zeros((2, 3, 4), np.int16)))


def test_a_discarded_volume_is_gone_whole_or_half(volume: Volume) -> None:
    store = VolumeStore()
    put(store, volume)
    store.discard(volume.content_hash)
    store.discard(volume.content_hash)
    store.announce(announcement(volume))
    store.discard(volume.content_hash)
    store.add_part(VolumePart(volume.content_hash, 0, volume.voxels_kji))
    assert store.hashes == ()
