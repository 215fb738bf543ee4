"""A GRPO step that fits: the functions of chapter 6, computed in parts that never exist all at once.

What makes a step of a 0.6 B model large is not the model. It is the logits (151,936 numbers for every token), the
activations of all rollouts together, and the optimiser. Here log-probabilities are computed for a few positions at a
time, rollouts are back-propagated a micro-batch at a time, and each prompt is read once for all of its responses.
The gradient stays the one of the plain step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..ch06 import Rollouts
from ..qwen3 import KVCache, Qwen3Model
from ..sampling import top_p_filter

LOGITS_AT_A_TIME = 2**24  # 64 MB in float32

# --- log-probabilities in chunks ------------------------------------------------------------------


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities of tokens, (n,), from hidden states, (n, emb_dim), and the head's weight, (vocab, emb_dim)."""

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, top_p, chunk):
        logps = torch.empty(len(tokens), device=hidden.device)
        log_norms = torch.empty_like(logps)
        masks = []  # kept for the backward pass: one byte a logit, and finding them again means sorting again
        for part in slices(len(tokens), chunk):
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
        for i, part in enumerate(slices(len(tokens), ctx.chunk)):
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


def slices(n: int, size: int) -> Iterator[slice]:
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

    The logits of `chunk` positions exist at a time, by default of as many as make LOGITS_AT_A_TIME; the backward pass
    computes them again.
    """
    weight = model.head_weight()
    chunk = chunk or max(1, LOGITS_AT_A_TIME // len(weight))
    temperature = 1.0 if temperature is None else temperature
    return _ChunkedLogprobs.apply(hidden, weight, tokens, temperature, top_p, chunk)


# --- prompts read once ----------------------------------------------------------------------------


class PromptKV(KVCache):
    """Keys and values of prompts, with their gradient: nothing is overwritten.

    Empty, it records a forward pass over prompts. `continued(rows)` is what responses see in front of themselves.
    """

    differentiable = True

    def __init__(self, n_layers: int):
        super().__init__(n_layers)
        self.rows: torch.Tensor | None = None  # the prompt of every response

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that the new tokens see: with gradient checkpointing called again in the backward pass."""
        if self.rows is None:
            self.layers.setdefault(layer, (k, v))
            return k, v
        keys, values = (x.index_select(0, self.rows) for x in self.layers[layer])
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)

    def continued(self, rows: torch.Tensor) -> "PromptKV":
        """The same prompts in front of a batch of responses; `rows`, (batch,), is the prompt of each."""
        other = PromptKV(self.n_layers)
        other.layers, other.length, other.rows = self.layers, self.length, rows
        other.num_pad = None if self.num_pad is None else self.num_pad[rows]
        return other


class PromptStates:
    """A forward pass over prompts, whose backward pass waits until all responses have added their gradient."""

    def __init__(self, model: Qwen3Model, ids: torch.Tensor, num_pad: torch.Tensor | None):
        self.cache = PromptKV(model.cfg["n_layers"])
        last = model.hidden_states(ids, self.cache, num_pad)[:, -1]  # predicts the first response token
        self.outputs = [last] + [x for kv in self.cache.layers.values() for x in kv]
        # Responses see copies outside of the graph. Each micro-batch's backward pass ends there.
        self.leaves = [x.detach().requires_grad_(x.requires_grad) for x in self.outputs]
        self.last = self.leaves[0]
        self.cache.layers = dict(enumerate(zip(self.leaves[1::2], self.leaves[2::2], strict=True)))

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
    for part in slices(len(keys), per_group):
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
