"""Rollouts in batches: sampled within a budget of memory, joined, and picked out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..ch06 import Rollouts, sample_batch
from ..qwen3 import Qwen3Model
from ..tokenizer import Tokenizer, encode_prompts
from .packing import packed


def cache_bytes_per_token(model: Qwen3Model) -> int:
    """Bytes of keys and values that one token of one rollout takes: 114,688 for Qwen3-0.6B in bfloat16."""
    cfg = model.cfg
    return 2 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"] * model.tok_emb.weight.element_size()


def sample_rollouts(
    model: Qwen3Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    device: torch.device | str,
    num_rollouts: int = 1,
    max_new_tokens: int = 512,
    temperature: float | None = 0.8,
    top_p: float | None = 0.9,
    cache_bytes: int = 2**30,
    uniform: torch.Tensor | None = None,
) -> Rollouts:
    """`ch06.sample_batch`, in as many batches as keep the key-value cache within `cache_bytes`.

    `uniform`, (prompts * num_rollouts, max_new_tokens), decides the draws of each rollout, however they are batched.
    """
    room = cache_bytes // cache_bytes_per_token(model)  # tokens
    width = max(map(len, encode_prompts(tokenizer, prompts)))
    at_once = max(1, room // (width + max_new_tokens))
    step = max(1, at_once // num_rollouts)  # whole groups of several prompts, or a part of one prompt's group
    sizes = [min(at_once, num_rollouts - start) for start in range(0, num_rollouts, at_once)]
    batches, drawn, model = [], 0, packed(model)
    for some, size in [(prompts[i : i + step], size) for i in range(0, len(prompts), step) for size in sizes]:
        rows = slice(drawn, drawn := drawn + len(some) * size)
        numbers = None if uniform is None else uniform[rows]
        batches.append(sample_batch(model, tokenizer, some, device, size, max_new_tokens, temperature, top_p, numbers))
    return batches[0] if len(batches) == 1 else join_rollouts(batches, tokenizer.pad_token_id)


def join_rollouts(batches: Sequence[Rollouts], pad_token_id: int) -> Rollouts:
    """One batch of rollouts from several: prompts padded on the left, responses on the right."""
    width = max(b.prompt_ids.shape[1] for b in batches)
    longest = max(b.tokens.shape[1] for b in batches)
    prompt_ids, pads, logps = [], [], []
    for b in batches:
        assert b.logps is not None  # whatever has been sampled has them
        more = width - b.prompt_ids.shape[1]
        prompt_ids.append(F.pad(b.prompt_ids, (more, 0), value=pad_token_id))
        logps.append(F.pad(b.logps, (0, longest - b.tokens.shape[1])))
        pads.append((0 if b.num_pad is None else b.num_pad) + torch.full_like(b.lengths, more))
    num_pad = torch.cat(pads)
    return Rollouts(
        prompt_ids=torch.cat(prompt_ids),
        num_pad=num_pad if bool(num_pad.any()) else None,
        tokens=torch.cat([F.pad(b.tokens, (0, longest - b.tokens.shape[1])) for b in batches]),
        lengths=torch.cat([b.lengths for b in batches]),
        texts=[text for b in batches for text in b.texts],
        logps=torch.cat(logps),
    )


def select_rollouts(rollouts: Rollouts, rows: torch.Tensor) -> Rollouts:
    """The rollouts with these indices, in this order."""
    return Rollouts(
        prompt_ids=rollouts.prompt_ids[rows],
        num_pad=None if rollouts.num_pad is None else rollouts.num_pad[rows],
        tokens=rollouts.tokens[rows],
        lengths=rollouts.lengths[rows],
        texts=[rollouts.texts[i] for i in rows.tolist()],
        logps=None if rollouts.logps is None else rollouts.logps[rows],
    )
