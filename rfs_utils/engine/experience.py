"""One step's experience: which problems were asked, what was answered, and what each answer earned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ch06 import Rollouts
from ..ch07 import Method, combine_rewards, rewards_differ, soft_overlong_penalty
from ..data import render_prompt
from ..qwen3 import Qwen3Model
from ..sampling import has_ended
from ..tokenizer import Tokenizer, stops
from .memory import MemoryPlan
from .rewards import RewardFunction, accuracy, ask_rewards
from .rollouts import join_rollouts, sample_rollouts, select_rollouts


@dataclass
class Experience:
    """B groups of G rollouts, N = B * G; the rows of a group stand together in `rollouts`."""

    examples: list[dict]  # B problems
    rollouts: Rollouts  # N rows
    truncated: torch.Tensor  # (B, G) bool: cut off by max_new_tokens
    parts: torch.Tensor  # (B, G, K) rewards of each of K functions; NaN: not judged
    weights: torch.Tensor  # (K,) of the functions
    rewards: torch.Tensor  # (B, G) the weighted sum, with the penalty for overlong answers; NaN: not judged
    correct: torch.Tensor  # (B, G) 1 for right answers, whatever is rewarded
    has_signal: torch.Tensor  # (B,) bool: the groups in which rewards differ, penalties for length left aside
    greedy_rewards: torch.Tensor | None = None  # (B,) of greedy answers, where the method compares with them

    def select(self, groups: torch.Tensor) -> "Experience":
        """Only the groups with these indices."""
        size = self.rewards.shape[1]
        rows = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
        return Experience(
            examples=[self.examples[i] for i in groups.tolist()],
            rollouts=select_rollouts(self.rollouts, rows),
            truncated=self.truncated[groups],
            parts=self.parts[groups],
            weights=self.weights,
            rewards=self.rewards[groups],
            correct=self.correct[groups],
            has_signal=self.has_signal[groups],
            greedy_rewards=None if self.greedy_rewards is None else self.greedy_rewards[groups],
        )


def has_signal(parts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the groups with different rewards among (B, G, K), those of weight 0 and of NaN, not judged, aside."""
    unjudged = combine_rewards(parts, weights).isnan()[:, :, None]
    return rewards_differ(parts.masked_fill(unjudged, torch.nan)[:, :, weights != 0], 1).any(dim=2).squeeze(1)


def join_experience(parts: Sequence[Experience], pad_token_id: int) -> Experience:
    """Several experiences as one."""
    if len(parts) == 1:
        return parts[0]
    names = ("truncated", "parts", "rewards", "correct", "has_signal")
    greedy = [p.greedy_rewards for p in parts if p.greedy_rewards is not None]  # of all parts, or of none
    return Experience(
        examples=[example for p in parts for example in p.examples],
        rollouts=join_rollouts([p.rollouts for p in parts], pad_token_id),
        weights=parts[0].weights,
        greedy_rewards=torch.cat(greedy) if greedy else None,
        **{name: torch.cat([getattr(p, name) for p in parts]) for name in names},
    )


def collect(
    model: Qwen3Model,
    tokenizer: Tokenizer,
    examples: list[dict],
    uniform: torch.Tensor,
    rewards: dict[str, tuple[RewardFunction, float]],
    method: Method,
    plan: MemoryPlan,
    device: torch.device,
    step: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Experience:
    """Sample a group of answers to every problem and reward them.

    `uniform`, (B, G, max_new_tokens), are the random numbers that decide the draws.
    """
    groups, size, limit = uniform.shape
    prompts = [render_prompt(example["problem"], tokenizer) for example in examples]

    def answer(count: int, temperature: float, numbers: torch.Tensor | None) -> tuple[Rollouts, list[torch.Tensor]]:
        """Rollouts, and what they earned: rewards by function, rightness, penalty; and which were truncated."""
        rollouts = sample_rollouts(
            model, tokenizer, prompts, device, count, limit, temperature, top_p, plan.cache_bytes, numbers
        )
        repeated = [example for example in examples for _ in range(count)]
        truncated = ~has_ended(rollouts.tokens, rollouts.lengths, stops(tokenizer))
        info = {"step": step, "lengths": rollouts.lengths.tolist(), "truncated": truncated.tolist()}
        functions = dict(rewards)
        functions.setdefault("accuracy", (accuracy, 0.0))  # without weight, so that it is known whatever is rewarded
        parts, _ = ask_rewards(functions, rollouts.texts, repeated, **info)
        penalty = torch.zeros(len(parts), device=device)
        if method.overlong_buffer:
            buffer = max(1, round(method.overlong_buffer * limit))
            penalty = soft_overlong_penalty(rollouts.lengths, limit, buffer)
        right = parts[:, list(functions).index("accuracy")].to(device).view(groups, count)
        parts = parts[:, : len(rewards)].to(device).view(groups, count, -1)
        return rollouts, [parts, right, penalty.view(groups, count), truncated.view(groups, count)]

    weights = torch.tensor([weight for _, weight in rewards.values()], device=device)
    rollouts, (parts, right, penalty, truncated) = answer(size, temperature, uniform.flatten(0, 1).to(device))
    signal = has_signal(parts, weights)
    if method.baseline == "greedy":  # judged together with the others, by the same functions
        _, (greedy_parts, _, greedy_penalty, _) = answer(1, 0.0, None)
        total = combine_rewards(torch.cat([parts, greedy_parts], dim=1), weights)
        total, greedy = total[:, :size], total[:, size] + greedy_penalty[:, 0]
        total = total.masked_fill(greedy.isnan()[:, None], torch.nan)  # nothing to compare with
    else:
        total, greedy = combine_rewards(parts, weights), None
    return Experience(
        examples=examples,
        rollouts=rollouts,
        truncated=truncated,
        parts=parts,
        weights=weights,
        rewards=total + penalty,
        correct=right,
        has_signal=signal,
        greedy_rewards=greedy,
    )
