from __future__ import annotations

import numpy as np
from bench_between import Between, Untold, annotated_pair, measure, report
from medssl.foundation.intensity import IntensityTracker
from medssl.phantom import phantom_ct
from protocol import Case, object_tasks


def a_case() -> Case:
    phantom = phantom_ct(7, shape_kji=(24, 96, 96))
    liver = phantom.segmentation.segment("liver")
    return Case("case", phantom.volume, phantom.segmentation.labels_kji, {liver.label: "liver"})


def test_two_slices_are_annotated_a_sixth_of_the_extent_from_its_ends() -> None:
    case = a_case()
    (task,) = object_tasks(case)
    filled = np.flatnonzero(task.truth_kji.any(axis=(1, 2)))
    assert annotated_pair(task) == (filled[len(filled) // 6], filled[-1 - len(filled) // 6])


def test_only_the_slices_between_count_and_each_has_a_confidence() -> None:
    case = a_case()
    (task,) = object_tasks(case)
    pair = annotated_pair(task)
    assert pair
    (found,) = measure(Untold(IntensityTracker()), case)
    assert len(found.told) == pair[1] - pair[0] - 1
    assert 0.5 < found.dice < 1.0


def test_the_gain_is_paired_by_object() -> None:
    told = [(0.2, 0.1), (0.9, 0.8)]
    one = [Between(f"patient {n}", "liver", 0.1 * n + 0.05, told) for n in range(5)]
    other = [Between(f"patient {n}", "liver", 0.1 * n, told) for n in range(5)]
    text = report(one, other)
    assert "5 objects of 5 patients" in text
    assert "gain, paired by object: 0.050 [0.050, 0.050]" in text
    assert f"correlation {np.corrcoef(np.transpose(told))[0, 1]:.2f}" in text
