"""Where samples come from: the model itself, or a copy of it that is rounded or late, as in a system with two engines.

A large system samples with one program and trains with another. Here one program shows what that does to the samples.
"""

import copy
import re

import torch

from ..files.kinds import Kind
from ..off_policy import round_rows
from ..qwen3 import Qwen3Model
from .memory import cast_weights

SAMPLERS = "same, bfloat16, int8, int4, or stale:K"


def late_by(sampler: str) -> int | None:
    """The K of stale:K, the number of steps that a copy stays; None for the others. ValueError for unknown ones."""
    late = re.fullmatch(r"stale:([1-9][0-9]{0,5})", sampler)
    if not late and sampler not in ("same", "bfloat16", "int8", "int4"):
        raise ValueError(f"expected {SAMPLERS}")
    return int(late[1]) if late else None


def is_sampler(value: object) -> bool:
    """Whether a value names a sampler."""
    try:
        return isinstance(value, str) and bool(late_by(value) or True)
    except ValueError:
        return False


SAMPLER = Kind(SAMPLERS, is_sampler)


class Sampler:
    """What a step samples from in place of its model.

    `kind` is "same", the model itself; "bfloat16", a copy that computes in this type; "int8" or "int4", one whose
    matrices are rounded to so many bits; or "stale:K", one that is renewed every K steps.
    """

    def __init__(self, kind: str):
        self.kind, self.period = kind, late_by(kind)
        self.copy: Qwen3Model | None = None  # what a stale sampler keeps

    def at(self, step: int, model: Qwen3Model) -> Qwen3Model:
        """The model to sample from at a step, counted from 1."""
        if self.kind == "same":
            return model
        if self.period is None:
            return rounded(model, self.kind)
        if self.copy is None or (step - 1) % self.period == 0:
            self.copy = copy.deepcopy(model).requires_grad_(False)
        return self.copy

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold to go on: the weights of a stale copy."""
        return {} if self.copy is None else dict(self.copy.state_dict())

    def restore(self, tensors: dict[str, torch.Tensor], model: Qwen3Model) -> None:
        """Take the copy back from a checkpoint, for a model of the same shape."""
        self.copy = copy.deepcopy(model).requires_grad_(False)
        self.copy.load_state_dict(tensors)


@torch.no_grad()
def rounded(model: Qwen3Model, kind: str) -> Qwen3Model:
    """A copy of the model in "bfloat16", or with matrices in "int8" or "int4" (the computation stays as it is)."""
    other = copy.deepcopy(model).requires_grad_(False)
    if kind == "bfloat16":
        cast_weights(other, torch.bfloat16)
    else:
        for weight in other.parameters():
            if weight.dim() == 2:
                weight.copy_(round_rows(weight, int(kind.removeprefix("int"))))
    return other
