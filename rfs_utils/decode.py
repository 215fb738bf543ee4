"""One token at a time: the forward pass of sampling in fewer and larger operations.

A small model's token costs a CPU less in arithmetic than in starting operations. Here the query, key and value
projections are one matrix product, as are the two of the feed-forward layer, queries and keys are normalised and
rotated together, and scales are folded into weights: the same numbers up to rounding, from fewer operations.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F

from .qwen3 import KVCache, Qwen3Model, TransformerBlock

STACK_BELOW = 2**26  # bytes of weights; stacking copies them, and a larger model's time goes into reading them
MORE_COLUMNS = 8  # one for the eps; eight keep rows where vector instructions read fast
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
    """A model's weights, stacked so that one operation does the work of several.

    In float32, RMSNorm costs two operations in place of six. It divides x by sqrt((|x|^2 + d eps) / d). The factor
    sqrt(d) and the norm's scale go into the weights that follow, and the eps into |x|: the residual stream has a column
    more, which stays at sqrt(d eps), and which no weight reads.
    """

    @torch.no_grad()
    def __init__(self, model: Qwen3Model, product: Callable[[torch.Tensor], Product] = plain_product):
        self.model, cfg = model, model.cfg
        self.eps, self.head_dim, self.dim = cfg["rms_norm_eps"], cfg["head_dim"], cfg["emb_dim"]
        self.n_heads, self.n_kv = cfg["n_heads"], cfg["n_kv_groups"]
        embeddings = model.tok_emb.weight
        self.lean = embeddings.dtype == torch.float32  # fewer digits would not do for lengths of vectors
        self.blocks = []
        for block in cast(Iterable[TransformerBlock], model.trf_blocks):
            att, ff = block.att, block.ff
            qkv, scales = (att.W_query, att.W_key, att.W_value), None
            if att.qk_norm:
                scales = torch.cat([att.q_norm.scale.expand(self.n_heads, -1), att.k_norm.scale.expand(self.n_kv, -1)])
                scales = scales * (self.head_dim**0.5 if self.lean else 1)
            self.blocks.append((
                product(self.reading(torch.cat([layer.weight for layer in qkv]), block.norm1.scale)),
                None if att.W_query.bias is None else torch.cat([layer.bias for layer in qkv]),
                scales,
                product(self.writing(att.out_proj.weight)),
                product(self.reading(torch.cat([ff.fc1.weight, ff.fc2.weight]), block.norm2.scale)),
                product(self.writing(ff.fc3.weight)),
            ))  # fmt: skip
        self.head = product(self.reading(model.head_weight(), model.final_norm.scale))
        self.embeddings = embeddings.detach()
        if self.lean:
            self.embeddings = F.pad(self.embeddings, (0, MORE_COLUMNS))
            self.embeddings[:, self.dim] = (self.dim * self.eps) ** 0.5
        self.head_eps = torch.tensor((self.head_dim * self.eps) ** 0.5, device=embeddings.device)
        # Rotation by half the dimensions in place of "minus the second half, then the first": the sign is in the sine.
        sign = torch.ones_like(model.sin[0])
        sign[: self.head_dim // 2] = -1
        self.cos, self.sin = (table.to(embeddings.dtype) for table in (model.cos, model.sin * sign))

    def reading(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """A weight, (out, dim), for `unit(x)` in place of RMSNorm(x) with this scale, (dim,)."""
        weight = weight * scale
        return F.pad(weight * self.dim**0.5, (0, MORE_COLUMNS)) if self.lean else weight

    def writing(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight, (dim, in), whose product is added to the residual stream."""
        return F.pad(weight, (0, 0, 0, MORE_COLUMNS)) if self.lean else weight

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm of the residual stream, (batch, dim), but for what `reading` has put into the weights."""
        if not self.lean:
            return F.rms_norm(x, x.shape[-1:], None, self.eps)
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def unit_heads(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm of queries and keys, (batch, heads, 1, head_dim), but for their scales."""
        if not self.lean:
            return F.rms_norm(x, x.shape[-1:], None, self.eps)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.head_eps)

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
        x = F.embedding(ids[:, 0], self.embeddings)
        for layer, (qkv, bias, qk_scales, out_proj, fc12, fc3) in enumerate(self.blocks):
            heads = qkv(self.unit(x), bias).view(batch, -1, 1, self.head_dim)
            qk = heads[:, :rotated]
            if qk_scales is not None:
                qk = self.unit_heads(qk) * qk_scales[:, None]
            qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, dims=-1), sin)
            q = qk[:, : self.n_heads].reshape(batch, self.n_kv, -1, self.head_dim)
            k, v = cache.update(layer, qk[:, self.n_heads :], heads[:, rotated:])
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = out_proj(seen.reshape(batch, -1), x)
            gate, up = fc12(self.unit(x)).chunk(2, dim=-1)
            x = fc3(F.silu(gate) * up, x)
        cache.length = t + 1
        return self.head(self.unit(x))[:, None]
