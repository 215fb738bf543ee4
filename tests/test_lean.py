"""The lean GRPO step: every part of it equals the plain functions of chapter 6."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import make_model

from rfs_utils.ch06 import (
    Rollouts,
    group_advantages,
    policy_gradient_loss,
    response_logprobs,
    sample_batch,
    token_logprobs,
)
from rfs_utils.engine import experience, memory, microbatches
from rfs_utils.engine import rollouts as batches
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.learner import Learner, make_plan
from rfs_utils.engine.norms import LeanRMSNorm, use_lean_norms
from rfs_utils.qwen3 import KVCache

# Sharp enough for top-p to cut something.
small_model = partial(make_model, std=0.3, vocab_size=61, emb_dim=16, hidden_dim=24, head_dim=8, context_length=64)


def some_rollouts(lengths=(5, 9, 1, 7, 7, 2), pads=(0, 0, 0, 3, 3, 3), width=8, seed=0):
    """Two prompts with three responses each, of random tokens; the second prompt is shorter."""
    generator = torch.Generator().manual_seed(seed)
    lengths, pads = torch.tensor(lengths), torch.tensor(pads)
    prompts = torch.randint(1, 61, (2, width), generator=generator)
    prompt_ids = prompts[torch.tensor([0, 0, 0, 1, 1, 1])[: len(lengths)]]
    prompt_ids[torch.arange(width)[None] < pads[:, None]] = 0
    tokens = torch.randint(1, 61, (len(lengths), int(lengths.max())), generator=generator)
    tokens[torch.arange(tokens.shape[1])[None] >= lengths[:, None]] = 0
    return Rollouts(prompt_ids, pads if pads.any() else None, tokens, lengths, [""] * len(lengths))


def policy_gradient_part(advantages: torch.Tensor):
    """The share of some rows in `ch06.policy_gradient_loss` of the whole step, for `backpropagate`."""

    def part_loss(logps: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        # The exported loss is a mean over its rows; the step's is a mean over all.
        return policy_gradient_loss(logps, advantages[rows], mask) * (len(rows) / len(advantages))

    return part_loss


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def relative_difference(a, b):
    """Norm of the difference of two gradients over the norm of the second."""
    difference = sum((a[k] - b[k]).double().square().sum() for k in b).sqrt()
    return (difference / sum(b[k].double().square().sum() for k in b).sqrt()).item()


def plain_step(model, rollouts, advantages, temperature, top_p):
    model.zero_grad()
    logps = response_logprobs(model, rollouts, temperature, top_p)
    loss = policy_gradient_loss(logps, advantages, rollouts.mask)
    loss.backward()
    return loss.item(), gradients(model), logps.detach() * rollouts.mask


ADVANTAGES = torch.tensor([1.5, -0.5, -1.0, 0.7, 0.0, -0.7])


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature, top_p", [(1.0, None), (0.8, 0.9), (1.3, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("chunk", [None, 1, 4, 10])
def test_chunked_logprobs_and_their_gradients_are_the_plain_ones(tied, temperature, top_p, chunk):
    model = small_model(tied=tied)
    hidden = torch.randn(10, 16)
    tokens, slope = torch.randint(61, (10,)), torch.randn(10)

    def run(function):
        h = hidden.clone().requires_grad_()
        model.zero_grad()
        logps = function(h)
        (logps * slope).sum().backward()
        return logps, h.grad, model.head_weight().grad

    plain = run(lambda h: token_logprobs(model.logits(h), tokens, temperature, top_p))
    lean_ = run(lambda h: microbatches.chunked_logprobs(model, h, tokens, temperature, top_p, chunk))
    for a, b in zip(lean_, plain, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()  # 9e-8 was measured; single numbers near 0 say little


def test_chunked_logprobs_pass_the_numerical_gradient_check():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 3).double().requires_grad_(), torch.randn(7, 3).double().requires_grad_()
    tokens = torch.randint(7, (5,))

    def f(h, w):
        return microbatches._ChunkedLogprobs.apply(h, w, tokens, 0.8, None, 2)

    # The values are float32 by design, so the steps are large and the tolerance is loose.
    assert torch.autograd.gradcheck(f, (hidden, weight), eps=1e-2, atol=2e-3, check_batched_grad=False)


def test_logprobs_of_bfloat16_weights_are_float32_and_equal_the_plain_ones():
    model = small_model()
    memory.cast_weights(model, torch.bfloat16)
    hidden, tokens = torch.randn(10, 16).bfloat16(), torch.randint(61, (10,))
    found = microbatches.chunked_logprobs(model, hidden, tokens, chunk=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_logprobs(model.logits(hidden), tokens), rtol=1e-5, atol=1e-5)


def test_no_tensor_of_all_logits_is_made(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(microbatches.F, "linear", lambda x, w: seen.append(len(x)) or linear(x, w))
    hidden = torch.randn(10, 16, requires_grad=True)
    microbatches.chunked_logprobs(small_model(), hidden, torch.zeros(10, dtype=torch.long), chunk=4).sum().backward()
    assert seen == [4, 4, 2] * 2  # once forward, once again backward


@pytest.mark.parametrize("max_tokens", [1, 8, 20, 1000])
@pytest.mark.parametrize("pads", [(0,) * 6, (0, 0, 0, 3, 3, 3), (2, 2, 2, 3, 3, 3)])
def test_rollout_logprobs_are_those_of_chapter_6(max_tokens, pads):
    model, rollouts = small_model(), some_rollouts(pads=pads)
    found = microbatches.rollout_logprobs(model, rollouts, 0.8, 0.9, max_tokens)
    with torch.no_grad():
        expected = response_logprobs(model, rollouts, 0.8, 0.9) * rollouts.mask
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- the gradient of a step -----------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 8, 10, 20, 1000])
@pytest.mark.parametrize("pads", [(0,) * 6, (0, 0, 0, 3, 3, 3), (2, 2, 2, 3, 3, 3)])
@pytest.mark.parametrize("tied", [True, False])
def test_micro_batches_give_the_gradient_of_the_plain_step(max_tokens, pads, tied):
    model, rollouts = small_model(tied=tied), some_rollouts(pads=pads)
    loss, expected, _ = plain_step(model, rollouts, ADVANTAGES, 0.8, 0.9)
    model.zero_grad()
    found = microbatches.backpropagate(model, rollouts, policy_gradient_part(ADVANTAGES), 0.8, 0.9, max_tokens)
    assert found == pytest.approx(loss, rel=1e-5)
    assert relative_difference(gradients(model), expected) < 1e-5


def test_rows_without_advantage_can_be_left_out():
    model, rollouts = small_model(), some_rollouts()
    loss, expected, _ = plain_step(model, rollouts, ADVANTAGES, 1.0, None)
    model.zero_grad()
    rows = ADVANTAGES.nonzero().squeeze(1)
    assert len(rows) == 5
    found = microbatches.backpropagate(model, rollouts, policy_gradient_part(ADVANTAGES), max_tokens=9, rows=rows)
    assert found == pytest.approx(loss, rel=1e-5)
    assert relative_difference(gradients(model), expected) < 1e-5


def test_a_token_mean_divides_by_the_tokens_of_the_step():
    model, rollouts = small_model(), some_rollouts()
    total = rollouts.mask.sum()
    loss = -(ADVANTAGES[:, None] * response_logprobs(model, rollouts) * rollouts.mask).sum() / total
    loss.backward()
    expected = gradients(model)
    model.zero_grad()

    def part_loss(logps, mask, rows):
        return -(ADVANTAGES[rows, None] * logps * mask).sum() / total

    assert microbatches.backpropagate(model, rollouts, part_loss, max_tokens=10) == pytest.approx(loss.item(), rel=1e-5)
    assert relative_difference(gradients(model), expected) < 1e-5


def test_prompts_that_start_with_the_padding_token_are_told_apart():
    model = small_model()
    rollouts = some_rollouts(lengths=(3, 3), pads=(0, 3))
    rollouts.prompt_ids[:] = rollouts.prompt_ids[0]
    rollouts.prompt_ids[:, :3] = 0  # padding in the second row, real tokens in the first
    loss, expected, logps = plain_step(model, rollouts, torch.tensor([1.0, -1.0]), 1.0, None)
    model.zero_grad()
    part_loss = policy_gradient_part(torch.tensor([1.0, -1.0]))
    assert microbatches.backpropagate(model, rollouts, part_loss) == pytest.approx(loss, rel=1e-5)
    assert relative_difference(gradients(model), expected) < 1e-5


def test_each_prompt_is_read_once_and_short_responses_carry_no_padding(monkeypatch):
    model, rollouts = small_model(), some_rollouts()
    seen = []
    hidden_states = model.hidden_states

    def watch(ids, cache=None, num_pad=None):
        seen.append(tuple(ids.shape))
        return hidden_states(ids, cache, num_pad)

    monkeypatch.setattr(model, "hidden_states", watch)
    microbatches.backpropagate(model, rollouts, policy_gradient_part(ADVANTAGES), max_tokens=8)
    # One prompt at a time, without its padding, then its responses; the last token of a response predicts nothing.
    assert seen == [(1, 8), (1, 8), (1, 4), (1, 5), (1, 6), (1, 6), (1, 1)]


def test_split_by_length_bounds_micro_batches_and_loses_no_row():
    lengths = torch.tensor([5, 9, 1, 7, 7, 2, 30])
    parts = microbatches.split_by_length(lengths, 14)
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    assert [lengths[part].tolist() for part in parts] == [[30], [9], [7, 7], [5, 2], [1]]


def test_a_step_in_bfloat16_has_the_gradient_of_the_plain_step_but_for_rounding():
    model, rollouts = small_model(), some_rollouts()
    _, exact, _ = plain_step(model, rollouts, ADVANTAGES, 1.0, None)
    memory.cast_weights(model, torch.bfloat16)
    _, plain, _ = plain_step(model, rollouts, ADVANTAGES, 1.0, None)
    model.zero_grad()
    use_lean_norms(model)
    microbatches.backpropagate(model, rollouts, policy_gradient_part(ADVANTAGES), max_tokens=10)
    found = {name: grad.float() for name, grad in gradients(model).items()}
    plain = {name: grad.float() for name, grad in plain.items()}
    assert relative_difference(found, exact) < 1.5 * relative_difference(plain, exact) < 0.1


def test_rmsnorm_in_bfloat16_is_torchs_and_keeps_no_float32_copy():
    torch.manual_seed(0)
    x, scale = torch.randn(3, 5, 64).bfloat16().requires_grad_(), (1 + torch.randn(64)).bfloat16().requires_grad_()
    slope, kept = torch.randn(3, 5, 64).bfloat16(), []

    def run(norm):
        out = norm(x, scale)
        return (out.detach(), *torch.autograd.grad(out, (x, scale), slope))

    plain = run(lambda x, scale: F.rms_norm(x, (64,), scale, 1e-6))
    norm = LeanRMSNorm(64, 1e-6, torch.bfloat16)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = run(lambda x, scale: torch.func.functional_call(norm, {"scale": scale}, (x,)))
    assert torch.equal(found[0], plain[0])
    for a, b in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert sum(t.numel() for t in kept if t.dtype == torch.float32) == 15


# --- gradient checkpointing -----------------------------------------------------------------------


def count_blocks(model):
    calls = []
    for block in model.trf_blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_checkpointing_gives_the_same_gradient_and_recomputes_every_block():
    model, rollouts = small_model(), some_rollouts()
    loss, expected, _ = plain_step(model, rollouts, ADVANTAGES, 1.0, None)
    calls = count_blocks(model)
    model.gradient_checkpointing = True
    again, found, _ = plain_step(model, rollouts, ADVANTAGES, 1.0, None)
    assert again == loss and relative_difference(found, expected) < 1e-6
    assert len(calls) == 4  # two blocks, forward and again backward


def test_checkpointing_does_nothing_with_a_cache_or_without_gradients(monkeypatch):
    model = small_model()
    ids = torch.randint(61, (2, 7))
    expected = model(ids)
    model.gradient_checkpointing = True
    monkeypatch.setattr("rfs_utils.qwen3.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    with torch.no_grad():
        assert torch.equal(model(ids), expected)
    assert torch.equal(model(ids, cache=KVCache(2)), expected)


def test_a_long_response_is_checkpointed_and_the_flag_comes_back():
    model, rollouts = small_model(), some_rollouts()
    seen = []
    model.trf_blocks[0].register_forward_hook(lambda *_: seen.append(model.gradient_checkpointing))
    microbatches.backpropagate(model, rollouts, policy_gradient_part(ADVANTAGES), max_tokens=8)
    assert True in seen and model.gradient_checkpointing is False


# --- the cache and sampling -----------------------------------------------------------------------


@pytest.mark.parametrize("num_pad", [None, torch.tensor([0, 2, 3])])
def test_one_token_at_a_time_gives_the_logits_of_the_full_pass(num_pad):
    model = small_model()
    ids = torch.randint(61, (3, 10))
    cache = KVCache(2, capacity=6)
    with torch.no_grad():
        full = model(ids, num_pad=num_pad)
        pieces = [model(ids[:, :4], cache=cache, num_pad=num_pad)]
        pieces += [model(ids[:, t : t + 1], cache=cache) for t in range(4, 10)]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 4:], full[:, 4:], rtol=1e-5, atol=1e-5)


class StubTokenizer:
    """A prompt is a string of digits, each a token; no end of sequence, so that lengths are exact."""

    pad_token_id, eos_token_id = 0, -1

    def encode(self, prompt):
        return [int(c) for c in prompt]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_sampling_in_parts_keeps_the_order_and_the_prompts():
    model, tokenizer = small_model(), StubTokenizer()
    prompts = ["12345", "123", "77"]
    per_token = batches.cache_bytes_per_token(model)
    assert per_token == 2 * 2 * 2 * 8 * 4
    whole = sample_batch(model, tokenizer, prompts, "cpu", 3, 4, 0.0, None)
    for rows_at_once in (1, 2, 3, 7, 9):
        parts = batches.sample_rollouts(
            model, tokenizer, prompts, "cpu", 3, 4, 0.0, None, cache_bytes=rows_at_once * per_token * 9
        )
        assert torch.equal(parts.prompt_ids, whole.prompt_ids) and torch.equal(parts.num_pad, whole.num_pad)
        assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.lengths, whole.lengths)
        assert parts.texts == whole.texts


def test_sampling_never_holds_more_rows_than_the_budget(monkeypatch):
    model, rows = small_model(), []
    counted = lambda *args: rows.append(len(args[2]) * args[4]) or sample_batch(*args)  # noqa: E731
    monkeypatch.setattr(batches, "sample_batch", counted)
    budget = 4 * batches.cache_bytes_per_token(model) * (5 + 4)
    batches.sample_rollouts(model, StubTokenizer(), ["12345"] * 3, "cpu", 2, 4, 1.0, None, cache_bytes=budget)
    assert rows == [4, 2]
    batches.sample_rollouts(model, StubTokenizer(), ["12345"], "cpu", 6, 4, 1.0, None, cache_bytes=budget)
    assert rows[2:] == [4, 2]


# --- the plan and the trainer ---------------------------------------------------------------------


def test_small_models_stay_in_float32_and_big_ones_follow_the_device(monkeypatch):
    assert memory.plan_memory("auto", "cpu", 600_000).dtype == torch.float32
    assert memory.plan_memory("auto", "cpu", 600_000).optimizer == "adamw"
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(memory, "has_bfloat16", lambda device, native=native: native)
        low = memory.plan_memory("low", "cpu", 596_000_000)
        assert (low.dtype, low.optimizer, low.max_tokens) == (dtype, "8bit", 512)
        assert memory.plan_memory("auto", "cpu", 596_000_000).optimizer == ("kahan" if native else "adamw")
    with pytest.raises(ValueError, match="unknown memory setting 'tiny'"):
        memory.plan_memory("tiny", "cpu", 1)


@pytest.mark.parametrize("capability, native", [((7, 5), False), ((7, 0), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_that_only_emulates_bfloat16_gets_float32(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # what torch says of a T4
    assert memory.has_bfloat16("cuda") is native
    assert memory.plan_memory("low", "cuda", 596_000_000).dtype == (torch.bfloat16 if native else torch.float32)


def test_casting_weights_spares_the_rotary_tables_and_updates_the_config():
    model = small_model()
    memory.cast_weights(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.cos.dtype == torch.float32 and model.cfg["dtype"] == torch.bfloat16


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of Linux's C library")
def test_freed_tensors_go_back_to_the_system():
    """In a process of its own, because the setting lasts: what many freed tensors leave behind."""
    code = """
import torch
from rfs_utils.engine.memory import return_freed_memory

def resident_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

def left_over():
    before = resident_mb()
    many = [torch.ones(2**18) for _ in range(200)]  # 1 MB each
    last = torch.ones(2**10)  # a small block above them keeps the heap from shrinking
    del many
    return resident_mb() - before

for _ in range(3):
    torch.ones(2**22)  # 16 MB: once freed, glibc puts everything smaller on its heap
print(return_freed_memory(), round(left_over()))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    worked, megabytes = output.split()
    assert worked == "False" or int(megabytes) < 20  # 185 without the setting


def trained(monkeypatch, micro_batch, steps=3):
    """The metrics and weights after some steps with rewards that depend on the texts alone."""
    monkeypatch.setattr(experience, "render_prompt", lambda problem, tokenizer: problem)
    model = small_model()
    config = TrainConfig(prompts_per_step=2, num_rollouts=4, max_new_tokens=6, lr=1e-2, micro_batch=micro_batch)
    examples = [{"problem": "123", "answer": ""}, {"problem": "4567", "answer": ""}]
    learner = Learner(config, model, StubTokenizer(), examples)
    learner.rewards = {"accuracy": (lambda texts, examples, **info: [len(text) % 2 for text in texts], 1.0)}
    metrics = [learner.step() | {"tokens_per_second": 0.0, "kl": 0.0} for _ in range(steps)]
    return metrics, torch.cat([p.detach().flatten() for p in model.parameters()]), learner


def test_the_trainer_learns_the_same_with_any_micro_batch(monkeypatch):
    whole, weights, _ = trained(monkeypatch, 0)
    parts, same, _ = trained(monkeypatch, 7)
    assert any(m["grad_norm"] > 0 for m in whole)
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert (weights - same).abs().max() < 1e-4


def test_the_trainers_step_is_the_plain_step(monkeypatch):
    """One step of the trainer against chapter 6's functions and AdamW, on the same samples."""
    _, weights, learner = trained(monkeypatch, 7, steps=1)
    model, rollouts = small_model(), learner.experience.rollouts
    rewards = torch.tensor([float(len(text) % 2) for text in rollouts.texts])
    logps = response_logprobs(model, rollouts, 1.0, 1.0)
    torch.testing.assert_close(logps.detach() * rollouts.mask, rollouts.logps, atol=1e-5, rtol=1e-5)
    policy_gradient_loss(logps, group_advantages(rewards.view(2, 4)).flatten(), rollouts.mask).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0).step()
    plain = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (weights - plain).abs().max() < 1e-4


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"memory": "huge"}, "memory must be one of auto, low; got 'huge'"),
        ({"optimizer": "sgd"}, "optimizer must be one of .*; got 'sgd'"),
        ({"micro_batch": -1}, "micro_batch must be a whole number from 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting).check()


def test_an_explicit_choice_overrides_the_plan():
    config = TrainConfig(memory="low", optimizer="adamw", micro_batch=77)
    plan = make_plan(config, small_model(), "cpu")
    assert (plan.dtype, plan.optimizer, plan.max_tokens) == (torch.float32, "adamw", 77)
