"""From a step's experience to new weights: which rollouts count, what the loss compares them with, and the updates.

The loss itself is ch07's `policy_loss`, for every method.
"""

import math
from dataclasses import dataclass

import torch

from ..ch06 import Rollouts
from ..ch07 import Method, importance_ratio, is_clipped, kl_estimate, loss_total, policy_loss
from ..qwen3 import Qwen3Model
from . import parallel
from .config import TrainConfig
from .experience import Experience
from .memory import MemoryPlan
from .microbatches import backpropagate, rollout_logprobs
from .sharding import full, gathered


@dataclass(frozen=True)
class LossTerms:
    """What the loss of N rollouts is made of besides the model's log-probabilities; it stays while the weights move."""

    method: Method
    advantages: torch.Tensor  # (N,)
    total: float  # what the loss is divided by, on all processes
    sampler_logps: torch.Tensor  # (N, T)
    old_logps: torch.Tensor | None = None  # (N, T), of the policy before the first update; None: there is only one
    ref_logps: torch.Tensor | None = None  # (N, T), of the reference

    def loss(self, logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """These rows' share of the loss; logps and mask are (n, up to T)."""
        old, ref, sampler = (self._part(x, logps, rows) for x in (self.old_logps, self.ref_logps, self.sampler_logps))
        return policy_loss(logps, old, ref, self.advantages[rows], mask, self.method, sampler, self.total)

    @torch.no_grad()
    def sums(self, logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> list[float]:
        """These rows' sums over tokens: clipped ones, KL from the reference (k3), and all."""
        old, ref = (self._part(x, logps, rows) for x in (self.old_logps, self.ref_logps))
        clipped = kl = 0.0
        if old is not None and self.method.surrogate == "clip":
            ratio = importance_ratio(logps, old, mask, self.method.ratio)
            outside = is_clipped(ratio, self.advantages[rows, None], self.method.clip_low, self.method.clip_high)
            clipped = (outside * mask).sum().item()
        if ref is not None:
            kl = (kl_estimate(logps, ref, "k3") * mask).sum().item()
        return [clipped, kl, mask.sum().item()]

    @staticmethod
    def _part(x: torch.Tensor | None, logps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        return None if x is None else x[rows, : logps.shape[1]]


def counted_rollouts(batch: Experience, method: Method) -> torch.Tensor:
    """(N,) bool: the rollouts that the loss counts, whatever their advantage: those that a reward could judge."""
    counted = ~batch.rewards.isnan()
    if method.mask_truncated:
        counted = counted & ~batch.truncated
    if method.dynamic_sampling:  # where no group with a signal was found, length alone should teach nothing
        counted = counted & batch.has_signal[:, None].to(counted.device)
    return counted.flatten()


def mean_metrics(updates: list[dict[str, float] | None]) -> dict[str, float | None]:
    """The means over a step's updates, and how many were skipped (None); zeros where there was none."""
    made = [update for update in updates if update is not None]
    means = {name: sum(update[name] for update in made) / len(made) for name in (made[0] if made else ())}
    skipped = len(updates) - len(made)
    return {"loss": 0.0, "grad_norm": 0.0, "clip_fraction": 0.0, "kl": None, **means, "skipped_updates": skipped}


@dataclass
class Updater:
    """A model and its optimiser with what decides how a step's experience moves the weights."""

    config: TrainConfig
    method: Method
    plan: MemoryPlan
    model: Qwen3Model
    reference: Qwen3Model | None
    optimizer: torch.optim.Optimizer

    def update(self, batch: Experience, advantages: torch.Tensor, lr: float) -> dict[str, float | None]:
        """One or several optimiser steps on the same rollouts; returns the means of their metrics, and the rate.

        `advantages` are (N,). Rollouts whose gradient is zero are left out, and nothing moves when that holds for all,
        since AdamW's momentum would move the weights.
        """
        counted = counted_rollouts(batch, self.method)
        rows = (counted if self.method.kl_coef else counted & (advantages != 0)).nonzero().squeeze(1)
        updates = []
        if sum(parallel.gather(len(rows))):
            terms = self.loss_terms(batch.rollouts, advantages, counted)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            updates = [self.update_once(batch.rollouts, rows, terms) for _ in range(self.config.updates_per_step)]
        return {**mean_metrics(updates), "lr": lr}

    def loss_terms(self, rollouts: Rollouts, advantages: torch.Tensor, counted: torch.Tensor) -> LossTerms:
        """What all updates of a step compare with, of `advantages` and `counted`, (N,)."""
        assert rollouts.logps is not None  # they have been sampled
        mask = rollouts.mask * counted[:, None]
        total = sum(parallel.gather(loss_total(mask, advantages, self.method, self.config.max_new_tokens)))
        # The sampler's own log-probs are the old ones, unless the method corrects for the sampler's rounding.
        old_logps = rollouts.logps if self.config.updates_per_step > 1 else None
        if self.method.sampler_cap is not None:
            old_logps = self.score(self.model, rollouts)
        ref_logps = None if self.reference is None else self.score(self.reference, rollouts)
        return LossTerms(self.method, advantages, max(1.0, total), rollouts.logps, old_logps, ref_logps)

    def score(self, model: Qwen3Model, rollouts: Rollouts) -> torch.Tensor:
        """A model's log-probabilities of the sampled tokens, (N, T), without a gradient."""
        return rollout_logprobs(model, rollouts, self.config.temperature, self.config.top_p, self.plan.max_tokens)

    def update_once(self, rollouts: Rollouts, rows: torch.Tensor, terms: LossTerms) -> dict[str, float] | None:
        """One optimiser step on these rows: loss, gradient norm, clip fraction and, with a reference, KL.

        None, and nothing has moved, where loss or gradient is not finite. A process without rows must call it, too.
        """
        config, sums = self.config, torch.zeros(3, dtype=torch.float64)

        def part_loss(logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            sums.add_(torch.tensor(terms.sums(logps, mask, rows)))
            return terms.loss(logps, mask, rows)

        self.optimizer.zero_grad()
        loss = 0.0
        with gathered(self.model):
            if len(rows):
                loss = backpropagate(
                    self.model, rollouts, part_loss, config.temperature, config.top_p, self.plan.max_tokens, rows
                )
            parallel.add_gradients(self.model)
        norm = full(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)).item()
        shared = parallel.gather([loss, *sums.tolist()])
        loss, clipped, kl, tokens = (sum(values) for values in zip(*shared, strict=True))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return None
        self.optimizer.step()
        metrics = {"loss": loss, "grad_norm": norm, "clip_fraction": clipped / max(1.0, tokens)}
        return metrics if terms.ref_logps is None else metrics | {"kl": kl / max(1.0, tokens)}
