"""Checks of the exercises in the addition lab: each tells a reader's function from a wrong one, in one sentence.

A check calls the function on a few small cases, never raises, and returns the function when it is right, else the
book's own, so that the notebook goes on either way.
"""

from collections.abc import Callable, Sequence

import torch

from .checks import Case, check_function, find_problem, with_the_book

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
