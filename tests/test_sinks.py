"""Metrics that go to other libraries: what each is given, and what happens where one is missing or fails.

The libraries themselves are not installed here; modules that remember their calls stand in for them.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from rfs_utils.cli import main
from rfs_utils.engine import parallel
from rfs_utils.engine.config import TRACKERS, TrainConfig

pytestmark = pytest.mark.usefixtures("few_problems")
FAST = ["--steps", "2", "--prompts-per-step", "2", "--num-rollouts", "4", "--max-new-tokens", "24", "--eval-every", "2"]


def stand_in(monkeypatch, name: str, fails: str = "") -> list:
    """A module in place of a library, with the functions that a run calls; returns the calls that it gets."""
    calls: list = []

    def function(called):
        def call(*args, **options):
            print(f"{name} says something")
            calls.append((called, args, options))
            if called == fails:
                raise RuntimeError("no connection\nand more")

        return call

    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for called in ("init", "log", "finish"):
        setattr(module, called, function(called))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracked_run_is_logged_step_by_step_and_goes_on_under_its_name(name, monkeypatch, capsys):
    calls = stand_in(monkeypatch, name)
    assert main(["train", *FAST, "--track", name, "--out", "mine", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 2 and f"{name} says something" in said.err
    assert [called for called, *_ in calls] == ["init", "log", "log", "finish"]
    (_, _, begun), (_, (one,), at), (_, (two,), then), _ = calls
    assert begun["name"].startswith("mine-") and begun["resume"] == "allow" and begun["config"]["num_rollouts"] == 4
    assert begun.get("id") == (begun["name"] if name == "wandb" else None)
    assert (at, then) == ({"step": 1}, {"step": 2})
    assert one["entropy"] > 0 and "eval_accuracy" not in one and 0 <= two["eval_accuracy"] <= 1
    calls.clear()
    assert main(["train", "--resume", "mine", "--steps", "3"]) == 0
    assert [called for called, *_ in calls] == ["init", "log", "finish"] and calls[1][2] == {"step": 3}
    assert calls[0][2]["name"] == begun["name"]
    assert main(["train", *FAST, "--steps", "1", "--track", name, "--out", "other/mine"]) == 0
    assert calls[3][2]["name"] != begun["name"], "another run"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rfs_utils.engine.config.find_spec", lambda name: None)
    assert main(["train", *FAST, "--track", name]) == 2
    assert capsys.readouterr().err == f"rfs: error: --track needs the package {name}: pip install {name}\n"
    assert main(["train", *FAST, "--track", "mlflow"]) == 2
    assert capsys.readouterr().err == "rfs: error: --track must be one of trackio, wandb; got 'mlflow'\n"
    assert not list(tmp_path.iterdir())


def test_a_library_that_cannot_begin_is_one_sentence(monkeypatch, capsys):
    stand_in(monkeypatch, "wandb", fails="init")
    assert main(["train", *FAST, "--track", "wandb", "--quiet"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "rfs: error: --track wandb cannot begin: no connection"


@pytest.mark.parametrize(("fails", "said"), [("log", "failed at step 1, and gets no more"), ("finish", "may lack")])
def test_a_run_outlives_a_library_that_fails(fails, said, monkeypatch, capsys):
    calls = stand_in(monkeypatch, "trackio", fails)
    assert main(["train", *FAST, "--track", "trackio", "--out", "mine"]) == 0
    assert f"--track trackio {'has ' if fails == 'log' else ''}{said}" in capsys.readouterr().out
    assert sum(called == fails for called, *_ in calls) == 1


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    from rfs_utils.runs.run import Run, prepare

    calls = stand_in(monkeypatch, "wandb")
    learner, held_out = prepare(TrainConfig(track="wandb", prompts_per_step=1, num_rollouts=2))
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    run = Run(learner, held_out, tmp_path, print)
    run.close()
    assert not run.sinks and not calls


class Writer:
    """In place of TensorBoard's writer."""

    def __init__(self, folder):
        self.folder, self.values, self.closed = folder, [], False
        Writer.last = self

    def add_scalar(self, name, value, step):
        assert not self.closed
        self.values.append((name, step))

    def close(self):
        self.closed = True


@pytest.mark.parametrize("stopped", [False, True])
def test_the_writer_of_tensorboard_is_closed_however_a_run_ends(stopped, tmp_path, monkeypatch):
    from rfs_utils.runs.run import Run

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("rfs_utils.engine.config.find_spec", lambda name: True)
    go = Run.go
    monkeypatch.setattr(Run, "go", lambda self: go(self, 1 if stopped else None))
    assert main(["train", *FAST, "--tensorboard", "--out", "mine"]) == (130 if stopped else 0)
    assert Writer.last.closed and Writer.last.folder.name == "tensorboard"
    assert {step for _, step in Writer.last.values} == ({1} if stopped else {1, 2})
    assert ("eval_accuracy", 2) in Writer.last.values or stopped
