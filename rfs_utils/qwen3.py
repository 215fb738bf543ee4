"""The Qwen3 architecture from scratch: one short implementation for single, batched and left-padded input.

Three settings of the config make it Qwen2 or Llama: `qk_norm` (Qwen3 alone), `qkv_bias` (Qwen2 alone), and
`rope_scaling` (Llama 3.1 and later). A config without them is Qwen3's.

Module and config names are those of the printed book, so that its state dicts load. Two things differ on
purpose: the output head shares the embedding's weights (as Qwen3-0.6B was trained), and the position in the
sequence lives in the cache, so that one model can serve several caches.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

QWEN3_CONFIG_06B = {
    "vocab_size": 151_936,
    "context_length": 40_960,
    "emb_dim": 1024,
    "n_heads": 16,
    "n_layers": 28,
    "hidden_dim": 3072,
    "head_dim": 128,
    "n_kv_groups": 8,
    "rope_base": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "dtype": torch.bfloat16,
}

QWEN3_CONFIG_TINY = {
    "vocab_size": 512,
    "context_length": 512,
    "emb_dim": 128,
    "n_heads": 4,
    "n_layers": 3,
    "hidden_dim": 352,
    "head_dim": 32,
    "n_kv_groups": 2,
    "rope_base": 10_000.0,
    "rms_norm_eps": 1e-6,
    "dtype": torch.float32,
}


class KVCache:
    """Keys and values of every layer for the tokens seen so far.

    The buffers have room for `capacity` positions and double when they are full. `length` is the number of
    positions filled. `num_pad`, shape (batch,), is the number of left-padding positions of each row, or None.
    """

    differentiable = False  # the buffers are overwritten in place, which autograd does not allow

    def __init__(self, n_layers: int, capacity: int = 0):
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # filled as the first tokens pass
        self.n_layers = n_layers
        self.capacity = capacity
        self.length = 0
        self.num_pad: torch.Tensor | None = None

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, each (batch, kv_heads, new, head_dim); return all of them so far."""
        end = self.length + k.shape[2]
        if layer not in self.layers or self.layers[layer][0].shape[2] < end:
            self._grow(layer, k, v, max(end, self.capacity, 2 * self.length))
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def _grow(self, layer: int, k: torch.Tensor, v: torch.Tensor, size: int) -> None:
        room = [x.new_empty(*x.shape[:2], size, x.shape[3]) for x in (k, v)]
        if layer in self.layers:
            for new, old in zip(room, self.layers[layer], strict=True):
                new[:, :, : self.length] = old[:, :, : self.length]
        self.layers[layer] = (room[0], room[1])

    def repeat(self, n: int) -> None:
        """Repeat every row `n` times, row by row: one prefilled prompt becomes a group of `n`."""
        self._map(lambda x: x.repeat_interleave(n, dim=0))

    def select(self, rows: torch.Tensor) -> None:
        """Keep only the given rows, an index tensor: the others have finished."""
        self._map(lambda x: x[rows])

    def _map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for layer, (keys, values) in self.layers.items():  # one at a time, so that only one layer exists twice
            self.layers[layer] = (f(keys), f(values))
        if self.num_pad is not None:
            self.num_pad = f(self.num_pad)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.scale, self.eps)


class FeedForward(nn.Module):
    """SwiGLU: fc3(silu(fc1(x)) * fc2(x))."""

    def __init__(self, cfg: dict):
        super().__init__()
        d, h, options = cfg["emb_dim"], cfg["hidden_dim"], {"bias": False, "dtype": cfg["dtype"]}
        self.fc1 = nn.Linear(d, h, **options)
        self.fc2 = nn.Linear(d, h, **options)
        self.fc3 = nn.Linear(h, d, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


def rope_frequencies(head_dim: int, base: float, scaling: dict | None = None) -> torch.Tensor:
    """Angles per position, (head_dim / 2,), of the rotary position embedding; `scaling` is that of Llama 3.1.

    It turns the slow dimensions, which make less than `low_freq_factor` rounds within the context of the
    pre-training, slower by `factor`, leaves those of more than `high_freq_factor` rounds, and blends between.
    """
    frequencies = base ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    if scaling is None:
        return frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rounds = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((rounds - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rope_tables(
    head_dim: int, context_length: int, base: float, scaling: dict | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary position embedding, each (context_length, head_dim), float32."""
    angles = torch.outer(torch.arange(context_length).float(), rope_frequencies(head_dim, base, scaling))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x, (batch, heads, tokens, head_dim), by the angles of its positions."""
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-x2, x1], dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Causal attention in which several query heads share one key-value head, in Qwen3 with RMSNorm on q and k."""

    def __init__(self, cfg: dict, layer: int):
        super().__init__()
        d, hd, options = cfg["emb_dim"], cfg["head_dim"], {"bias": cfg.get("qkv_bias", False), "dtype": cfg["dtype"]}
        self.layer, self.head_dim = layer, hd
        self.W_query = nn.Linear(d, cfg["n_heads"] * hd, **options)
        self.W_key = nn.Linear(d, cfg["n_kv_groups"] * hd, **options)
        self.W_value = nn.Linear(d, cfg["n_kv_groups"] * hd, **options)
        self.out_proj = nn.Linear(cfg["n_heads"] * hd, d, bias=False, dtype=cfg["dtype"])
        self.qk_norm = cfg.get("qk_norm", True)
        if self.qk_norm:
            self.q_norm = RMSNorm(hd, cfg["rms_norm_eps"], cfg["dtype"])
            self.k_norm = RMSNorm(hd, cfg["rms_norm_eps"], cfg["dtype"])

    def forward(self, x, rope, mask, cache):
        batch, tokens, _ = x.shape

        def heads(y):  # (batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)
            return y.view(batch, tokens, -1, self.head_dim).transpose(1, 2)

        q, k, v = heads(self.W_query(x)), heads(self.W_key(x)), heads(self.W_value(x))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        if tokens == 1:
            # Query heads that share a key-value head act as its queries, so that keys and values are not repeated.
            q = q.reshape(batch, k.shape[1], -1, self.head_dim)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(batch, -1, 1, self.head_dim)
        else:  # without a mask tensor the kernel's own causal rule applies
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.out_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class TransformerBlock(nn.Module):
    def __init__(self, cfg: dict, layer: int):
        super().__init__()
        self.att = GroupedQueryAttention(cfg, layer)
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["rms_norm_eps"], cfg["dtype"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["rms_norm_eps"], cfg["dtype"])

    def forward(self, x, rope, mask, cache):
        x = x + self.att(self.norm1(x), rope, mask, cache)
        return x + self.ff(self.norm2(x))


class Qwen3Model(nn.Module):
    """A language model of Qwen3's family, or of Qwen2's or Llama's; `cfg` is a dictionary like QWEN3_CONFIG_06B.

    With `gradient_checkpointing` set to True, a forward pass that records gradients keeps only the input of every
    block and computes the rest again in the backward pass: less memory, a third more time, the same gradient.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.gradient_checkpointing = False
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"], dtype=cfg["dtype"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg, i) for i in range(cfg["n_layers"]))
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["rms_norm_eps"], cfg["dtype"])
        if not cfg.get("tied", True):  # the larger Qwen3 models have an output head of their own
            self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False, dtype=cfg["dtype"])
        cos, sin = rope_tables(cfg["head_dim"], cfg["context_length"], cfg["rope_base"], cfg.get("rope_scaling"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        in_idx: torch.Tensor,
        cache: KVCache | None = None,
        num_pad: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, (batch, tokens, vocab_size), of token ids, (batch, tokens).

        `num_pad`, (batch,), says how many padding tokens stand at the left of each row: they get no
        attention, and positions are counted from the first real token. Padding at the right needs
        nothing, since no real token can see it. With a cache, pass `num_pad` with the prompt only.
        """
        return self.logits(self.hidden_states(in_idx, cache, num_pad))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of final hidden states; unless `cfg["tied"]` is False, the head is the embedding matrix."""
        return F.linear(hidden, self.head_weight())

    def head_weight(self) -> torch.Tensor:
        """Weight of the output head, (vocab_size, emb_dim)."""
        return (self.tok_emb if self.cfg.get("tied", True) else self.out_head).weight

    def hidden_states(
        self,
        in_idx: torch.Tensor,
        cache: KVCache | None = None,
        num_pad: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states, (batch, tokens, emb_dim); arguments as in `forward`."""
        start = 0 if cache is None else cache.length
        end = start + in_idx.shape[1]
        if end > self.cfg["context_length"]:
            raise ValueError(
                f"the sequence has {end} tokens, but the model's context_length is {self.cfg['context_length']}"
            )
        if cache is not None:
            if num_pad is not None:
                cache.num_pad = num_pad
            num_pad = cache.num_pad
        rope, mask = self._positions(start, end, num_pad)
        x = self.tok_emb(in_idx)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        recompute = recompute and (cache is None or cache.differentiable)
        for block in self.trf_blocks:
            if recompute:
                x = checkpoint(block, x, rope, mask, cache, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rope, mask, cache)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)

    def _positions(self, start: int, end: int, num_pad: torch.Tensor | None):
        """Rotary tables and attention mask (None where the kernel's causal rule is enough)."""
        dtype = self.tok_emb.weight.dtype
        slots = torch.arange(end, device=self.cos.device)
        queries = slots[start:]
        causal = (slots[None, :] <= queries[:, None])[None, None]
        if num_pad is None:
            mask = causal if start > 0 and len(queries) > 1 else None
            return (self.cos[start:end].to(dtype), self.sin[start:end].to(dtype)), mask
        real = slots[None, :] >= num_pad[:, None]
        # A padding query may see itself, because a row without any key would turn into NaN.
        itself = slots[None, :] == queries[:, None]
        mask = (causal & real[:, None, None, :]) | itself
        positions = (queries[None, :] - num_pad[:, None]).clamp(min=0)
        rope = (self.cos[positions][:, None].to(dtype), self.sin[positions][:, None].to(dtype))
        return rope, mask

    def reset_kv_cache(self) -> None:
        """Does nothing: the position lives in the cache. Kept so that the printed book's listings run."""
