"""How the checks of the exercises tell a right function from a wrong one, and say in one sentence what is wrong.

A check calls the reader's function on cases by hand and on random ones, whose results are those of the book's
function, and compares values and, for a loss, gradients. It also knows typical mistakes, each as a function that makes
it: where a wrong function gives what one of these gives, in all cases, the mistake is named.
"""

import copy
import functools
import inspect
import math
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
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


Mistakes = Mapping[str, Callable]  # what went wrong, as the end of a sentence, and a function that does just that
DETACHED = "this part is detached, so nothing is learned from it"


def random_cases(book: Callable, draw: Callable[[int], tuple], count: int = 20, tolerance: float = 1e-5) -> list[Case]:
    """Cases with the arguments `draw(0)`, `draw(1)` and so on, the same in each call, and the results of `book`.

    `draw` may use torch's random numbers freely; those of the notebook are not disturbed.
    """
    cases = []
    with torch.random.fork_rng(devices=[]):
        for i in range(count):
            torch.manual_seed(i)
            arguments = draw(i)
            cases.append(Case(arguments, book(*copied(arguments)), tolerance=tolerance))
    return cases


def check_function(
    function: Callable,
    name: str,
    module: str,
    cases: Sequence[Case],
    mistakes: Mistakes | None = None,
    learned: Sequence[int] = (),
) -> Callable:
    """Print a verdict on `function`; returns it when all is right, else `rfs_utils.exercises.<module>`'s of that name.

    `learned` are the places of the arguments that a training differentiates by. A function whose results are right
    but lists, NumPy's, or stacked is handed back in a wrapper that returns tensors as the book's does.
    """
    book = book_function(name, module)
    problem = find_problem(function, name, cases, mistakes or {}, book, learned)
    if problem is not None:
        return with_the_book(problem, name, module)
    gradients = ", and so are its gradients" if learned else ""
    print(f"{name} is right in all {len(cases)} cases{gradients}.")
    results = [result_of(function, case) for case in cases]
    plain = all(like(result, case.expected) is result for result, case in zip(results, cases, strict=True))
    return function if plain else returning_as(book, function)


def book_function(name: str, module: str) -> Callable:
    """`rfs_utils.exercises.<module>.<name>`."""
    return getattr(import_module(f".{module}", __package__), name)


def with_the_book(problem: str, name: str, module: str) -> Callable:
    """Say what is wrong, and hand the book's function back."""
    print(f"{problem} The notebook goes on with the book's version.")
    return book_function(name, module)


def returning_as(book: Callable, function: Callable) -> Callable:
    """`function`, its results in the form in which `book` returns them."""

    @functools.wraps(function)
    def converted(*arguments, **options):
        return like(function(*arguments, **options), book(*arguments, **options))

    return converted


def find_problem(
    function: Callable,
    name: str,
    cases: Sequence[Case],
    mistakes: Mistakes | None = None,
    book: Callable | None = None,
    learned: Sequence[int] = (),
) -> str | None:
    """What is wrong with `function`, as a sentence, or None when values and gradients are right in all cases."""
    if not callable(function):
        return f"{name} is not a function but {show(function)}."
    mistakes = mistakes or {}
    try:
        results = [result_of(function, case) for case in cases]
    except NotImplementedError:
        return f"{name} is not written yet."
    for case, result in zip(cases, results, strict=True):
        if not same(result, case.expected, case.tolerance):
            known = name_mistake(
                results, {why: [result_of(wrong, c) for c in cases] for why, wrong in mistakes.items()}
            )
            return f"{wrong_value(name, case, result)}{known or because(case, result)}."
    return find_wrong_gradient(function, name, cases, mistakes, book, learned) if book and learned else None


def find_wrong_gradient(
    function: Callable, name: str, cases: Sequence[Case], mistakes: Mistakes, book: Callable, learned: Sequence[int]
) -> str | None:
    """The same about the gradients by the arguments at the places `learned`."""
    parameters = list(inspect.signature(book).parameters)
    found = [gradients(function, case.arguments, learned) for case in cases]
    expected = [gradients(book, case.arguments, learned) for case in cases]
    for case, ours, theirs in zip(cases, found, expected, strict=True):
        if isinstance(ours, Failure):
            return f"{call(name, case)} gives the right value, but its gradient raised {ours}."
        assert not isinstance(theirs, Failure)  # the book's functions raise nothing
        for place, gradient, wanted in zip(learned, ours, theirs, strict=True):
            if same(gradient, wanted, max(1e-4, case.tolerance)):
                continue
            learns = f"{name} gives the right values, but"
            if not gradient.any():
                return f"{learns} no gradient reaches {parameters[place]}: {DETACHED}."
            of_mistakes = {why: [gradients(f, c.arguments, learned) for c in cases] for why, f in mistakes.items()}
            wrong = f"for {call(name, case)} its gradient by {parameters[place]} is {show(gradient)}"
            return f"{learns} {wrong}; expected {show(wanted)}{name_mistake(found, of_mistakes)}."
    return None


def name_mistake(results: list, of_mistakes: Mapping[str, list], tolerance: float = 1e-4) -> str:
    """The end of the sentence: the mistake that gives these results in all cases, or nothing."""
    for why, others in of_mistakes.items():
        if all(same(a, b, tolerance, nan=True) for a, b in zip(results, others, strict=True)):
            return f": {why}"
    return ""


def gradients(function: Callable, arguments: tuple, learned: Sequence[int]) -> "list[torch.Tensor] | Failure":
    """Of the result, whose elements have different weights, by the arguments at the places `learned`.

    Zero where nothing depends on one of them. As in a training these arguments are results themselves.
    """
    arguments = copied(arguments)
    leaves = [arguments[place].requires_grad_() for place in learned]
    inputs = [leaves[learned.index(i)].clone() if i in learned else argument for i, argument in enumerate(arguments)]
    try:
        result = function(*inputs)
        result = like(result, torch.tensor(0.0)) if isinstance(result, (list, tuple)) else result
        if not isinstance(result, torch.Tensor) or not result.requires_grad:
            return [torch.zeros_like(leaf) for leaf in leaves]
        weights = torch.linspace(1, 2, result.numel()).view_as(result)
        found = torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)
    except (Exception, SystemExit) as error:
        return Failure(error)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


class Failure:
    """A call that raised an error; failures of one kind are equal."""

    def __init__(self, error: BaseException):
        self.kind, self.text = type(error).__name__, " ".join(str(error).split())[:100]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Failure) and self.kind == other.kind

    def __str__(self) -> str:
        return f"{self.kind} ({self.text})" if self.text else self.kind


def copied(arguments: tuple) -> tuple:
    """Copies, in case a function changes them, and one for each, in case two arguments are the same tensor."""
    return tuple(copy.deepcopy(argument) for argument in arguments)


def result_of(function: Callable, case: Case) -> Any:
    """What a call returns, or its Failure; NotImplementedError goes through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mistakes cause some that are no business of the reader's
            return function(*copied(case.arguments))
    except NotImplementedError:
        raise
    except (Exception, SystemExit) as error:
        return Failure(error)


# ------------------------------------------------------------------ comparing


def like(found: Any, expected: Any) -> Any:
    """`found` in the form of `expected`, where it is the same in other words; else as it is.

    Lists and NumPy arrays stand for tensors, tensors without dimensions and NumPy's numbers for Python's, and a stacked
    tensor for a tuple of its rows.
    """
    try:
        if isinstance(expected, torch.Tensor):
            found = as_tensor(found)
            return found.to(expected.dtype) if found.numel() == 0 else found
        if isinstance(expected, (bool, int, float)) and hasattr(found, "item") and not getattr(found, "ndim", 1):
            return found.item()
        if isinstance(expected, tuple) and hasattr(found, "__array__"):
            return tuple(like(f, e) for f, e in zip(as_tensor(found), expected, strict=True))
        if isinstance(expected, tuple) and isinstance(found, (list, tuple)) and len(found) == len(expected):
            parts = tuple(like(f, e) for f, e in zip(found, expected, strict=True))
            return parts if any(part is not f for part, f in zip(parts, found, strict=True)) else found
    except Exception:  # what cannot be converted, such as a list of texts
        pass
    return found


def as_tensor(value: Any) -> torch.Tensor:
    """A tensor of (lists of) tensors, numbers or arrays; those of tensors keep their gradient."""
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (bool, int, float)):
        return torch.stack([as_tensor(part) for part in value])
    return torch.as_tensor(value)


def same(found: Any, expected: Any, tolerance: float = 0.0, nan: bool = False) -> bool:
    """Whether two results are equal: numbers and tensors by value, lists, tuples and dictionaries item by item.

    With `nan`, what is no number equals what is no number.
    """
    found = like(found, expected)
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        if not may_stand_for(found.dtype, expected.dtype):
            return False
        numbers = found.detach().double(), expected.detach().double()
        return torch.allclose(*numbers, rtol=tolerance, atol=tolerance, equal_nan=nan)
    if isinstance(expected, (bool, int, float)):
        if not isinstance(found, (bool, int, float)):
            return False
        both_nan = nan and math.isnan(found) and math.isnan(expected)
        return both_nan or math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            return False
        return all(same(f, e, tolerance, nan) for f, e in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return False
        return all(same(found[key], expected[key], tolerance, nan) for key in expected)
    try:
        return type(found) is type(expected) and bool(found == expected)
    except Exception:  # a value that cannot be compared
        return False


def may_stand_for(found: torch.dtype, expected: torch.dtype) -> bool:
    """Truth values only for truth values, and no fractions for the numbers of rows."""
    if torch.bool in (found, expected):
        return found == expected
    return expected.is_floating_point or not found.is_floating_point


# ------------------------------------------------------------------ sentences


def wrong_value(name: str, case: Case, result: Any) -> str:
    """The beginning of the sentence about a wrong result."""
    gave = f"raised {result}" if isinstance(result, Failure) else f"gave {show(result)}"
    return f"{call(name, case)} {gave}; expected {show(case.expected)}"


def because(case: Case, result: Any) -> str:
    """Its end, where no mistake is recognised: the case's reason, or what sets the two forms apart."""
    if case.why:
        return f", because {case.why}"
    found, expected = like(result, case.expected), case.expected
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return ""
    if found.shape != expected.shape:
        return f": its shape is {tuple(found.shape)} and should be {tuple(expected.shape)}"
    right_type = may_stand_for(found.dtype, expected.dtype)
    return "" if right_type else f": its type is {found.dtype} and should be {expected.dtype}"


def call(name: str, case: Case) -> str:
    """The case's call as it would be written."""
    return f"{name}({', '.join(map(show, case.arguments))})"


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
        if isinstance(value, tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return f"({', '.join(map(show, value))})"
        if isinstance(value, list) and value and all(isinstance(v, (list, float)) for v in value):
            return f"[{', '.join(map(show, value))}]"
        return " ".join(_short.repr(value).split())
    except Exception:  # a value that cannot even be shown
        return f"something of type {type(value).__name__}"
