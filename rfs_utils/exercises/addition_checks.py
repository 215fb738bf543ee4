"""Checks of the exercises in the addition lab: is the reader's function right, and if not, what went wrong?

A check never raises, and returns the function when it is right, else the book's own, so that the notebook goes on
either way.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .checking import DETACHED, Case, Mistakes, book_function, check_function, random_cases, with_the_book

SIGN = "the sign is reversed, so that good answers become rarer"
NO_MASK = "you forgot the mask, so that padding counts"
SUM = "a sum where a mean belongs"


def check(
    function: Callable,
    name: str,
    module: str,
    by_hand: list[tuple],
    draw: Callable[[int], tuple],
    mistakes: Mistakes,
    learned: tuple[int, ...] = (),
    tolerance: float = 1e-5,
) -> Callable:
    """`check_function` with cases by hand, (arguments, result) each, and random ones from `draw`."""
    cases = [Case(arguments, expected, tolerance=tolerance) for arguments, expected in by_hand]
    cases += random_cases(book_function(name, module), draw, tolerance=tolerance)
    return check_function(function, name, module, cases, mistakes, learned)


# --- exercises/addition.ipynb ---------------------------------------------------------------------


def check_count_carries(function: Callable) -> Callable:
    """Exercise 1: carries of an addition on paper."""
    by_hand = [
        ((123, 321), 0), ((5, 5), 1), ((999, 1), 3), ((95, 7), 2), ((190, 20), 1), ((0, 0), 0), ((555, 455), 3),
        ((15, 95), 2), ((1, 9999), 4),
    ]  # fmt: skip
    mistakes: Mistakes = {
        "the carry of the place before is forgotten": lambda a, b: sum(
            x + y >= 10 for x, y in zip(*places(a, b), strict=True)
        ),
        "this compares digits, and where 9 and a carry are added the digit stays as it was": lambda a, b: sum(
            s < x for s, x in zip(*places(a + b, a), strict=True)
        ),
        "each carry lowers the sum of the digits by 9, so divide by 9": lambda a, b: (
            digit_sum(a) + digit_sum(b) - digit_sum(a + b)
        ),
        "this stops where the shorter number ends, and a carry goes on": lambda a, b: sum(
            a % 10**k + b % 10**k >= 10**k for k in range(1, min(len(str(a)), len(str(b))) + 1)
        ),
        "the first place can carry, too": lambda a, b: sum(
            a % 10**k + b % 10**k >= 10**k for k in range(1, max(len(str(a)), len(str(b))))
        ),
        "this says whether there is a carry, and should say how many": lambda a, b: int(
            digit_sum(a) + digit_sum(b) > digit_sum(a + b)
        ),
        "this counts the places that the sum has more": lambda a, b: len(str(a + b)) - max(len(str(a)), len(str(b))),
    }
    return check(function, "count_carries", "addition", by_hand, random_summands, mistakes)


def places(a: int, b: int) -> tuple[list[int], list[int]]:
    """The digits of both numbers from the units on, with zeros before the shorter one."""
    width = max(len(str(a)), len(str(b)))
    first, second = ([int(digit) for digit in reversed(str(x).zfill(width))] for x in (a, b))
    return first, second


def digit_sum(number: int) -> int:
    """Of 957 it is 21."""
    return sum(map(int, str(number)))


def random_summands(i: int) -> tuple[int, int]:
    """Two numbers of one to four digits."""
    rng = random.Random(i)
    return rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(10 ** rng.randint(1, 4))


def check_digit_accuracy_reward(function: Callable) -> Callable:
    """Exercise 2: the share of right digits."""
    by_hand = [
        (("957[EOS]", "957"), 1.0), (("960[EOS]", "957"), 1 / 3), (("95[EOS]", "957"), 2 / 3),
        (("9570[EOS][PAD]", "957"), 3 / 4), (("[EOS]", "957"), 0.0), (("", "957"), 0.0),
        (("9[PAD]57[EOS]", "957"), 0.0), (("0[EOS]", "0"), 1.0), (("957", "957"), 0.0),
        (("907[EOS]", "957"), 2 / 3), (("121[EOS]", "112"), 1 / 3),
    ]  # fmt: skip
    mistakes: Mistakes = {
        "digits count only at their own place, and this asks whether they occur anywhere": lambda output, answer: (
            len(set(digits(output)) & set(answer)) / max(len(digits(output)), len(answer))
        ),
        "digits count only at their own place, and this counts them anywhere": lambda output, answer: (
            (Counter(digits(output)) & Counter(answer)).total() / max(len(digits(output)), len(answer))
        ),
        "digits count only at their own place, and this looks for each in the answer": lambda output, answer: (
            sum(x in answer for x in digits(output)) / max(len(digits(output)), len(answer))
        ),
        "right digits after a wrong one count, too, and this stops at the first wrong one": lambda output, answer: (
            common_prefix(digits(output), answer) / max(len(digits(output)), len(answer))
        ),
        "places are counted from the left, and this counts from the right": lambda output, answer: (
            matches(digits(output)[::-1], answer[::-1]) / max(len(digits(output)), len(answer))
        ),
        "digits too many cost, too: divide by the length of the longer number": lambda output, answer: (
            matches(digits(output), answer) / len(answer)
        ),
        "missing digits cost, too: divide by the length of the longer number": lambda output, answer: (
            matches(digits(output), answer) / max(1, len(digits(output)))
        ),
        "the minimum where the maximum belongs": lambda output, answer: (
            matches(digits(output), answer) / max(1, min(len(digits(output)), len(answer)))
        ),
        "a text that is no answer earns nothing: use read_answer first": lambda output, answer: (
            matches(output, answer) / max(len(re.sub(r"\[.*", "", output)), len(answer))
        ),
        "a text that is no answer earns nothing, and the [EOS] is no digit: use read_answer first": (
            lambda output, answer: matches(output, answer) / max(len(output), len(answer))
        ),
        "an answer without [EOS] has no end and earns nothing": lambda output, answer: (
            matches(unended(output), answer) / max(len(unended(output)), len(answer))
        ),
        "this is the reward for the exact answer": lambda output, answer: float(digits(output) == answer),
        "a sum where a share belongs": lambda output, answer: matches(digits(output), answer),
    }
    return check(function, "digit_accuracy_reward", "addition", by_hand, random_text, mistakes)


def digits(output: str) -> str:
    """The answer in a text, as `read_answer` finds it."""
    return book_function("read_answer", "addition")(output)


def unended(output: str) -> str:
    """The answer in a text, also where it has no end."""
    return digits(output) or digits(re.sub(r"(\[PAD\])*$", "[EOS]", output, count=1))


def matches(a: str, b: str) -> int:
    """In how many places, from the left, two texts have the same letter."""
    return sum(x == y for x, y in zip(a, b, strict=False))


def common_prefix(a: str, b: str) -> int:
    """How long two texts are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def random_text(i: int) -> tuple[str, str]:
    """A text whose answer is more or less the right one, and the right one."""
    rng = random.Random(i)
    answer = str(rng.choice((rng.randrange(1999), rng.randrange(100), 0)))
    given = list(answer)
    if rng.random() < 0.5:
        given[rng.randrange(len(given))] = str(rng.randrange(10))
    for _ in range(rng.randint(0, 2)):
        given.insert(rng.randint(0, len(given)), str(rng.randrange(10)))
        given.pop(rng.randrange(len(given)) if rng.random() < 0.7 else 0)
    if rng.random() < 0.3:
        given.reverse()
    if rng.random() < 0.3:
        given.append(answer[-1])
    text = "".join(given)[: rng.randint(1, 5)]
    return text + rng.choice(("[EOS]", "[EOS]", "[EOS]", "[EOS][PAD]", "+1[EOS]", "[PAD]", "")), answer


def check_distance_accuracy_reward(function: Callable) -> Callable:
    """Exercise 3: closeness of two numbers."""
    by_hand = [
        (("957[EOS]", "957"), 1.0), (("960[EOS]", "957"), 1 - 3 / 960), (("100[EOS]", "1000"), 0.1),
        (("[EOS]", "957"), 0.0), (("", "957"), 0.0), (("1+2[EOS]", "3"), 0.0), (("18[PAD]2", "182"), 0.0),
        (("0957[EOS]", "957"), 0.0), (("0[EOS]", "0"), 1.0), (("0[EOS]", "7"), 0.0), (("7[EOS]", "0"), 0.0),
        (("957[PAD]", "957"), 0.0),
    ]  # fmt: skip
    mistakes: Mistakes = {
        "the distance is divided by the answer, and should be by the larger number": (
            with_divisor(lambda given, right: right)
        ),
        "the distance is divided by the answer, and should be by the larger number (0 is only its floor)": (
            lambda output, answer: max(0.0, with_divisor(lambda given, right: max(1, right))(output, answer))
        ),
        "the distance is divided by the text's number, and should be by the larger one": (
            with_divisor(lambda given, right: given)
        ),
        "the minimum where the maximum belongs": with_divisor(min),
        "the distance is divided by the sum, and should be by the larger number": (
            with_divisor(lambda given, right: given + right)
        ),
        "0 against 0 is exact, and this divides by zero": with_divisor(max, zeros=False),
        "a number with a leading zero earns nothing": with_divisor(max, leading=True),
        "this is the distance, and 1 minus the distance is asked for": lambda output, answer: (
            1 - with_divisor(max)(output, answer)
        ),
        "this is the distance, and 1 minus the distance is asked for; no answer earns 0": lambda output, answer: (
            1 - with_divisor(max)(output, answer) if digits(output) else 0.0
        ),
        "this is the reward for the exact answer": lambda output, answer: float(digits(output) == answer),
        "an answer without [EOS] has no end and earns nothing": lambda output, answer: (
            with_divisor(max)(unended(output) + "[EOS]", answer)
        ),
    }
    return check(function, "distance_accuracy_reward", "addition", by_hand, random_text, mistakes)


def with_divisor(divisor: Callable[[int, int], int], leading: bool = False, zeros: bool = True) -> Callable:
    """The distance reward with a divisor of its own; `leading` zeros are let through, or 0 against 0 is not treated."""

    def reward(output: str, answer: str) -> float:
        given, right = digits(output), int(answer)
        if not given or (given != str(int(given)) and not leading):
            return 0.0
        if int(given) == right and (zeros or right):
            return 1.0
        return 1 - abs(int(given) - right) / divisor(int(given), right)

    return reward


# --- exercises/addition_rl.ipynb ------------------------------------------------------------------


def group_rewards(i: int) -> tuple[torch.Tensor]:
    """Rewards, (B, G), the first group of which may be equal."""
    rewards = torch.tensor([0.0, 0.25, 0.5, 1.0])[torch.randint(0, 4, (1 + i % 4, 2 + i % 5))]
    rewards[0] = rewards[0, 0] if i % 3 == 0 else rewards[0]
    return (rewards,)


def check_grpo_advantages(function: Callable) -> Callable:
    """Exercise 1: rewards, standardised within their group."""
    half = 0.5**0.5
    by_hand = [
        ((torch.tensor([[1.0, 0.0, 0.0, 0.0]]),), torch.tensor([[1.5, -0.5, -0.5, -0.5]])),
        ((torch.tensor([[1.0, 0.0], [0.5, 0.5]]),), torch.tensor([[half, -half], [0.0, 0.0]])),
    ]

    def standardised(r, dim=1, mean=True, std=True, unbiased=True, eps=1e-4):
        dims = (0, 1) if dim is None else (dim,)
        centred = r - r.mean(dim=dims, keepdim=True) if mean else r
        return centred / (r.std(dim=dims, keepdim=True, unbiased=unbiased) + eps) if std else centred

    mistakes: Mistakes = {
        "n instead of n - 1 in the standard deviation": lambda r: standardised(r, unbiased=False),
        "a group of equal rewards divides 0 by 0: add a little to the standard deviation": lambda r: (
            standardised(r, eps=0.0)
        ),
        "you forgot to divide by the standard deviation": lambda r: standardised(r, std=False),
        "you forgot to subtract the mean": lambda r: standardised(r, mean=False),
        "this is the whole batch's mean and standard deviation, and each group has its own": lambda r: (
            standardised(r, dim=None)
        ),
        "this goes down the columns, and a group is a row": lambda r: standardised(r, dim=0),
        "the variance where the standard deviation belongs": lambda r: (
            standardised(r, std=False) / (r.var(dim=1, keepdim=True) + 1e-4)
        ),
        "the maximum where the mean belongs": lambda r: (
            (r - r.amax(dim=1, keepdim=True)) / (r.std(dim=1, keepdim=True) + 1e-4)
        ),
        SIGN: lambda r: -standardised(r),
    }
    return check(function, "grpo_advantages", "addition_rl", by_hand, group_rewards, mistakes, tolerance=2e-3)


def random_logits(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, (N, T, V), tokens and mask, (N, T)."""
    rollouts, width, size = 1 + i % 4, 1 + i % 5, 3 + i % 4
    logits, tokens = 2 * torch.randn(rollouts, width, size), torch.randint(0, size, (rollouts, width))
    return logits, tokens, random_mask(rollouts, width)


def random_mask(rollouts: int, width: int) -> torch.Tensor:
    """(N, T): one to T ones in each row, then zeros."""
    lengths = torch.randint(1, width + 1, (rollouts, 1))
    return (torch.arange(width) < lengths).float()


def check_selected_logps(function: Callable) -> Callable:
    """Exercise 2: log-probabilities of the sampled tokens, 0 at padding."""
    logits = torch.tensor([[[0.0, 0.0], [0.9, 0.1]], [[0.2, 0.8], [0.5, 0.5]]])
    logits[0, 1], logits[1, 0] = logits[0, 1].log(), logits[1, 0].log()
    arguments = logits, torch.tensor([[0, 0], [1, 0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    by_hand = [(arguments, torch.tensor([[0.5, 0.9], [0.8, 1.0]]).log())]

    def gathered(values, tokens, mask):
        return values.gather(-1, tokens[..., None]).squeeze(-1) * mask

    mistakes: Mistakes = {
        NO_MASK: lambda x, t, m: gathered(torch.log_softmax(x, -1), t, torch.ones_like(m)),
        "these are logits, and log_softmax turns them into log-probabilities": gathered,
        "these are probabilities, and their logarithms are asked for": lambda x, t, m: gathered(x.softmax(-1), t, m),
        "the softmax runs over the places, and should run over the vocabulary": lambda x, t, m: (
            gathered(torch.log_softmax(x, 1), t, m)
        ),
        "the softmax runs over the rollouts, and should run over the vocabulary": lambda x, t, m: (
            gathered(torch.log_softmax(x, 0), t, m)
        ),
        "the sampled token counts, not the likeliest: gather at tokens": lambda x, t, m: (
            torch.log_softmax(x, -1).amax(dim=-1) * m
        ),
        "a mean over the vocabulary, and one token was sampled: gather at tokens": lambda x, t, m: (
            torch.log_softmax(x, -1).mean(dim=-1) * m
        ),
        "the tokens are shifted by one place, and the logits come shifted already": lambda x, t, m: (
            gathered(torch.log_softmax(x, -1), t.roll(-1, 1), m)
        ),
        "the tokens are shifted by one place, and the logits come shifted already (to the right)": lambda x, t, m: (
            gathered(torch.log_softmax(x, -1), t.roll(1, 1), m)
        ),
        "the sign is reversed": lambda x, t, m: -gathered(torch.log_softmax(x, -1), t, m),
        "each rollout's sum, and one number for each token is asked for": lambda x, t, m: (
            gathered(torch.log_softmax(x, -1), t, m).sum(dim=1)
        ),
    }
    return check(function, "selected_logps", "addition_rl", by_hand, random_logits, mistakes, learned=(0,))


def random_update(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logps, old_logps, advantages and mask of N rollouts of up to T tokens; what stands at padding is noise."""
    rollouts, width = 1 + i % 5, 1 + i % 4
    old = -3 * torch.rand(rollouts, width)
    logps = old + (0.4 * torch.randn(rollouts, width) if i % 3 else 0.0)
    return logps, old, torch.randn(rollouts), random_mask(rollouts, width)


UPDATE = (
    torch.tensor([[-1.0, -2.0, -9.0], [-5.0, -5.0, -4.0]]),
    torch.tensor([[-1.0, -2.5, -3.0], [-5.0, -4.5, -4.5]]),
    torch.tensor([1.5, -0.5]),
    torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
)


def check_vanilla_loss(function: Callable) -> Callable:
    """Exercise 3: the policy gradient."""

    def loss(x, old, a, m):
        return -(a[:, None] * x * m).sum() / len(x)

    mistakes: Mistakes = of_a_loss(loss) | {
        "each rollout's tokens are averaged, and should be added up": lambda x, old, a, m: (
            -(a * (x * m).sum(1) / m.sum(1)).mean()
        ),
        "the ratio is the next exercise: here the log-probability itself counts": lambda x, old, a, m: (
            -(a[:, None] * torch.exp(x - old) * m).sum() / len(x)
        ),
        "these are the old log-probabilities, and nothing is learned from them": lambda x, old, a, m: (
            loss(old, x, a, m)
        ),
        "a probability where its logarithm belongs": lambda x, old, a, m: loss(x.exp(), old, a, m),
        "you forgot the advantages": lambda x, old, a, m: loss(x, old, torch.ones_like(a), m),
        "the size of the advantages counts, and not only their sign": lambda x, old, a, m: loss(x, old, a.sign(), m),
        "good and bad count alike: the advantages have lost their sign": lambda x, old, a, m: loss(x, old, a.abs(), m),
    }
    by_hand = [(UPDATE, torch.tensor((1.5 * 3 - 0.5 * 14) / 2))]
    return check(function, "vanilla_loss", "addition_rl", by_hand, random_update, mistakes, learned=(0,))


def of_a_loss(loss: Callable) -> dict[str, Callable]:
    """Mistakes in any loss of logps, old_logps, advantages and mask that is a mean over rollouts of sums of tokens."""
    return {
        NO_MASK: lambda x, old, a, m: loss(x, old, a, torch.ones_like(m)),
        SIGN: lambda x, old, a, m: -loss(x, old, a, m),
        SUM: lambda x, old, a, m: loss(x, old, a, m) * len(x),
        "divided by all tokens, and should be by the number of rollouts": lambda x, old, a, m: (
            loss(x, old, a, m) * len(x) / m.sum()
        ),
        "a mean over the whole table, padding included, where sums of tokens belong": lambda x, old, a, m: (
            loss(x, old, a, m) / m.shape[1]
        ),
        "you forgot the mask, and averaged over the whole table": lambda x, old, a, m: (
            loss(x, old, a, torch.ones_like(m)) / m.shape[1]
        ),
    }


def check_ppo_loss(function: Callable) -> Callable:
    """Exercise 4: PPO's clipped loss."""

    def loss(x, old, a, m, low=0.2, high=0.2, bound=torch.minimum):
        ratio, a = torch.exp(x - old), a[:, None]
        return -(bound(ratio * a, ratio.clamp(1 - low, 1 + high) * a) * m).sum() / len(x)

    def one_sided(x, old, a, m):
        ratio = torch.exp(x - old)
        return -(torch.minimum(ratio, ratio.clamp(0.8, 1.2)) * a[:, None] * m).sum() / len(x)

    mistakes: Mistakes = of_a_loss(loss) | {
        "the maximum where the minimum belongs": lambda x, old, a, m: loss(x, old, a, m, bound=torch.maximum),
        "the minimum is forgotten: a token that moved the wrong way must still be pushed back": (
            lambda x, old, a, m: loss(x, old, a, m, bound=lambda free, clipped: clipped)
        ),
        "nothing is clipped": lambda x, old, a, m: loss(x, old, a, m, bound=lambda free, clipped: free),
        "the minimum of the ratios is taken before the advantages decide which one is smaller": one_sided,
        "the ratio is upside down": lambda x, old, a, m: loss(old, x, a, m),
        "the ratio is the exponential of the difference of log-probabilities": lambda x, old, a, m: (
            -(torch.minimum(x / old * a[:, None], (x / old).clamp(0.8, 1.2) * a[:, None]) * m).sum() / len(x)
        ),
        "the exponential is forgotten": lambda x, old, a, m: (
            -(torch.minimum((x - old) * a[:, None], (x - old).clamp(0.8, 1.2) * a[:, None]) * m).sum() / len(x)
        ),
        "the whole answer has one ratio here, and each token has its own": lambda x, old, a, m: loss(
            ((x - old) * m).sum(1, keepdim=True).expand_as(x), torch.zeros_like(x), a, m
        ),
        "each rollout's tokens are averaged, and should be added up": lambda x, old, a, m: (
            loss(x, old, a / m.sum(1), m)
        ),
        "this is the plain policy gradient, without a ratio": lambda x, old, a, m: -(a[:, None] * x * m).sum() / len(x),
        "you forgot the advantages": lambda x, old, a, m: loss(x, old, torch.ones_like(a), m),
    }
    # Ratios 1 and e^0.5, clipped; then 1, e^-0.5, clipped, and e^0.5, which is not: it went up although it is bad.
    by_hand = [(UPDATE, torch.tensor(-(1.5 * (1 + 1.2) - 0.5 * (1 + 0.8 + math.exp(0.5))) / 2))]
    return check(function, "ppo_loss", "addition_rl", by_hand, random_update, mistakes, learned=(0,))


def check_leave_one_out_baseline(function: Callable) -> Callable:
    """Exercise 5: what the others of a group earned."""
    by_hand = [
        ((torch.tensor([[1.0, 0.0, 0.0, 0.0]]),), torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3]])),
        ((torch.tensor([[1.0, 0.0], [0.5, 0.25]]),), torch.tensor([[0.0, 1.0], [0.25, 0.5]])),
        ((torch.ones(2, 3),), torch.ones(2, 3)),
    ]

    def others(r):
        return (r.sum(dim=1, keepdim=True) - r) / (r.shape[1] - 1)

    mistakes: Mistakes = {
        "n instead of n - 1": lambda r: (r.sum(dim=1, keepdim=True) - r) / r.shape[1],
        "the rollout's own reward is part of this mean": lambda r: r.mean(dim=1, keepdim=True).expand_as(r),
        "the rollout's own reward is part of this sum": lambda r: (
            (r.sum(dim=1, keepdim=True) / (r.shape[1] - 1)).expand_as(r)
        ),
        "divide the difference, and not the sum alone": lambda r: r.sum(dim=1, keepdim=True) / (r.shape[1] - 1) - r,
        SUM: lambda r: r.sum(dim=1, keepdim=True) - r,
        "this is the advantage, and the baseline is asked for": lambda r: r - others(r),
        "these are the others of the whole batch, and each group has its own": lambda r: (
            (r.sum() - r) / (r.numel() - 1)
        ),
        "this goes down the columns, and a group is a row": lambda r: (
            (r.sum(dim=0, keepdim=True) - r) / max(1, r.shape[0] - 1)
        ),
        "the maximum where the mean belongs": lambda r: r.amax(dim=1, keepdim=True).expand_as(r),
        "one number for each group, and each rollout has its own": lambda r: r.mean(dim=1, keepdim=True),
    }
    return check(function, "leave_one_out_baseline", "addition_rl", by_hand, group_rewards, mistakes)


def check_remax_advantages(function: Callable) -> Callable:
    """Exercise 6: rewards, compared with the greedy answer's."""
    by_hand = [
        (
            (torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([1.0, 0.0])),
            torch.tensor([[0.0, -1.0, -1.0], [0.0, 0.0, 1.0]]),
        ),
        (
            (torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1.0, 0.25])),
            torch.tensor([[0.0, -1.0], [0.25, 0.25]]),
        ),
    ]
    mistakes: Mistakes = {
        "the greedy rewards are laid along the rollouts, and should go along the groups": lambda r, g: r - g,
        "the best sampled answer where the greedy one belongs": lambda r, g: r - r.amax(dim=1, keepdim=True),
        "the group's mean where the greedy answer's reward belongs": lambda r, g: r - r.mean(dim=1, keepdim=True),
        "you forgot the greedy answers": lambda r, g: r,
        "the whole batch's greedy mean, and each group has its own": lambda r, g: r - g.mean(),
        "nothing is divided here": lambda r, g: (r - g[:, None]) / (r.std(dim=1, keepdim=True) + 1e-4),
        "the minimum of the rewards where the greedy answer's belongs": lambda r, g: r - r.amin(dim=1, keepdim=True),
        "only gains are left, and losses teach, too": lambda r, g: (r - g[:, None]).clamp(min=0),
        SIGN: lambda r, g: g[:, None] - r,
    }

    def draw(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        (rewards,) = group_rewards(i)
        return rewards, torch.tensor([0.0, 0.5, 1.0])[torch.randint(0, 3, (len(rewards),))]

    return check(function, "remax_advantages", "addition_rl", by_hand, draw, mistakes)


def check_raft_loss(function: Callable) -> Callable:
    """Exercise 7: cross-entropy on the rewarded rollouts."""
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-5.0, -5.0, -5.0], [-0.5, -9.0, -9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    by_hand = [
        ((logps, mask, torch.tensor([1.0, 0.0, 1.0])), torch.tensor(3.5 / 3)),
        ((logps, mask, torch.tensor([0.0, 1.0, 0.0])), torch.tensor(5.0)),
        ((logps, mask, torch.tensor([0.5, 0.0, 1.0])), torch.tensor(3.5 / 3)),
        ((logps, mask, torch.zeros(3)), torch.tensor(0.0)),
    ]

    def loss(x, m, kept, count=None):
        count = (m * kept[:, None]).sum() if count is None else count
        return -(x * m * kept[:, None]).sum() / torch.as_tensor(count).clamp(min=1e-9)

    def kept(r):
        return (r > 0).float()

    weighted = "the rewards are weights here, and a rollout is kept or thrown away"
    mistakes: Mistakes = {
        weighted: lambda x, m, r: loss(x, m, r),
        f"{weighted} (divided by the tokens that are kept)": lambda x, m, r: (
            loss(x, m, r, (m * kept(r)[:, None]).sum())
        ),
        f"{weighted} (divided by all tokens)": lambda x, m, r: loss(x, m, r, m.sum()),
        "a reward below 1 is a reward, too: keep all rollouts above 0": lambda x, m, r: loss(x, m, (r == 1).float()),
        "a reward up to one half is a reward, too: keep all rollouts above 0": lambda x, m, r: (
            loss(x, m, (r > 0.5).float())
        ),
        "only the best rollouts are kept, and all above 0 should be": lambda x, m, r: (
            loss(x, m, ((r == r.max()) & (r > 0)).float())
        ),
        NO_MASK: lambda x, m, r: loss(x, torch.ones_like(m), kept(r)),
        "you forgot the mask in the sum": lambda x, m, r: (
            loss(x, torch.ones_like(m), kept(r), (m * kept(r)[:, None]).sum())
        ),
        SUM: lambda x, m, r: loss(x, m, kept(r), 1.0),
        "divided by all tokens, and should be by those that are kept": lambda x, m, r: loss(x, m, kept(r), m.sum()),
        "divided by rollouts, and should be by tokens": lambda x, m, r: loss(x, m, kept(r), kept(r).sum()),
        "a mean of means, and all kept tokens should count alike": lambda x, m, r: (
            loss(x / m.sum(1, keepdim=True), m, kept(r), kept(r).sum())
        ),
        "where no rollout is rewarded, this divides by zero": lambda x, m, r: (
            -(x * m * kept(r)[:, None]).sum() / (m * kept(r)[:, None]).sum()
        ),
        "nothing is thrown away": lambda x, m, r: loss(x, m, torch.ones_like(r)),
        "the wrong answers are kept, and the rewarded ones thrown away": lambda x, m, r: loss(x, m, 1 - kept(r)),
        "a probability where its logarithm belongs": lambda x, m, r: loss(x.exp(), m, kept(r)),
        SIGN: lambda x, m, r: -loss(x, m, kept(r)),
    }

    def draw(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logps, _, _, mask = random_update(i)
        return logps, mask, torch.tensor([0.0, 0.2, 0.5, 1.0])[torch.randint(0, 4, (len(logps),))]

    return check(function, "raft_loss", "addition_rl", by_hand, draw, mistakes, learned=(0,))


def check_own_loss(function: Callable) -> Callable:
    """Exercise 8, a method of the reader's own: nothing is right or wrong but that it can be trained with."""
    name, module = "own_loss", "addition_rl"
    try:
        problem = find_untrainable(function)
    except NotImplementedError:
        problem = f"{name} is not written yet."
    except (Exception, SystemExit) as error:
        problem = f"{name} raised {type(error).__name__} ({error})."
    if problem is not None:
        return with_the_book(" ".join(problem.split()), name, module)
    print(f"{name} can be trained with: a finite number, whose gradient comes from the answers' tokens alone.")
    return function


def find_untrainable(function: Callable) -> str | None:
    """Why nothing can be learned with a loss of logps, old_logps, advantages and mask, or None."""
    moved = False
    for i in range(10):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            logps, old, advantages, mask = random_update(i)
        logps.requires_grad_()
        loss = function(logps.clone(), old, advantages, mask)
        if not isinstance(loss, torch.Tensor) or loss.shape != ():
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else ""
            return f"own_loss returns a {type(loss).__name__}{shape}, and should return one number as a tensor."
        if not loss.requires_grad:
            return f"own_loss has no gradient: {DETACHED}."
        (gradient,) = torch.autograd.grad(loss, logps, allow_unused=True)
        gradient = torch.zeros_like(logps) if gradient is None else gradient
        if not loss.isfinite() or not gradient.isfinite().all():
            return f"own_loss is {loss.item():g} in one case, or its gradient is: nothing can be learned from that."
        if (gradient * (1 - mask)).any():
            return f"own_loss is trainable, but {NO_MASK}."
        moved = moved or bool(gradient.any())
    return None if moved else f"own_loss has no gradient: {DETACHED}."


# --- exercises/addition_dpo.ipynb -----------------------------------------------------------------


def check_choose_pairs(function: Callable) -> Callable:
    """Exercise 1: rows of best and worst."""
    none = torch.tensor([], dtype=torch.long)
    by_hand = [
        ((torch.tensor([[0.2, 1.0, 0.0], [0.0, 0.5, 1.0]]),), (torch.tensor([1, 5]), torch.tensor([2, 3]))),
        ((torch.tensor([[1.0, 1.0], [0.0, 1.0]]),), (torch.tensor([3]), torch.tensor([2]))),
        ((torch.tensor([[1.0, 0.0, 1.0, 0.0]]),), (torch.tensor([0]), torch.tensor([1]))),
        ((torch.zeros(2, 3),), (none, none)),
        ((torch.full((1, 7), 0.1),), (none, none)),
    ]

    def pairs(r, keep=None, first=True, step=None):
        size, groups = r.shape[1], torch.arange(len(r))
        flipped = r if first else r.flip(1)
        best, worst = (flipped.sort(dim=1, descending=d, stable=True).indices[:, 0] for d in (True, False))
        best, worst = (best, worst) if first else (size - 1 - best, size - 1 - worst)
        keep = (r != r[:, :1]).any(dim=1) if keep is None else keep
        start = groups * (size if step is None else step)
        return (start + best)[keep], (start + worst)[keep]

    mistakes: Mistakes = {
        "groups of equal rewards hold no preference and are to be dropped": lambda r: pairs(r, r[:, 0] > -1),
        "equal rewards have a standard deviation that rounding lifts above zero": lambda r: pairs(r, r.std(dim=1) > 0),
        "best and worst are exchanged": lambda r: pairs(r)[::-1],
        "the rows are counted within each group, and should be through all of them": lambda r: pairs(r, step=0),
        "group i begins at row i * G, not at i * B": lambda r: pairs(r, step=len(r)),
        "of several equally good or bad ones the first is asked for, and this takes the last": lambda r: (
            pairs(r, first=False)
        ),
        "a group without any right answer can hold a preference, too": lambda r: pairs(
            r, (r != r[:, :1]).any(dim=1) & (r == 1).any(dim=1)
        ),
        "groups are kept that have a reward, and should be that have a difference": lambda r: pairs(
            r, r.sum(dim=1) > 0
        ),
    }
    return check(function, "choose_pairs", "addition_dpo", by_hand, group_rewards, mistakes)


PAIRS = tuple(torch.tensor(row) for row in ([-1.0, -3.0], [-2.0, -1.0], [-2.0, -3.0], [-2.0, -3.0]))


def random_pairs(i: int) -> tuple[torch.Tensor, ...]:
    """Summed log-probs, (N,), of chosen and rejected under policy and reference, and beta."""
    return (*(-6 * torch.rand(4, 1 + i % 6)), 0.1 + torch.rand(()).item())


def of_pairs(loss: Callable) -> dict[str, Callable]:
    """Mistakes in any loss of the margin and beta."""

    def of(c, r, rc, rr):
        return (c - rc) - (r - rr)

    return {
        "winner and loser are exchanged": lambda c, r, rc, rr, b: loss(-of(c, r, rc, rr), b).mean(),
        SUM: lambda c, r, rc, rr, b: loss(of(c, r, rc, rr), b).sum(),
        "you forgot the reference": lambda c, r, rc, rr, b: loss(c - r, b).mean(),
        "you forgot the policy's side, and only the reference is compared": lambda c, r, rc, rr, b: (
            loss(rc - rr, b).mean()
        ),
        "the rejected answers are added, and should be subtracted": lambda c, r, rc, rr, b: (
            loss(c - rc + r - rr, b).mean()
        ),
        "you forgot the rejected answers": lambda c, r, rc, rr, b: loss(c - rc, b).mean(),
        "the reference is added, and should be subtracted": lambda c, r, rc, rr, b: loss(c + rc - r - rr, b).mean(),
        "the mean is taken of the margins, and should be of the losses": lambda c, r, rc, rr, b: (
            loss(of(c, r, rc, rr).mean(), b)
        ),
        "the default beta is used, and not the one that is given": lambda c, r, rc, rr, b: (
            loss(of(c, r, rc, rr), 0.1).mean()
        ),
        "one loss for each pair, and their mean is asked for": lambda c, r, rc, rr, b: loss(of(c, r, rc, rr), b),
        "the sign is reversed, so that the margin shrinks": lambda c, r, rc, rr, b: -loss(of(c, r, rc, rr), b).mean(),
    }


def of_margin(loss: Callable) -> Callable:
    """The mean of a loss of the margin and beta."""
    return lambda c, r, rc, rr, b: loss((c - rc) - (r - rr), b).mean()


def check_compute_loss_dpo(function: Callable) -> Callable:
    """Exercise 2: minus the log-sigmoid of the scaled margin, and its gradient."""
    # Margins 1 and -2, at beta 0.5: 0.4741 and 1.3133.
    far = tuple(torch.tensor([x]) for x in (-2000.0, 0.0, 0.0, 0.0))
    by_hand = [
        ((*PAIRS, 0.5), torch.tensor(0.893669)),
        ((PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1], 0.1), torch.tensor(0.693147)),
        ((*far, 1.0), torch.tensor(2000.0)),
    ]
    mistakes: Mistakes = of_pairs(lambda h, b: -F.logsigmoid(b * h)) | {
        "you forgot beta": of_margin(lambda h, b: -F.logsigmoid(h)),
        "beta belongs inside of the sigmoid": of_margin(lambda h, b: -b * F.logsigmoid(h)),
        "the margin is divided by beta, and should be multiplied": of_margin(lambda h, b: -F.logsigmoid(h / b)),
        "log(sigmoid(x)) is minus infinity for very negative x: use F.logsigmoid": of_margin(
            lambda h, b: -torch.log(torch.sigmoid(b * h))
        ),
        "log(sigmoid(x)) is cut off for very negative x: use F.logsigmoid": of_margin(
            lambda h, b: -torch.log(torch.sigmoid(b * h) + 1e-8)
        ),
        "you forgot the logarithm": of_margin(lambda h, b: -torch.sigmoid(b * h)),
        "this is a hinge, and DPO's loss is smooth": of_margin(lambda h, b: torch.relu(1 - b * h)),
        "this is twice the loss": of_margin(lambda h, b: -2 * F.logsigmoid(b * h)),
    }
    return check(function, "compute_loss_dpo", "addition_dpo", by_hand, random_pairs, mistakes, learned=(0, 1))


def check_compute_loss_ipo(function: Callable) -> Callable:
    """Exercise 3: the squared distance of the margin from its target, and its gradient."""
    by_hand = [
        ((*PAIRS, 0.5), torch.tensor(4.5)),
        ((PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1], 0.1), torch.tensor(25.0)),
    ]
    exchanged = "winner and loser are exchanged"
    general = of_pairs(lambda h, b: (h - 1 / (2 * b)) ** 2)
    mistakes: Mistakes = {why: wrong for why, wrong in general.items() if why != exchanged} | {
        f"{exchanged}, or the target is added where it should be subtracted": general[exchanged],
        "this is a hinge: a margin beyond its target costs, too": of_margin(
            lambda h, b: torch.relu(1 / (2 * b) - h) ** 2
        ),
        "this is a hinge, and not squared": of_margin(lambda h, b: torch.relu(1 / (2 * b) - h)),
        "the target is 1 / (2 beta), and this is 1 / beta": of_margin(lambda h, b: (h - 1 / b) ** 2),
        "the target is 1 / (2 beta), and this is beta / 2": of_margin(lambda h, b: (h - b / 2) ** 2),
        "the target is 1 / (2 beta), and this is 2 / beta": of_margin(lambda h, b: (h - 2 / b) ** 2),
        "the target is 1 / (2 beta), and this is 1": of_margin(lambda h, b: (h - 1) ** 2),
        "the margin is not multiplied by beta here": of_margin(lambda h, b: (b * h - 1 / 2) ** 2),
        "the distance is to be squared": of_margin(lambda h, b: (h - 1 / (2 * b)).abs()),
        "this is the root of the loss": lambda c, r, rc, rr, b: (
            (((c - rc) - (r - rr) - 1 / (2 * b)) ** 2).mean().sqrt()
        ),
        "one half of the loss": of_margin(lambda h, b: (h - 1 / (2 * b)) ** 2 / 2),
        "this is DPO's loss": of_margin(lambda h, b: -F.logsigmoid(b * h)),
    }
    return check(function, "compute_loss_ipo", "addition_dpo", by_hand, random_pairs, mistakes, learned=(0, 1))
