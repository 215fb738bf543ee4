"""Intervals and estimates: how sure a measured share or mean is, and pass@k."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
           2.042)  # fmt: skip


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; infinite for a single value."""
    if len(values) < 2:
        return values[0], math.inf
    factor = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return mean(values), factor * stdev(values) / math.sqrt(len(values))


def format_mean(values: Sequence[float], digits: int = 0) -> str:
    """Mean of shares with half their 95 % interval, as in 87% +- 4%; one value alone, and a dash for none."""
    if not values:
        return "-"
    center, half = mean_and_interval(values)
    return f"{center:.{digits}%}" + (f" +- {half:.{digits}%}" if len(values) > 1 else "")


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true rate lies, with 95 % confidence for z = 1.96: Wilson's score interval (JASA 22, 1927)."""
    rate = successes / trials
    center = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return max(0.0, center - half), min(1.0, center + half)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from n of which c are: 1 - C(n - c, k) / C(n, k) (2107.03374)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be from 1 to the number of samples, {num_samples}; got {k}")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
