"""Guards: each way to go wrong gets its own sentence, once."""

import json
import math

import pytest

from rfs_utils.runs.watch import Watch, collapsed

HEALTHY = {"entropy": 0.5, "reward_avg": 0.4, "zero_signal_groups": 0.3, "accuracy": 0.4, "truncated": 0.0}


def warnings(*phases: tuple[int, dict]) -> list[str]:
    watch = Watch(vocab_size=512, patience=5)
    found = [watch.check(HEALTHY | changes) for steps, changes in phases for _ in range(steps)]
    return [text for text in found if text]


def test_a_healthy_run_gets_no_warning():
    assert warnings((50, {})) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entropy": 0.95 * math.log(512)}, "close to random"),
        ({"reward_avg": 0.0}, "reward has been 0 for 5 steps, after 0.40 at its best"),
        ({"zero_signal_groups": 1.0, "accuracy": 0.1}, "all rollouts are alike"),
        ({"zero_signal_groups": 1.0, "accuracy": 1.0}, "all solved"),
        ({"truncated": 0.95}, "--max-new-tokens is too small"),
        ({"reward_avg": None, "accuracy": None, "zero_signal_groups": 1.0}, "every reward was None"),
    ],
)
def test_each_collapse_is_told_once_with_its_likely_reason(changes, words):
    (text,) = warnings((5, {}), (20, changes))
    assert words in text
    assert collapsed(text) == ("all solved" not in text)
    assert len(warnings((5, {}), (20, changes), (5, {}), (20, changes))) == 2, "again after a recovery"


def test_two_collapses_at_once_are_both_told_the_cause_first():
    first, second = warnings((20, {"truncated": 1.0, "zero_signal_groups": 1.0, "accuracy": 0.0}))
    assert "--max-new-tokens is too small" in first and "no group has had a signal" in second


def test_a_few_bad_steps_are_no_collapse():
    assert warnings((10, {}), (4, {"reward_avg": 0.0}), (10, {})) == []


@pytest.mark.parametrize("stop", [0, 7, 11, 30])
def test_a_restored_watch_warns_at_the_same_steps(stop):
    phases = [HEALTHY] * 5 + [HEALTHY | {"reward_avg": 0.0}] * 10 + [HEALTHY] * 5 + [HEALTHY | {"truncated": 1.0}] * 20
    whole = Watch(vocab_size=512, patience=5)
    expected = [whole.check(metrics) for metrics in phases]
    assert sum(text is not None for text in expected) == 2
    first, second = Watch(vocab_size=512, patience=5), Watch(vocab_size=512, patience=5)
    found = [first.check(metrics) for metrics in phases[:stop]]
    second.restore(json.loads(json.dumps(first.state())))
    assert found + [second.check(metrics) for metrics in phases[stop:]] == expected
