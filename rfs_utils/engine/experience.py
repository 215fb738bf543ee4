"""One step's experience: which problems were asked, what was answered, and what each answer earned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ch06 import Rollouts
from ..ch07 import Method, soft_overlong_penalty
from ..data import render_prompt
from ..qwen3 import Qwen3Model
from ..sampling import has_ended
from ..tokenizer import Qwen3Tokenizer, stop_ids
from .memory import MemoryPlan
from .rewards import RewardFunction, accuracy, compute_rewards
from .rollouts import join_rollouts, sample_rollouts, select_rollouts


@dataclass
class Experience:
    """B groups of G rollouts, N = B * G; the rows of a group stand together in `rollouts`."""

    examples: list[dict]  # B problems
    rollouts: Rollouts  # N rows
    truncated: torch.Tensor  # (B, G) bool: cut off by max_new_tokens
    parts: torch.Tensor  # (B, G, K) rewards of each of K functions
    rewards: torch.Tensor  # (B, G) their weighted sum, with the penalty for overlong answers
    correct: torch.Tensor  # (B, G) 1 for right answers, whatever is rewarded
    greedy_rewards: torch.Tensor | None = None  # (B,) of greedy answers, where the method compares with them

    @property
    def has_signal(self) -> torch.Tensor:
        """(B,) bool: the groups in which rewards differ, penalties for length left aside."""
        return has_signal(self.parts)

    def select(self, groups: torch.Tensor) -> "Experience":
        """Only the groups with these indices."""
        size = self.rewards.shape[1]
        rows = (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
        return Experience(
            examples=[self.examples[i] for i in groups.tolist()],
            rollouts=select_rollouts(self.rollouts, rows),
            truncated=self.truncated[groups],
            parts=self.parts[groups],
            rewards=self.rewards[groups],
            correct=self.correct[groups],
            greedy_rewards=None if self.greedy_rewards is None else self.greedy_rewards[groups],
        )


def has_signal(parts: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the groups with different rewards among (B, G, K)."""
    return (parts != parts[:, :1]).any(dim=2).any(dim=1)


def join_experience(parts: Sequence[Experience], pad_token_id: int) -> Experience:
    """Several experiences as one."""
    if len(parts) == 1:
        return parts[0]
    names = ("truncated", "parts", "rewards", "correct")
    greedy = None if parts[0].greedy_rewards is None else torch.cat([p.greedy_rewards for p in parts])
    return Experience(
        examples=[example for p in parts for example in p.examples],
        rollouts=join_rollouts([p.rollouts for p in parts], pad_token_id),
        greedy_rewards=greedy,
        **{name: torch.cat([getattr(p, name) for p in parts]) for name in names},
    )


def collect(
    model: Qwen3Model,
    tokenizer: Qwen3Tokenizer,
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
    prompts = [render_prompt(example["problem"]) for example in examples]

    def sample(count: int, temperature: float, numbers: torch.Tensor | None) -> Rollouts:
        return sample_rollouts(
            model, tokenizer, prompts, device, count, limit, temperature, top_p, plan.cache_bytes, numbers
        )

    def reward(rollouts: Rollouts, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[dict]]:
        repeated = [example for example in examples for _ in range(count)]
        truncated = ~has_ended(rollouts.tokens, rollouts.lengths, stop_ids(tokenizer))
        info = {"step": step, "lengths": rollouts.lengths.tolist(), "truncated": truncated.tolist()}
        parts, weights = compute_rewards(rewards, rollouts.texts, repeated, **info)
        total = (parts @ weights).to(device)
        if method.overlong_buffer:
            buffer = max(1, round(method.overlong_buffer * limit))
            total = total + soft_overlong_penalty(rollouts.lengths, limit, buffer)
        return parts.to(device), total, truncated, repeated

    rollouts = sample(size, temperature, uniform.flatten(0, 1).to(device))
    parts, total, truncated, repeated = reward(rollouts, size)
    right = parts[:, list(rewards).index("accuracy")] if "accuracy" in rewards else accuracy(rollouts.texts, repeated)
    greedy = reward(sample(1, 0.0, None), 1)[1] if method.baseline == "greedy" else None
    return Experience(
        examples=examples,
        rollouts=rollouts,
        truncated=truncated.view(groups, size),
        parts=parts.view(groups, size, -1),
        rewards=total.view(groups, size),
        correct=torch.as_tensor(right, device=device).view(groups, size),
        greedy_rewards=greedy,
    )
