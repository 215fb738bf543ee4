"""Checks of the exercises: what a reader's function does on a few small cases, said in one sentence.

In a notebook, `name = check_name(name)` never stops: it hands back the reader's function when it is right, otherwise
the book's own, with which the rest of the notebook goes on.
"""

import copy
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch


@dataclass
class Case:
    """One call of the reader's function: its arguments, what it should return, and, if need be, why."""

    arguments: tuple
    expected: Any
    why: str = ""
    tolerance: float = 1e-5  # relative and absolute, for floating-point numbers


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
    if not callable(function):
        return f"{name} is not a function but {show(function)}."
    for case in cases:
        call = f"{name}({', '.join(map(show, case.arguments))})"
        because = f", because {case.why}" if case.why else ""
        try:
            found = function(*copy.deepcopy(case.arguments))  # a copy, in case it changes them
            right = same(found, case.expected, case.tolerance)
        except NotImplementedError:
            return f"{name} is not written yet."
        except (Exception, SystemExit) as error:
            return f"{call} raised {type(error).__name__}{describe(error)}; expected {show(case.expected)}{because}."
        if not right:
            return f"{call} gave {show(found)}; expected {show(case.expected)}{because}."
    return None


def same(found: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether two results are equal: numbers and tensors by value, lists, tuples and dictionaries item by item."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        if (found.dtype == torch.bool) != (expected.dtype == torch.bool):
            return False
        return torch.allclose(found.detach().double(), expected.double(), rtol=tolerance, atol=tolerance)
    if isinstance(expected, (bool, int, float)):
        if isinstance(found, torch.Tensor) and found.dim() == 0:
            found = found.item()
        if not isinstance(found, (bool, int, float)):
            return False
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            return False
        return all(same(f, e, tolerance) for f, e in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return False
        return all(same(found[key], expected[key], tolerance) for key in expected)
    return type(found) is type(expected) and bool(found == expected)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
_short.maxlist = _short.maxtuple = 12


def show(value: Any) -> str:
    """A value as it stands in a sentence: short, on one line."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.tolist() if value.numel() <= 24 else f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, list) and value and all(isinstance(v, (list, float)) for v in value):
            return f"[{', '.join(map(show, value))}]"
        return " ".join(_short.repr(value).split())
    except Exception:  # a value that cannot even be shown
        return f"something of type {type(value).__name__}"


def describe(error: BaseException) -> str:
    """The error's message, shortened, or nothing."""
    text = " ".join(str(error).split())
    return f" ({text[:100]})" if text else ""


# ------------------------------------------------------------------ chapter 6


def check_partial_reward_rlvr(function: Callable) -> Callable:
    """Exercise 6.1."""
    cases = [
        Case((r" \boxed{18}", "18"), 1.0),
        Case((r" \boxed{81}", "18"), 0.0),
        Case((" The answer is 18.", "18"), 0.5, "the number is right but stands in no box"),
        Case((" The answer is 81.", "18"), 0.0),
        Case((r"June:12+6=18" + "\n" + r"\boxed{17}", "18"), 0.0, "where there is a box, it alone decides"),
        Case((r"\boxed{17}, no, it is 18", "18"), 0.0, "where there is a box, it alone decides"),
        Case((r"\boxed{36/2}", "18"), 1.0, "answers are compared by value"),
        Case(("it is 18.0", "18"), 0.5, "answers are compared by value"),
        Case(("18 shells, then 17", "18"), 0.0, "the last number is the answer"),
        Case(("I do not know", "18"), 0.0),
        Case(("", "18"), 0.0),
    ]
    return check_function(function, "partial_reward_rlvr", "ex06", cases)


def check_groups_with_signal(function: Callable) -> Callable:
    """Exercise 6.2."""
    mixed = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], [1, 0.5, 1, 1]])
    cases = [
        Case((mixed,), torch.tensor([False, False, True, False, True])),
        Case((torch.full((1, 7), 0.1),), torch.tensor([False]), "seven equal rewards carry no signal"),
        Case((torch.tensor([[1.0, -1.0], [-1.0, -1.0]]),), torch.tensor([True, False])),
    ]
    return check_function(function, "groups_with_signal", "ex06", cases)


def check_first_token_share(function: Callable) -> Callable:
    """Exercise 6.3."""
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()  # at temperature 1 these are the probabilities
    cases = [
        Case((logits, [1], 1.0), torch.tensor([0.1, 0.5])),
        Case((logits, [0, 1], 1.0), torch.tensor([1.0, 1.0]), "all tokens together have probability 1"),
        Case((logits, [1], 0.5), torch.tensor([0.01 / 0.82, 0.5]), "at temperature 0.5 odds of 9 to 1 become 81 to 1"),
        Case((logits, [1], 2.0), torch.tensor([0.25, 0.5]), "at temperature 2 odds of 9 to 1 become 3 to 1"),
    ]
    return check_function(function, "first_token_share", "ex06", cases)


def check_chance_of_signal(function: Callable) -> Callable:
    """Exercise 6.4."""
    cases = [
        Case((0.5, 2), 0.5, "of two answers with even chances, one is right and one wrong in half of the cases"),
        Case((0.5, 4), 0.875),
        Case((0.1, 8), 1 - 0.1**8 - 0.9**8, "a group is lost when all of its answers are right or all are wrong"),
        Case((0.0, 8), 0.0, "answers that are never right carry no signal"),
        Case((1.0, 8), 0.0, "answers that are always right carry no signal"),
    ]
    return check_function(function, "chance_of_signal", "ex06", cases)


def check_solution_length(function: Callable) -> Callable:
    """Exercise 6.5."""
    from .models import load_model_and_tokenizer

    tokenizer = load_model_and_tokenizer("tiny-base", "cpu")[1]
    short = {"solution": "June:3-2=1\nJuly:1+2=3\n\\boxed{3}"}
    longer = {"solution": "August:20-6=14\nSeptember:14-7=7\nOctober:7+4=11\n\\boxed{11}"}
    why = "the response begins with a blank and ends with the end-of-sequence token, which counts"
    cases = [Case((short, tokenizer), 21, why), Case((longer, tokenizer), 34, why)]
    return check_function(function, "solution_length", "ex06", cases)


# ------------------------------------------------------------------ chapter 7


def check_reward_worked_thought(function: Callable) -> Callable:
    """Exercise 7.1."""
    cases = [
        Case(("<think>\nMay:7+5=12\n</think>\n\n\\boxed{12}",), 1.0),
        Case(("<think>12-5=7</think>7",), 1.0, "subtractions are calculations, too"),
        Case(("<think>\n</think>\n\n\\boxed{12}",), 0.0, "the thought is empty"),
        Case(("<think>hmm, 12</think>\\boxed{12}",), 0.0, "the thought calculates nothing"),
        Case(("<think>hmm</think>7+5=12",), 0.0, "the calculation stands after the thought"),
        Case((" May:7+5=12\n\\boxed{12}",), 0.0, "there is no thought"),
        Case(("<think>7+5=12</think>",), 0.0, "no answer follows the thought"),
    ]
    return check_function(function, "reward_worked_thought", "ex07", cases)


def check_conditional_format(function: Callable) -> Callable:
    """Exercise 7.2."""
    cases = [
        Case(("<think>7+5=12</think>\n\n\\boxed{12}", "12"), 1.0),
        Case(("<think>\n</think>\n\n\\boxed{13}", "12"), 0.0, "the answer is wrong, so the format earns nothing"),
        Case((" \\boxed{12}", "12"), 0.0, "there is no thought, so nothing is earned beyond the accuracy reward"),
        Case((" \\boxed{13}", "12"), 0.0),
        Case(("<think>7+5=12</think>\n\nThe answer is 12.", "12"), 0.0, "an answer is right only in a box"),
    ]
    return check_function(function, "conditional_format", "ex07", cases)


def check_kl_optimum(function: Callable) -> Callable:
    """Exercise 7.3."""
    reference, rewards = torch.tensor([0.9, 0.1]), torch.tensor([0.4, 1.0])
    a, b = 0.9 * math.exp(4), 0.1 * math.exp(10)
    cases = [
        Case((reference, torch.tensor([1.0, 1.0]), 0.1), reference, "equal rewards leave the reference as it is"),
        Case((reference, rewards, 0.1), torch.tensor([a, b]) / (a + b), tolerance=1e-4),
        Case((reference, rewards, 1e6), reference, "an infinitely strong penalty leaves the reference as it is",
             tolerance=1e-4),
        Case((reference, rewards, 1e-3), torch.tensor([0.0, 1.0]),
             "a weak penalty leaves all to the best answer (mind the overflow of exp)", tolerance=1e-4),
        Case((torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0]), 0.1), torch.tensor([0.5, 0.5, 0.0]),
             "what the reference never does cannot be reinforced", tolerance=1e-4),
    ]  # fmt: skip
    return check_function(function, "kl_optimum", "ex07", cases)


def check_probability_limit(function: Callable) -> Callable:
    """Exercise 7.4."""
    cases = [
        Case((0.1, 1.0, 0.2, 0.2), 0.12, "a good token is pushed until its ratio is 1 + clip_high"),
        Case((0.1, -1.0, 0.2, 0.2), 0.08, "a bad token is pushed until its ratio is 1 - clip_low"),
        Case((0.1, 2.5, 0.2, 0.5), 0.15, "the size of the advantage does not matter, only its sign"),
        Case((0.9, 1.0, 0.2, 0.2), 1.0, "no probability exceeds 1"),
        Case((0.9, -0.3, 1.5, 0.2), 0.0, "no probability is below 0"),
    ]
    return check_function(function, "probability_limit", "ex07", cases)
