"""Benchmarks run: each one's help, and those of a training step at a small size."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from rfs_utils.qwen3 import QWEN3_CONFIG_TINY

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def run(monkeypatch, name: str, *arguments: str) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(monkeypatch, capsys, name):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, name, "--help")
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("weights", [(), ("--dtype", "bfloat16"), ("--dtype", "bfloat16", "--lora-rank", "2")])
def test_a_step_of_the_tiny_shape(monkeypatch, capsys, weights):
    run(monkeypatch, "step_speed", "--one", "ours", "--steps", "1", "--rollouts", "2", "--tokens", "4", *weights)
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0 and found["peak_mb"] > 0


def test_a_gpus_table_on_a_cpu(monkeypatch, tmp_path):
    sizes = ("--rollouts", "2", "--tokens", "4", "--steps", "1", "--shapes", "tiny", "--device", "cpu")
    run(monkeypatch, "gpu", *sizes, "--csv", str(tmp_path / "gpu.csv"))
    with (tmp_path / "gpu.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["contestant"] == "ours"]
    assert [row["weights"] for row in rows] == ["float32", "bfloat16", "lora"]
    assert all(float(row["seconds"]) > 0 and float(row["tokens_per_second"]) > 0 for row in rows)
    run(monkeypatch, "gpu", *sizes, "--minutes", "0", "--csv", str(tmp_path / "late.csv"))
    assert "no time left" in (tmp_path / "late.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [("--memory", "low"), ("--chapter", "--optimizer", "8bit", "--micro-batch", "1")])
def test_memory_of_a_step(monkeypatch, capsys, arguments):
    from rfs_utils import ch06
    from rfs_utils.engine import experience, update

    for module, name in (  # what the benchmark wraps with its clock
        (experience, "sample_rollouts"), (update, "backpropagate"), (ch06, "reward_rlvr"), (ch06, "sample_batch"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.syspath_prepend(FOLDER)
    import common

    monkeypatch.setitem(common.SHAPES, "qwen3-0.6b", QWEN3_CONFIG_TINY | {"dtype": torch.bfloat16})
    run(monkeypatch, "step_memory", *arguments, "--rollouts", "4", "--max-new-tokens", "6", "--device", "cpu")
    found = json.loads(capsys.readouterr().out)
    assert found["optimizer"] == "8bit" and found["peak_gb"] > 0
    assert {"sampling", "step"} < set(found["cpu_seconds"]) and len(found["cpu_seconds"]) >= 3


@pytest.mark.nightly
def test_threads_beside_a_busy_process(monkeypatch, capsys, tmp_path):
    path = tmp_path / "threads.csv"
    sizes = ("--rounds", "1", "--steps", "1", "--busy", "1", "--ways", "one", "chosen", "--csv", str(path))
    run(monkeypatch, "threads", *sizes)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["busy"], row["way"]) for row in rows] == [("1", "one"), ("1", "chosen")]
    assert rows[0]["threads"] == "1" and all(float(row["seconds"]) > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_table_of_threads(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    rows = [{"busy": 4, "way": "chosen", "seconds": s, "threads": 1} for s in (1.0, 4.0, 2.0)]
    line = runpy.run_path(str(FOLDER / "threads.py"))["format_table"](rows).splitlines()[1]
    assert line.split() == ["4", "chosen", "2.00", "1.00", "4.00", "1,", "1,", "1"]
