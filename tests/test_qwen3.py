"""The architecture against the reference implementation in transformers, and against itself in every mode."""

import pytest
import torch
from small import make_model

from rfs_utils.hub.families import HF_CONFIG
from rfs_utils.hub.weights import to_hf_names
from rfs_utils.qwen3 import QWEN3_CONFIG_06B, QWEN3_CONFIG_TINY, KVCache, apply_rope, rope_tables


def reference(model):
    """The same weights in transformers' own implementation."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cfg = {"tied": True, **model.cfg}
    config = {theirs: cfg[ours] for ours, theirs in HF_CONFIG.items() if ours != "rope_base"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": cfg["rope_base"]}
    twin = Qwen3ForCausalLM(Qwen3Config(**config, attention_bias=False)).eval()
    missing, unexpected = twin.load_state_dict(to_hf_names(model.state_dict()), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return twin


@pytest.mark.parametrize(
    "changes",
    [
        QWEN3_CONFIG_TINY,
        QWEN3_CONFIG_06B | {"n_layers": 2, "vocab_size": 640, "context_length": 512, "dtype": torch.float32},
        {"tied": False},
    ],
    ids=["tiny", "few layers of 0.6B", "untied head"],
)
def test_logits_equal_transformers(changes):
    model = make_model(**changes)
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02)
    ids = torch.randint(0, model.cfg["vocab_size"], (3, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(model)(ids).logits, atol=1e-5, rtol=1e-5)


def test_cached_equals_uncached(model):
    ids = torch.randint(0, 512, (3, 30))
    cache = KVCache(model.cfg["n_layers"], capacity=8)  # must grow twice
    with torch.no_grad():
        expected = model(ids)
        parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 20), (20, 21), (21, 30))]
    assert cache.length == 30
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_left_padding_changes_nothing(model):
    prompts = [torch.randint(0, 512, (n,)) for n in (5, 12, 9)]
    new = torch.randint(0, 512, (3, 6))
    num_pad = torch.tensor([12 - len(p) for p in prompts])
    padded = torch.stack([torch.cat([torch.full((int(n),), 7), p]) for n, p in zip(num_pad, prompts, strict=True)])
    cache = KVCache(model.cfg["n_layers"])
    with torch.no_grad():
        whole = model(torch.cat([padded, new], dim=1), num_pad=num_pad)
        steps = [model(padded, cache=cache, num_pad=num_pad)]
        steps += [model(new[:, t : t + 1], cache=cache) for t in range(6)]
        stepwise = torch.cat(steps, dim=1)
        for row, prompt in enumerate(prompts):
            alone = model(torch.cat([prompt, new[row]])[None])[0]
            for batched in (whole, stepwise):
                torch.testing.assert_close(batched[row, int(num_pad[row]) :], alone, atol=1e-5, rtol=1e-5)
    assert whole.isfinite().all(), "padding rows must not produce NaN, which would reach the gradients"


def test_left_padding_has_finite_gradients(model):
    ids, num_pad = torch.randint(0, 512, (2, 8)), torch.tensor([0, 5])
    model(ids, num_pad=num_pad)[1, 5:].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_cache_rows_can_be_repeated_and_dropped(model):
    ids = torch.randint(0, 512, (2, 10))
    num_pad = torch.tensor([0, 4])
    cache = KVCache(model.cfg["n_layers"])
    with torch.no_grad():
        model(ids, cache=cache, num_pad=num_pad)
        cache.repeat(3)
        cache.select(torch.tensor([1, 4, 5]))  # one copy of the first prompt, two of the second
        new = torch.randint(0, 512, (3, 1))
        logits = model(new, cache=cache)
        rows = torch.tensor([0, 1, 1])
        expected = model(torch.cat([ids[rows], new], dim=1), num_pad=num_pad[rows])[:, -1:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_rope_rotates_by_relative_position():
    cos, sin = rope_tables(16, 50, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)

    def score(i, j):
        return (apply_rope(q, cos[i], sin[i]) * apply_rope(k, cos[j], sin[j])).sum()

    torch.testing.assert_close(score(10, 3), score(47, 40), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(apply_rope(q, cos[0], sin[0]), q)
    torch.testing.assert_close(apply_rope(q, cos[9], sin[9]).norm(), q.norm())


def test_size_of_the_real_model_without_building_it():
    with torch.device("meta"):
        from rfs_utils.qwen3 import Qwen3Model

        model = Qwen3Model(QWEN3_CONFIG_06B)
    assert sum(p.numel() for p in model.parameters()) == 596_049_920


def test_too_long_a_sequence_is_named(model):
    with pytest.raises(ValueError, match="513 tokens.*context_length is 512"):
        model(torch.zeros(1, 513, dtype=torch.long))
