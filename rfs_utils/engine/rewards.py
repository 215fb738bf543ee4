"""Reward functions by name: what a rollout earns, decided by ordinary functions with weights.

A reward function gets all responses of a step, as text without the end token, with their problems,
`f(responses, examples, **info)`, and returns one number for each response, or None where it cannot judge: the response
then counts nowhere, unless the function judges no response to that problem, which it may leave to others. A reward of
weight 0 is logged only. `info` has `step`, `lengths` (in tokens) and `truncated`; functions that need none of it just
accept `**info`.
"""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..ch06 import reward_rlvr
from ..ch07 import reward_format

RewardFunction = Callable[..., list[float | None]]


def accuracy(responses: Sequence[str], examples: Sequence[dict], **info) -> list[float]:
    """1.0 for the right number in a box: chapter 6's reward."""
    return [reward_rlvr(text, example["answer"]) for text, example in zip(responses, examples, strict=True)]


def think_format(responses: Sequence[str], examples: Sequence[dict], **info) -> list[float]:
    """1.0 for an answer after one thought between think tags: chapter 7's format reward."""
    return [reward_format(text) for text in responses]


REWARDS: dict[str, RewardFunction] = {"accuracy": accuracy, "format": think_format}


def parse_rewards(text: str) -> dict[str, tuple[RewardFunction, float]]:
    """Functions and weights from text such as "accuracy,format=0.5,my_module:my_reward=2".

    Raises ValueError for unknown names, modules that cannot be imported, and weights that are not numbers.
    """
    rewards = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        try:
            number = float(weight or 1)
        except ValueError:
            raise ValueError(f"the weight of reward {name!r} must be a number, got {weight!r}") from None
        if not abs(number) <= 1e6:
            raise ValueError(f"the weight of reward {name!r} must be from -1e6 to 1e6, got {weight!r}")
        if name in rewards:
            raise ValueError(f"reward {name!r} is named twice; expected each once, with its weight")
        rewards[name] = (load_reward(name), number)
    return rewards


def load_reward(name: str) -> RewardFunction:
    """A reward function by its name in REWARDS, or as "module:function"; modules of the current folder are found."""
    if ":" not in name:
        if name not in REWARDS:
            raise ValueError(f"unknown reward {name!r}: known are {', '.join(REWARDS)}, or module:function")
        return REWARDS[name]
    module, _, function = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"cannot import the module of reward {name!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"module {module!r} has no function {function!r} for the reward {name!r}")
    return found


def ask_rewards(
    rewards: dict[str, tuple[RewardFunction, float]], responses: Sequence[str], examples: Sequence[dict], **info
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of N responses by each of K functions, (N, K), NaN for None, and the functions' weights, (K,).

    ValueError when a function returns the wrong number of rewards, or something other than numbers.
    """
    columns = []
    for name, (function, _) in rewards.items():
        found = function(responses, examples, **info)
        if not isinstance(found, (list, tuple)) or len(found) != len(responses):
            raise ValueError(f"reward {name!r} must return a list of {len(responses)} numbers, one for each response")
        try:
            numbers = [None if value is None else float(value) for value in found]
        except (TypeError, ValueError):
            raise ValueError(f"reward {name!r} must return numbers or None") from None
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ValueError(f"reward {name!r} must return finite numbers")
        columns.append([math.nan if number is None else number for number in numbers])
    weights = torch.tensor([weight for _, weight in rewards.values()])
    return torch.tensor(columns).reshape(len(rewards), len(responses)).T, weights
