"""The checks of the exercises: right functions pass, plausible mistakes are named, and nothing stops a notebook."""

import importlib
import inspect

import pytest
import torch

from rfs_utils.exercises import checks
from rfs_utils.exercises.checks import (
    Case,
    check_function,
    find_problem,
    same,
    show,
)
from rfs_utils.grading import extract_final_candidate, grade_answer

CHECKS = {name.removeprefix("check_"): f for name, f in vars(checks).items() if name.startswith("check_")}
CHECKS.pop("function")
MODULES = {name: importlib.import_module(f"rfs_utils.exercises.{name}") for name in ("ex06", "ex07")}
BOOKS = {name: next(getattr(m, name) for m in MODULES.values() if hasattr(m, name)) for name in CHECKS}


def any_box_or_number(text, truth):  # gives 0.5 to a wrong box with the right number after it
    boxed = extract_final_candidate(text, fallback=None)
    if boxed and grade_answer(boxed, truth):
        return 1.0
    return 0.5 * grade_answer(extract_final_candidate(text.replace("boxed", "")), truth)


def compares_text(text, truth):
    boxed = extract_final_candidate(text, fallback=None)
    if boxed:
        return float(boxed == truth)
    return 0.5 * (extract_final_candidate(text) == truth)


def by_advantages(rewards):
    return ((rewards - rewards.mean(dim=1, keepdim=True)) != 0).any(dim=1)


def tempered_twice(logits, ids, temperature):
    p = torch.softmax(logits, dim=-1)
    return (p / temperature)[:, ids].sum(-1)


def unnormalised(reference, rewards, beta):
    return reference * torch.exp(rewards / beta)


def boxed_only(text, truth):
    return float(grade_answer(extract_final_candidate(text, fallback=None), truth))


WRONG = {  # function: (a plausible mistake, what the message must name)
    "partial_reward_rlvr": [
        (boxed_only, "gave 0; expected 0.5"),
        (lambda text, truth: 0.5 * grade_answer(extract_final_candidate(text), truth), "boxed{18}"),
        (any_box_or_number, "where there is a box, it alone decides"),
        (compares_text, "36/2"),
        (lambda text, truth: None, "gave None; expected 1"),
    ],
    "groups_with_signal": [
        (by_advantages, "0.1"),
        (lambda rewards: rewards.sum(dim=1) > 0, "expected [False, False, True, False, True]"),
        (lambda rewards: rewards.std(dim=1), "expected [False, False, True"),
        (lambda rewards: (rewards != rewards[:, :1]).any(), "gave True"),
    ],
    "first_token_share": [
        (lambda logits, ids, t: torch.softmax(logits * t, -1)[:, ids].sum(-1), "0.5)"),
        (lambda logits, ids, t: torch.softmax(logits, -1)[:, ids].sum(-1), "0.5)"),
        (tempered_twice, "[1], 0.5)"),
        (lambda logits, ids, t: torch.softmax(logits / t, -1)[:, ids], "expected [0.1, 0.5]"),
    ],
    "chance_of_signal": [
        (lambda p, n: 1 - (1 - p) ** n, "chance_of_signal(0.5, 2) gave 0.75"),
        (lambda p, n: 1 - p**n, "chance_of_signal(0.5, 2) gave 0.75"),
        (lambda p, n: n * p * (1 - p), "chance_of_signal(0.5, 4) gave 1"),
    ],
    "solution_length": [
        (lambda problem, tokenizer: len(tokenizer.encode(problem["solution"])), "gave 20; expected 21"),
        (lambda problem, tokenizer: len(problem["solution"]), "expected 21"),
    ],
    "reward_worked_thought": [
        (MODULES["ex07"].reward_format, "the thought is empty"),
        (lambda text: float("=" in text), "after the thought"),
        (lambda text: MODULES["ex07"].reward_format(text) * ("+" in text), "12-5=7"),
    ],
    "conditional_format": [
        (lambda text, truth: MODULES["ex07"].reward_format(text), "13"),
        (lambda text, truth: MODULES["ex07"].reward_rlvr(text, truth), "there is no thought"),
        (lambda text, truth: MODULES["ex07"].reward_rlvr(text, truth) + MODULES["ex07"].reward_format(text), "gave 2"),
    ],
    "kl_optimum": [
        (unnormalised, "equal rewards leave the reference"),
        (lambda ref, r, beta: torch.softmax(r / beta, dim=0), "equal rewards leave the reference"),
        (lambda ref, r, beta: torch.softmax(ref.log() + r * beta, dim=0), "0.1) gave"),
        (lambda ref, r, beta: unnormalised(ref, r, beta) / unnormalised(ref, r, beta).sum(), "overflow"),
    ],
    "probability_limit": [
        (lambda p, a, low, high: p * (1 + high), "-1, 0.2, 0.2) gave 0.12; expected 0.08"),
        (lambda p, a, low, high: p * (1 + high) if a > 0 else p * (1 - low), "no probability exceeds 1"),
        (lambda p, a, low, high: p * (1 + a * high), "the size of the advantage does not matter"),
    ],
}
MISTAKES = [(name, *mistake) for name, mistakes in WRONG.items() for mistake in mistakes]


def test_every_check_has_mistakes_to_catch():
    assert WRONG.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_the_right_function_is_handed_back(name, capsys):
    assert CHECKS[name](BOOKS[name]) is BOOKS[name]
    said = capsys.readouterr().out
    assert said.startswith(f"{name} is right in all ") and len(said.splitlines()) == 1


@pytest.mark.parametrize("name, wrong, message", MISTAKES)
def test_a_mistake_is_named_and_the_book_steps_in(name, wrong, message, capsys):
    assert CHECKS[name](wrong) is BOOKS[name]
    said = capsys.readouterr().out
    assert said.startswith(f"{name}(") and message in said, said
    assert said.endswith("The notebook goes on with the book's version.\n") and len(said.splitlines()) == 1


def stub(*arguments):
    raise NotImplementedError


def crash(*arguments):
    raise KeyError("no such\nthing")


def leave(*arguments):
    raise SystemExit(1)


class Unshowable:
    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("function, message", [
    (stub, " is not written yet."), (crash, "raised KeyError ('no such\\nthing'); expected"),
    (leave, "raised SystemExit (1)"), (None, "is not a function but None."), (lambda: None, "raised TypeError"),
    (lambda *a: Unshowable(), "Unshowable"),
    (lambda *a: torch.zeros(9, 9), "a tensor of shape (9, 9)"), (lambda *a: "1.0", "gave '1.0'"),
    (lambda *a: float("nan"), "gave nan"),
])  # fmt: skip
def test_nothing_raises(name, function, message, capsys):
    assert CHECKS[name](function) is BOOKS[name]
    said = capsys.readouterr().out
    assert message in said and len(said.splitlines()) == 1, said


def test_a_function_cannot_spoil_the_cases_by_changing_its_arguments():
    def greedy(values):
        values.append(0)
        return len(values)

    assert find_problem(greedy, "greedy", [Case(([1],), 2), Case(([1],), 2)]) is None
    cases = [Case(([1, 2],), 2), Case(([1, 2],), 3, "it was longer")]
    assert find_problem(len, "len", cases) == "len([1, 2]) gave 2; expected 3, because it was longer."


def test_results_are_compared_by_value():
    ones = torch.ones(2)
    assert same(1, 1.0) and same(torch.tensor(0.5), 0.5) and same(True, 1.0) and same(0.1 + 0.2, 0.3, 1e-9)
    assert not same(None, 0.0) and not same("1", 1) and not same([1.0, 1.0], ones) and not same(torch.ones(3), ones)
    assert same(torch.ones(2, dtype=torch.float64), ones) and not same(torch.tensor([True, True]), ones)
    assert same({"a": [1, (2,)]}, {"a": [1.0, (2,)]}) and not same({"a": 1}, {"b": 1}) and not same([1], [1, 2])
    assert same("ab", "ab") and same(None, None)


def test_values_are_shown_short():
    assert show("x" * 1000).count("x") < 120 and "\n" not in show("a\nb") and show(0.1 + 0.2) == "0.3"
    assert show(torch.eye(2)) == "[[1, 0], [0, 1]]" and len(show(list(range(1000)))) < 80


def test_checks_know_their_module():
    for name, check in CHECKS.items():
        assert f'"{BOOKS[name].__module__.split(".")[-1]}"' in inspect.getsource(check)
    assert check_function(stub, "chance_of_signal", "ex06", [Case((0.5, 2), 0.5)]) is BOOKS["chance_of_signal"]
