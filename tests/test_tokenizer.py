"""The tokenizer against `transformers`, token for token, on text and on templates."""

import random

import pytest
from small import make_directory, make_tokenizer

from rfs_utils.tokenizer import SPECIAL_TOKENS, Qwen3Tokenizer

TEXTS = [
    "", " ", "\n", "\n\n \n", "Tom has 7 coins.", "In May he finds 12 more, don't they'LL?", "  two  spaces\tand tabs ",
    "12345 3.14 1,000,000 ½ ² ④ ٣", "x=3*(y+2)\n\treturn x\r\n", "\\boxed{\\frac{1}{2}}", "naïve café", "e\u0301 Å",
    "数学問題を解く。", "Привет, мир!", "🙂👩‍👩‍👧 ok", "a\u00a0b\u2028c\u200bd",
    "<think>\n7+5=12\n</think>\n\n\\boxed{12}",
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|><|endoftext|>", "<|im_en d|> < think >", "\x00\x7f",
    "<tool_call>{}</tool_call>", "''' 're 'S 'VE", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]  # fmt: skip


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """The same tokenizer as `transformers` reads it from a model directory."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(make_directory(tmp_path_factory.mktemp("model") / "m", chat=True))


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    pieces = [*TEXTS, *SPECIAL_TOKENS, *"abcXYZ0189 \n\t.,'+-=\\{}", "é", "e\u0301", "ß", "数", "🙂", "\u0130", "ﬁ"]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(count)]


def test_text_becomes_the_same_tokens(peer):
    tokenizer = make_tokenizer()
    for text in TEXTS + random_texts(300):
        assert tokenizer.encode(text) == peer.encode(text, add_special_tokens=False), repr(text)


def test_tokens_become_the_same_text(peer):
    tokenizer = make_tokenizer()
    rng = random.Random(1)
    for _ in range(200):
        ids = rng.choices(range(tokenizer.vocab_size), k=rng.randint(0, 20))
        assert tokenizer.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False), ids


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("add_thinking", [True, False])
def test_chat_format_becomes_the_same_tokens(peer, add_generation_prompt, add_thinking):
    tokenizer = make_tokenizer(
        apply_chat_template=True, add_generation_prompt=add_generation_prompt, add_thinking=add_thinking
    )
    for text in TEXTS:
        expected = peer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=add_generation_prompt,
            enable_thinking=add_thinking,
            return_dict=False,
        )
        assert tokenizer.encode(text) == expected, repr(text)


def test_chat_format_is_written_out():
    tokenizer = make_tokenizer(apply_chat_template=True)
    assert tokenizer.decode(tokenizer.encode("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.add_thinking = False
    assert tokenizer.decode(tokenizer.encode("Hi")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.encode("Hi", chat_wrapped=False) == make_tokenizer().encode("Hi")
    assert make_tokenizer().encode("Hi", chat_wrapped=True) == make_tokenizer(apply_chat_template=True).encode("Hi")


def test_special_tokens_are_single_tokens_in_the_order_of_qwen3():
    tokenizer = make_tokenizer()
    ids = [tokenizer.encode(token) for token in SPECIAL_TOKENS]
    assert ids == [[ids[0][0] + i] for i in range(len(SPECIAL_TOKENS))]


def test_base_and_chat_models_end_differently(peer):
    tokenizer = make_tokenizer()
    assert (tokenizer.eos_token, tokenizer.decode([tokenizer.eos_token_id])) == ("<|endoftext|>", "<|endoftext|>")
    tokenizer.set_chat(True)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", peer.eos_token_id)
    assert tokenizer.pad_token_id == peer.pad_token_id
    assert tokenizer.encode("Hi") == make_tokenizer(apply_chat_template=True).encode("Hi")


def test_text_survives_a_round_trip():
    tokenizer = make_tokenizer()
    for text in TEXTS:
        if "\u0301" not in text and "Å" not in text:  # which are composed: Qwen3 reads text in normal form C
            assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}'])
def test_files_that_are_no_tokenizer_are_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a valid tokenizer.json"):
        Qwen3Tokenizer(path)
    with pytest.raises(ValueError, match="there is no tokenizer file"):
        Qwen3Tokenizer(tmp_path / "missing.json")
