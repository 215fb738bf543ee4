"""A GRPO step that fits: the functions of chapter 6, computed in parts that never exist all at once.

What makes a step of a 0.6 B model large is not the model. It is the logits (151,936 numbers for every token), the
activations of all rollouts together, and the optimiser. Here log-probabilities are computed for a few positions at a
time, rollouts are back-propagated a micro-batch at a time, and each prompt is read once for all of its responses.
The gradient stays the one of the plain step.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .ch06 import Rollouts, sample_batch
from .qwen3 import Qwen3Model
from .sampling import top_p_filter
from .tokenizer import Qwen3Tokenizer, encode_prompts

MEMORY = ("auto", "low")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --- log-probabilities in chunks ------------------------------------------------------------------


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities of tokens, (n,), from hidden states, (n, emb_dim), and the head's weight, (vocab, emb_dim)."""

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, top_p, chunk):
        logps = torch.empty(len(tokens), device=hidden.device)
        log_norms = torch.empty_like(logps)
        masks = []  # kept for the backward pass: one byte a logit, and finding them again means sorting again
        for part in _slices(len(tokens), chunk):
            logits = F.linear(hidden[part], weight).float() / temperature
            chosen = logits.gather(-1, tokens[part, None])
            if top_p is not None and top_p < 1:
                allowed = top_p_filter(torch.softmax(logits, dim=-1), top_p) > 0
                allowed.scatter_(-1, tokens[part, None], True)
                logits.masked_fill_(~allowed, float("-inf"))
                masks.append(allowed if any(ctx.needs_input_grad) else None)
            log_norms[part] = logits.logsumexp(dim=-1)
            logps[part] = chosen.squeeze(-1) - log_norms[part]
        ctx.save_for_backward(hidden, weight, tokens, log_norms)
        ctx.masks, ctx.temperature, ctx.chunk = masks, temperature, chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, tokens, log_norms = ctx.saved_tensors
        grad = grad / ctx.temperature
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i, part in enumerate(_slices(len(tokens), ctx.chunk)):
            # d logp / d logits = one at the token - probabilities, over the temperature
            logits = F.linear(hidden[part], weight).float().div_(ctx.temperature)
            slope = logits.sub_(log_norms[part, None]).exp_()
            if ctx.masks:
                slope.mul_(ctx.masks[i])
            slope.mul_(-grad[part, None]).scatter_add_(-1, tokens[part, None], grad[part, None])
            slope = slope.to(weight.dtype)
            grad_hidden[part] = slope @ weight
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, hidden[part])
        return grad_hidden, grad_weight, None, None, None, None


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def chunked_logprobs(
    model: Qwen3Model,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float | None = 1.0,
    top_p: float | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """`ch06.token_logprobs` of the model's logits, (n,), for hidden states (n, emb_dim) and token ids (n,).

    The logits of `chunk` positions exist at a time (default: about 64 MB of them); the backward pass computes
    them again.
    """
    weight = model.head_weight()
    chunk = chunk or max(1, 2**24 // len(weight))
    temperature = 1.0 if temperature is None else temperature
    return _ChunkedLogprobs.apply(hidden, weight, tokens, temperature, top_p, chunk)


# --- prompts read once ----------------------------------------------------------------------------


class PromptKV:
    """Keys and values of prompts, with their gradient; stands where a KVCache would, but nothing is overwritten.

    Empty, it records a forward pass over prompts. `continued(rows)` is what responses see in front of themselves.
    """

    differentiable = True

    def __init__(self, n_layers: int):
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers
        self.rows: torch.Tensor | None = None  # the prompt of every response
        self.length = 0
        self.num_pad: torch.Tensor | None = None

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that the new tokens see: with gradient checkpointing called again in the backward pass."""
        if self.rows is None:
            if self.layers[layer] is None:
                self.layers[layer] = (k, v)
            return k, v
        past = (x.index_select(0, self.rows) for x in self.layers[layer])
        return tuple(torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True))

    def continued(self, rows: torch.Tensor) -> "PromptKV":
        """The same prompts in front of a batch of responses; `rows`, (batch,), is the prompt of each."""
        other = PromptKV(len(self.layers))
        other.layers, other.length, other.rows = self.layers, self.length, rows
        other.num_pad = None if self.num_pad is None else self.num_pad[rows]
        return other


class PromptStates:
    """A forward pass over prompts, whose backward pass waits until all responses have added their gradient."""

    def __init__(self, model: Qwen3Model, ids: torch.Tensor, num_pad: torch.Tensor | None):
        self.cache = PromptKV(model.cfg["n_layers"])
        last = model.hidden_states(ids, self.cache, num_pad)[:, -1]  # predicts the first response token
        self.outputs = [last] + [x for kv in self.cache.layers for x in kv]
        # Responses see copies outside of the graph. Each micro-batch's backward pass ends there.
        self.leaves = [x.detach().requires_grad_(x.requires_grad) for x in self.outputs]
        self.last = self.leaves[0]
        self.cache.layers = list(zip(self.leaves[1::2], self.leaves[2::2], strict=True))

    def backward(self) -> None:
        """Pass the gradient that the responses have left on to the weights."""
        used = [(x, leaf.grad) for x, leaf in zip(self.outputs, self.leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward([x for x, _ in used], [grad for _, grad in used])


@dataclass
class PromptGroup:
    """Some prompts of a step and the rows of `Rollouts` that continue them."""

    ids: torch.Tensor  # (prompts, width)
    num_pad: torch.Tensor | None  # (prompts,)
    rows: torch.Tensor  # (rows,) indices into Rollouts
    owner: torch.Tensor  # (rows,) the prompt of each row, an index into `ids`


def prompt_groups(rollouts: Rollouts, rows: torch.Tensor, max_tokens: int) -> Iterator[PromptGroup]:
    """The distinct prompts of the given rows, at most `max_tokens` prompt tokens together, padding trimmed."""
    pad = rollouts.num_pad
    pad = torch.zeros_like(rollouts.lengths) if pad is None else pad
    # Padding counts as part of the prompt, because a real token may have the padding's id.
    keys = torch.cat([pad[rows, None], rollouts.prompt_ids[rows]], dim=1)
    keys, owner = torch.unique_consecutive(keys, dim=0, return_inverse=True)
    per_group = max(1, max_tokens // rollouts.prompt_ids.shape[1])
    for part in _slices(len(keys), per_group):
        pads, ids = keys[part, 0], keys[part, 1:]
        trim = int(pads.min())
        here = (owner >= part.start) & (owner < part.stop)
        num_pad = pads - trim if bool((pads > trim).any()) else None
        yield PromptGroup(ids[:, trim:], num_pad, rows[here], owner[here] - part.start)


def split_by_length(lengths: torch.Tensor, max_tokens: int) -> list[torch.Tensor]:
    """Indices of responses in micro-batches of at most `max_tokens`, padding counted; a long one stands alone.

    Responses of like length come together, so that little padding is computed; the longest come first, because
    what does not fit should fail at once.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    parts, start = [], 0
    while start < len(order):
        count = max(1, max_tokens // int(lengths[order[start]]))
        parts.append(order[start : start + count])
        start += count
    return parts


def _score(model, prompts: PromptStates, owner, tokens, lengths, temperature, top_p) -> torch.Tensor:
    """Log-probabilities, (rows, longest), zero at padding, of some responses to prompts that were read."""
    tokens = tokens[:, : int(lengths.max())]
    hidden = prompts.last.index_select(0, owner)[:, None]
    if tokens.shape[1] > 1:
        # The last token of a response predicts nothing.
        more = model.hidden_states(tokens[:, :-1], prompts.cache.continued(owner))
        hidden = torch.cat([hidden, more], dim=1)
    real = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
    logps = chunked_logprobs(model, hidden[real], tokens[real], temperature, top_p)
    return torch.zeros(tokens.shape, device=logps.device).masked_scatter(real, logps)


@contextmanager
def _checkpointing(model: Qwen3Model, on: bool):
    before = model.gradient_checkpointing
    model.gradient_checkpointing = before or on
    try:
        yield
    finally:
        model.gradient_checkpointing = before


# --- the step -------------------------------------------------------------------------------------

PartLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def backpropagate(
    model: Qwen3Model,
    rollouts: Rollouts,
    part_loss: PartLoss,
    temperature: float | None = 1.0,
    top_p: float | None = None,
    max_tokens: int = 4096,
    rows: torch.Tensor | None = None,
) -> float:
    """Add the gradient of a step's loss to the weights, one micro-batch at a time; returns the loss.

    `part_loss(logps, mask, rows)` gets log-probabilities and mask, (n, T), of the n rollouts with the indices `rows`
    and returns their share of the step's loss: it must divide by totals of the step, not of the micro-batch.
    A micro-batch has at most `max_tokens` response tokens; a response longer than that is computed with gradient
    checkpointing. `rows` leaves out the other rollouts, whose share must be zero (advantage 0, no other term).
    """
    rows = torch.arange(len(rollouts.lengths), device=rollouts.lengths.device) if rows is None else rows

    def run(prompts: PromptStates, rows: torch.Tensor, owner: torch.Tensor) -> float:
        # A function, so that nothing of one micro-batch outlives it.
        tokens, lengths = rollouts.tokens[rows], rollouts.lengths[rows]
        with _checkpointing(model, len(rows) * int(lengths.max()) > max_tokens):
            logps = _score(model, prompts, owner, tokens, lengths, temperature, top_p)
            loss = part_loss(logps, rollouts.mask[rows, : logps.shape[1]], rows)
            loss.backward()
        return loss.item()

    total = 0.0
    for group in prompt_groups(rollouts, rows, max_tokens):
        parts = split_by_length(rollouts.lengths[group.rows], max_tokens)
        with _checkpointing(model, len(parts) > 1):  # else a prompt's activations wait for all micro-batches
            prompts = PromptStates(model, group.ids, group.num_pad)
        total += sum(run(prompts, group.rows[part], group.owner[part]) for part in parts)
        prompts.backward()
    return total


@torch.no_grad()
def rollout_logprobs(
    model: Qwen3Model,
    rollouts: Rollouts,
    temperature: float | None = 1.0,
    top_p: float | None = None,
    max_tokens: int = 4096,
) -> torch.Tensor:
    """`ch06.response_logprobs` without gradient, (N, T), zero at padding: for a reference model or old policy."""
    logps = torch.zeros(rollouts.tokens.shape, device=rollouts.tokens.device)
    rows = torch.arange(len(rollouts.lengths), device=rollouts.lengths.device)
    for group in prompt_groups(rollouts, rows, max_tokens):
        prompts = PromptStates(model, group.ids, group.num_pad)
        for part in split_by_length(rollouts.lengths[group.rows], max_tokens):
            rows = group.rows[part]
            found = _score(
                model, prompts, group.owner[part], rollouts.tokens[rows], rollouts.lengths[rows], temperature, top_p
            )
            logps[rows, : found.shape[1]] = found
    return logps


# --- sampling within a budget ---------------------------------------------------------------------


def cache_bytes_per_token(model: Qwen3Model) -> int:
    """Bytes of keys and values that one token of one rollout takes: 114,688 for Qwen3-0.6B in bfloat16."""
    cfg = model.cfg
    return 2 * cfg["n_layers"] * cfg["n_kv_groups"] * cfg["head_dim"] * model.tok_emb.weight.element_size()


def sample_rollouts(
    model: Qwen3Model,
    tokenizer: Qwen3Tokenizer,
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
    width = max(map(len, encode_prompts(tokenizer, prompts)))
    at_once = max(1, cache_bytes // (cache_bytes_per_token(model) * (width + max_new_tokens)))
    batches, drawn = [], 0
    if at_once >= num_rollouts:  # whole groups of several prompts
        groups = [(prompts[part], num_rollouts) for part in _slices(len(prompts), at_once // num_rollouts)]
    else:  # a part of one prompt's group
        sizes = [part.stop - part.start for part in _slices(num_rollouts, at_once)]
        groups = [([prompt], size) for prompt in prompts for size in sizes]
    for some, size in groups:
        rows = slice(drawn, drawn := drawn + len(some) * size)
        numbers = None if uniform is None else uniform[rows]
        batches.append(sample_batch(model, tokenizer, some, device, size, max_new_tokens, temperature, top_p, numbers))
    return batches[0] if len(batches) == 1 else join_rollouts(batches, tokenizer.pad_token_id)


def join_rollouts(batches: Sequence[Rollouts], pad_token_id: int) -> Rollouts:
    """One batch of rollouts from several: prompts padded on the left, responses on the right."""
    width = max(b.prompt_ids.shape[1] for b in batches)
    longest = max(b.tokens.shape[1] for b in batches)
    prompt_ids, num_pad = [], []
    for b in batches:
        more = width - b.prompt_ids.shape[1]
        prompt_ids.append(F.pad(b.prompt_ids, (more, 0), value=pad_token_id))
        num_pad.append((0 if b.num_pad is None else b.num_pad) + torch.full_like(b.lengths, more))
    num_pad = torch.cat(num_pad)
    return Rollouts(
        prompt_ids=torch.cat(prompt_ids),
        num_pad=num_pad if bool(num_pad.any()) else None,
        tokens=torch.cat([F.pad(b.tokens, (0, longest - b.tokens.shape[1])) for b in batches]),
        lengths=torch.cat([b.lengths for b in batches]),
        texts=[text for b in batches for text in b.texts],
        logps=torch.cat([F.pad(b.logps, (0, longest - b.tokens.shape[1])) for b in batches]),
    )


def select_rollouts(rollouts: Rollouts, rows: torch.Tensor) -> Rollouts:
    """The rollouts with these indices, in this order."""
    return Rollouts(
        prompt_ids=rollouts.prompt_ids[rows],
        num_pad=None if rollouts.num_pad is None else rollouts.num_pad[rows],
        tokens=rollouts.tokens[rows],
        lengths=rollouts.lengths[rows],
        texts=[rollouts.texts[i] for i in rows.tolist()],
        logps=rollouts.logps[rows],
    )


# --- one setting ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """What `memory` means on a device: the weights' type, the optimiser, and the size of the parts."""

    dtype: torch.dtype
    optimizer: str  # one of optim.OPTIMIZERS
    max_tokens: int  # of a micro-batch
    cache_bytes: int  # of the key-value cache while sampling


def plan_memory(memory: str, device: torch.device | str, num_parameters: int) -> MemoryPlan:
    """The plan for a model of so many parameters. "auto" keeps small models, below 100 M, in float32 with AdamW.

    Weights are bfloat16 only where the hardware computes with it; elsewhere, a T4 among them, they are float32.
    """
    if memory not in MEMORY:
        raise ValueError(f"unknown memory setting {memory!r}: known settings are {', '.join(MEMORY)}")
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    # While rollouts are sampled there are no gradients, so the cache may take their room.
    room = max(2**28, num_parameters * dtype.itemsize)
    if memory == "low":
        return MemoryPlan(dtype, "8bit", 512, room)
    if num_parameters < 100e6:
        return MemoryPlan(torch.float32, "adamw", 16384, 2**30)
    return MemoryPlan(dtype, "kahan" if dtype == torch.bfloat16 else "adamw", 2048, 2 * room)


def return_freed_memory() -> bool:
    """Have the C library give freed tensors of 768 kB and more back to the system at once; False where it cannot.

    Linux's glibc otherwise comes to keep freed blocks of up to 32 MB for later: 0.6 GB in a step of Qwen3-0.6B.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and mallopt(-3, 3 * 2**18) == 1  # -3 is M_MMAP_THRESHOLD


def cast_weights(model: Qwen3Model, dtype: torch.dtype) -> None:
    """Change the type of the weights, one at a time; rotary tables stay in float32."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.cfg = {**model.cfg, "dtype": dtype}


def has_bfloat16(device: torch.device | str) -> bool:
    """Does the hardware itself compute with bfloat16?

    Not `torch.cuda.is_bf16_supported()`: it is True on GPUs before compute capability 8.0, which emulate it slowly.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return False  # Apple's GPUs differ by generation and system; float32 is right on all
