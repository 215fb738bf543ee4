"""Checks of the exercises for chapters 6 and 7: is the reader's function right, and if not, what went wrong?

In a notebook, `name = check_name(name)` never stops: it hands back the reader's function when it is right, otherwise
the book's own, with which the rest of the notebook goes on.
"""

import math
import re
from collections.abc import Callable

import torch

from ..ch06 import reward_rlvr
from ..ch07 import reward_format
from ..grading import extract_final_candidate, grade_answer
from .checking import Case, Mistakes, book_function, check_function, random_cases


def check_text(function: Callable, name: str, module: str, cases: list[Case], mistakes: Mistakes) -> Callable:
    """`check_function` of a reward of texts, with random ones beside the cases by hand.

    A reward of one argument is of the response alone.
    """
    both = len(cases[0].arguments) == 2
    more = random_cases(book_function(name, module), random_response if both else lambda i: random_response(i)[:1], 40)
    return check_function(function, name, module, [*cases, *more], mistakes)


def random_response(i: int) -> tuple[str, str]:
    """A response that may have thought, calculation, box and the right number, and the right number."""
    right, wrong, start, plus = torch.randint(1, 99, (4,)).tolist()
    sign = "+-"[i % 2]
    work = f"May:{start}{sign}{plus}={start + plus if sign == '+' else start - plus}\n"
    thoughts = ("", "", "<think>\n</think>\n\n", "<think>hmm</think>", f"<think>{work}</think>\n", f" {work}")
    given = right if torch.rand(()) < 0.5 else wrong
    ends = (f"\\boxed{{{given}}}", f"it is {given}", f"\\boxed{{{given}}}, or {right}", f"{given}.0", "no idea", "")
    thought, end = torch.randint(0, 6, (2,)).tolist()
    return thoughts[thought] + ends[end], str(right)


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
    mistakes = {
        "without a box the right number earns nothing, and should earn 0.5": boxed_only,
        "the right answer in a box earns 0.5, too, and should earn 1": lambda text, truth: (
            0.5 * grade_answer(extract_final_candidate(text), truth)
        ),
        "without a box the right number earns 1, and should earn 0.5": lambda text, truth: (
            float(grade_answer(extract_final_candidate(text), truth))
        ),
        "where there is a box, it alone decides, and here the number beside it earns half": lambda text, truth: max(
            boxed_only(text, truth), 0.5 * grade_answer(extract_final_candidate(text.replace("boxed", "")), truth)
        ),
        "the answers are compared as texts, and should be by value": lambda text, truth: (
            float(extract_final_candidate(text, fallback=None) == truth)
            or 0.5 * (not has_box(text) and extract_final_candidate(text) == truth)
        ),
        "any box earns something, even with a wrong number in it": lambda text, truth: (
            max(boxed_only(text, truth), 0.5) if has_box(text)
            else 0.5 * grade_answer(extract_final_candidate(text), truth)
        ),
    }  # fmt: skip
    return check_text(function, "partial_reward_rlvr", "ex06", cases, mistakes)


def has_box(text: str) -> bool:
    """Whether a text has a box with something in it."""
    return bool(extract_final_candidate(text, fallback=None))


def boxed_only(text: str, truth: str) -> float:
    """Chapter 6's reward: a common wrong answer to exercise 6.1."""
    return float(grade_answer(extract_final_candidate(text, fallback=None), truth))


def check_groups_with_signal(function: Callable) -> Callable:
    """Exercise 6.2."""
    mixed = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], [1, 0.5, 1, 1]])
    cases = [
        Case((mixed,), torch.tensor([False, False, True, False, True])),
        Case((torch.full((1, 7), 0.1),), torch.tensor([False]), "seven equal rewards carry no signal"),
        Case((torch.tensor([[1.0, -1.0], [-1.0, -1.0]]),), torch.tensor([True, False])),
        Case(
            (torch.full((2, 8), 0.7),), torch.tensor([False, False]), "equal rewards carry no signal, whatever they are"
        ),
    ]
    cases += random_cases(book_function("groups_with_signal", "ex06"), random_rewards)
    mistakes = {
        "equal rewards have a standard deviation that rounding lifts above zero": lambda r: r.std(dim=1) > 0,
        "equal rewards have a mean that rounding moves beside them": lambda r: (r != r.mean(dim=1, keepdim=True)).any(
            1
        ),
        "this looks for a right answer, not for a difference": lambda r: (r > 0).any(dim=1),
        "this looks for a wrong answer, not for a difference": lambda r: (r <= 0).any(dim=1),
        "this asks whether the sum is positive, not whether rewards differ": lambda r: r.sum(dim=1) > 0,
        "this is one answer for the whole batch, and should be one for each group": lambda r: (r != r[:, :1]).any(),
        "this is the other way round": lambda r: (r == r[:, :1]).all(dim=1),
        "this compares rewards across groups, not within one": lambda r: (r != r[:1]).any(dim=1),
        "this compares neighbours at the ends only": lambda r: r[:, 0] != r[:, -1],
    }
    return check_function(function, "groups_with_signal", "ex06", cases, mistakes)


def random_rewards(i: int) -> tuple[torch.Tensor]:
    """Rewards, (B, G), of which some groups are equal."""
    groups, size = 1 + i % 5, 2 + i % 7
    values = torch.tensor([0.0, 1.0, 0.1, 0.7])[torch.randint(0, 2 + 2 * (i % 2), (groups, size))]
    equal = torch.rand(groups, 1) < 0.4
    return (torch.where(equal, values[:, :1], values),)


def check_first_token_share(function: Callable) -> Callable:
    """Exercise 6.3."""
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()  # at temperature 1 these are the probabilities
    cases = [
        Case((logits, [1], 1.0), torch.tensor([0.1, 0.5])),
        Case((logits, [0, 1], 1.0), torch.tensor([1.0, 1.0]), "all tokens together have probability 1"),
        Case((logits, [1], 0.5), torch.tensor([0.01 / 0.82, 0.5]), "at temperature 0.5 odds of 9 to 1 become 81 to 1"),
        Case((logits, [1], 2.0), torch.tensor([0.25, 0.5]), "at temperature 2 odds of 9 to 1 become 3 to 1"),
    ]
    cases += random_cases(book_function("first_token_share", "ex06"), random_logits)
    mistakes = {
        "the logits are multiplied by the temperature, and should be divided": lambda x, ids, t: share(x * t, ids),
        "the temperature is forgotten": lambda x, ids, t: share(x, ids),
        "the probabilities are divided, and the logits should be": lambda x, ids, t: share(x, ids) / t,
        "the probabilities stand one by one, and should be added up": lambda x, ids, t: torch.softmax(x / t, -1)[
            :, ids
        ],
        "this is the largest of the probabilities, and should be their sum": lambda x, ids, t: torch.softmax(x / t, -1)[
            :, ids
        ].amax(dim=-1),
        "a mean where a sum belongs": lambda x, ids, t: torch.softmax(x / t, -1)[:, ids].mean(dim=-1),
        "the softmax runs over the prompts, and should run over the tokens": lambda x, ids, t: torch.softmax(
            x / t, dim=0
        )[:, ids].sum(dim=-1),
        "the softmax sees only some tokens, so that it always adds up to 1": lambda x, ids, t: share(
            x[:, ids] / t, range(len(ids))
        ),
    }
    return check_function(function, "first_token_share", "ex06", cases, mistakes)


def share(logits: torch.Tensor, token_ids) -> torch.Tensor:
    """Probability, (B,), of some tokens together, at temperature 1."""
    return torch.softmax(logits, dim=-1)[:, list(token_ids)].sum(dim=-1)


def random_logits(i: int) -> tuple[torch.Tensor, list[int], float]:
    """Logits, (B, vocabulary), some token ids and a temperature."""
    size = 3 + i % 9
    token_ids = torch.randperm(size)[: 1 + i % (size - 1)].tolist()
    return 3 * torch.randn(1 + i % 4, size), token_ids, 0.3 + 2 * torch.rand(()).item()


def check_chance_of_signal(function: Callable) -> Callable:
    """Exercise 6.4."""
    cases = [
        Case((0.5, 2), 0.5, "of two answers with even chances, one is right and one wrong in half of the cases"),
        Case((0.5, 4), 0.875),
        Case((0.1, 8), 1 - 0.1**8 - 0.9**8, "a group is lost when all of its answers are right or all are wrong"),
        Case((0.0, 8), 0.0, "answers that are never right carry no signal"),
        Case((1.0, 8), 0.0, "answers that are always right carry no signal"),
    ]
    cases += random_cases(book_function("chance_of_signal", "ex06"), lambda i: (torch.rand(()).item(), 1 + i % 9))
    mistakes: Mistakes = {
        "this is the chance of a right answer; a group that is all right has no signal": lambda p, n: 1 - (1 - p) ** n,
        "this is the chance of a wrong answer; a group that is all wrong has no signal": lambda p, n: 1 - p**n,
        "this is the chance of no signal": lambda p, n: p**n + (1 - p) ** n,
        "this is right for groups of two only": lambda p, n: 2 * p * (1 - p),
        "this is the chance of exactly one right answer": lambda p, n: n * p * (1 - p) ** (n - 1),
        "this is the variance of the number of right answers": lambda p, n: n * p * (1 - p),
        "all right and all wrong exclude each other, so their chances are added": lambda p, n: 1 - p**n * (1 - p) ** n,
        "n - 1 instead of n": lambda p, n: 1 - p ** (n - 1) - (1 - p) ** (n - 1),
    }
    return check_function(function, "chance_of_signal", "ex06", cases, mistakes)


def check_solution_length(function: Callable) -> Callable:
    """Exercise 6.5."""
    from ..data import generate_tiny_problems
    from ..models import load_tokenizer, model_directory

    tokenizer = load_tokenizer(model_directory("tiny-base"))
    short = {"solution": "June:3-2=1\nJuly:1+2=3\n\\boxed{3}"}
    longer = {"solution": "August:20-6=14\nSeptember:14-7=7\nOctober:7+4=11\n\\boxed{11}"}
    why = "the response begins with a blank and ends with the end-of-sequence token, which counts"
    cases = [Case((short, tokenizer), 21, why), Case((longer, tokenizer), 34, why)]
    problems = generate_tiny_problems(10, "train", seed=3)
    cases += random_cases(book_function("solution_length", "ex06"), lambda i: (problems[i], tokenizer), 10)
    mistakes: Mistakes = {
        "the end-of-sequence token, which counts, is forgotten": lambda p, t: len(t.encode(f" {p['solution']}")),
        "these are characters, not tokens": lambda p, t: len(p["solution"]),
        "these are words, not tokens": lambda p, t: len(p["solution"].split()),
        "the problem is counted, too": lambda p, t: len(
            t.encode(f"{p.get('problem', '')} {p['solution']}{t.eos_token}")
        ),
    }
    return check_function(function, "solution_length", "ex06", cases, mistakes)


def check_response_mask(function: Callable) -> Callable:
    """Exercise 6.6."""
    rows = torch.tensor([[5, 7, 0, 0], [0, 0, 0, 0], [4, 4, 6, 4], [1, 0, 3, 0]])
    expected = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    cases = [Case((rows, 0), expected, "the end token was sampled, too, and what follows the first one was not")]
    cases += random_cases(
        book_function("response_mask", "ex06"), lambda i: (torch.randint(0, 4, (1 + i % 4, 2 + i % 6)), i % 3)
    )
    mistakes: Mistakes = {
        "the end token was sampled, too, and is left out": lambda t, e: ((t == e).cumsum(1) == 0).float(),
        "the end token is left out, and what follows it counts": lambda t, e: (t != e).float(),
        "everything counts, also what follows the end": lambda t, e: torch.ones_like(t).float(),
        "this ends at the last end token, and should end at the first": lambda t, e: (
            ((t == e).flip(1).cumsum(1).flip(1) > 0) | ~(t == e).any(1, keepdim=True)
        ).float(),
        "this is 1 at the first end token alone": lambda t, e: (((t == e).cumsum(1) == 1) & (t == e)).float(),
        "this is the other way round": lambda t, e: ((t == e).cumsum(1) - (t == e).int() > 0).float(),
    }
    return check_function(function, "response_mask", "ex06", cases, mistakes)


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
        Case(("<think>x=12</think>\n\n\\boxed{12}",), 0.0, "an equals sign alone is no calculation"),
    ]
    mistakes: Mistakes = {
        "this pays also where the thought is empty or calculates nothing": reward_format,
        "a calculation anywhere is paid for, even without a thought": lambda text: float(calculates(text)),
        "a calculation after the thought is paid for, too": lambda text: reward_format(text) * calculates(text),
        "an equals sign alone is no calculation": lambda text: (
            reward_format(text) * ("=" in text.partition("</think>")[0])
        ),
        "subtractions are calculations, too": lambda text: (
            reward_format(text) * bool(re.search(r"\d+\+\d+=\d+", text.partition("</think>")[0]))
        ),
        "the rest of the format is forgotten: an answer must follow the thought": lambda text: float(
            "</think>" in text and calculates(text.partition("</think>")[0])
        ),
        "any number in the thought is paid for, and it should calculate": lambda text: (
            reward_format(text) * bool(re.search(r"\d", text.partition("</think>")[0]))
        ),
        "this is the other way round": lambda text: (
            1.0 - reward_format(text) * calculates(text.partition("</think>")[0])
        ),
    }
    return check_text(function, "reward_worked_thought", "ex07", cases, mistakes)


def calculates(text: str) -> bool:
    """Whether a calculation stands in a text."""
    return re.search(r"\d+[+-]\d+=\d+", text) is not None


def check_conditional_format(function: Callable) -> Callable:
    """Exercise 7.2."""
    cases = [
        Case(("<think>7+5=12</think>\n\n\\boxed{12}", "12"), 1.0),
        Case(("<think>\n</think>\n\n\\boxed{13}", "12"), 0.0, "the answer is wrong, so the format earns nothing"),
        Case((" \\boxed{12}", "12"), 0.0, "there is no thought, so nothing is earned beyond the accuracy reward"),
        Case((" \\boxed{13}", "12"), 0.0),
        Case(("<think>7+5=12</think>\n\nThe answer is 12.", "12"), 0.0, "an answer is right only in a box"),
    ]
    mistakes: Mistakes = {
        "this pays also where the answer is wrong": lambda text, truth: reward_format(text),
        "this pays also where there is no thought": reward_rlvr,
        "a sum where a product belongs": lambda text, truth: reward_format(text) + reward_rlvr(text, truth),
        "one of the two is enough here, and both are needed": lambda text, truth: max(
            reward_format(text), reward_rlvr(text, truth)
        ),
        "a mean where a product belongs": lambda text, truth: (reward_format(text) + reward_rlvr(text, truth)) / 2,
        "an answer without a box counts as right": lambda text, truth: (
            reward_format(text) * grade_answer(extract_final_candidate(text), truth)
        ),
        "the accuracy reward is added here already, and it is added later": lambda text, truth: (
            reward_rlvr(text, truth) * (1 + reward_format(text))
        ),
    }
    return check_text(function, "conditional_format", "ex07", cases, mistakes)


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
    cases += random_cases(book_function("kl_optimum", "ex07"), random_habits, tolerance=1e-4)
    mistakes: Mistakes = {
        "the reference is forgotten": lambda ref, r, beta: torch.softmax(r / beta, dim=0),
        "the rewards are multiplied by beta, and should be divided": lambda ref, r, beta: torch.softmax(
            ref.log() + r * beta, dim=0
        ),
        "beta is forgotten": lambda ref, r, beta: torch.softmax(ref.log() + r, dim=0),
        "the probabilities do not add up to 1": lambda ref, r, beta: ref * torch.exp(r / beta),
        "mind the overflow of exp": lambda ref, r, beta: ref * torch.exp(r / beta) / (ref * torch.exp(r / beta)).sum(),
        "the softmax needs the logarithm of the reference": lambda ref, r, beta: torch.softmax(ref + r / beta, dim=0),
        "the sign of the rewards is reversed": lambda ref, r, beta: torch.softmax(ref.log() - r / beta, dim=0),
        "these are log-probabilities": lambda ref, r, beta: torch.log_softmax(ref.log() + r / beta, dim=0),
        "this is the best habit alone, as without a penalty": lambda ref, r, beta: (
            (r == r.max()).float() / (r == r.max()).sum()
        ),
        "this is the reference itself": lambda ref, r, beta: ref,
    }
    return check_function(function, "kl_optimum", "ex07", cases, mistakes)


def random_habits(i: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Reference probabilities, (K,), rewards, (K,), and beta."""
    size = 2 + i % 6
    return torch.softmax(torch.randn(size), dim=0), torch.rand(size), 0.1 + torch.rand(()).item()


def check_probability_limit(function: Callable) -> Callable:
    """Exercise 7.4."""
    cases = [
        Case((0.1, 1.0, 0.2, 0.2), 0.12, "a good token is pushed until its ratio is 1 + clip_high"),
        Case((0.1, -1.0, 0.2, 0.2), 0.08, "a bad token is pushed until its ratio is 1 - clip_low"),
        Case((0.1, 2.5, 0.2, 0.5), 0.15, "the size of the advantage does not matter, only its sign"),
        Case((0.9, 1.0, 0.2, 0.2), 1.0, "no probability exceeds 1"),
        Case((0.9, -0.3, 1.5, 0.2), 0.0, "no probability is below 0"),
    ]
    cases += random_cases(book_function("probability_limit", "ex07"), random_token)
    mistakes: Mistakes = {
        "the maximum where the minimum belongs": lambda p, a, low, high: max(1.0, p * (1 + high if a > 0 else 1 - low)),
        "a bad token has a limit of its own, 1 - clip_low": lambda p, a, low, high: between(p * (1 + high)),
        "a good token has a limit of its own, 1 + clip_high": lambda p, a, low, high: between(p * (1 - low)),
        "clip_low and clip_high are exchanged": lambda p, a, low, high: between(p * (1 + low if a > 0 else 1 - high)),
        "good and bad are exchanged": lambda p, a, low, high: between(p * (1 - low if a > 0 else 1 + high)),
        "a probability stays between 0 and 1": lambda p, a, low, high: p * (1 + high if a > 0 else 1 - low),
        "no probability is below 0": lambda p, a, low, high: min(1.0, p * (1 + high if a > 0 else 1 - low)),
        "no probability exceeds 1": lambda p, a, low, high: max(0.0, p * (1 + high if a > 0 else 1 - low)),
        "the size of the advantage does not matter, only its sign": lambda p, a, low, high: between(
            p * (1 + a * (high if a > 0 else low))
        ),
        "the limit is relative, and this adds to the probability": lambda p, a, low, high: between(
            p + (high if a > 0 else -low)
        ),
        "this is the ratio, and the probability is asked for": lambda p, a, low, high: 1 + high if a > 0 else 1 - low,
    }
    return check_function(function, "probability_limit", "ex07", cases, mistakes)


def between(value: float) -> float:
    """A probability: 0 below 0, 1 above 1."""
    return min(1.0, max(0.0, value))


def random_token(i: int) -> tuple[float, float, float, float]:
    """An old probability, an advantage, and the clip range."""
    p_old, size, low, high = torch.rand(4).tolist()
    return p_old, (3 * size + 0.01) * (-1) ** i, 1.5 * low, 1.5 * high
