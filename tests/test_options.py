"""Every option of every command with values that make no sense: one sentence and exit code 2, or a run that works."""

import argparse
import json
import shutil
from collections import Counter

import pytest

from rfs_utils import models
from rfs_utils.cli import COMMANDS, main, make_parser
from rfs_utils.exercises import pretrain
from rfs_utils.runs import compare, comparison, live
from rfs_utils.runs import run as trainer

VALUES = ("0", "-1", "nan", "inf", "1e39", "1e308", str(2**63), str(10**200), "", "text")
SETTINGS = ["--steps", "1", "--prompts-per-step", "1", "--num-rollouts", "2", "--max-new-tokens", "2"]
WORDS = {  # what makes each command work
    "train": [*SETTINGS, "--data", "mine.json", "--eval-data", "tiny"],
    "compare": [*SETTINGS, "--methods", "grpo", "--seeds", "1"], "pretrain": ["--steps", "1"],
    "eval": ["--limit", "1", "--max-new-tokens", "2"], "plot": ["run"], "samples": ["run"],
    "download": ["grpo-no_kl"], "export": ["run", "--to", "exported"],
    "import": ["some.gguf", "--to", "imported"], "watch": ["run"], "doctor": ["run"], "report": ["run", "other"],
}  # fmt: skip
ROW = dict.fromkeys(comparison.MEASURED[1:], 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path, few_problems):
    """Few problems, no pre-training, no connection, and a run to be shown."""
    monkeypatch.setattr(trainer.Run, "finish", lambda self: {})
    monkeypatch.setattr(compare, "evaluations", lambda config, seed: [ROW])
    monkeypatch.setattr(live, "follow", lambda folder, seconds, report: tmp_path)
    monkeypatch.setattr(pretrain, "pretrain_all", lambda *args, **options: None)
    monkeypatch.setattr(models, "download_model", lambda *args: tmp_path)
    monkeypatch.setattr("rfs_utils.hub.download.download_qwen3_grpo_checkpoints", lambda *args: tmp_path)


def options_of(command: str) -> list[str]:
    """The options of a command that take a value, from the parser itself."""
    parser = make_parser([command])
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [a.option_strings[0] for a in commands.choices[command]._actions if a.option_strings and a.nargs != 0]


def outcome(words: list[str], capsys) -> str:
    """What a command does: "works", "refused" with one sentence, or what else."""
    try:
        code = main(words)
    except SystemExit as stop:  # argparse shows the usage before its sentence
        code = stop.code
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    err = capsys.readouterr().err
    if code == 0:
        return "works"
    sentences = [line for line in err.splitlines() if line.startswith("rfs") and ": error: " in line]
    one = len(sentences) == 1 and err.rstrip().endswith(sentences[0]) and len(sentences[0]) < 600
    return "refused" if code == 2 and one and "Traceback" not in err else f"{code}: {err[-200:]}"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_an_option_ends_in_a_traceback(command, tmp_path, monkeypatch, capsys):
    counted, wrong = Counter(), []
    for name in options_of(command):
        for number, value in enumerate(VALUES):
            folder = tmp_path / f"{name}-{number}"
            (folder / "run").mkdir(parents=True)
            (folder / "run" / "metrics.csv").write_text("step,reward_avg\n1,0.5\n")
            line = {"step": 1, "problem": "1?", "answer": "1", "reward": 1, "advantage": 1, "tokens": [], "logps": []}
            (folder / "run" / "samples.jsonl").write_text(json.dumps(line) + "\n")
            shutil.copytree(folder / "run", folder / "other")
            (folder / "mine.json").write_text(json.dumps([{"problem": "1?", "answer": "1"}]))
            monkeypatch.chdir(folder)
            found = outcome([command, *WORDS[command], name, value], capsys)
            counted[found] += 1
            if found not in ("works", "refused") or value == "" and found == "works":
                wrong.append((name, value[:12], found))
    assert not wrong
    assert not counted or counted["refused"] > counted["works"] // 4
    with capsys.disabled():
        print(f"\n{command}: {counted['refused']} refused, {counted['works']} worked", end="")


@pytest.mark.parametrize("words", [["plot", ""], ["samples", ""], ["export", "", "--to", "x"], ["download", ""]])
def test_empty_names_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert outcome(words, capsys) == "refused" and not list(tmp_path.iterdir())


def test_runs_that_is_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("precious")
    assert main(["train", *SETTINGS]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cannot create the output folder runs/tiny-base-grpo-seed0" in line
    assert (tmp_path / "runs").read_text() == "precious"


@pytest.mark.parametrize("setting", ["lr", "steps"])
def test_numbers_of_a_file_are_as_narrow_as_those_of_an_option(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for value in ("nan", "inf", "-1", "1" + "0" * 400, "0x" + "f" * 20000, "[" * 10000 + "]" * 10000):
        (tmp_path / "mine.toml").write_text(f"{setting} = {value}\n")
        assert outcome(["train", "--config", "mine.toml"], capsys) == "refused", value[:20]
