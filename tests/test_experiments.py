"""The exercises' results: complete, readable, and made by what their table of settings says."""

import pytest

from rfs_utils.engine.config import TrainConfig
from rfs_utils.exercises import experiments
from rfs_utils.exercises.experiments import (
    EXPERIMENT_COLUMNS,
    EXPERIMENTS,
    Experiment,
    at_step,
    format_results,
    read_experiment,
)

SEEDS = {name: 3 if name.startswith(("ex06", "off_policy")) else 2 for name in EXPERIMENTS}
SEEDS |= {name: 5 for name in EXPERIMENTS if "partial" in name or name.startswith("ch07")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_results_are_complete(name):
    experiment, runs = EXPERIMENTS[name], read_experiment(name)
    assert runs.keys() == experiment.runs.keys()
    for label, logs in runs.items():
        config = TrainConfig(**experiment.of(label))
        config.check()
        assert len(logs) >= SEEDS[name] and sorted(log["seed"][0] for log in logs) == list(range(len(logs)))
        for log in logs:
            assert log["step"] == list(range(config.steps + 1))
            assert log["eval_accuracy"][0] is not None and log["eval_accuracy"][-1] is not None
            assert all(0 <= v <= 1 for v in log["accuracy"][1:])
            assert not experiment.extra or all(v is not None for v in log["extra"][1:])


def fake_run(calls):
    def short_run(**settings):
        calls.append(settings)
        return {
            "step": [0, 1, 2], "reward_avg": [None, 0.25, 0.5], "eval_accuracy": [0.1, None, 0.5],
            **{name: [None, 1.0, 2.0] for name in EXPERIMENT_COLUMNS[4:11]}, "eval_tokens": [7.0, None, 9.0],
            "reward_format": [None, 0.123456, 0.2],
        }  # fmt: skip
    return short_run


def test_runs_are_kept_and_missing_ones_made(tmp_path, monkeypatch):
    calls, made = [], []
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    monkeypatch.setattr(experiments, "short_run", fake_run(calls))
    monkeypatch.setitem(experiments.BASES, "other", lambda folder: made.append(folder) or f"{folder}/model")
    runs = {"one": {"lr": 0.1}, "two": {"lr": 0.2}}
    monkeypatch.setitem(EXPERIMENTS, "new", Experiment(runs, {"steps": 2}, base="other", extra="format"))
    experiments.run_experiment("new", range(2), report=lambda text: None)
    assert [(c["lr"], c["seed"]) for c in calls] == [(0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1)] and len(made) == 1
    assert all(c["model"] == f"{made[0]}/model" and c["steps"] == 2 for c in calls)
    experiments.run_experiment("new", range(2), report=lambda text: None)
    experiments.run_experiment("new", range(3), report=lambda text: None)
    assert len(calls) == 6 and len(made) == 2, "only the third seed is new, and only it needs the model"
    logs = experiments.read_experiment("new")["two"]
    assert len(logs) == 3 and logs[1]["extra"] == [None, 0.1235, 0.2] and logs[1]["step"] == [0, 1, 2]


def test_unknown_results_are_one_sentence():
    with pytest.raises(ValueError, match="no results called 'ex99': known are ex06_partial_rewards"):
        read_experiment("ex99")


def test_values_of_a_step_and_means_before_it():
    log = {"step": [0.0, 1.0, 2.0], "seed": [0.0] * 3, "accuracy": [None, 0.2, 0.4], "eval_accuracy": [0.1, None, 0.5]}
    assert at_step([log, log], "eval_accuracy") == [0.5, 0.5] and at_step([log], "eval_accuracy", 0) == [0.1]
    assert at_step([log], "accuracy", 1) == [0.2] and at_step([log], "accuracy", window=3) == [pytest.approx(0.3)]
    for count, cell in ((3, "0.400 ± 0.000"), (1, "0.400")):
        table = format_results({"a": [log] * count}, {"accuracy": lambda logs: at_step(logs, "accuracy")})
        assert table.splitlines()[1].split(maxsplit=2) == ["a", str(count), cell]
