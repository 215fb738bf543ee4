"""The engine and the command line: results on disk, repeatability, and one clear sentence for bad input."""

import csv
import json
import re

import pytest
import torch
from conftest import random_model
from safetensors.torch import load_file

from rfs_utils import trainer
from rfs_utils.cli import main
from rfs_utils.models import save_model
from rfs_utils.trainer import TrainConfig, train_step

FAST = ["--steps", "2", "--prompts-per-step", "2", "--num-rollouts", "4", "--max-new-tokens", "24", "--eval-every", "1"]


@pytest.fixture(autouse=True)
def small_evaluation(monkeypatch):
    """Ten held-out problems in place of hundreds: these tests are about files and messages."""
    real = trainer.generate_tiny_problems
    monkeypatch.setattr(trainer, "generate_tiny_problems", lambda n, *a, **k: real(min(n, 10), *a, **k))


def run(tmp_path, monkeypatch, *arguments) -> int:
    monkeypatch.chdir(tmp_path)
    return main(["train", *FAST, *arguments])


def test_a_run_writes_its_folder_and_prints_the_table(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, "--seed", "3") == 0
    folder = tmp_path / "runs" / "tiny-base-grpo-seed3"
    result = json.loads((folder / "result.json").read_text())
    wanted = "accuracy_before accuracy_after tokens_before tokens_after steps seconds seed method model"
    assert set(wanted.split()) <= result.keys()
    assert (result["steps"], result["seed"], result["method"], result["model"]) == (2, 3, "grpo", "tiny-base")
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["reward_avg"]) <= 1 and float(row["eval_accuracy"]) >= 0 for row in rows)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_file(folder / "model" / "model.safetensors")
    out = capsys.readouterr().out
    assert out.count("before: ") == out.count("after:  ") == 3
    assert "Level 1" in out and "not in RL" in out and str(folder.relative_to(tmp_path)) in out
    assert not list(folder.rglob(".*")), "no temporary file may stay"


def test_a_second_run_takes_the_next_free_folder_and_repeats_the_first(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch) == run(tmp_path, monkeypatch) == 0
    names = ("tiny-base-grpo-seed0", "tiny-base-grpo-seed0-2")
    one, two = (load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in names)
    assert all(one[name].equal(two[name]) for name in one)


def test_a_trained_model_can_be_trained_on(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--out", "first run ä") == 0
    assert run(tmp_path, monkeypatch, "--model", "first run ä/model", "--out", "second") == 0
    assert json.loads((tmp_path / "second" / "result.json").read_text())["model"] == "first run ä/model"


def test_a_step_without_signal_moves_nothing(tokenizer, monkeypatch):
    model = random_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    examples = trainer.generate_tiny_problems(2)
    before = [p.clone() for p in model.parameters()]
    config = TrainConfig(num_rollouts=3, max_new_tokens=5)
    monkeypatch.setattr(trainer, "reward_rlvr", lambda text, answer: 1.0)
    metrics = train_step(model, tokenizer, optimizer, examples, config, torch.device("cpu"))
    assert metrics["zero_signal_groups"] == 1 and metrics["grad_norm"] == 0
    assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
    rewards = iter([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(trainer, "reward_rlvr", lambda text, answer: next(rewards))
    metrics = train_step(model, tokenizer, optimizer, examples, config, torch.device("cpu"))
    assert metrics["zero_signal_groups"] == 0.5 and metrics["grad_norm"] > 0
    assert not all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny-bose"], "unknown model 'tiny-bose'.*tiny-base, tiny-reasoning"),
        (["--method", "ppo"], "unknown method 'ppo'.*grpo"),
        (["--num-rollouts", "1"], "num_rollouts must be at least 2"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--steps", "-5"], "steps must be at least 1"),
        (["--temperature", "0"], "temperature must be a positive number"),
        (["--temperature", "nan"], "temperature must be a positive number"),
        (["--lr", "-1"], "lr must be a positive number"),
        (["--top-p", "1.2"], "top_p must be greater than 0 and at most 1"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--out", "taken"], "taken exists already and is not empty"),
        (["--out", "taken/file"], "taken/file exists already"),
        (["--out", "taken/file/deeper"], "cannot create the output folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    assert run(tmp_path, monkeypatch, *arguments) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err) and "Traceback" not in err and len(err.splitlines()) == 1
    assert (tmp_path / "taken" / "file").read_text() == "precious"
    assert not (tmp_path / "runs").exists(), "bad input must leave nothing behind"


@pytest.mark.parametrize("damage", ["missing", "truncated", "other model", "other tokenizer", "bad config"])
def test_damaged_model_directories_are_named(damage, tmp_path, monkeypatch, capsys, tokenizer):
    directory = save_model(random_model(), tokenizer, tmp_path / "mine")
    weights = directory / "model.safetensors"
    if damage == "missing":
        weights.unlink()
        message = "mine has no weights"
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
        message = "damaged or incomplete"
    elif damage == "other model":
        save_model(random_model(emb_dim=64), tokenizer, tmp_path / "other")
        weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
        message = "does not fit the model"
    elif damage == "other tokenizer":
        config = json.loads((directory / "config.json").read_text())
        save_model(random_model(vocab_size=300), tokenizer, tmp_path / "other")
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
        message = "they do not belong together"
    else:
        (directory / "config.json").write_text('{"model_type": "llama"}')
        message = "only 'qwen3' is supported"
    assert run(tmp_path, monkeypatch, "--model", str(directory)) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err) and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_step", interrupt)
    assert run(tmp_path, monkeypatch) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    for arguments in (["--help"], ["train", "--help"], ["pretrain", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("model", "num-rollouts", "seed", "out", "temperature"))
    assert out.count("example: rfs") == 2


def test_pretrain_refuses_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert main(["pretrain", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(tmp_path / "new"), "--steps", "0"]) == 2
    assert "steps must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
