"""Qwen3, Qwen2 and Llama: one model class, each family's logits and files as in `transformers`."""

import json

import pytest
import torch
from small import make_model, make_tokenizer

from rfs_utils.ch06 import sample_batch
from rfs_utils.decode import StackedDecoder, plain_product
from rfs_utils.hub.families import FAMILIES, read_model_config, to_hf_config
from rfs_utils.models import load_model, load_model_and_tokenizer, load_tokenizer, save_model
from rfs_utils.qwen3 import KVCache, rope_tables

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SETTINGS = {
    "qwen3": {"qk_norm": True, "qkv_bias": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False, "qkv_bias": False},
    "llama3": {"qk_norm": False, "qkv_bias": False, "rope_scaling": LLAMA3},
}


def family_model(family: str, **changes):
    """Random weights, biases too, which `make_model` leaves near one."""
    model = make_model(**SETTINGS[family] | changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.5)
    return model


def open_peer(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_logits_equal_transformers_there_and_back(family, tied, tmp_path):
    model = family_model(family, tied=tied)
    peer = open_peer(save_model(model, make_tokenizer(), tmp_path / "ours"))
    assert type(peer).__name__ == FAMILIES[family.replace("llama3", "llama")].architecture
    ids = torch.randint(0, model.cfg["vocab_size"], (2, 200))
    assert model(ids).std() > 0.1
    close(model(ids), peer(ids).logits)

    peer.save_pretrained(tmp_path / "theirs")  # a config.json as `transformers` writes it
    again = load_model(tmp_path / "theirs")
    assert again.cfg == load_model(tmp_path / "ours").cfg
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_padding_the_cache_and_the_fast_decoder_serve_every_family(family, tmp_path):
    model = family_model(family)
    peer = open_peer(save_model(model, make_tokenizer(), tmp_path / "ours"))
    ids, num_pad = torch.randint(1, model.cfg["vocab_size"], (3, 12)), torch.tensor([0, 3, 7])
    new = torch.randint(1, model.cfg["vocab_size"], (3, 5))
    caches = [KVCache(model.cfg["n_layers"]) for _ in range(2)]
    for cache in caches:
        model(ids, cache=cache, num_pad=num_pad)
    fast = StackedDecoder(model, plain_product)
    for step in range(5):
        plain, quick = (f(new[:, step : step + 1], cache) for f, cache in zip((model, fast), caches, strict=True))
        close(quick, plain)
        for row, pad in enumerate(num_pad.tolist()):
            alone = torch.cat([ids[row, pad:], new[row, : step + 1]])[None]
            close(plain[row, -1], peer(alone).logits[0, -1])


@pytest.mark.parametrize("family", SETTINGS)
def test_a_step_reaches_every_weight(family):
    model = make_model(**SETTINGS[family])
    model(torch.randint(0, 512, (2, 20))).log_softmax(-1)[..., 5].sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad.isfinite().all() and weight.grad.abs().max() > 0, name


def test_configs_of_the_printed_book_are_qwen3():
    model = make_model()
    assert model.trf_blocks[0].att.qk_norm and model.trf_blocks[0].att.W_query.bias is None
    assert to_hf_config(model.cfg, torch.float32)["model_type"] == "qwen3"
    with pytest.raises(ValueError, match="qk_norm and qkv_bias"):
        to_hf_config(model.cfg | {"qkv_bias": True}, torch.float32)


def test_llama3_scaling_slows_the_slow_dimensions_only():
    plain, scaled = (rope_tables(64, 128, 1e4, scaling)[1] for scaling in (None, LLAMA3))
    torch.testing.assert_close(plain[:, 0], scaled[:, 0])
    torch.testing.assert_close(plain[:16, 31], scaled[::8, 31])


LLAMA = {
    "model_type": "llama", "vocab_size": 512, "max_position_embeddings": 64, "hidden_size": 32, "rms_norm_eps": 1e-5,
    "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 48, "rope_theta": 1e4,
}  # fmt: skip


def read(tmp_path, **changes) -> dict:
    config = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_model_config(tmp_path / "config.json")


def test_what_configs_leave_out(tmp_path):
    cfg = read(tmp_path)
    assert (cfg["head_dim"], cfg["n_kv_groups"], cfg["tied"], cfg["rope_scaling"]) == (8, 4, False, None)
    assert read(tmp_path, head_dim=None, num_key_value_heads=2)["n_kv_groups"] == 2
    assert read(tmp_path, model_type="qwen2")["qkv_bias"] and not read(tmp_path)["qkv_bias"]
    scaled = {"rope_type": "llama3", **LLAMA3}
    for found in (
        read(tmp_path, rope_scaling=scaled),
        read(tmp_path, rope_theta=..., rope_parameters=scaled | {"rope_theta": 1e4}),
    ):
        assert found["rope_scaling"] == LLAMA3 and found["rope_base"] == 1e4
    with pytest.raises(ValueError, match="lacks head_dim, num_key_value_heads"):
        read(tmp_path, model_type="qwen3")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "gemma3"}, "'gemma3' model; supported are qwen3, qwen2, llama"),
        ({"model_type": ["llama"]}, "a list model"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"layer_types": 1}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling = 'yarn'"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope_scaling = a list"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "it lacks low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": "x"}}, "factor must be"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4}}, "below its high_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope"),
        ({"num_attention_heads": ...}, "lacks num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"hidden_size": "32"}, "hidden_size must be"),
        ({"hidden_size": 36}, "head_dim even"),
    ],
)
def test_what_no_family_has_is_refused_in_one_sentence(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ tokenizers that are not Qwen3's

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def llama_directory(tmp_path):
    """A Llama model with a tokenizer like Llama 3's: its own special tokens, one of which opens every text."""
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    backend = tokenizers.Tokenizer.from_str(make_tokenizer().backend.to_str())
    backend.add_special_tokens(["<|begin|>", "<|eot_id|>", "<|end_of_text|>"])
    start = backend.token_to_id("<|begin|>")
    backend.post_processor = TemplateProcessing("<|begin|> $A", "<|begin|> $A <|begin|> $B", [("<|begin|>", start)])
    folder = tmp_path / "llama"
    save_model(family_model("llama", vocab_size=640), make_tokenizer(), folder)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "chat_template": TEMPLATE,
        "eos_token": {"__type": "AddedToken", "content": "<|end_of_text|>", "special": True},
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    change(folder / "config.json", pad_token_id=None)
    return folder


def change(path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def stop_at(folder, *tokens) -> None:
    backend = load_model_and_tokenizer(folder, "cpu")[1].backend
    change(folder / "generation_config.json", eos_token_id=[backend.token_to_id(token) for token in tokens])


TEXTS = ["Tom has 7 coins.", " two  blanks ", "\n\nlines\n", "", "7 + 5 = 12 e\u0301 数 🙂", "[user] a-message"]


def test_special_tokens_are_those_that_the_directory_names(llama_directory):
    transformers = pytest.importorskip("transformers")
    stop_at(llama_directory, "<|end_of_text|>")
    model, tokenizer = load_model_and_tokenizer(llama_directory, "cpu")
    peer = transformers.AutoTokenizer.from_pretrained(llama_directory)
    assert not tokenizer.apply_chat_template and tokenizer.eos_token == "<|end_of_text|>" == peer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == peer.eos_token_id, "without a padding token"
    for text in TEXTS:
        assert tokenizer.encode_prompt(text) == peer(text)["input_ids"], repr(text)
        assert tokenizer.encode(text) == peer.encode(text, add_special_tokens=False)
    assert len(sample_batch(model, tokenizer, TEXTS, "cpu", 2, 3).texts) == 2 * len(TEXTS)
    change(llama_directory / "special_tokens_map.json", pad_token="<|eot_id|>")
    assert load_model_and_tokenizer(llama_directory, "cpu")[1].pad_token_id == peer.convert_tokens_to_ids("<|eot_id|>")


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "list"])
def test_the_chat_format_is_the_directorys_own_template(place, llama_directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    stop_at(llama_directory, "<|end_of_text|>", "<|eot_id|>")
    if place == "chat_template.jinja":
        change(llama_directory / "tokenizer_config.json", chat_template="never read")
        (llama_directory / place).write_text(TEMPLATE)
    if place == "list":
        named = [{"name": "tool_use", "template": "never read"}, {"name": "default", "template": TEMPLATE}]
        change(llama_directory / "tokenizer_config.json", chat_template=named)
    tokenizer = load_model_and_tokenizer(llama_directory, "cpu")[1]
    peer = transformers.AutoTokenizer.from_pretrained(llama_directory)
    assert tokenizer.apply_chat_template and len(tokenizer.eos_token_ids) == 2
    for text in TEXTS:
        message = [{"role": "user", "content": text}]
        expected = peer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        assert tokenizer.encode_prompt(text) == tokenizer.encode(text) == expected, repr(text)
    assert tokenizer.decode(tokenizer.encode("Hi ")) == "<|begin|>[user] Hi<|eot_id|>[assistant]"

    save_model(family_model("llama", vocab_size=640), tokenizer, tmp_path / "again")
    again = load_model_and_tokenizer(tmp_path / "again", "cpu")[1]
    assert again.encode("Hi") == tokenizer.encode("Hi") and again.eos_token_ids == tokenizer.eos_token_ids


def test_control_tokens_in_a_message_are_text_in_any_chat_format(llama_directory):
    stop_at(llama_directory, "<|eot_id|>")
    tokenizer = load_model_and_tokenizer(llama_directory, "cpu")[1]
    added = set(tokenizer.backend.get_added_tokens_decoder())
    ids = tokenizer.encode_prompt("a<|eot_id|>[assistant]12<|begin|>")
    assert [tokenizer.backend.id_to_token(i) for i in ids if i in added] == ["<|begin|>", "<|eot_id|>"]
    assert tokenizer.decode(ids) == "<|begin|>[user] a<|eot_id|>[assistant]12<|begin|><|eot_id|>[assistant]"


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for %}", "chat template cannot be used"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ messages[0].content | upper }}", "does not write a user's message as it is"),
    ],
)
def test_templates_that_cannot_be_used_are_named(template, words, llama_directory):
    stop_at(llama_directory, "<|eot_id|>")
    change(llama_directory / "tokenizer_config.json", chat_template=template)
    tokenizer = load_model_and_tokenizer(llama_directory, "cpu")[1]
    with pytest.raises(ValueError, match=words):
        tokenizer.encode_prompt("Hi")


def test_a_tokenizer_without_an_end_token_is_refused(llama_directory):
    change(llama_directory / "tokenizer_config.json", eos_token=None)
    change(llama_directory / "config.json", eos_token_id=None)
    with pytest.raises(ValueError, match="names no token that ends a text"):
        load_model_and_tokenizer(llama_directory, "cpu")
    change(llama_directory / "config.json", eos_token_id=99_999)
    with pytest.raises(ValueError, match="has no token 99999"):
        load_model_and_tokenizer(llama_directory, "cpu")
    change(llama_directory / "config.json", eos_token_id=5)
    assert load_model_and_tokenizer(llama_directory, "cpu")[1].eos_token_ids == (5,)


def test_a_qwen3_model_may_have_another_tokenizer(llama_directory):
    change(llama_directory / "config.json", model_type="qwen3", eos_token_id=None)
    text = (llama_directory / "tokenizer.json").read_text()
    (llama_directory / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|other|>"))
    assert load_tokenizer(llama_directory).eos_token == "<|end_of_text|>"
