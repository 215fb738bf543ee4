"""One token at a time: the forward pass of sampling in fewer and larger operations.

A small model's token costs a CPU less in arithmetic than in starting operations. Here the query, key and value
projections are one matrix product, as are the two of the feed-forward layer, and queries and keys are normalised and
rotated together: the same numbers up to rounding, from fewer operations.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F

from .qwen3 import KVCache, Qwen3Model, TransformerBlock

STACK_BELOW = 2**26  # bytes of weights; stacking copies them, and a larger model's time goes into reading them
# Of some rows, (batch, in), and a weight; with a second argument other than None, added to that.
Product = Callable[..., torch.Tensor]


def decoder(model: Qwen3Model) -> Callable[[torch.Tensor, KVCache], torch.Tensor]:
    """What sampling should call in place of the model, with one new token for each row of a prefilled cache.

    `decoder(model)(ids, cache)` returns logits, (batch, 1, vocab_size), of ids, (batch, 1), without a gradient. It
    holds copies of the weights and must be made again when they have changed. A large model is returned as it is.
    """
    return StackedDecoder(model) if weight_bytes(model) <= STACK_BELOW else model


def weight_bytes(model: Qwen3Model) -> int:
    """What a model's weights take."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def plain_product(weight: torch.Tensor) -> Product:
    """x times the weight, (out, in), transposed."""
    transposed = weight.t()
    return lambda x, to=None: F.linear(x, weight) if to is None else torch.addmm(to, x, transposed)


class StackedDecoder:
    """A model's weights, stacked so that one operation does the work of several."""

    @torch.no_grad()
    def __init__(self, model: Qwen3Model, product: Callable[[torch.Tensor], Product] = plain_product):
        self.model, cfg = model, model.cfg
        self.eps, self.head_dim = cfg["rms_norm_eps"], cfg["head_dim"]
        self.n_heads, self.n_kv = cfg["n_heads"], cfg["n_kv_groups"]
        self.blocks = []
        for block in cast(Iterable[TransformerBlock], model.trf_blocks):
            att, ff = block.att, block.ff
            qkv, scales = (att.W_query, att.W_key, att.W_value), None
            if att.qk_norm:
                scales = torch.cat([att.q_norm.scale.expand(self.n_heads, -1), att.k_norm.scale.expand(self.n_kv, -1)])
            self.blocks.append((
                block.norm1.scale,
                product(torch.cat([layer.weight for layer in qkv])),
                None if att.W_query.bias is None else torch.cat([layer.bias for layer in qkv]),
                None if scales is None else scales[:, None],
                product(att.out_proj.weight),
                block.norm2.scale,
                product(torch.cat([ff.fc1.weight, ff.fc2.weight])),
                product(ff.fc3.weight),
            ))  # fmt: skip
        self.head = product(model.head_weight())
        # Rotation by half the dimensions in place of "minus the second half, then the first": the sign is in the sine.
        sign = torch.ones_like(model.sin[0])
        sign[: self.head_dim // 2] = -1
        self.cos, self.sin = (table.to(model.tok_emb.weight.dtype) for table in (model.cos, model.sin * sign))

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Logits, (batch, 1, vocab_size), of one token id per row, (batch, 1)."""
        model, t, batch = self.model, cache.length, len(ids)
        if t >= model.cfg["context_length"]:
            return model(ids, cache=cache)  # which says what is wrong
        mask = None
        cos, sin = self.cos[t], self.sin[t]
        if cache.num_pad is not None:
            mask = (torch.arange(t + 1, device=ids.device) >= cache.num_pad[:, None])[:, None, None]
            cos, sin = (table[t - cache.num_pad][:, None, None] for table in (self.cos, self.sin))
        rotated = self.n_heads + self.n_kv
        x = F.embedding(ids[:, 0], model.tok_emb.weight)
        for layer, (scale1, qkv, bias, qk_scales, out_proj, scale2, fc12, fc3) in enumerate(self.blocks):
            heads = qkv(self.norm(x, scale1), bias).view(batch, -1, 1, self.head_dim)
            qk = heads[:, :rotated]
            if qk_scales is not None:
                qk = self.norm(qk) * qk_scales
            qk = qk * cos + qk.roll(self.head_dim // 2, dims=-1) * sin
            q = qk[:, : self.n_heads].reshape(batch, self.n_kv, -1, self.head_dim)
            k, v = cache.update(layer, qk[:, self.n_heads :], heads[:, rotated:])
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = out_proj(seen.reshape(batch, -1), x)
            gate, up = fc12(self.norm(x, scale2)).chunk(2, dim=-1)
            x = fc3(F.silu(gate) * up, x)
        cache.length = t + 1
        return self.head(self.norm(x, model.final_norm.scale))[:, None]

    def norm(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """RMSNorm over the last dimension."""
        return F.rms_norm(x, x.shape[-1:], scale, self.eps)
