"""What an update needs of a step's experience: which rollouts count, and what the loss compares them with.

The loss itself is ch07's `policy_loss`, for every method.
"""

from dataclasses import dataclass

import torch

from ..ch07 import Method, importance_ratio, is_clipped, kl_estimate, policy_loss
from .experience import Experience


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
