"""Intervals and estimates against their definitions."""

import math
from itertools import combinations

import pytest

from rfs_utils.statistics import format_mean, mean_and_interval, pass_at_k, wilson_interval


def test_intervals_are_students():
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert mean_and_interval([0.5]) == (0.5, math.inf)


def test_means_as_text():
    assert format_mean([0.84, 0.85, 0.86]) == "85% +- 2%"
    assert format_mean([0.84, 0.85, 0.86], digits=1) == "85.0% +- 2.5%"
    assert (format_mean([0.456]), format_mean([])) == ("46%", "-")


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (237, 500, 0.4306, 0.5178)],
)
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 7):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                subsets = list(combinations(samples, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="k must be"):
        pass_at_k(4, 2, 5)
