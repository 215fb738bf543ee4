"""LoRA: the weights stay as they are, and beside each linear layer of the blocks learns a narrow one of low rank.

    y = W x + (alpha / rank) B A x

A, (rank, in), begins at random and B, (out, rank), at zero, so that the first step sees the model as it was. Only A and
B have gradients and optimiser states: of Qwen3-0.6B at rank 8, 5 M numbers in place of 596 M. arXiv 2106.09685; the
names and alpha / rank are those of the package `peft`.
"""

import copy
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..files.kinds import SettingError
from ..hub.adapters import Adapter, merge
from ..qwen3 import Qwen3Model


class LoRALinear(nn.Module):
    """A frozen linear layer, of any type, with an adapter in float32, which computes in the input's type."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.alpha, self.scale = alpha, alpha / rank
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        bound = base.in_features**-0.5  # kaiming-uniform, as nn.Linear itself begins
        start = torch.empty(rank, base.in_features, dtype=dtype).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(start.to(device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))
        return torch.add(self.base(x), low, alpha=self.scale)

    @property
    def weight(self) -> torch.Tensor:
        """The merged weight, a copy without gradient: what the fast decoder stacks."""
        return merge(self.base.weight, self.A, self.B, self.scale)

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias


def add_adapters(model: Qwen3Model, rank: int, alpha: float, seed: int = 0) -> None:
    """Freeze a model and put an adapter around every linear layer of its blocks, in place.

    ValueError when the rank is none, or larger than the narrowest layer is wide.
    """
    layers = {name: module for name, module in model.trf_blocks.named_modules() if isinstance(module, nn.Linear)}
    narrowest = min(min(layer.weight.shape) for layer in layers.values())
    if not 1 <= rank <= narrowest:
        text = f"lora_rank must be from 1 to {narrowest}, the width of the narrowest layer; got {rank}"
        raise SettingError(text, "lora_rank")
    if not alpha > 0:
        raise ValueError(f"lora_alpha must be above 0, got {alpha}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        model.trf_blocks.set_submodule(name, LoRALinear(layer, rank, alpha, generator))


def adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The layers with adapters and their names; none where the model has no adapters."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def without_adapters(model: Qwen3Model, merged: bool = False) -> Qwen3Model:
    """The model as it would be without adapters, or with them `merged` into copies of the weights, frozen.

    It shares all other weights with `model`, so that a reference takes no memory. A model without adapters is itself.
    """
    layers = dict(adapted(model))
    if not layers:
        return model
    plain = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for name, layer in layers.items():
        linear = cast(LoRALinear, plain.get_submodule(name)).base
        if merged:
            linear.weight = nn.Parameter(layer.weight, requires_grad=False)
        plain.set_submodule(name, linear)
    return plain


def get_adapter(model: Qwen3Model, base: str) -> Adapter | None:
    """A model's adapter as it is stored, if it has one; `base` is the name or path of the model below it."""
    layers = dict(adapted(model))
    if not layers:
        return None
    first = next(iter(layers.values()))
    return Adapter(base, len(first.A), first.alpha, {name: (x.A.detach(), x.B.detach()) for name, x in layers.items()})


@torch.no_grad()
def set_adapter(model: Qwen3Model, adapter: Adapter) -> None:
    """Fill a model's adapters with stored ones; ValueError when they are those of another model."""
    layers = dict(adapted(model))
    if layers.keys() != adapter.weights.keys():
        raise ValueError("the adapter is one of other layers")
    for name, (a, b) in adapter.weights.items():
        for ours, stored in ((layers[name].A, a), (layers[name].B, b)):
            if ours.shape != stored.shape:
                raise ValueError(f"the adapter of {name} has shape {tuple(stored.shape)}, not {tuple(ours.shape)}")
            ours.copy_(stored)
