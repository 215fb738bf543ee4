"""Sampling from large bfloat16 models on a CPU, whose products want the weights in an order of their own.

A large model's token costs what it takes to read the weights. torch brings them into that order at every call; here it
is done once for all tokens.
"""

from typing import cast

import torch

from ..decode import STACK_BELOW, Product, StackedDecoder, weight_bytes
from ..qwen3 import KVCache, Qwen3Model


def packed(model: Qwen3Model) -> Qwen3Model:
    """A model to sample from in place of this one: faster where packing pays, the model itself elsewhere.

    It holds copies of the weights, must be made again when they have changed, and knows no gradient.
    """
    pays = weight_bytes(model) > STACK_BELOW and can_pack(model.tok_emb.weight)
    return cast(Qwen3Model, PackedModel(model)) if pays else model


class PackedModel:
    """The model, but that single tokens after a prompt pass through packed weights."""

    def __init__(self, model: Qwen3Model):
        self.model = model
        self.decode = StackedDecoder(model, packed_product)

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def __call__(self, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Logits, (batch, 1, vocab_size), of one token id per row, (batch, 1), after a prefilled cache."""
        return self.decode(ids, cache)


def packed_product(weight: torch.Tensor) -> Product:
    """x times the weight, (out, in), transposed, by a copy in the order in which the CPU's kernels read it."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 4)  # four rows or any other number

    def product(x: torch.Tensor, to: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return y if to is None else y.add_(to)

    return product


def can_pack(weight: torch.Tensor) -> bool:
    """Whether `packed_product` works here; what it calls is not part of torch's promised interface."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and torch.ops.mkldnn._is_mkldnn_bf16_supported()
