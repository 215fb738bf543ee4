"""Text generation as in the printed book's earlier chapters: top-p filtering and token streams."""

from collections.abc import Callable, Iterator, Sequence

import torch

from .qwen3 import KVCache, Qwen3Model
from .tokenizer import HFTokenizer, StopText, Tokenizer, encode_prompts, response_text, stop_ids, stops

Stops = int | Sequence[int] | StopText | None  # one id at which a response ends, several, a text as well, or none


def check_sampling(
    max_new_tokens: int | None = None, temperature: float | None = None, top_p: float | None = None
) -> None:
    """ValueError unless the settings make sense: tokens >= 1, temperature >= 0 (0 is greedy), 0 < top_p <= 1."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be greater than 0 and at most 1, got {top_p}")


def check_group(num_rollouts: int, temperature: float | None) -> None:
    """ValueError unless a group of rollouts can be compared: at least two of them, and not greedy."""
    if num_rollouts < 2:
        raise ValueError(f"num_rollouts must be at least 2, to compare a group with itself; got {num_rollouts}")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, as greedy rollouts are all alike; got {temperature}")


def top_p_filter(probas: torch.Tensor, top_p: float | None) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `top_p`, and renormalise.

    `probas` has shape (..., vocab_size). None or 1.0 keeps everything. The most likely token always stays.
    """
    if top_p is None or top_p >= 1.0:
        return probas
    # What the others hold is `spare`. A token with less than an equal share of that is never needed, nor sorted.
    spare = probas.sum(dim=-1, keepdim=True, dtype=sum_dtype(probas)) - top_p
    candidates = int((probas >= spare / probas.shape[-1]).sum(dim=-1).max())
    ranked, order = probas.topk(candidates, dim=-1)
    mass_before = ranked.cumsum(dim=-1, dtype=sum_dtype(probas)) - ranked
    kept = ranked.masked_fill(mass_before >= top_p, 0.0)
    filtered = torch.zeros_like(probas).scatter(-1, order, kept)
    return filtered / filtered.sum(dim=-1, keepdim=True)


def sum_dtype(probas: torch.Tensor) -> torch.dtype:
    """The type for sums over a vocabulary: in single precision 150,000 terms swallow the small ones.

    Apple's GPUs have no other.
    """
    return torch.float32 if probas.device.type == "mps" else torch.float64


def is_end(tokens: torch.Tensor, stops: int | Sequence[int] | None) -> torch.Tensor:
    """True where a token, of a tensor of any shape, is one that ends a response."""
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for stop in () if stops is None else (stops,) if isinstance(stops, int) else stops:
        ended |= tokens == stop
    return ended


def ends(tokens: torch.Tensor, stops: Stops) -> torch.Tensor:
    """(N,) bool: which of N responses, (N, T) without padding, end with their last token."""
    if isinstance(stops, StopText):
        tails = tokens[:, -stops.reach :].tolist()
        return torch.tensor([stops.ends(tail) for tail in tails], dtype=torch.bool, device=tokens.device)
    return is_end(tokens[:, -1], stops)


def has_ended(tokens: torch.Tensor, lengths: torch.Tensor, stops: Stops) -> torch.Tensor:
    """(N,) bool: which of N responses, (N, T) of given lengths, came to an end; the limit has cut off the others."""
    if isinstance(stops, StopText):
        return torch.cat([ends(row[None, :n], stops) for row, n in zip(tokens, lengths.tolist(), strict=True)])
    return is_end(tokens.gather(1, lengths[:, None] - 1).squeeze(1), stops)


def choose_token(
    logits: torch.Tensor,
    temperature: float | None = 1.0,
    top_p: float | None = None,
    uniform: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token id for each row of logits, (batch, vocab_size), and its log-probability as sampled, both (batch,).

    Temperature 0 takes the likeliest token, with log-probability 0; None is 1. `uniform`, (batch,), are numbers in
    [0, 1) that decide the draws, token by token of the vocabulary's order (default: fresh ones from torch's generator).
    """
    if temperature == 0:
        return logits.argmax(dim=-1), torch.zeros(len(logits), device=logits.device)
    temperature = 1.0 if temperature is None else temperature
    probas = top_p_filter(torch.softmax(logits.float() / temperature, dim=-1), top_p)
    if uniform is None:
        uniform = torch.rand(len(logits), device=logits.device)
    reached = probas.cumsum(dim=-1, dtype=sum_dtype(probas))
    wanted = uniform.to(reached.dtype)[:, None] * reached[:, -1:]
    token = torch.searchsorted(reached, wanted, right=True).clamp_(max=probas.shape[-1] - 1)
    return token.squeeze(-1), probas.gather(-1, token).squeeze(-1).log()


@torch.no_grad()
def generate_text_top_p_stream_cache(
    model: Qwen3Model,
    token_ids: torch.Tensor,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    temperature: float | None = 0.0,
    top_p: float | None = None,
) -> Iterator[torch.Tensor]:
    """Yield new tokens, each of shape (1, 1), for a prompt of shape (1, tokens), until end of sequence.

    `eos_token_id` can be several ids. Without a temperature, None, the likeliest token is taken.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    if token_ids.shape[1] == 0:
        raise ValueError("a prompt is empty: a model needs at least one token to go on from")
    cache = KVCache(model.cfg["n_layers"], capacity=token_ids.shape[1] + max_new_tokens)
    new = token_ids
    for _ in range(max_new_tokens):
        logits = model(new, cache=cache)[:, -1]
        new = choose_token(logits, temperature or 0.0, top_p)[0][:, None]
        if is_end(new, eos_token_id).item():
            return
        yield new


def generate_text_stream_concat_flex(
    model: Qwen3Model,
    tokenizer: Tokenizer,
    prompt: str,
    device: torch.device | str,
    max_new_tokens: int,
    verbose: bool = False,
    generate_func: Callable | None = None,
    **generate_kwargs,
) -> str:
    """The generated text of a prompt; `verbose` prints it token by token, `generate_func` is the token stream.

    It ends before the tokenizer's stop text; a token that holds more than this text is printed whole.
    """
    generate_func = generate_func or generate_text_top_p_stream_cache
    input_ids = torch.tensor(encode_prompts(tokenizer, [prompt]), device=device)
    ids = stop_ids(tokenizer)
    eos_token_id = ids[0] if len(ids) == 1 else ids  # a stream of the reader's own may know of one only
    generated: list[int] = []
    for token in generate_func(model, input_ids, max_new_tokens, eos_token_id=eos_token_id, **generate_kwargs):
        generated.append(int(token.item()))
        if verbose:
            print(tokenizer.decode(generated[-1:]), end="", flush=True)
        if ends(torch.tensor([generated]), stops(tokenizer)).item():
            break
    return response_text(tokenizer, generated)


@torch.no_grad()
def avg_logprob_answer(
    model: Qwen3Model, tokenizer: HFTokenizer, prompt: str, answer: str, device: torch.device | str = "cpu"
) -> float:
    """Mean log-probability per token of an answer after a prompt; ValueError when either has no token."""
    prompt_ids = encode_prompts(tokenizer, [prompt])[0]
    answer_ids = tokenizer.encode(answer, chat_wrapped=False)
    if not answer_ids:
        raise ValueError("the answer is empty: there is no token whose probability could be asked for")
    ids = torch.tensor(prompt_ids + answer_ids, device=device)
    logprobs = torch.log_softmax(model(ids[None])[0].float(), dim=-1)
    selected = logprobs[:-1].gather(1, ids[1:, None]).squeeze(1)
    return selected[len(prompt_ids) - 1 :].mean().item()
