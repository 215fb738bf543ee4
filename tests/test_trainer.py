"""The engine and the command line: results on disk, repeatability, and one clear sentence for bad input."""

import csv
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NIGHTLY
from safetensors.torch import load_file
from small import make_model

from rfs_utils.ch07 import METHODS, compute_advantages
from rfs_utils.cli import main
from rfs_utils.data import generate_tiny_problems
from rfs_utils.engine import learner as learner_module
from rfs_utils.engine.config import TrainConfig, read_config
from rfs_utils.engine.experience import Experience
from rfs_utils.engine.learner import Learner, Problems
from rfs_utils.engine.rollouts import select_rollouts
from rfs_utils.engine.update import LossTerms
from rfs_utils.evaluate import Evaluation
from rfs_utils.models import save_model
from rfs_utils.runs import held_out
from rfs_utils.runs import run as trainer
from rfs_utils.runs.folder import append_lines, checkpoint_steps, cut_log
from rfs_utils.runs.run import sample_records
from rfs_utils.runs.watch import Watch

pytestmark = pytest.mark.usefixtures("few_problems")
FAST = ["--steps", "2", "--prompts-per-step", "2", "--num-rollouts", "4", "--max-new-tokens", "24", "--eval-every", "1"]


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
    curve = f"Held-out accuracy: from {result['accuracy_before']:.3g} at step 0 to"
    assert curve in (folder / "report.html").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert out.count("before: ") == out.count("after:  ") == 3
    assert "Level 1" in out and "not in RL" in out and str(folder.relative_to(tmp_path)) in out
    assert not list(folder.rglob(".*")), "no temporary file may stay"


def test_problems_come_from_a_file(tmp_path, monkeypatch, capsys):
    problems = [{"problem": f"What is {n}+1?", "answer": str(n + 1), "level": "Level 2"} for n in range(6)]
    (tmp_path / "mine.json").write_text(json.dumps(problems))
    assert run(tmp_path, monkeypatch, "--data", "mine.json", "--eval-data", "mine.json", "--out", "r") == 0
    kept = [json.loads(line) for line in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()]
    assert {record["problem"] for record in kept} <= {p["problem"] for p in problems}
    assert "all 6 held-out" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "result.json").read_text())["harder_accuracy_before"] is None


@pytest.mark.parametrize(
    ("levels", "shown"),
    [([2], [0]), ([2, 2], [0, 1]), ([2] * 6, [0, 1, 2]), ([5, 4, 3, 2, 1], [4, 2, 0]), ([2, 2, 3], [2, 0, 1])],
)
def test_every_problem_is_shown_once(levels, shown, tmp_path):
    problems = [{"problem": f"{n}?", "answer": str(n), "level": f"Level {level}"} for n, level in enumerate(levels)]
    (tmp_path / "mine.json").write_text(json.dumps(problems))
    assert trainer.HeldOut(TrainConfig(eval_data=str(tmp_path / "mine.json"))).example_indices() == shown


def test_flags_have_precedence_over_the_file_of_settings(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('method = "rloo"\nsteps = 1\nnum_rollouts = 2\n')
    monkeypatch.chdir(tmp_path)
    arguments = ["--prompts-per-step", "2", "--max-new-tokens", "12", "--num-rollouts", "3", "--out", "r"]
    assert main(["train", "--config", "mine.toml", *arguments]) == 0
    written = (tmp_path / "r" / "config.toml").read_text()
    assert 'method = "rloo"' in written and "num_rollouts = 3" in written and "steps = 1\n" in written


def test_a_second_run_takes_the_next_free_folder_and_repeats_the_first(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch) == run(tmp_path, monkeypatch) == 0
    names = ("tiny-base-grpo-seed0", "tiny-base-grpo-seed0-2")
    one, two = (load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in names)
    assert all(one[name].equal(two[name]) for name in one)


def test_a_trained_model_can_be_trained_on(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--out", "first run ä") == 0
    assert run(tmp_path, monkeypatch, "--model", "first run ä/model", "--out", "second") == 0
    assert json.loads((tmp_path / "second" / "result.json").read_text())["model"] == "first run ä/model"


def small_learner(tokenizer, **settings) -> Learner:
    config = TrainConfig(**{"prompts_per_step": 2, "num_rollouts": 3, "max_new_tokens": 5, "lr": 0.1, **settings})
    return Learner(config, make_model(), tokenizer, generate_tiny_problems(4, "train"))


def give_rewards(learner: Learner, *rewards: float) -> None:
    """Rewards for the rollouts of the next step, in their order."""
    learner.rewards = {"accuracy": (lambda texts, examples, **info: list(rewards), 1.0)}


def test_a_step_without_signal_moves_nothing(tokenizer):
    learner = small_learner(tokenizer)
    before = [p.clone() for p in learner.model.parameters()]
    give_rewards(learner, *[1.0] * 6)
    metrics = learner.step()
    assert metrics["zero_signal_groups"] == 1 and metrics["grad_norm"] == 0
    assert all(p.equal(q) for p, q in zip(learner.model.parameters(), before, strict=True))
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    metrics = learner.step()
    assert metrics["zero_signal_groups"] == 0.5 and metrics["grad_norm"] > 0
    before_third = [p.clone() for p in learner.model.parameters()]
    assert not all(p.equal(q) for p, q in zip(before_third, before, strict=True))
    give_rewards(learner, *[0.0] * 6)  # now AdamW has momentum, which must not move anything
    learner.step()
    assert all(p.equal(q) for p, q in zip(learner.model.parameters(), before_third, strict=True))


def test_minibatches_share_a_step_and_each_is_an_update(tokenizer, monkeypatch):
    learner = small_learner(tokenizer, prompts_per_step=3, minibatches=2, updates_per_step=2, method="grpo_mean")
    give_rewards(learner, 1.0, 0, 0, 0, 1, 0, 1, 1, 0)
    updates = []
    update_once = learner.updater.update_once
    monkeypatch.setattr(learner.updater, "update_once", lambda *a: updates.append(a) or update_once(*a))
    learner.step()
    assert [rows.tolist() for _, rows, _ in updates] == [[0, 1, 2, 3, 4, 5], [6, 7, 8]] * 2
    assert [terms.total for _, _, terms in updates] == [6, 3] * 2, "rollouts of the part"
    updates.clear()
    give_rewards(learner, 1.0, 1, 1, 0, 0, 0, 1, 1, 0)
    learner.step()
    assert [rows.tolist() for _, rows, _ in updates] == [[6, 7, 8]] * 2, "a part without signal makes no update"


def test_a_kl_in_the_reward_is_paid_before_rewards_are_compared(tokenizer):
    learner = small_learner(tokenizer, method="rloo", kl="reward", kl_coef=0.5)
    learner.step()
    batch = learner.experience
    assert batch.rewards.abs().max() < 1e-4, "at first the policy is its reference"
    learner = small_learner(tokenizer, method="rloo", kl="reward", kl_coef=0.5)
    with torch.no_grad():
        learner.reference.tok_emb.weight *= 2
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    learner.step()
    batch = learner.experience
    reference = learner.updater.reference_logps(batch.rollouts)
    paid = ((batch.rollouts.logps - reference) * batch.rollouts.mask).sum(dim=1)
    assert paid.abs().max() > 0.01
    torch.testing.assert_close(batch.rewards.flatten(), torch.tensor([1.0, 0, 0, 1, 1, 0]) - 0.5 * paid)
    expected = compute_advantages(batch.rewards, METHODS["rloo"])
    torch.testing.assert_close(learner.advantages, expected)


@pytest.mark.parametrize("method", ["gdpo", "raft"])
def test_a_kl_in_the_reward_needs_a_sum_that_is_compared(method):
    with pytest.raises(ValueError, match=f"kl reward lowers the sum of rewards, which method {method} never"):
        TrainConfig(method=method, kl="reward", kl_coef=0.1).check()
    TrainConfig(method=method, kl="reward").check()  # no term at all


def test_every_sampled_answer_is_counted(tokenizer):
    assert small_learner(tokenizer).step()["samples"] == 6
    assert small_learner(tokenizer, method="remax").step()["samples"] == 8, "a greedy answer to each problem"
    refilled = small_learner(tokenizer, method="dapo")
    refilled.rewards = {"accuracy": (lambda texts, examples, **info: [0.0] * len(texts), 1.0)}
    assert refilled.step()["samples"] == 4 * 6, "three more attempts to find groups with a signal"


def test_a_step_reports_what_happened(tokenizer):
    learner = small_learner(tokenizer, rewards="accuracy,format=0.5", kl_coef=0.1, updates_per_step=2)
    metrics = learner.step()
    rollouts = learner.experience.rollouts
    assert metrics["avg_response_len"] == rollouts.lengths.float().mean().item()
    assert metrics["entropy"] == pytest.approx(-(rollouts.logps.sum() / rollouts.lengths.sum()).item(), rel=1e-5)
    assert {"reward_accuracy", "reward_format", "kl", "clip_fraction", "lr", "truncated"} <= metrics.keys()


@pytest.mark.parametrize("functions", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_with_answers_that_were_not_judged_is_the_step_without_them(name, functions, tokenizer, monkeypatch):
    settings = {"method": name, "kl_coef": 0.1, "max_new_tokens": 9}
    with_them = small_learner(tokenizer, num_rollouts=5, **settings)
    left_out = torch.tensor([[0, 3], [2, 3]])
    kept = torch.ones(2, 5, dtype=torch.bool).scatter(1, left_out, False)

    def judge(texts, examples, **info):
        rewards = [float(i % 2) for i in range(len(texts))]
        return rewards if len(texts) == 2 else [r if k else None for r, k in zip(rewards, kept.flatten(), strict=True)]

    other = lambda texts, examples, **info: [float(i % 3) for i in range(len(texts))]  # noqa: E731
    nothing = lambda texts, examples, **info: [None] * len(texts)  # noqa: E731
    several = {"other": (other, 0.5), "accuracy": (judge, 1.0), "logged": (nothing, 0.0)}
    with_them.rewards = several if functions == 2 else {"accuracy": (judge, 1.0)}
    batch = with_them.collect()
    batch.rollouts.lengths = torch.tensor([9, 2, 9, 5, 1, 9, 9, 3, 8, 9])  # DAPO leaves out what is cut off
    batch.rollouts.logps *= batch.rollouts.mask
    batch.truncated = (batch.rollouts.lengths == 9).view(2, 5)
    monkeypatch.setattr(with_them, "collect", lambda: batch)
    metrics = with_them.step()
    rows = kept.flatten().nonzero().squeeze(1)
    fewer = Experience(
        batch.examples, select_rollouts(batch.rollouts, rows), batch.truncated[kept].view(2, 3),
        batch.parts[kept].view(2, 3, -1), batch.weights, batch.rewards[kept].view(2, 3), batch.correct[kept].view(2, 3),
        batch.has_signal, batch.greedy_rewards,
    )  # fmt: skip
    without = small_learner(tokenizer, num_rollouts=3, **settings)
    without.rewards = with_them.rewards
    monkeypatch.setattr(without, "collect", lambda: fewer)
    expected = without.step()
    same = {"reward_avg", "reward_std", "accuracy", "zero_signal_groups", "loss", "grad_norm", "clip_fraction", "kl"}
    for key in same | {key for key in metrics if key.startswith("reward_")}:
        assert metrics[key] == (expected[key] and pytest.approx(expected[key], rel=1e-4, abs=1e-6)), key
    assert metrics["grad_norm"] > 0
    for p, q in zip(with_them.model.parameters(), without.model.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm()
    records = [r["reward"] for r in sample_records(with_them)]
    assert [r is None for r in records] == [not k for k in kept.flatten()]
    json.loads(json.dumps(records, allow_nan=False))


def test_a_step_in_which_nothing_is_judged_moves_nothing_and_has_no_mean(tokenizer):
    learner = small_learner(tokenizer, rewards="accuracy,format=0.5", kl_coef=0.1)
    before = [p.clone() for p in learner.model.parameters()]
    nothing = lambda texts, examples, **info: [None] * len(texts)  # noqa: E731
    learner.rewards = {"accuracy": (nothing, 1.0), "format": (nothing, 0.5)}
    metrics = learner.step()
    assert all(p.equal(q) for p, q in zip(learner.model.parameters(), before, strict=True))
    assert [metrics[k] for k in ("reward_avg", "reward_std", "accuracy", "reward_format")] == [None] * 4
    assert metrics["zero_signal_groups"] == 1 and metrics["entropy"] > 0


@pytest.mark.parametrize("method", ["grpo", "dapo", "gdpo", "rloo"])
def test_a_reward_without_weight_decides_nothing(method, tokenizer):
    learner = small_learner(tokenizer, method=method)
    learner.rewards = {
        "accuracy": (lambda texts, examples, **info: [1.0] * len(texts), 1.0),
        "logged": (lambda texts, examples, **info: [float(i % 3) for i in range(len(texts))], 0.0),
    }
    metrics = learner.step()
    assert metrics["zero_signal_groups"] == 1 and metrics["grad_norm"] == 0 and metrics["reward_logged"] == 1
    assert not learner.experience.has_signal.any()


def test_a_run_goes_on_where_nothing_is_judged(tmp_path, monkeypatch):
    nothing = {"accuracy": (lambda texts, examples, **info: [None] * len(texts), 1.0)}
    monkeypatch.setattr(learner_module, "parse_rewards", lambda text: nothing)
    assert run(tmp_path, monkeypatch, "--steps", "2", "--out", "r") == 0
    assert [row["reward_avg"] for row in rows_of(tmp_path / "r")] == ["", ""]
    assert "not judged" in (tmp_path / "r" / "report.html").read_text()
    assert main(["samples", str(tmp_path / "r")]) == 0


def test_several_updates_use_the_log_probs_of_sampling(tokenizer):
    learner = small_learner(tokenizer, updates_per_step=3, clip_low=0.01, clip_high=0.01)
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    assert learner.step()["clip_fraction"] > 0.3, "updates this large leave the range at once"
    once = small_learner(tokenizer, updates_per_step=1)
    give_rewards(once, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    assert once.step()["clip_fraction"] == 0


def test_metrics_of_a_step_are_means_over_all_of_its_updates(tokenizer):
    learner = small_learner(tokenizer, updates_per_step=3, kl_coef=0.1, clip_low=0.01, clip_high=0.01)
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    updates, once = [], learner.updater.update_once

    def noted(*arguments):
        updates.append(once(*arguments))
        return updates[-1]

    learner.updater.update_once = noted
    metrics = learner.step()
    for name in ("loss", "grad_norm", "clip_fraction", "kl"):
        values = [update[name] for update in updates]
        assert len(set(values)) == 3, name
        assert metrics[name] == pytest.approx(sum(values) / 3), name


def test_clip_fraction_and_kl_of_an_update_are_shares_of_all_tokens(tokenizer, monkeypatch):
    learner = small_learner(tokenizer, kl_coef=0.1, micro_batch=1)
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    monkeypatch.setattr(LossTerms, "sums", lambda self, *arguments: [1.0, 2.0, 10.0])  # of each of six micro-batches
    metrics = learner.step()
    assert metrics["clip_fraction"] == pytest.approx(0.1) and metrics["kl"] == pytest.approx(0.2)


def test_dynamic_sampling_replaces_groups_without_signal(tokenizer):
    learner = small_learner(tokenizer, method="dapo", prompts_per_step=3)
    calls = []

    def reward(texts, examples, **info):
        calls.append(len(texts))
        return [float(len(calls) > 1 and i % 3 == 0) for i in range(len(texts))]  # nothing at first, then signals

    learner.rewards = {"accuracy": (reward, 1.0)}
    learner.step()
    assert calls == [9, 9] and len(learner.experience.examples) == 3
    assert learner.experience.has_signal.all() and learner.problems.cursor == 6
    learner.rewards = {"accuracy": (lambda texts, examples, **info: [0.0] * len(texts), 1.0)}
    metrics = learner.step()
    assert metrics["zero_signal_groups"] == 1, "the search for signals has an end"
    penalties = torch.tensor([0.0, -0.2, -0.8] * 3)
    assert learner.updater.update(learner.experience, penalties, 0.1)["grad_norm"] == 0, "length alone teaches nothing"


def test_remax_compares_with_the_greedy_answer(tokenizer):
    learner = small_learner(tokenizer, method="remax")
    learner.rewards = {"accuracy": (lambda texts, examples, **info: [len(texts) / 10] * len(texts), 1.0)}
    learner.step()  # six samples get 0.6, two greedy answers 0.2
    torch.testing.assert_close(learner.advantages, torch.full((2, 3), 0.4))


def test_problems_come_in_another_order_each_time_and_the_cursor_is_all_there_is_to_save():
    problems = [{"problem": str(i)} for i in range(10)]
    stream = Problems(problems, seed=1)
    first, second = stream.next(10), stream.next(10)
    assert first != second and sorted(p["problem"] for p in first) == sorted(p["problem"] for p in second)
    again = Problems(problems, seed=1, cursor=7)
    assert again.next(6) == (first + second)[7:13]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tokenizer, monkeypatch):
    learner = small_learner(tokenizer)
    before = [p.clone() for p in learner.model.parameters()]
    bad = lambda logps, *args, **options: (logps * float("nan")).sum()  # noqa: E731
    monkeypatch.setattr("rfs_utils.engine.update.policy_loss", bad)
    give_rewards(learner, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    assert learner.step()["skipped_updates"] == 1
    assert all(p.equal(q) for p, q in zip(learner.model.parameters(), before, strict=True))


def test_a_run_ends_when_gradients_stay_bad(tmp_path, monkeypatch, capsys):
    bad = lambda logps, *args, **options: (logps * float("inf")).sum()  # noqa: E731
    monkeypatch.setattr("rfs_utils.engine.update.policy_loss", bad)
    reward = itertools.cycle([1.0, 0.0])  # every group has a signal, whatever is sampled
    monkeypatch.setattr("rfs_utils.engine.rewards.reward_rlvr", lambda text, answer: next(reward))
    assert run(tmp_path, monkeypatch, "--steps", "9", "--out", "bad") == 1
    err = capsys.readouterr().err
    assert "not finite in 5 steps in a row, up to step 5" in err and "lower the learning rate" in err
    assert checkpoint_steps(tmp_path / "bad"), "the weights before are kept"


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapse_is_reported_and_ends_the_run_only_when_asked(stop, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "Watch", lambda size: Watch(size, patience=3))
    monkeypatch.setattr("rfs_utils.engine.rewards.reward_rlvr", lambda text, answer: 0.0)
    arguments = ["--steps", "6", "--out", "r", *(["--stop-on-collapse"] if stop else [])]
    assert run(tmp_path, monkeypatch, *arguments) == 0
    assert "step 3: no group has had a signal for 3 steps: all rollouts are alike" in capsys.readouterr().out
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["steps"] == (3 if stop else 6) and bool(result["ended_early"]) == stop
    assert result["best_step"] is not None and checkpoint_steps(tmp_path / "r")


def test_runs_are_drawn(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--out", "a") == run(tmp_path, monkeypatch, "--out", "b", "--seed", "1") == 0
    assert main(["plot", "a", "b", "--columns", "reward_avg,entropy", "--out", "both.png"]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "a", "--columns", "nothing"]) == 2


# ---------------------------------------------------------------- resuming


def weights_of(folder) -> dict:
    return load_file(folder / "model" / "model.safetensors")


def rows_of(folder) -> list[dict]:
    """The log without what the clock decides."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["--method", "dapo", "--updates-per-step", "2", "--warmup-steps", "2", "--schedule", "cosine"],
        ["--memory", "low", "--dtype", "bfloat16", "--kl-coef", "0.1", "--rewards", "accuracy,format=0.2"],
        ["--optimizer", "kahan", "--dtype", "bfloat16", "--method", "remax"],
        ["--rewards", "drawing:drawn", "--seed", "5"],
        ["--sampler", "stale:3", "--ratio-to", "trainer"],
    ],
)
def test_stopping_and_resuming_changes_no_bit(settings, tmp_path, monkeypatch):
    settings = ["--steps", "6", "--checkpoint-every", "2", *settings]
    assert run(tmp_path, monkeypatch, *settings, "--out", "whole") == 0
    stop_at = iter([1, 4])

    def stopping(self, stop_after=None):
        return go(self, next(stop_at, None))

    go = trainer.Run.go
    monkeypatch.setattr(trainer.Run, "go", stopping)
    assert run(tmp_path, monkeypatch, *settings, "--out", "parts") == 130
    assert main(["train", "--resume", "parts"]) == 130
    assert main(["train", "--resume", "parts"]) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert rows_of(parts) == rows_of(whole) and len(rows_of(parts)) == 6
    one, two = weights_of(whole), weights_of(parts)
    assert all(one[name].equal(two[name]) for name in one)
    results = [json.loads((folder / "result.json").read_text()) | {"seconds": 0} for folder in (whole, parts)]
    assert results[0] == results[1]
    assert (whole / "samples.jsonl").read_text() == (parts / "samples.jsonl").read_text()


@pytest.mark.parametrize("lost", [["result.json", "checkpoints"], ["result.json", "checkpoints", "before.json"]])
def test_a_run_without_checkpoint_begins_with_the_same_random_numbers(lost, tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--rewards", "drawing:drawn", "--checkpoint-every", "0", "--out", "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in lost:
        path = tmp_path / "parts" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(tmp_path / "parts" / "model")
    assert main(["train", "--resume", "parts"]) == 0
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_the_seed_decides_what_a_reward_draws_in_a_new_process(tmp_path):
    found = []
    for number, seed in enumerate([7, 7, 8]):
        done = process(*FAST, "--rewards", "drawing:drawn", "--seed", str(seed), "--out", tmp_path / str(number))
        out, _ = done.communicate(timeout=120)
        assert done.returncode == 0, out
        found.append([row["reward_avg"] for row in rows_of(tmp_path / str(number))])
    assert found[0] == found[1] != found[2]


def test_logs_written_after_the_checkpoint_are_cut(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--steps", "4", "--checkpoint-every", "2", "--out", "whole") == 0
    expected = rows_of(tmp_path / "whole")
    go = trainer.Run.go
    monkeypatch.setattr(trainer.Run, "go", lambda self: go(self, 3))
    assert run(tmp_path, monkeypatch, "--steps", "4", "--checkpoint-every", "2", "--out", "parts") == 130
    monkeypatch.setattr(trainer.Run, "go", go)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00003")  # as if it had been killed after step 3
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("4,4,0.1")  # and in the middle of a line
    assert main(["train", "--resume", "parts"]) == 0
    assert [row["step"] for row in rows_of(tmp_path / "parts")] == ["1", "2", "3", "4"]
    assert [row["reward_avg"] for row in rows_of(tmp_path / "parts")] == [row["reward_avg"] for row in expected]


def process(*arguments, **options) -> subprocess.Popen:
    script = Path(__file__).with_name("small_run.py")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen([sys.executable, str(script), "train", *arguments], **options)


LONG = [*FAST, "--steps", "60", "--checkpoint-every", "1", "--keep-checkpoints", "1", "--eval-every", "5"]


def test_killed_at_any_moment_a_run_can_be_resumed_and_ends_the_same(tmp_path):
    """Kill -9, each after a random time from the first sign of life on: five times, and twenty at night."""
    kills = 20 if NIGHTLY else 5
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert process(*LONG, "--out", str(whole)).wait(timeout=300) == 0
    chance, killed = random.Random(0), 0
    arguments = [*LONG, "--out", str(parts)]
    while killed < kills:
        job = process(*arguments, stdout=subprocess.DEVNULL)
        before = (parts / "metrics.csv").stat().st_mtime_ns if (parts / "metrics.csv").exists() else 0
        while job.poll() is None:
            if (parts / "metrics.csv").exists() and (parts / "metrics.csv").stat().st_mtime_ns != before:
                time.sleep(chance.uniform(0, 0.25))
                job.kill()
                break
            time.sleep(0.01)
        if job.wait() == 0:
            break
        killed += 1
        arguments = ["--resume", str(parts)]
        assert checkpoint_steps(parts) or rows_of(parts)[-1]["step"] in ("1", "2")
    if not (parts / "result.json").exists():
        assert process("--resume", str(parts)).wait(timeout=300) == 0
    assert killed >= 0.75 * kills, "the run must last long enough to be killed often"
    assert rows_of(parts) == rows_of(whole)
    one, two = weights_of(whole), weights_of(parts)
    assert all(one[name].equal(two[name]) for name in one)
    assert not [path for path in parts.rglob(".*") if path.is_dir()], "nothing half-written stays"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(number, tmp_path):
    folder = tmp_path / "run"
    job = process(*FAST, "--steps", "5000", "--out", str(folder))
    while not (folder / "metrics.csv").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    output = job.communicate(timeout=60)[0]
    assert job.returncode == 128 + number
    last = checkpoint_steps(folder)[-1]
    assert f"stopped after step {last}; go on with: rfs train --resume" in output and "Traceback" not in output
    assert rows_of(folder)[-1]["step"] == str(last)


def test_problems_without_levels_have_no_line_of_their_own():
    summary = {"all": [0.5, 7.0], "levels": {"": [0.5, 7.0]}, "harder": None}
    lines = trainer.format_report(summary, summary, 2, []).splitlines()
    assert len(lines) == 3 and lines[-1].startswith("all 2 held-out")


def test_a_full_disk_is_reported_and_the_checkpoint_before_survives(tmp_path, monkeypatch, capsys):
    """A limit on file sizes, in the middle of the run, stands for the full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = Learner.step

    def limited(self):
        if self.done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return step(self)

    monkeypatch.setattr(Learner, "step", limited)
    try:
        code = run(tmp_path, monkeypatch, "--steps", "5", "--checkpoint-every", "2", "--eval-every", "0", "--out", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    captured = capsys.readouterr()
    assert "could not save the checkpoint of step 4" in captured.out and "the one of step 2 stays" in captured.out
    assert code == 1 and "go on with: rfs train --resume" in captured.err and "Traceback" not in captured.err
    assert checkpoint_steps(tmp_path / "r") == [2]
    monkeypatch.setattr(Learner, "step", step)
    assert main(["train", "--resume", "r"]) == 0
    assert [row["step"] for row in rows_of(tmp_path / "r")] == ["1", "2", "3", "4", "5"]


def test_checkpoints_are_pruned_but_for_the_last_and_the_best(tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2])
    summary = trainer.HeldOut.evaluate

    def scripted(self, learner, problems, **options):
        result = summary(self, learner, problems, **options)
        if len(problems) == 10 and not options:
            wanted = next(accuracies)
            result.records = [record | {"correct": wanted} for record in result.records]
        return result

    monkeypatch.setattr(trainer.HeldOut, "evaluate", scripted)
    assert run(tmp_path, monkeypatch, "--steps", "6", "--checkpoint-every", "1", "--out", "r") == 0
    assert checkpoint_steps(tmp_path / "r") == [2, 5, 6]
    assert json.loads((tmp_path / "r" / "result.json").read_text())["best_step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not the folder of a run"),
        (["done"], "has done 2 steps; raise --steps"),
        (["done", "--lr", "1"], "--lr cannot be given with --resume"),
        (["damaged"], "is damaged or belongs to another run|damaged or incomplete"),
        (["bare"], "is finished, and none of its checkpoints is there"),
    ],
)
def test_resuming_what_cannot_be_resumed_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, "--out", "done") == 0
    shutil.copytree(tmp_path / "done", tmp_path / "damaged")
    shutil.copytree(tmp_path / "done", tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "damaged" / "config.toml").write_text((tmp_path / "done" / "config.toml").read_text() + "\n")
    for path in (tmp_path / "damaged" / "checkpoints").rglob("optimizer.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    extra = ["--steps", "3"] if arguments[0] in ("damaged", "bare") else []
    log = (tmp_path / "bare" / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", *arguments, *extra]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, err) and "Traceback" not in err
    assert (tmp_path / "bare" / "metrics.csv").read_bytes() == log, "nothing is lost"


def test_a_resumed_run_keeps_its_new_settings(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--out", "r") == 0
    assert main(["train", "--resume", "r", "--steps", "3", "--eval-every", "0"]) == 0
    config = read_config(tmp_path / "r" / "config.toml")
    assert config["steps"] == 3 and config["eval_every"] == 0


def test_other_line_ends_in_a_text_are_no_damage(tmp_path):
    log = tmp_path / "samples.jsonl"
    append_lines(log, [{"step": step, "problem": "a\u2028b\x85c"} for step in (1, 2)])
    cut_log(log, 1)
    assert [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").split("\n")[:-1]] == [1]


def test_weights_in_bfloat16_get_an_optimizer_made_for_them(tokenizer):
    assert small_learner(tokenizer, dtype="bfloat16").plan.optimizer == "kahan"
    assert small_learner(tokenizer).plan.optimizer == "adamw"


def test_harder_problems_get_twice_the_room_or_as_much_as_there_is(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(held_out, "evaluate_model", lambda *args, **options: asked.append(args[4]) or Evaluation([]))
    learner, problems = trainer.prepare(TrainConfig(max_new_tokens=300))
    problems.evaluate(learner, problems.harder, room=2)
    problems.evaluate(learner, problems.problems)
    assert 300 < asked[0] < 512 - 60 and asked[1] == 300


def test_a_run_that_stopped_before_its_first_step_begins(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--out", "whole") == 0
    (tmp_path / "early").mkdir()
    shutil.copy(tmp_path / "whole" / "config.toml", tmp_path / "early")
    assert main(["train", "--resume", "early"]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "early")]
    for result in results:
        for name in [name for name in result if "second" in name]:
            del result[name]
    assert results[0] == results[1]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny-bose"], "unknown model 'tiny-bose'.*tiny-base, tiny-reasoning"),
        (["--method", "ppo"], "method must be one of grpo, .*; got 'ppo'"),
        (["--num-rollouts", "1"], "--num-rollouts must be a whole number from 2 to 100,000; got 1"),
        (["--steps", "0"], "steps must be a whole number from 1 to 1,000,000; got 0"),
        (["--steps", "-5"], "steps must be a whole number from 1 to .*; got -5"),
        (["--rewards", "acuracy"], "unknown reward 'acuracy': known are accuracy, format"),
        (["--rewards", "accuracy=x"], "weight of reward 'accuracy' must be a number"),
        (["--rewards", "nowhere:f"], "cannot import the module of reward 'nowhere:f'"),
        (["--kl-coef", "-1"], r"--kl-coef must be a number from 0 to 1e\+06"),
        (["--schedule", "zigzag"], "schedule must be one of constant, linear, cosine; got 'zigzag'"),
        (["--config", "taken/file"], "taken/file is not a TOML file"),
        (["--config", "missing.toml"], "cannot read the config missing.toml"),
        (["--temperature", "0"], "temperature must be a number from 0.001 to 1,000; got 0.0"),
        (["--temperature", "nan"], "temperature must be a number from 0.001 to 1,000; got nan"),
        (["--lr", "-1"], "lr must be a number from 1e-12 to 100; got -1.0"),
        (["--top-p", "1.2"], "--top-p must be a number from 1e-06 to 1; got 1.2"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be a whole number from 1"),
        (["--max-new-tokens", "480"], "480 new tokens do not fit: the longest prompt has .* of the 512"),
        (["--seed", "20261231235959"], "seed must be a whole number from 0 to 4,294,967,295"),
        (["--data", "math500"], "training on math500 needs held-out problems"),
        (["--dtype", "bfloat16", "--optimizer", "adamw"], "adamw would lose most of its small steps"),
        (["--out", "taken"], "taken exists already and is not empty"),
        (["--out", "taken/file"], "taken/file: a file is in its place"),
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
    directory = save_model(make_model(), tokenizer, tmp_path / "mine")
    weights = directory / "model.safetensors"
    if damage == "missing":
        weights.unlink()
        message = "mine has no weights"
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
        message = "damaged or incomplete"
    elif damage == "other model":
        save_model(make_model(emb_dim=64), tokenizer, tmp_path / "other")
        weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
        message = "does not fit the model"
    elif damage == "other tokenizer":
        config = json.loads((directory / "config.json").read_text())
        save_model(make_model(vocab_size=300), tokenizer, tmp_path / "other")
        (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
        message = "they do not belong together"
    else:
        (directory / "config.json").write_text('{"model_type": "gemma"}')
        message = "describes a 'gemma' model; supported are qwen3, qwen2, llama"
    assert run(tmp_path, monkeypatch, "--model", str(directory)) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err) and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "step", interrupt)
    assert run(tmp_path, monkeypatch) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    for arguments in (["--help"], ["train", "--help"], ["pretrain", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("model", "num-rollouts", "seed", "out", "temperature"))
    assert out.count("examples:\n  rfs ") == 2


def test_pretrain_refuses_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert main(["pretrain", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(tmp_path / "new"), "--steps", "0"]) == 2
    assert "steps must be a whole number from 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
