"""Settings: files, flags, names, and what they turn into."""

import argparse
from dataclasses import fields

import pytest

from rfs_utils.ch07 import METHODS
from rfs_utils.cli import add_settings, given_settings, group_runs
from rfs_utils.engine.config import (
    TrainConfig,
    field_type,
    format_config,
    read_config,
)
from rfs_utils.engine.rewards import ask_rewards, parse_rewards


def test_a_config_survives_its_file(tmp_path):
    config = TrainConfig(
        method="dapo", lr=1e-5, clip_high=0.3, stop_on_collapse=True, rewards='accuracy,my"mod:f=2',
        out="a b/ä\N{ROBOT FACE}",
    )
    path = tmp_path / "config.toml"
    path.write_text(format_config(config), encoding="utf-8")
    assert TrainConfig(**read_config(path)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "unknown setting 'step'; the nearest known one is 'steps'"),
        ("learning_rate = 3", "unknown setting 'learning_rate'; the nearest known one is 'lr'"),
        ("xyzzy = 3", "unknown setting 'xyzzy'; `rfs train --help` lists"),
        ("num_rolouts = 3", "'num_rolouts'; the nearest known one is 'num_rollouts'"),
        ("steps = 'many'", "steps must be of type int, got 'many'"),
        ("steps = 2.5", "steps must be of type int"),
        ("steps = true", "steps must be of type int"),
        ("stop_on_collapse = 1", "stop_on_collapse must be of type bool"),
        ("steps = ", "is not a TOML file"),
        ("\x00", "is not a TOML file"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_config(path)
    assert "mine.toml" in str(error.value)


def test_whole_numbers_are_fine_where_fractions_are_expected(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("lr = 1\nsteps = 4\n")
    assert read_config(path) == {"lr": 1.0, "steps": 4}


def test_every_setting_is_a_flag_of_its_own_type():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    assert given_settings(parser.parse_args([])) == {}
    values = {str: "x", int: "3", float: "0.5"}
    for field in fields(TrainConfig):
        kind = field_type(field.name)
        flag = f"--{field.name.replace('_', '-')}"
        args = parser.parse_args([flag] if kind is bool else [flag, values[kind]])
        assert given_settings(args) == {field.name: True if kind is bool else kind(values[kind])}
        assert field.metadata["help"]


@pytest.mark.parametrize("name", METHODS)
def test_own_clip_range_and_kl_replace_the_methods(name):
    method = TrainConfig(method=name, clip_high=0.5, kl_coef=0.1, kl="k3").resolved_method()
    assert (method.clip_high, method.kl_coef, method.kl) == (0.5, 0.1, "k3")
    assert method.clip_low == METHODS[name].clip_low
    assert TrainConfig(method=name).resolved_method() == METHODS[name]
    assert TrainConfig(method=name, negative_weight=0.0).resolved_method().negative_weight == 0.0


def test_learning_rates():
    constant = TrainConfig(steps=10, lr=1.0)
    assert {constant.learning_rate(step) for step in range(1, 11)} == {1.0}
    linear = TrainConfig(steps=10, lr=1.0, warmup_steps=4, schedule="linear")
    rates = [linear.learning_rate(step) for step in range(1, 11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[-1] == pytest.approx(1 / 6)
    cosine = [TrainConfig(steps=8, lr=1.0, schedule="cosine").learning_rate(step) for step in range(1, 9)]
    assert cosine[0] == 1.0 and cosine == sorted(cosine, reverse=True) and 0 < cosine[-1] < 0.1


# ---------------------------------------------------------------- rewards


def test_rewards_by_name_with_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards_module.py").write_text(
        "def short(responses, examples, lengths, **info):\n    return [None if n > 3 else 1 for n in lengths]\n"
    )
    rewards = parse_rewards("accuracy, format=0.5, my_rewards_module:short=-2")
    assert [weight for _, weight in rewards.values()] == [1.0, 0.5, -2.0]
    texts = [r"<think>1</think>\boxed{7}", r"\boxed{8}"]
    parts, weights = ask_rewards(rewards, texts, [{"answer": "7"}] * 2, lengths=[9, 2], truncated=[False, False])
    assert parts.nan_to_num(9.0).tolist() == [[1, 1, 9], [0, 0, 1]] and weights.tolist() == [1.0, 0.5, -2.0]
    assert parts.isnan().sum() == 1, "None is no number"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "must return a list of 2 numbers"),
        (3.0, "must return a list of 2 numbers"),
        (["good", "bad"], "must return numbers or None"),
        ([1.0, float("nan")], "must return finite numbers"),
    ],
)
def test_a_reward_that_returns_nonsense_is_named(returned, message):
    with pytest.raises(ValueError, match=f"reward 'mine' {message}"):
        ask_rewards({"mine": (lambda *args, **info: returned, 1.0)}, ["a", "b"], [{}, {}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown reward ''"),
        ("accuracy,", "unknown reward ''"),
        ("accuracy=inf", "must be from -1e6 to 1e6"),
        ("accuracy,format,accuracy=0.5", "reward 'accuracy' is named twice"),
        ("json:nothing", "module 'json' has no function 'nothing'"),
    ],
)
def test_bad_reward_lists(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rewards(text)


# ---------------------------------------------------------------- runs side by side


def test_runs_are_grouped_by_what_differs_besides_the_seed(tmp_path):
    for name, text in {
        "a0": 'method = "grpo"\nseed = 0\nlr = 0.1\n', "a1": 'method = "grpo"\nseed = 1\nlr = 0.1\n',
        "b0": 'method = "rloo"\nseed = 0\nlr = 0.2\n',
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(text)
        (tmp_path / name / "metrics.csv").write_text("step,reward_avg\n1,0.5\n")
    groups = group_runs([str(tmp_path / name) for name in ("a0", "a1", "b0")], ["reward_avg"])
    assert {label: len(runs) for label, runs in groups.items()} == {"lr 0.1, grpo": 2, "lr 0.2, rloo": 1}
    assert groups["lr 0.2, rloo"] == [{"step": [1], "reward_avg": [0.5]}]
    with pytest.raises(ValueError, match="is not the folder of a run"):
        group_runs([str(tmp_path)], [])
