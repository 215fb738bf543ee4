"""Sampling's own forward pass: the model's logits from fewer operations."""

import pytest
import torch
from small import make_model

from rfs_utils import decode
from rfs_utils.decode import StackedDecoder, decoder, plain_product
from rfs_utils.engine import packing
from rfs_utils.engine.packing import can_pack, packed, packed_product
from rfs_utils.qwen3 import KVCache


def prefilled(model, ids, num_pad=None) -> KVCache:
    cache = KVCache(model.cfg["n_layers"])
    with torch.no_grad():
        model(ids, cache=cache, num_pad=num_pad)
    return cache


@pytest.mark.parametrize("num_pad", [None, [0, 3, 5]])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "product, dtype, tolerance",
    [(plain_product, torch.float32, 1e-5), (plain_product, torch.bfloat16, 0.1), (packed_product, torch.bfloat16, 0.1)],
)
def test_decoder_equals_the_model_token_by_token(num_pad, tied, product, dtype, tolerance):
    if product is packed_product and not can_pack(torch.ones(1, dtype=dtype)):
        pytest.skip("torch cannot pack weights here")
    model = make_model(tied=tied, dtype=dtype, n_heads=6)
    ids = torch.randint(1, 512, (3, 9), generator=torch.Generator().manual_seed(0))
    pad = None if num_pad is None else torch.tensor(num_pad)
    caches = [prefilled(model, ids, pad) for _ in range(2)]
    stacked = StackedDecoder(model, product)
    for step in range(6):
        new = ids[:, step : step + 1]
        with torch.inference_mode():
            plain, fast = (f(new, cache=cache) for f, cache in zip((model, stacked), caches, strict=True))
        assert plain.dtype == fast.dtype and plain.std() > 0.1
        torch.testing.assert_close(fast, plain, atol=tolerance, rtol=tolerance)
        if step == 2:  # a row ends and leaves
            ids = ids[[0, 2]]
            for cache in caches:
                cache.select(torch.tensor([0, 2]))


def test_a_decoder_made_after_an_update_knows_the_new_weights(model):
    ids = torch.randint(1, 512, (2, 4), generator=torch.Generator().manual_seed(0))
    before = decoder(model)(ids[:, :1], cache=prefilled(model, ids))
    with torch.no_grad():
        model.trf_blocks[0].att.W_key.weight.mul_(-1)
        expected = model(ids[:, :1], cache=prefilled(model, ids))
    assert (before - expected).abs().max() > 1e-3
    torch.testing.assert_close(decoder(model)(ids[:, :1], cache=prefilled(model, ids)), expected, atol=1e-5, rtol=1e-5)


def test_beyond_the_context_the_message_is_the_models():
    model = make_model(context_length=4)
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="5 tokens, but the model's context_length is 4"):
        decoder(model)(ids[:, :1], cache=prefilled(model, ids))


def test_a_large_model_is_copied_only_where_its_weights_can_be_packed(model, monkeypatch):
    assert packed(model) is model and isinstance(decoder(model), StackedDecoder)
    for module in (decode, packing):
        monkeypatch.setattr(module, "STACK_BELOW", 1000)
    assert decoder(model) is model and packed(model) is model and not can_pack(model.tok_emb.weight)
    model = make_model(dtype=torch.bfloat16)
    if can_pack(model.tok_emb.weight):
        large = packed(model)
        assert decoder(large) is large and large.cfg is model.cfg
        ids = torch.randint(1, 512, (2, 4), generator=torch.Generator().manual_seed(0))
        logits = [m(ids[:, :1], cache=prefilled(model, ids)) for m in (large, model)]
        torch.testing.assert_close(*logits, atol=0.1, rtol=0.1)
    monkeypatch.setattr(packing, "can_pack", lambda weight: False)
    assert packed(model) is model
