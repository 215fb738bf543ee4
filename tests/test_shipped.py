"""The models that come with the package: transformers opens them, and they have the habits the chapters need."""

import pytest
import torch

from rfs_utils.data import generate_tiny_problems, render_prompt
from rfs_utils.evaluate import evaluate_model
from rfs_utils.models import SHIPPED, WEIGHTS_DIR, load_model_and_tokenizer


@pytest.mark.parametrize("name", SHIPPED)
def test_transformers_opens_them_with_equal_tokens_and_logits(name):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS_DIR / name).eval()
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS_DIR / name)
    model, tokenizer = load_model_and_tokenizer(name, "cpu")
    prompt = render_prompt(generate_tiny_problems(5, "test")[4]["problem"])
    if tokenizer.apply_chat_template:
        message = [{"role": "user", "content": prompt}]
        text = peer_tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    else:
        text = prompt
    ids = tokenizer.encode(prompt)
    assert peer_tokenizer(text)["input_ids"] == ids
    assert peer_tokenizer.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), peer(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_base_model_is_hasty_and_the_reasoning_model_is_not():
    problems = generate_tiny_problems(100, "test", seed=2)
    base, reasoning = (
        evaluate_model(*load_model_and_tokenizer(name, "cpu"), problems, max_new_tokens=192) for name in SHIPPED
    )
    assert 0.10 <= base.accuracy <= 0.45 and base.mean_tokens <= 12
    assert reasoning.accuracy >= 0.90 and reasoning.mean_tokens >= 3 * base.mean_tokens
    assert all("<think>" in record["response"] for record in reasoning.records)
