"""Wrong and right solutions of every exercise: each check names the mistake of the one and accepts the other.

`python tests/test_mutants.py` prints how many there are of each kind.
"""

import math
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from rfs_utils.ch06 import reward_rlvr
from rfs_utils.ch07 import reward_format
from rfs_utils.exercises import addition, addition_checks, addition_dpo, addition_rl, checks, ex06, ex07
from rfs_utils.exercises.addition import read_answer
from rfs_utils.grading import extract_final_candidate, grade_answer

HELPERS = {"check_function", "check_text", "check"}  # of the modules of checks; they belong to no exercise
CHECKS = {
    name.removeprefix("check_"): check
    for module in (checks, addition_checks)
    for name, check in vars(module).items()
    if name.startswith("check") and callable(check) and name not in HELPERS
}
MODULES = (ex06, ex07, addition, addition_rl, addition_dpo)
BOOK = {name: next(getattr(module, name) for module in MODULES if hasattr(module, name)) for name in CHECKS}
DETACHED = "this part is detached, so nothing is learned from it"


def detaching(name, *places):
    """The book's function, cut off from the arguments at some places."""
    return lambda *given: BOOK[name](*(x.detach() if i in places else x for i, x in enumerate(given)))


# --- chapter 6 ------------------------------------------------------------------------------------


def boxed(text):
    return extract_final_candidate(text, fallback=None)


def number(text):
    return extract_final_candidate(text, fallback="number_then_full")


def partial_reward_by_text(text, truth):
    if boxed(text):
        return 1.0 if boxed(text) == truth else 0.0
    return 0.5 if number(text) == truth else 0.0


def partial_reward_of_either(text, truth):
    if boxed(text) and grade_answer(boxed(text), truth):
        return 1.0
    return 0.5 * grade_answer(number(text.replace("boxed", "")), truth)


def partial_reward_step_by_step(text, truth):
    found = boxed(text)
    if found is None or found == "":
        found, worth = number(text), 0.5
    else:
        worth = 1.0
    return worth if grade_answer(found, truth) else 0.0


def pairs_of_a_list(rewards):
    chosen, rejected = [], []
    for i, row in enumerate(rewards.tolist()):
        if max(row) != min(row):
            chosen.append(i * len(row) + row.index(max(row)))
            rejected.append(i * len(row) + row.index(min(row)))
    return chosen, rejected


def carries_on_paper(a, b):
    total, carry, digits_a, digits_b = 0, 0, str(a)[::-1], str(b)[::-1]
    for k in range(max(len(digits_a), len(digits_b))):
        x = int(digits_a[k]) if k < len(digits_a) else 0
        y = int(digits_b[k]) if k < len(digits_b) else 0
        carry = (x + y + carry) // 10
        total += carry
    return total


def share_of_digits(count):
    def reward(output, answer):
        given = read_answer(output)
        return count(given, answer) / max(len(given), len(answer))

    return reward


def prefix(given, answer):
    length = 0
    while length < min(len(given), len(answer)) and given[length] == answer[length]:
        length += 1
    return length


def closeness(divide):
    def reward(output, answer):
        given = read_answer(output)
        if not given or (given[0] == "0" and len(given) > 1):
            return 0.0
        given, right = int(given), int(answer)
        return 1.0 if given == right else 1 - abs(given - right) / divide(given, right)

    return reward


# --- losses, written with loops -------------------------------------------------------------------


def raft_by_loops(logps, mask, rewards):
    kept = [row[on.bool()] for row, on, reward in zip(logps, mask, rewards, strict=True) if reward > 0]
    return -torch.cat(kept).mean() if kept else 0.0 * logps.sum()


def raft(keep, count):
    def loss(logps, mask, rewards):
        weights = mask * keep(rewards)[:, None]
        return -(logps * weights).sum() / count(mask, weights).clamp(min=1)

    return loss


def dpo_in_numpy_inside(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    assert math.isfinite(margin.detach().numpy().sum())  # looked at, and not learned from
    return F.softplus(-beta * margin).mean()


def ppo_by_cases(logps, old_logps, advantages, mask):
    ratio = (logps - old_logps).exp()
    gain = advantages.unsqueeze(1).expand_as(ratio)
    limit = torch.where(gain > 0, torch.tensor(1.2), torch.tensor(0.8))
    beyond = torch.where(gain > 0, ratio > limit, ratio < limit)
    objective = torch.where(beyond, limit * gain, ratio * gain)
    return -(objective * mask).sum(dim=1).mean()


def ppo(bound, ratio_of=lambda x, old: torch.exp(x - old), sum_up=lambda t, m: (t * m).sum(1).mean()):
    def loss(logps, old_logps, advantages, mask):
        ratio, gain = ratio_of(logps, old_logps), advantages[:, None]
        return -sum_up(bound(ratio * gain, ratio.clamp(0.8, 1.2) * gain), mask)

    return loss


def vanilla(sum_up, sign=-1):
    return lambda x, old, a, m: sign * sum_up(x * a[:, None], m)


def margin(c, r, rc, rr):
    return (c - rc) - (r - rr)


def picked(logits, tokens, of=lambda x: x.log_softmax(-1)):
    return torch.gather(of(logits), 2, tokens.unsqueeze(2))[:, :, 0]


def picked_one_by_one(logits, tokens, mask):
    rows = []
    for scores, ids, on in zip(logits, tokens, mask, strict=True):
        rows.append(torch.stack([s.log_softmax(0)[i] * o for s, i, o in zip(scores, ids, on, strict=True)]))
    return torch.stack(rows)


def standardised(rewards, std, eps=1e-4):
    return (rewards - rewards.mean(1, keepdim=True)) / (std(rewards) + eps)


def standardised_list(rewards):
    out = []
    for row in rewards.tolist():
        mean = sum(row) / len(row)
        std = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
        out.append([(x - mean) / (std + 1e-6) for x in row])
    return out


# --- the table: what is wrong with a solution, and the solution -----------------------------------

WRONG = {
    "partial_reward_rlvr": [
        ("without a box the right number earns nothing", lambda t, a: float(grade_answer(boxed(t), a))),
        ("the right answer in a box earns 0.5", lambda t, a: 0.5 * grade_answer(number(t), a)),
        ("where there is a box, it alone decides", partial_reward_of_either),
        ("compared as texts", partial_reward_by_text),
        ("even with a wrong number in it", lambda t, a: max(0.5 * bool(boxed(t)), partial_reward_step_by_step(t, a))),
        ("gave None; expected 1", lambda t, a: None),
    ],
    "groups_with_signal": [
        ("rounding lifts above zero", lambda r: r.std(dim=1) > 0),
        ("rounding moves", lambda r: (r - r.mean(dim=1, keepdim=True)).abs().sum(dim=1) > 0),
        ("not for a difference", lambda r: r.amax(1) > 0),
        ("one for each group", lambda r: (r != r[:, :1]).any()),
        ("the other way round", lambda r: r.amin(1) == r.amax(1)),
        ("expected [False, False, True", lambda r: r.std(dim=1)),
        ("across groups", lambda r: (r != r[0]).any(1)),
    ],
    "first_token_share": [
        ("should be divided", lambda x, ids, t: torch.softmax(x * t, 1)[:, ids].sum(1)),
        ("the temperature is forgotten", lambda x, ids, t: x.softmax(1)[:, ids].sum(1)),
        ("the probabilities are divided", lambda x, ids, t: (x.softmax(1) / t)[:, ids].sum(1)),
        ("should be added up", lambda x, ids, t: (x / t).softmax(1)[:, ids]),
        ("a mean where a sum belongs", lambda x, ids, t: (x / t).softmax(1)[:, ids].mean(1)),
        ("should run over the tokens", lambda x, ids, t: (x / t).softmax(0)[:, ids].sum(1)),
    ],
    "chance_of_signal": [
        ("a group that is all right has no signal", lambda p, n: 1 - (1 - p) ** n),
        ("a group that is all wrong has no signal", lambda p, n: 1 - p**n),
        ("this is the chance of no signal", lambda p, n: (1 - p) ** n + p**n),
        ("the variance", lambda p, n: n * p * (1 - p)),
        ("exactly one right answer", lambda p, n: n * p * (1 - p) ** (n - 1)),
        ("n - 1 instead of n", lambda p, n: 1 - p ** (n - 1) - (1 - p) ** (n - 1)),
    ],
    "solution_length": [
        ("the end-of-sequence token, which counts, is forgotten", lambda p, t: len(t.encode(" " + p["solution"]))),
        ("characters, not tokens", lambda p, t: len(p["solution"])),
        ("the end-of-sequence token, which counts, is forgotten", lambda p, t: len(t.encode(p["solution"]))),
        ("words, not tokens", lambda p, t: len(p["solution"].split())),
    ],
    "response_mask": [
        ("is left out", lambda t, e: ((t == e).int().cumsum(1) < 1).float()),
        ("what follows it counts", lambda t, e: 1.0 - (t == e).float()),
        ("everything counts", lambda t, e: (t == t).float()),
        ("should end at the first", lambda t, e: torch.tensor([
            [float(e in row[k:] or e not in row) for k in range(len(row))] for row in t.tolist()])),
        ("the other way round", lambda t, e: 1 - BOOK["response_mask"](t, e)),
        ("at the first end token alone", lambda t, e: (
            torch.arange(t.shape[1]) == (t == e).float().argmax(1, keepdim=True)) * (t == e).float()),
        ("gave [[1, 1, 0], [0", lambda t, e: BOOK["response_mask"](t, e)[:, 1:]),
    ],
    "reward_worked_thought": [
        ("the thought is empty or calculates nothing", reward_format),
        ("after the thought", lambda t: reward_format(t) * bool(re.search(r"\d+[-+]\d+=\d+", t))),
        ("subtractions are calculations", lambda t: (
            reward_format(t) * bool(re.search(r"\d+\+\d+=\d+", t.split("</think>")[0])))),
        ("an equals sign alone", lambda t: reward_format(t) * ("=" in t.split("</think>")[0])),
        ("the rest of the format", lambda t: float(bool(re.search(r"\d+[-+]\d+=\d+[\s\S]*</think>", t)))),
    ],
    "conditional_format": [
        ("where the answer is wrong", lambda t, a: reward_format(t)),
        ("where there is no thought", lambda t, a: reward_rlvr(t, a)),
        ("a sum where a product belongs", lambda t, a: reward_rlvr(t, a) + reward_format(t)),
        ("both are needed", lambda t, a: float(bool(reward_rlvr(t, a) or reward_format(t)))),
        ("without a box counts as right", lambda t, a: reward_format(t) * grade_answer(number(t), a)),
    ],
    "kl_optimum": [
        ("do not add up to 1", lambda p, r, b: p * (r / b).exp()),
        ("the reference is forgotten", lambda p, r, b: (r / b).softmax(0)),
        ("should be divided", lambda p, r, b: (p.log() + r * b).softmax(0)),
        ("mind the overflow", lambda p, r, b: p * (r / b).exp() / (p * (r / b).exp()).sum()),
        ("needs the logarithm", lambda p, r, b: (p + r / b).softmax(0)),
        ("this is the reference itself", lambda p, r, b: p),
    ],
    "probability_limit": [
        ("1 - clip_low", lambda p, a, low, high: min(1.0, p * (1 + high))),
        ("a probability stays between", lambda p, a, low, high: p * (1 + high) if a > 0 else p * (1 - low)),
        ("only its sign", lambda p, a, low, high: min(1.0, max(0.0, p * (1 + a * high if a > 0 else 1 + a * low)))),
        ("the limit is relative", lambda p, a, low, high: min(1.0, max(0.0, p + high if a > 0 else p - low))),
        ("exchanged", lambda p, a, low, high: min(1.0, max(0.0, p * (1 + low if a > 0 else 1 - high)))),
        ("no probability is below 0", lambda p, a, low, high: min(1.0, p * (1 + high) if a > 0 else p * (1 - low))),
    ],
    "count_carries": [
        ("the carry of the place before is forgotten", lambda a, b: sum(
            int(x) + int(y) >= 10 for x, y in zip(str(a)[::-1], str(b)[::-1], strict=False))),
        ("the digit stays as it was", lambda a, b: sum(
            int(s) < int(x) for s, x in zip(str(a + b)[::-1], str(a)[::-1].ljust(9, "0"), strict=False))),
        ("divide by 9", lambda a, b: sum(map(int, str(a))) + sum(map(int, str(b))) - sum(map(int, str(a + b)))),
        ("should say how many", lambda a, b: int(carries_on_paper(a, b) > 0)),
        ("the sum has more", lambda a, b: len(str(a + b)) - max(len(str(a)), len(str(b)))),
    ],
    "digit_accuracy_reward": [
        ("whether they occur anywhere", share_of_digits(lambda g, a: len(set(g) & set(a)))),
        ("counts them anywhere", share_of_digits(lambda g, a: sum((Counter(g) & Counter(a)).values()))),
        ("looks for each in the answer", share_of_digits(lambda g, a: len([x for x in g if x in a]))),
        ("stops at the first wrong one", share_of_digits(prefix)),
        ("counts from the right", share_of_digits(lambda g, a: sum(map(str.__eq__, g[::-1], a[::-1])))),
        ("digits too many cost", lambda o, a: sum(map(str.__eq__, read_answer(o), a)) / len(a)),
        ("the minimum where the maximum belongs", lambda o, a: (
            sum(map(str.__eq__, read_answer(o), a)) / (min(len(read_answer(o)), len(a)) or 1))),
        ("the [EOS] is no digit", lambda o, a: sum(map(str.__eq__, o, a)) / max(len(o), len(a))),
        ("the exact answer", lambda o, a: 1.0 if read_answer(o) == a else 0.0),
        ("has no end", lambda o, a: share_of_digits(lambda g, b: sum(map(str.__eq__, g, b)))(
            re.sub(r"(\[PAD\])+$", "", o) + ("" if "[EOS]" in o else "[EOS]"), a)),
    ],
    "distance_accuracy_reward": [
        ("divided by the answer", closeness(lambda given, right: right)),
        ("divided by the answer", lambda o, a: max(0.0, closeness(lambda given, right: right or 1)(o, a))),
        ("the text's number", closeness(lambda given, right: given)),
        ("the minimum where the maximum belongs", closeness(min)),
        ("divided by the sum", closeness(lambda given, right: given + right)),
        ("1 minus the distance", lambda o, a: 1 - closeness(max)(o, a)),
        ("leading zero", lambda o, a: closeness(max)(re.sub(r"^0+(?=\d)", "", o), a)),
        ("the exact answer", lambda o, a: 1.0 if read_answer(o) == a else 0.0),
        ("raised ValueError", lambda o, a: 1 - abs(int(read_answer(o)) - int(a)) / max(int(read_answer(o)), int(a))),
    ],
    "grpo_advantages": [
        ("n instead of n - 1", lambda r: standardised(r, lambda x: x.std(1, keepdim=True, correction=0))),
        ("divides 0 by 0", lambda r: standardised(r, lambda x: x.std(1, keepdim=True), 0.0)),
        ("divide by the standard deviation", lambda r: r - r.mean(1, keepdim=True)),
        ("subtract the mean", lambda r: r / (r.std(1, keepdim=True) + 1e-4)),
        ("each group has its own", lambda r: (r - r.mean()) / (r.std() + 1e-4)),
        ("the variance where", lambda r: standardised(r, lambda x: x.var(1, keepdim=True))),
        ("the sign is reversed", lambda r: -standardised(r, lambda x: x.std(1, keepdim=True))),
        ("a group is a row", lambda r: (r - r.mean(0)) / (r.std(0) + 1e-4)),
    ],
    "selected_logps": [
        ("you forgot the mask", lambda x, t, m: picked(x, t)),
        ("these are logits", lambda x, t, m: picked(x, t, lambda y: y) * m),
        ("these are probabilities", lambda x, t, m: picked(x, t, lambda y: y.softmax(-1)) * m),
        ("the softmax runs over the places", lambda x, t, m: picked(x, t, lambda y: y.log_softmax(1)) * m),
        ("not the likeliest", lambda x, t, m: x.log_softmax(-1).max(-1).values * m),
        ("shifted by one place", lambda x, t, m: picked(x, torch.cat([t[:, 1:], t[:, :1]], 1)) * m),
        ("each rollout's sum", lambda x, t, m: (picked(x, t) * m).sum(1)),
        (DETACHED, lambda x, t, m: picked(x.detach(), t) * m),
    ],
    "vanilla_loss": [
        ("you forgot the mask", vanilla(lambda t, m: t.sum(1).mean())),
        ("the sign is reversed", vanilla(lambda t, m: (t * m).sum(1).mean(), sign=1)),
        ("a sum where a mean belongs", vanilla(lambda t, m: (t * m).sum())),
        ("by the number of rollouts", vanilla(lambda t, m: (t * m).sum() / m.sum())),
        ("padding included", vanilla(lambda t, m: (t * m).mean())),
        ("averaged over the whole table", vanilla(lambda t, m: t.mean())),
        ("each rollout's tokens are averaged", vanilla(lambda t, m: ((t * m).sum(1) / m.sum(1)).mean())),
        ("nothing is learned from them", lambda x, old, a, m: -(old * a[:, None] * m).sum(1).mean()),
        ("you forgot the advantages", lambda x, old, a, m: -(x * m).sum(1).mean()),
        (DETACHED, detaching("vanilla_loss", 0)),
    ],
    "ppo_loss": [
        ("the maximum where the minimum belongs", ppo(torch.maximum)),
        ("the minimum is forgotten", ppo(lambda free, clipped: clipped)),
        ("nothing is clipped", ppo(lambda free, clipped: free)),
        ("upside down", ppo(torch.minimum, lambda x, old: torch.exp(old - x))),
        ("the exponential is forgotten", ppo(torch.minimum, lambda x, old: x - old)),
        ("you forgot the mask", ppo(torch.minimum, sum_up=lambda t, m: t.sum(1).mean())),
        ("a sum where a mean belongs", ppo(torch.minimum, sum_up=lambda t, m: (t * m).sum())),
        ("by the number of rollouts", ppo(torch.minimum, sum_up=lambda t, m: (t * m).sum() / m.sum())),
        ("each rollout's tokens are averaged", ppo(
            torch.minimum, sum_up=lambda t, m: ((t * m).sum(1) / m.sum(1)).mean())),
        ("without a ratio", lambda x, old, a, m: -(x * a[:, None] * m).sum(1).mean()),
        (DETACHED, ppo(torch.minimum, lambda x, old: torch.exp(x - old).detach())),
    ],
    "leave_one_out_baseline": [
        ("n instead of n - 1", lambda r: (r.sum(1, keepdim=True) - r) / r.shape[1]),
        ("own reward is part of this mean", lambda r: r.mean(1, keepdim=True).expand_as(r)),
        ("divide the difference", lambda r: r.sum(1, keepdim=True) / (r.shape[1] - 1) - r),
        ("a sum where a mean belongs", lambda r: r.sum(1, keepdim=True) - r),
        ("this is the advantage", lambda r: (r - r.mean(1, keepdim=True)) * r.shape[1] / (r.shape[1] - 1)),
        ("the whole batch", lambda r: (r.sum() - r) / (r.numel() - 1)),
        ("a group is a row", lambda r: (r.sum(0) - r) / max(1, len(r) - 1)),
    ],
    "remax_advantages": [
        ("laid along the rollouts", lambda r, g: r - g),
        ("the best sampled answer", lambda r, g: r - r.max(dim=1, keepdim=True).values),
        ("the group's mean", lambda r, g: r - r.mean(1, keepdim=True)),
        ("forgot the greedy answers", lambda r, g: r),
        ("the sign is reversed", lambda r, g: g.unsqueeze(1) - r),
        ("nothing is divided", lambda r, g: (r - g[:, None]) / (r.std(1, keepdim=True) + 1e-4)),
        ("losses teach", lambda r, g: torch.relu(r - g[:, None])),
    ],
    "raft_loss": [
        ("the rewards are weights", raft(lambda r: r, lambda m, w: (w > 0).sum())),
        ("the rewards are weights", lambda x, m, r: (
            -(x * m * r[:, None]).sum() / max(1e-9, (m * r[:, None]).sum().item()))),
        ("the rewards are weights", lambda x, m, r: -(x * m * r[:, None]).sum() / m.sum()),
        ("a reward below 1 is a reward", raft(lambda r: r == 1, lambda m, w: w.sum())),
        ("you forgot the mask", lambda x, m, r: (
            raft(lambda s: s > 0, lambda n, w: w.sum())(x, torch.ones_like(m), r))),
        ("divided by all tokens", raft(lambda r: r > 0, lambda m, w: m.sum())),
        ("divided by rollouts", raft(lambda r: r > 0, lambda m, w: w.any(dim=1).sum())),
        ("a sum where a mean belongs", raft(lambda r: r > 0, lambda m, w: torch.ones(()))),
        ("divides by zero", lambda x, m, r: -(x * m * (r > 0)[:, None]).sum() / (m * (r > 0)[:, None]).sum()),
        ("nothing is thrown away", raft(lambda r: r > -1, lambda m, w: w.sum())),
        ("the sign is reversed", lambda x, m, r: -raft_by_loops(x, m, r)),
        (DETACHED, detaching("raft_loss", 0)),
        (DETACHED, lambda x, m, r: raft_by_loops(x, m, r).item()),
    ],
    "own_loss": [
        ("no gradient", lambda x, old, a, m: -(x.detach() * m * a[:, None]).mean()),
        ("no gradient", lambda x, old, a, m: (0.0 * x).sum()),
        ("you forgot the mask", lambda x, old, a, m: -(x * a[:, None]).mean()),
        ("should return one number", lambda x, old, a, m: -(x * m * a[:, None]).sum(1)),
        ("should return one number", lambda x, old, a, m: 1.0),
        ("nothing can be learned", lambda x, old, a, m: -(x * m * a[:, None]).sum() / 0.0),
        ("raised ZeroDivisionError", lambda x, old, a, m: 1 / 0),
    ],
    "choose_pairs": [
        ("are to be dropped", lambda r: (
            torch.arange(len(r)) * r.shape[1] + r.argmax(1), torch.arange(len(r)) * r.shape[1] + r.argmin(1))),
        ("rounding lifts above zero", lambda r: tuple(x[r.std(dim=1) > 0] for x in (
            torch.arange(len(r)) * r.shape[1] + (r == r.amax(1, keepdim=True)).float().argmax(1),
            torch.arange(len(r)) * r.shape[1] + (r == r.amin(1, keepdim=True)).float().argmax(1)))),
        ("exchanged", lambda r: pairs_of_a_list(r)[::-1]),
        ("within each group", lambda r: [[i % r.shape[1] for i in side] for side in pairs_of_a_list(r)]),
        ("takes the last", lambda r: tuple(
            torch.tensor([(i // r.shape[1] + 1) * r.shape[1] - 1 - i % r.shape[1] for i in side], dtype=torch.long)
            for side in pairs_of_a_list(r.flip(1)))),
        ("can hold a preference", lambda r: pairs_of_a_list(torch.where((r == 1).any(1, keepdim=True), r, 0 * r))),
        ("raised RuntimeError", lambda r: torch.stack([r, r.argmax(dim=1)])),
    ],
    "compute_loss_dpo": [
        ("use F.logsigmoid", lambda *p: -(p[-1] * margin(*p[:-1])).sigmoid().log().mean()),
        ("exchanged", lambda c, r, rc, rr, b: BOOK["compute_loss_dpo"](r, c, rr, rc, b)),
        ("the default beta", lambda c, r, rc, rr, b: BOOK["compute_loss_dpo"](c, r, rc, rr)),
        ("you forgot beta", lambda c, r, rc, rr, b: BOOK["compute_loss_dpo"](c, r, rc, rr, 1.0)),
        ("a sum where a mean belongs", lambda *p: F.softplus(-p[-1] * margin(*p[:-1])).sum()),
        ("you forgot the reference", lambda c, r, rc, rr, b: F.softplus(-b * (c - r)).mean()),
        ("should be of the losses", lambda *p: F.softplus(-p[-1] * margin(*p[:-1]).mean())),
        ("twice the loss", lambda *p: 2 * BOOK["compute_loss_dpo"](*p)),
        ("you forgot the logarithm", lambda *p: -(p[-1] * margin(*p[:-1])).sigmoid().mean()),
        ("one loss for each pair", lambda *p: F.softplus(-p[-1] * margin(*p[:-1]))),
        (f"no gradient reaches rejected: {DETACHED}", detaching("compute_loss_dpo", 1)),
        (f"no gradient reaches chosen: {DETACHED}", detaching("compute_loss_dpo", 0)),
        (f"no gradient reaches chosen: {DETACHED}", lambda *p: torch.tensor(BOOK["compute_loss_dpo"](*p).item())),
        (f"no gradient reaches chosen: {DETACHED}", lambda *p: BOOK["compute_loss_dpo"](*p).item()),
    ],
    "compute_loss_ipo": [
        ("this is a hinge", lambda *p: (0.5 / p[-1] - margin(*p[:-1])).clamp(min=0).pow(2).mean()),
        ("this is 1 / beta", lambda *p: (margin(*p[:-1]) - 1 / p[-1]).pow(2).mean()),
        ("this is beta / 2", lambda *p: (margin(*p[:-1]) - p[-1] / 2).pow(2).mean()),
        ("not multiplied by beta", lambda *p: (p[-1] * margin(*p[:-1]) - 0.5).pow(2).mean()),
        ("to be squared", lambda *p: (margin(*p[:-1]) - 0.5 / p[-1]).abs().mean()),
        ("a sum where a mean belongs", lambda *p: (margin(*p[:-1]) - 0.5 / p[-1]).pow(2).sum()),
        ("the target is added", lambda *p: (margin(*p[:-1]) + 0.5 / p[-1]).pow(2).mean()),
        ("exchanged", lambda c, r, rc, rr, b: BOOK["compute_loss_ipo"](r, c, rr, rc, b)),
        ("you forgot the reference", lambda c, r, rc, rr, b: (c - r - 0.5 / b).pow(2).mean()),
        (f"no gradient reaches rejected: {DETACHED}", detaching("compute_loss_ipo", 1)),
        (f"no gradient reaches chosen: {DETACHED}", detaching("compute_loss_ipo", 0)),
    ],
}  # fmt: skip

RIGHT = {
    "partial_reward_rlvr": [partial_reward_step_by_step],
    "groups_with_signal": [
        lambda r: r.amax(dim=1) > r.amin(dim=1),
        lambda r: [len(set(row)) > 1 for row in r.tolist()],
        lambda r: (r.numpy() != r.numpy()[:, :1]).any(axis=1),
    ],
    "first_token_share": [
        lambda x, ids, t: (x / t).softmax(-1)[:, ids].sum(-1).tolist(),
        lambda x, ids, t: torch.exp(torch.logsumexp((x / t)[:, ids], -1) - torch.logsumexp(x / t, -1)),
        lambda x, ids, t: torch.stack([sum(torch.softmax(row / t, 0)[i] for i in ids) for row in x]).numpy(),
    ],
    "response_mask": [
        lambda t, e: [[float(e not in row[:k]) for k in range(len(row))] for row in t.tolist()],
        lambda t, e: (F.pad((t == e).long(), (1, -1)).cumsum(1) == 0).float(),
        lambda t, e: ((t == e).int().cumsum(1) - (t == e).int() < 1).double().numpy(),
    ],
    "chance_of_signal": [
        lambda p, n: sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(1, n)),
        lambda p, n: 1 - torch.tensor(p).double() ** n - (1 - torch.tensor(p).double()) ** n,
    ],
    "solution_length": [lambda p, t: len(t.encode(" " + p["solution"] + t.eos_token))],
    "reward_worked_thought": [
        lambda t: 1.0 if reward_format(t) and re.search(r"[0-9]+[+-][0-9]+=[0-9]+", t.split("</think>")[0]) else 0.0,
    ],
    "conditional_format": [lambda t, a: min(reward_format(t), reward_rlvr(t, a))],
    "kl_optimum": [
        lambda p, r, b: p * ((r - r.max()) / b).exp() / (p * ((r - r.max()) / b).exp()).sum(),
        lambda p, r, b: (p.log() + r / b).softmax(0).tolist(),
    ],
    "probability_limit": [
        lambda p, a, low, high: min(p * (1 + high), 1) if a > 0 else max(p * (1 - low), 0),
        lambda p, a, low, high: torch.tensor(p * (1 + high if a > 0 else 1 - low)).clamp(0, 1),
    ],
    "count_carries": [
        carries_on_paper,
        lambda a, b: (sum(map(int, str(a))) + sum(map(int, str(b))) - sum(map(int, str(a + b)))) // 9,
        lambda a, b: sum((a + b) % 10**k < a % 10**k for k in range(1, 9)),
        lambda a, b: torch.tensor(carries_on_paper(a, b)),
    ],
    "digit_accuracy_reward": [
        share_of_digits(lambda g, a: sum(map(str.__eq__, g, a))),
        lambda o, a: torch.tensor([x == y for x, y in zip(read_answer(o).ljust(len(a)), a.ljust(
            len(read_answer(o))), strict=True)]).float().mean().item(),
    ],
    "distance_accuracy_reward": [
        closeness(max),
        lambda o, a: 0.0 if not read_answer(o) or read_answer(o) != str(int(read_answer(o))) else 1.0 if (
            read_answer(o) == a) else min(int(read_answer(o)), int(a)) / max(int(read_answer(o)), int(a)),
    ],
    "grpo_advantages": [
        standardised_list,
        lambda r: standardised(r, lambda x: x.std(1, keepdim=True), 1e-8),
        lambda r: torch.nan_to_num(standardised(r, lambda x: x.std(1, keepdim=True), 0.0)),
        lambda r: (r.numpy() - r.numpy().mean(1, keepdims=True)) / (r.numpy().std(1, ddof=1, keepdims=True) + 1e-4),
    ],
    "selected_logps": [
        picked_one_by_one,
        lambda x, t, m: (picked(x, t, lambda y: y) - x.logsumexp(-1)) * m,
        lambda x, t, m: (F.one_hot(t, x.shape[-1]) * x.log_softmax(-1)).sum(-1).masked_fill(m == 0, 0.0),
        lambda x, t, m: -F.cross_entropy(x.transpose(1, 2), t, reduction="none") * m,
    ],
    "vanilla_loss": [
        lambda x, old, a, m: -(a * (x * m).sum(1)).mean(),
        lambda x, old, a, m: sum(-ai * xi[mi.bool()].sum() for xi, ai, mi in zip(x, a, m, strict=True)) / len(x),
        lambda x, old, a, m: -(a.detach() @ (x * m)).sum() / x.shape[0],
    ],
    "ppo_loss": [
        ppo_by_cases,
        ppo(torch.min),
        lambda x, old, a, m: torch.maximum(
            -torch.exp(x - old.detach()) * a[:, None],
            -torch.exp(x - old.detach()).clip(0.8, 1.2) * a[:, None]).mul(m).sum(1).mean(),
    ],
    "leave_one_out_baseline": [
        lambda r: [[(sum(row) - x) / (len(row) - 1) for x in row] for row in r.tolist()],
        lambda r: torch.stack([torch.cat([r[:, :i], r[:, i + 1:]], 1).mean(1) for i in range(r.shape[1])], 1),
        lambda r: ((r.sum(1, keepdim=True) - r) / (r.shape[1] - 1)).detach().numpy(),
    ],
    "remax_advantages": [
        lambda r, g: (r.T - g).T,
        lambda r, g: [[x - b for x in row] for row, b in zip(r.tolist(), g.tolist(), strict=True)],
        lambda r, g: r - g.unsqueeze(1).expand_as(r),
    ],
    "raft_loss": [
        raft_by_loops,
        raft(lambda r: r.bool(), lambda m, w: w.sum()),
        lambda x, m, r: F.nll_loss(
            torch.where((m * (r > 0)[:, None]).bool(), x, 0.0 * x).sum().view(1, 1), torch.tensor([0])
        ) / max(1.0, (m * (r > 0)[:, None]).sum().item()),
    ],
    "own_loss": [
        lambda x, old, a, m: -(a[:, None] * x * m).sum() / m.sum(),
        ppo_by_cases,
        lambda x, old, a, m: -(a.clamp(min=0)[:, None] * x * m).sum(1).mean() - 0.01 * (x.exp() * x * m).mean(),
    ],
    "choose_pairs": [
        pairs_of_a_list,
        lambda r: torch.tensor(pairs_of_a_list(r), dtype=torch.long),
        lambda r: tuple(torch.tensor(side, dtype=torch.long).numpy() for side in pairs_of_a_list(r)),
        lambda r: torch.stack([torch.tensor(side) for side in pairs_of_a_list(r)]).numpy(),
    ],
    "compute_loss_dpo": [
        dpo_in_numpy_inside,
        lambda c, r, rc, rr, beta=0.1: torch.log1p(torch.exp(-beta * margin(c, r, rc, rr))).mean() if (
            beta * margin(c, r, rc, rr)).min() > -50 else F.softplus(-beta * margin(c, r, rc, rr)).mean(),
        lambda c, r, rc, rr, b: sum(-F.logsigmoid(b * m) for m in margin(c, r, rc.detach(), rr.detach())) / len(c),
    ],
    "compute_loss_ipo": [
        lambda c, r, rc, rr, beta=0.1: torch.mean((c - r - (rc - rr) - 0.5 / beta) ** 2),
        lambda c, r, rc, rr, b: F.mse_loss(margin(c, r, rc, rr), torch.full_like(c, 1 / (2 * b))),
        lambda c, r, rc, rr, b: sum((c[i] - r[i] - rc[i] + rr[i] - 1 / (2 * b)) ** 2 for i in range(len(c))) / len(c),
    ],
}  # fmt: skip


def test_every_check_has_wrong_and_right_solutions():
    assert CHECKS.keys() == WRONG.keys() == RIGHT.keys()
    assert all(len(WRONG[name]) >= 4 and RIGHT[name] for name in CHECKS)


@pytest.mark.parametrize(
    "name, sentence, wrong", [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_solution_is_rejected_and_its_mistake_named(name, sentence, wrong, capsys):
    assert CHECKS[name](wrong) is BOOK[name]
    said = capsys.readouterr().out
    assert sentence in said and len(said.splitlines()) == 1, said
    assert said.endswith("The notebook goes on with the book's version.\n")


@pytest.mark.parametrize("name, right", [(name, right) for name, several in RIGHT.items() for right in several])
def test_a_right_solution_is_accepted_and_returns_what_the_notebook_needs(name, right, capsys):
    kept = CHECKS[name](right)
    said = capsys.readouterr().out
    assert kept is not BOOK[name] and "goes on with the book" not in said, said
    assert kept is right or kept.__wrapped__ is right


@pytest.mark.parametrize("name", CHECKS)
def test_the_book_s_function_is_accepted(name, capsys):
    def mine(*arguments):
        return BOOK[name](*arguments)

    assert CHECKS[name](mine) is mine
    assert "book's version" not in capsys.readouterr().out


def test_lists_and_stacked_pairs_come_back_as_tensors():
    baseline = CHECKS["leave_one_out_baseline"](RIGHT["leave_one_out_baseline"][0])
    torch.testing.assert_close(baseline(torch.tensor([[1.0, 0.0, 0.5]])), torch.tensor([[0.25, 0.75, 0.5]]))
    chosen, rejected = CHECKS["choose_pairs"](RIGHT["choose_pairs"][1])(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert chosen.tolist() == [1, 2] and rejected.tolist() == [0, 3] and chosen.dtype == torch.long


def table() -> str:
    """How many wrong solutions each check rejects, and how many right ones it accepts, the book's included."""
    lines = [f"{'check':26} {'wrong':>5} {'right':>5}"]
    lines += [f"{name:26} {len(WRONG[name]):5} {len(RIGHT[name]) + 1:5}" for name in CHECKS]
    wrong, right = sum(map(len, WRONG.values())), sum(map(len, RIGHT.values())) + len(CHECKS)
    return "\n".join([*lines, f"{'together':26} {wrong:5} {right:5}"])


if __name__ == "__main__":
    print(table())
