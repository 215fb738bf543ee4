"""From a step's experience to new weights: which rollouts count, what the loss compares them with, and the updates.

The loss itself is ch07's `policy_loss`, for every method.
"""

import math
from dataclasses import dataclass, replace

import torch

from ..ch06 import Rollouts
from ..ch07 import Method, importance_ratio, is_clipped, kl_estimate, loss_total, policy_loss, rollout_losses
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
    advantages: torch.Tensor  # (N,), or (N, T) where tokens differ
    sampler_logps: torch.Tensor  # (N, T)
    old_logps: torch.Tensor | None = None  # (N, T), what ratios compare with; None: the policy as it is, ratios of 1
    ref_logps: torch.Tensor | None = None  # (N, T), of the reference
    held: torch.Tensor | None = None  # (N, T), how strongly tokens are held at old_logps
    total: float = 1.0  # what the loss of the update is divided by, on all processes

    def loss(self, logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """These rows' share of the loss; logps and mask are (n, up to T)."""
        old, ref, sampler = (self._part(x, logps, rows) for x in (self.old_logps, self.ref_logps, self.sampler_logps))
        advantages, held = of_rows(self.advantages, logps, rows), self._part(self.held, logps, rows)
        loss = policy_loss(logps, old, ref, advantages, mask, self.method, sampler, self.total)
        if held is None or old is None:  # in a single update nothing has moved away yet
            return loss
        pull = held * (logps - old).masked_fill(mask == 0, 0.0).abs()
        return loss + rollout_losses(pull, mask, self.method).sum() / self.total

    @torch.no_grad()
    def sums(self, logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> list[float]:
        """These rows' sums over tokens: clipped ones, KL from the reference (k3), and all."""
        old, ref = (self._part(x, logps, rows) for x in (self.old_logps, self.ref_logps))
        clipped = kl = 0.0
        if old is not None and self.method.surrogate == "clip":
            ratio = importance_ratio(logps, old, mask, self.method.ratio)
            advantages = of_rows(self.advantages, logps, rows).view(len(rows), -1)
            outside = is_clipped(ratio, advantages, self.method.clip_low, self.method.clip_high)
            clipped = (outside * mask).sum().item()
        if ref is not None:
            kl = (kl_estimate(logps, ref, "k3") * mask).sum().item()
        return [clipped, kl, mask.sum().item()]

    @staticmethod
    def _part(x: torch.Tensor | None, logps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        return None if x is None else of_rows(x, logps, rows)


def of_rows(x: torch.Tensor, logps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """These rows, (n,) or (n, T), of x, (N,) or (N, T), as wide as their log-probabilities."""
    return x[rows] if x.dim() == 1 else x[rows, : logps.shape[1]]


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

    def update(
        self,
        batch: Experience,
        advantages: torch.Tensor,
        lr: float,
        ref_logps: torch.Tensor | None = None,
        held: torch.Tensor | None = None,
    ) -> dict[str, float | None]:
        """One or several optimiser steps on the same rollouts; returns the means of their metrics, and the rate.

        `advantages` are (N,) or (N, T), `ref_logps` those of `reference_logps`, `held` those of LossTerms. With
        `minibatches` each pass over the rollouts takes their groups in so many parts, and makes an optimiser step with
        each. Rollouts whose gradient is zero are left out, and nothing moves when that holds for all, since AdamW's
        momentum would move the weights.
        """
        counted = counted_rollouts(batch, self.method)
        learning = counted if self.holds_all else counted & (advantages != 0).view(len(counted), -1).any(dim=1)
        updates = []
        if sum(parallel.gather(int(learning.sum()))):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            terms = replace(self.loss_terms(batch.rollouts, advantages, ref_logps), held=held)
            parts = self.in_minibatches(batch, terms, counted, learning)
            updates = [
                self.update_once(batch.rollouts, rows, terms)
                for _ in range(self.config.updates_per_step)
                for rows, terms in parts
            ]
        return {**mean_metrics(updates), "lr": lr}

    @property
    def holds_all(self) -> bool:
        """Whether a KL term pulls at rollouts whose advantage is 0, too."""
        return bool(self.method.kl_coef) and self.method.kl != "reward"

    def in_minibatches(
        self, batch: Experience, terms: LossTerms, counted: torch.Tensor, learning: torch.Tensor
    ) -> list[tuple[torch.Tensor, LossTerms]]:
        """For each part of the step's groups the rows that learn, and the terms with what this part is divided by.

        `counted` and `learning` are (N,) bool. Parts in which nobody learns, on any process, are left out.
        """
        here = parallel.gather(len(batch.rewards))
        group = torch.arange(len(counted), device=counted.device) // batch.rewards.shape[1]
        part_of = (sum(here[: parallel.rank()]) + group) * self.config.minibatches // sum(here)
        mask = batch.rollouts.mask * counted[:, None]
        parts = []
        for part in range(self.config.minibatches):
            rows = (learning & (part_of == part)).nonzero().squeeze(1)
            own = part_of == part
            own_total = loss_total(mask[own], terms.advantages[own], self.method, self.config.max_new_tokens)
            learn, totals = zip(*parallel.gather((len(rows), own_total)), strict=True)
            if sum(learn):
                parts.append((rows, replace(terms, total=max(1.0, sum(totals)))))
        return parts

    def loss_terms(self, rollouts: Rollouts, advantages: torch.Tensor, ref_logps: torch.Tensor | None) -> LossTerms:
        """What all updates of a step compare with, of `advantages`, (N,) or (N, T)."""
        assert rollouts.logps is not None  # they have been sampled
        return LossTerms(self.method, advantages, rollouts.logps, self.old_logps(rollouts), ref_logps)

    def old_logps(self, rollouts: Rollouts) -> torch.Tensor | None:
        """What importance ratios compare with, (N, T); None where they are 1, in a single update of the step's own.

        Methods with a `sampler_cap` have a weight of their own for the sampler, so that their ratios begin at 1 and
        compare with the trainer at the start of the step. Other ratios compare with the sampler, whose mismatch they
        then correct; or, with `ratio_to` of "trainer", with the trainer, and the mismatch is ignored.
        """
        several = self.config.updates_per_step * self.config.minibatches > 1
        mismatch = self.config.sampler != "same"
        if self.method.sampler_cap is not None or mismatch and several and self.config.ratio_to == "trainer":
            return self.score(self.model, rollouts)
        if several or mismatch and self.config.ratio_to == "sampler":
            return rollouts.logps
        return None

    def reference_logps(self, rollouts: Rollouts) -> torch.Tensor | None:
        """The reference's log-probabilities of the sampled tokens, (N, T); None without a reference."""
        return None if self.reference is None else self.score(self.reference, rollouts)

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
