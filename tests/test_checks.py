"""How the checks of the exercises work: nothing stops a notebook, and a verdict is one sentence.

Right and wrong solutions of each exercise are in test_mutants.py.
"""

import inspect

import pytest
import torch
from test_mutants import BOOK, CHECKS

from rfs_utils.exercises import checking
from rfs_utils.exercises.checking import Case, check_function, find_problem, gradients, random_cases, same, show

EXACT = [name for name in CHECKS if name != "own_loss"]  # for which there is one right result


@pytest.mark.parametrize("name", EXACT)
def test_the_right_function_is_handed_back(name, capsys):
    assert CHECKS[name](BOOK[name]) is BOOK[name]
    said = capsys.readouterr().out
    assert said.startswith(f"{name} is right in all ") and len(said.splitlines()) == 1


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
def test_what_is_not_written_or_no_function_is_replaced(name, capsys):
    assert CHECKS[name](stub) is CHECKS[name](None) is CHECKS[name](leave) is BOOK[name]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{name} is not written yet. The notebook goes on with the book's version."
    assert "None" in second and "SystemExit" in third


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("function, message", [
    (crash, "raised KeyError ('no such\\nthing'); expected"),
    (leave, "raised SystemExit (1)"), (None, "is not a function but None."), (lambda: None, "raised TypeError"),
    (lambda *a: Unshowable(), "Unshowable"),
    (lambda *a: torch.zeros(9, 9), "a tensor of shape (9, 9)"), (lambda *a: "1.0", "gave '1.0'"),
    (lambda *a: float("nan"), "gave nan"), (lambda *a: (), "gave ()"),
])  # fmt: skip
def test_nothing_raises(name, function, message, capsys):
    assert CHECKS[name](function) is BOOK[name]
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
    assert not same(None, 0.0) and not same("1", 1) and not same(["1", "1"], ones) and not same(torch.ones(3), ones)
    assert same(torch.ones(2, dtype=torch.float64), ones) and not same(torch.tensor([True, True]), ones)
    assert same({"a": [1, (2,)]}, {"a": [1.0, (2,)]}) and not same({"a": 1}, {"b": 1}) and not same([1], [1, 2])
    assert same("ab", "ab") and same(None, None)


def test_values_are_shown_short():
    assert show("x" * 1000).count("x") < 120 and "\n" not in show("a\nb") and show(0.1 + 0.2) == "0.3"
    assert show(torch.eye(2)) == "[[1, 0], [0, 1]]" and len(show(list(range(1000)))) < 80


def test_lists_arrays_and_stacked_rows_stand_for_tensors():
    pair = torch.tensor([1, 2]), torch.tensor([0, 3])
    assert same([1.0, 1.0], torch.ones(2)) and same([[True], [False]], torch.tensor([[True], [False]]))
    assert same(torch.stack(pair), pair) and same(torch.stack(pair).numpy(), pair) and same([[1, 2], [0, 3]], pair)
    assert same([torch.tensor(1.0), torch.tensor(2.0)], torch.tensor([1.0, 2.0]))
    assert same(torch.tensor(1.5).numpy(), 1.5)
    assert not same(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), pair)  # rows have whole numbers
    assert not same([0, 1], torch.tensor([False, True])) and not same([[1, 2], [3]], torch.ones(2, 2))


def test_random_cases_are_the_same_each_time_and_leave_the_notebook_s_random_numbers_alone():
    def draw(i):
        return (torch.rand(1 + i),)

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second = random_cases(torch.sum, draw, 3), random_cases(torch.sum, draw, 3)
    assert torch.equal(torch.rand(2), expected)
    assert [len(case.arguments[0]) for case in first] == [1, 2, 3]
    assert all(torch.equal(a.arguments[0], b.arguments[0]) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(case.expected, case.arguments[0].sum()) for case in first)


def test_gradients_are_those_of_results_and_a_shared_argument_counts_twice():
    x = torch.tensor([1.0, 2.0])
    (by_first, by_second) = gradients(lambda a, b: a * a + 0 * b, (x, x), (0, 1))
    assert by_first.tolist() == [2.0, 8.0] and by_second.tolist() == [0.0, 0.0]  # weights 1 and 2
    (in_place,) = gradients(lambda a: a.mul_(3).sum(), (x,), (0,))
    assert in_place.tolist() == [3.0, 3.0] and x.tolist() == [1.0, 2.0]
    assert isinstance(gradients(lambda a: a.numpy(), (x,), (0,)), checking.Failure)


def test_a_wrong_gradient_is_named():
    def book(x, y):
        return (x * y).sum()

    cases = [Case((torch.tensor([1.0]), torch.tensor([3.0])), torch.tensor(3.0))]
    mistakes = {"the square root is forgotten": lambda x, y: 2 * x.sum() * y.detach().sum() - (x * y).detach().sum()}

    def problem(function):
        return find_problem(function, "f", cases, mistakes, book, learned=(0, 1))

    assert problem(book) is None and problem(lambda x, y: [x[0] * y[0]][0]) is None
    assert problem(lambda x, y: (x.detach() * y).sum()) == (
        f"f gives the right values, but no gradient reaches x: {checking.DETACHED}."
    )
    assert problem(lambda x, y: 3 * x.sum()).startswith("f([1], [3]) gave 3") is False
    assert "its gradient by x is [6]; expected [3]: the square root is forgotten." in problem(
        lambda x, y: (2 * x * y.detach() - (x * y).detach()).sum()
    )
    assert "its gradient raised RuntimeError" in problem(lambda x, y: torch.tensor((x * y).numpy().sum()))


def test_checks_know_their_module():
    for name, check in CHECKS.items():
        assert f'"{BOOK[name].__module__.split(".")[-1]}"' in inspect.getsource(check)
    assert check_function(stub, "chance_of_signal", "ex06", [Case((0.5, 2), 0.5)]) is BOOK["chance_of_signal"]
