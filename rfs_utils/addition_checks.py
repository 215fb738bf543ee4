"""Checks of the exercises in the addition lab: each tells a reader's function from a wrong one, in one sentence.

A check calls the function on a few small cases, never raises, and returns the function when it is right, else the
book's own, so that the notebook goes on either way.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass
class Case:
    """One call of the reader's function: its arguments, and what it should return."""

    arguments: tuple
    expected: Any


def check_function(function: Callable, name: str, module: str, cases: Sequence[Case]) -> Callable:
    """Print a verdict on `function`; returns it when all cases are right, else `rfs_utils.<module>`'s of that name."""
    problem = find_problem(function, name, cases)
    if problem is None:
        print(f"{name} is right in all {len(cases)} cases.")
        return function
    return with_the_book(problem, name, module)


def with_the_book(problem: str, name: str, module: str) -> Callable:
    """Say what is wrong, and hand the book's function back."""
    print(f"{problem} The notebook goes on with the book's version.")
    return getattr(import_module(f"rfs_utils.{module}"), name)


def find_problem(function: Callable, name: str, cases: Sequence[Case]) -> str | None:
    """The first wrong case as a sentence, or None when all are right."""
    for case in cases:
        call = f"{name}({', '.join(map(show, case.arguments))})"
        try:
            found = function(*copy.deepcopy(case.arguments))  # a copy, in case it changes them
            right = same(found, case.expected)
        except NotImplementedError:
            return f"{name} is not written yet."
        except Exception as error:  # whatever a first draft may raise
            return f"{call} raised {type(error).__name__}: {error}; expected {show(case.expected)}."
        if not right:
            return f"{call} gave {show(found)}; expected {show(case.expected)}."
    return None


def same(found: object, expected: object) -> bool:
    """Equality, for numbers and tensors up to rounding; a tensor's shape counts, its dtype does not."""
    if isinstance(expected, tuple):
        return isinstance(found, (tuple, list)) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        return torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    if isinstance(found, torch.Tensor) and found.numel() != 1:
        return False
    try:
        return abs(float(found) - float(expected)) < 1e-5
    except (TypeError, ValueError):
        return False


def show(value: object) -> str:
    """A value as a reader would write it, tensors as rounded lists."""
    if isinstance(value, torch.Tensor):
        return str(rounded(value.tolist()))
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))})"
    return str(rounded(value)) if isinstance(value, float) else repr(value)


def rounded(value):
    """Numbers, also in nested lists, to four places."""
    return [rounded(v) for v in value] if isinstance(value, list) else round(value, 4)


# --- exercises/addition.ipynb ---------------------------------------------------------------------


def check_count_carries(function: Callable) -> Callable:
    """Exercise 1: carries of an addition on paper."""
    cases = [((123, 321), 0), ((5, 5), 1), ((999, 1), 3), ((95, 7), 2), ((190, 20), 1), ((0, 0), 0), ((555, 455), 3)]
    return check_function(function, "count_carries", "addition", [Case(*case) for case in cases])


def check_digit_accuracy_reward(function: Callable) -> Callable:
    """Exercise 2: the share of right digits."""
    cases = [
        (("957[EOS]", "957"), 1.0), (("960[EOS]", "957"), 1 / 3), (("95[EOS]", "957"), 2 / 3),
        (("9570[EOS][PAD]", "957"), 3 / 4), (("[EOS]", "957"), 0.0), (("", "957"), 0.0),
        (("9[PAD]57[EOS]", "957"), 0.0), (("0[EOS]", "0"), 1.0),
    ]  # fmt: skip
    return check_function(function, "digit_accuracy_reward", "addition", [Case(*case) for case in cases])


def check_distance_accuracy_reward(function: Callable) -> Callable:
    """Exercise 3: closeness of two numbers."""
    cases = [
        (("957[EOS]", "957"), 1.0), (("960[EOS]", "957"), 1 - 3 / 960), (("100[EOS]", "1000"), 0.1),
        (("[EOS]", "957"), 0.0), (("", "957"), 0.0), (("1+2[EOS]", "3"), 0.0), (("18[PAD]2", "182"), 0.0),
        (("0957[EOS]", "957"), 0.0), (("0[EOS]", "0"), 1.0), (("0[EOS]", "7"), 0.0), (("7[EOS]", "0"), 0.0),
    ]  # fmt: skip
    return check_function(function, "distance_accuracy_reward", "addition", [Case(*case) for case in cases])


# --- exercises/addition_rl.ipynb ------------------------------------------------------------------


def check_leave_one_out_baseline(function: Callable) -> Callable:
    """Exercise 1: what the others of a group earned."""
    cases = [
        ((torch.tensor([[1.0, 0.0, 0.0, 0.0]]),), torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3]])),
        ((torch.tensor([[1.0, 0.0], [0.5, 0.25]]),), torch.tensor([[0.0, 1.0], [0.25, 0.5]])),
        ((torch.ones(2, 3),), torch.ones(2, 3)),
    ]
    return check_function(function, "leave_one_out_baseline", "addition_rl", [Case(*case) for case in cases])


def check_raft_loss(function: Callable) -> Callable:
    """Exercise 2: cross-entropy on the rewarded rollouts."""
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-5.0, -5.0, -5.0], [-0.5, -9.0, -9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    cases = [
        ((logps, mask, torch.tensor([1.0, 0.0, 1.0])), torch.tensor(3.5 / 3)),
        ((logps, mask, torch.tensor([0.0, 1.0, 0.0])), torch.tensor(5.0)),
        ((logps, mask, torch.zeros(3)), torch.tensor(0.0)),
    ]
    return check_function(function, "raft_loss", "addition_rl", [Case(*case) for case in cases])


# --- exercises/addition_dpo.ipynb -----------------------------------------------------------------


def check_choose_pairs(function: Callable) -> Callable:
    """Exercise 1: rows of best and worst."""
    cases = [
        ((torch.tensor([[0.2, 1.0, 0.0], [0.0, 0.5, 1.0]]),), (torch.tensor([1, 5]), torch.tensor([2, 3]))),
        ((torch.tensor([[1.0, 1.0], [0.0, 1.0]]),), (torch.tensor([3]), torch.tensor([2]))),
        ((torch.tensor([[1.0, 0.0, 1.0, 0.0]]),), (torch.tensor([0]), torch.tensor([1]))),
        ((torch.zeros(2, 3),), (torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))),
    ]
    return check_function(function, "choose_pairs", "addition_dpo", [Case(*case) for case in cases])


PAIRS = tuple(torch.tensor(row) for row in ([-1.0, -3.0], [-2.0, -1.0], [-2.0, -3.0], [-2.0, -3.0]))


def check_compute_loss_dpo(function: Callable) -> Callable:
    """Exercise 2: minus the log-sigmoid of the scaled margin, and its gradient."""
    # Margins 1 and -2, at beta 0.5: 0.4741 and 1.3133.
    far = tuple(torch.tensor([x]) for x in (-2000.0, 0.0, 0.0, 0.0))
    return with_gradient(function, "compute_loss_dpo", [
        ((*PAIRS, 0.5), torch.tensor(0.893669)),
        ((PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1], 0.1), torch.tensor(0.693147)),
        ((*far, 1.0), torch.tensor(2000.0)),
    ])  # fmt: skip


def check_compute_loss_ipo(function: Callable) -> Callable:
    """Exercise 3: the squared distance of the margin from its target, and its gradient."""
    return with_gradient(function, "compute_loss_ipo", [
        ((*PAIRS, 0.5), torch.tensor(4.5)),
        ((PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1], 0.1), torch.tensor(25.0)),
    ])  # fmt: skip


def with_gradient(function: Callable, name: str, cases: Sequence[tuple]) -> Callable:
    """`check_function` of a loss, and then of the direction in which it pushes the chosen log-probs."""
    module = "addition_dpo"
    problem = find_problem(function, name, [Case(*case) for case in cases])
    if problem is None:
        chosen = PAIRS[0].clone().requires_grad_()
        loss = function(chosen, *PAIRS[1:], 0.1)
        if not loss.requires_grad or not (torch.autograd.grad(loss, chosen)[0] < 0).all():
            problem = f"{name} is right, but was expected to push the chosen log-probs up: is one detached?"
    if problem is None:
        print(f"{name} is right in all {len(cases)} cases, and so is its gradient.")
        return function
    return with_the_book(problem, name, module)
