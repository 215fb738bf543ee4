"""GGUF files, the format of llama.cpp, as Hugging Face model directories: weights de-quantised, tokenizer rebuilt.

The package `gguf`, an extra, reads the file. Llama's query and key rows stand there in another order, because
llama.cpp rotates neighbours where Hugging Face rotates halves; here they go back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..files.kinds import TEXT, list_of, shown
from ..qwen3 import Qwen3Model, rope_frequencies
from ..tokenizer import SPLIT_PATTERN
from .families import FAMILIES, from_hf_config
from .weights import StoredTensor, check_fit, from_hf_names

# Names of llama.cpp and of Hugging Face.
_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_NAMES["output.weight"] = "lm_head.weight"
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_ROPE_FACTORS = "rope_freqs.weight"
# Keys of a GGUF file, after the architecture's name, and of a config.json.
_CONFIG = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
_LLAMA3_SPLIT = SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # types of tokens


def write_gguf_model(path: str | Path, directory: Path) -> None:
    """Write what a GGUF file holds into an empty folder: config, weights, tokenizer, chat template, a short card.

    The weights get the type bfloat16 where the file has it, or else float32, in which no type of a GGUF file
    loses anything. Raises ValueError, naming the file, when it is damaged or of a kind that the models here are not.
    """
    path = Path(path)
    fields, tensors = _open(path)
    kind = fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{path} holds a model of the architecture {shown(kind)}; supported are {', '.join(FAMILIES)}")
    types = {tensor.tensor_type.name for tensor in tensors.values()}
    dtype = torch.bfloat16 if "BF16" in types and types <= {"BF16", "F32"} else torch.float32
    config = _config(path, fields, tensors) | {"dtype": str(dtype).removeprefix("torch.")}
    files = _tokenizer_files(path, fields)
    ids = json.loads(files["generation_config.json"])
    tensors.pop(_ROPE_FACTORS, None)
    _check(path, config, {_hf_name(path, name): tensor for name, tensor in tensors.items()})
    state = {_hf_name(path, name): _weight(path, tensors[name], kind, config).to(dtype) for name in tensors}
    files |= {"config.json": _json(config | ids), "README.md": _card(path, fields, types)}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and the tensors of a file by name, the tensors not yet read."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        instead = "install it with: pip install gguf"
        raise ValueError(f"reading {path} needs the package gguf, and {error.name} is missing; {instead}") from None
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(b"GGUF"):
        raise ValueError(f"{path} is not a GGUF file")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or cut short ({first_line(error)})") from None


def _check(path: Path, config: dict, tensors: dict) -> None:
    """ValueError unless config and shapes, of tensors by Hugging Face's names, are those of a model here."""
    cfg = from_hf_config(config, path)
    with torch.device("meta"):
        model = Qwen3Model(cfg)
    shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in tensors.items()}
    stored = {name: StoredTensor(shape, torch.Tensor) for name, shape in shapes.items()}
    check_fit(model, from_hf_names(stored), cfg["tied"], path)


def _config(path: Path, fields: dict, tensors: dict) -> dict:
    """The content of config.json, without the type of the weights; `hub.families` checks what stands in it."""
    kind = fields["general.architecture"]
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{path} has rope scaling of the type {shown(scaling)}; supported are none and Llama 3's")
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path} has no weights of an embedding; it is no whole model")
    said = {theirs: fields.get(f"{kind}.{name}") for name, theirs in _CONFIG.items()}
    config: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    config.setdefault("rope_theta", 10_000.0)  # as in llama.cpp
    if config.get("rms_norm_eps"):
        config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # 1e-5 in single precision
    size, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(size, int) and isinstance(heads, int) and heads > 0:
        config.setdefault("head_dim", size // heads)
    rotated = fields.get(f"{kind}.rope.dimension_count")
    if rotated is not None and rotated != config.get("head_dim"):
        raise ValueError(f"{path} rotates {shown(rotated)} dimensions of a head; supported is all of them")
    if fields.get(f"{kind}.attention.sliding_window"):
        raise ValueError(f"{path} has attention that sees a part of the text only; supported is full attention")
    if _ROPE_FACTORS in tensors:
        config["rope_scaling"] = _llama3_scaling(path, config, tensors[_ROPE_FACTORS])
    return config | {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),  # llama.cpp's order of dimensions is the other one
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _llama3_scaling(path: Path, config: dict, tensor) -> dict:
    """What Llama 3's scaling was made with: the file has only the divisor of each frequency."""
    divisors = torch.tensor(tensor.data.tolist())
    scaling = {"rope_type": "llama3", "factor": round(divisors.max().item(), 3), "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # all that have been published
    head_dim, base = config["head_dim"], config["rope_theta"]
    expected = rope_frequencies(head_dim, base) / rope_frequencies(head_dim, base, scaling)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(f"{path} has factors of rotary frequencies other than those of Llama 3.1 to 3.3")
    return scaling


def _hf_name(path: Path, name: str) -> str:
    _, _, rest = name.partition("blk.")
    layer, _, part = rest.partition(".")
    part, _, kind = part.rpartition(".")
    if name in _NAMES:
        return _NAMES[name]
    if not layer.isdigit() or part not in _LAYER_NAMES or kind not in ("weight", "bias"):
        raise ValueError(f"{path} has the tensor {name}, which the models here do not have")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _weight(path: Path, tensor, kind: str, config: dict) -> torch.Tensor:
    """A tensor's values in float32, in Hugging Face's order."""
    from gguf.quants import dequantize

    try:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{path}: the package gguf cannot read {tensor.name} ({first_line(error)})") from None
    if kind != "llama" or ".attn_q." not in tensor.name and ".attn_k." not in tensor.name:
        return weight
    heads = config["num_attention_heads" if ".attn_q." in tensor.name else "num_key_value_heads"]
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


# ------------------------------------------------------------------ tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def _gpt2(*first: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False)])


# How text is cut before BPE, by the name that llama.cpp gives to it.
_CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: _gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "gpt-2": _gpt2,
    "qwen2": lambda: _split(SPLIT_PATTERN),
    "llama-bpe": lambda: _split(_LLAMA3_SPLIT),
}


def _tokenizer_files(path: Path, fields: dict) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json and generation_config.json as texts."""
    key = "tokenizer.ggml."
    tokens, types, merges = (fields.get(key + name) for name in ("tokens", "token_type", "merges"))
    model, cut, end = fields.get(f"{key}model"), fields.get(f"{key}pre"), fields.get(f"{key}eos_token_id")
    if not tokens:
        raise ValueError(f"{path} has no tokenizer")
    if model != "gpt2" or cut not in _CUTS or not merges:
        raise ValueError(
            f"{path} has a tokenizer of the kind {shown(model)}, {shown(cut)}; "
            f"supported are those of the kind 'gpt2' that cut text as {', '.join(_CUTS)}"
        )
    if type(end) is not int or not 0 <= end < len(tokens):
        raise ValueError(f"{path} names no token that ends a text")
    types = types or [1] * len(tokens)
    if len(types) != len(tokens) or not list_of(TEXT).fits([*tokens, *merges]):
        raise ValueError(f"the tokenizer in {path} is damaged")
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=cut == "llama-bpe"))
    except Exception as error:  # the library raises plain Exception, for a merge of tokens that are not there
        raise ValueError(f"the tokenizer in {path} is damaged: {first_line(error)}") from None
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer, backend.decoder = _CUTS[cut](), decoders.ByteLevel()
    for kind in (CONTROL, USER_DEFINED):
        named = [tokens[i] for i in range(len(tokens)) if types[i] == kind]
        backend.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token in named])
    ids = {name: fields.get(f"{key}{name}_token_id") for name in ("bos", "eos", "padding")}
    ids = {name.replace("padding", "pad"): i for name, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if fields.get(f"{key}add_bos_token") and "bos" in ids:
        start = tokens[ids["bos"]]
        begin = processors.TemplateProcessing(f"{start} $A", f"{start} $A {start} $B", [(start, ids["bos"])])
        backend.post_processor = processors.Sequence([backend.post_processor, begin])
    settings = {f"{name}_token": tokens[i] for name, i in ids.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    return {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json({f"{name}_token_id": i for name, i in ids.items()}),
    }


# ------------------------------------------------------------------ card


def _card(path: Path, fields: dict, types: set[str]) -> str:
    """What the file says of itself, as the directory's README.md."""
    known = {"license": fields.get("general.license"), "language": fields.get("general.languages")}
    head = [f"{name}: {json.dumps(value)}\n" for name, value in known.items() if value]
    quantised = ", ".join(sorted(types - {"F32", "F16", "BF16"}))
    said = [
        f"* {name}: {value}\n"
        for key, value in fields.items()
        if (name := key.removeprefix("general.")) != key and isinstance(value, str) and "\n" not in value
    ]
    how = f"De-quantised from {quantised}" if quantised else "Converted"
    how += f", by `rfs import` from {path.name}. The file says:"
    return f"---\n{''.join(head)}---\n# {path.stem}\n\n{how}\n\n{''.join(said)}"


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits into a sentence."""
    return str(error).partition("\n")[0]


def _json(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
