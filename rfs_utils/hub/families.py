"""The families of models that are read and written, and how a Hugging Face config.json says what a model is."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import check_fields, read_object
from ..files.kinds import FLAG, Kind, number, shown, whole


@dataclass(frozen=True)
class Family:
    """What a family's name means: the class in `transformers`, and its settings in our config."""

    architecture: str
    qk_norm: bool
    qkv_bias: bool


FAMILIES = {  # by the `model_type` of a config.json; GGUF files have the same names
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, qkv_bias=False),
    "qwen2": Family("Qwen2ForCausalLM", qk_norm=False, qkv_bias=True),
    "llama": Family("LlamaForCausalLM", qk_norm=False, qkv_bias=False),
}

# Our config keys and those of a Hugging Face config.json.
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "head_dim": "head_dim",
    "n_kv_groups": "num_key_value_heads",
    "rope_base": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
# What these must be. The largest Qwen3 models have a third of it or less.
_HF_KINDS = {
    "vocab_size": whole(1, 2**20), "max_position_embeddings": whole(1, 2**20), "hidden_size": whole(1, 2**15),
    "num_attention_heads": whole(1, 1024), "num_hidden_layers": whole(1, 512), "intermediate_size": whole(1, 2**18),
    "head_dim": whole(2, 1024), "num_key_value_heads": whole(1, 1024), "rope_theta": number(1, 1e12),
    "rms_norm_eps": number(0, 1), "tie_word_embeddings": FLAG,
}  # fmt: skip
# What the architecture here does not have: each must be absent, null or have this value.
_HF_FIXED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False,
    "rope_interleaved": False, "partial_rotary_factor": 1.0, "quantization_config": None,
}  # fmt: skip
_ROPE_KINDS: dict[str, Kind] = {
    "factor": number(1, 1e6), "low_freq_factor": number(0, 1e6), "high_freq_factor": number(0, 1e6),
    "original_max_position_embeddings": whole(1, 2**20),
}  # fmt: skip


def read_model_config(path: str | Path) -> dict:
    """Our config dictionary from a Hugging Face config.json; ValueError for what the model here does not have."""
    return from_hf_config(read_object(Path(path)), path)


def from_hf_config(hf: dict, path: str | Path) -> dict:
    """Our config dictionary from the content of a config.json, which `path` names in messages."""
    hf = {key: value for key, value in hf.items() if value is not None}
    kind = hf.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ValueError(f"{path} describes a {shown(kind)} model; supported are {', '.join(FAMILIES)}")
    scaling = _rope_scaling(hf, path)
    for key, value in _HF_FIXED.items():
        if hf.get(key, value) != value:
            raise ValueError(f"{path} has {key} = {shown(hf[key])}; only {value!r} is supported")
    layers = hf.get("layer_types", [])
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise ValueError(f"{path} has layer_types that see a part of the text only; supported is full_attention")
    hf.setdefault("tie_word_embeddings", False)  # `transformers` leaves out what is the default
    missing = [key for key in HF_CONFIG.values() if key not in hf and (kind == "qwen3" or key not in _DERIVED)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    for key, must in _HF_KINDS.items():
        if key not in hf:
            hf[key] = _DERIVED[key](hf)
        try:
            must.check(key, hf[key])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if hf["num_attention_heads"] % hf["num_key_value_heads"] or hf["head_dim"] % 2:
        raise ValueError(f"{path}: num_attention_heads must be a multiple of num_key_value_heads, and head_dim even")
    cfg = {ours: hf[theirs] for ours, theirs in HF_CONFIG.items()}
    cfg |= {"qk_norm": family.qk_norm, "qkv_bias": family.qkv_bias, "rope_scaling": scaling}
    name = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    cfg["dtype"] = getattr(torch, name, None) if isinstance(name, str) else None
    if cfg["dtype"] not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{path} asks for weights of type {shown(name)}; expected float32, bfloat16 or float16")
    return cfg


# What Llama's and Qwen2's configs may leave out; the order is that of `_HF_KINDS`, so that what is needed is checked.
_DERIVED = {
    "head_dim": lambda hf: hf["hidden_size"] // hf["num_attention_heads"],
    "num_key_value_heads": lambda hf: hf["num_attention_heads"],
}


def _rope_scaling(hf: dict, path: str | Path) -> dict | None:
    """The scaling of the rotary embedding, None without one; a base that stands with it goes to its old place.

    Older versions of `transformers` write rope_scaling, newer ones rope_parameters, with the base in it.
    """
    found = None
    for key in ("rope_parameters", "rope_scaling"):
        rope = hf.get(key)
        if not rope:
            continue
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        if kind not in ("default", "llama3") or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ValueError(f"{path} has rope_scaling = {shown(kind)}; supported are the default and llama3")
        if "rope_theta" in rope:
            hf.setdefault("rope_theta", rope["rope_theta"])
        if kind == "llama3":
            check_fields(rope, _ROPE_KINDS, f"{key} in {path}")
            found = {name: rope[name] for name in _ROPE_KINDS}
            if found["low_freq_factor"] >= found["high_freq_factor"]:
                raise ValueError(f"{key} in {path} needs a low_freq_factor below its high_freq_factor")
    return found


def to_hf_config(cfg: dict, dtype: torch.dtype) -> dict:
    """The content of a config.json; ValueError for settings that no family has."""
    cfg = {"tied": True, "qk_norm": True, "qkv_bias": False, **cfg}
    found = [
        (name, family) for name, family in FAMILIES.items()
        if (family.qk_norm, family.qkv_bias) == (cfg["qk_norm"], cfg["qkv_bias"])
    ]  # fmt: skip
    if not found:
        raise ValueError("a model with qk_norm and qkv_bias is of no family that Hugging Face's config.json can name")
    name, family = found[0]
    config = {theirs: cfg[ours] for ours, theirs in HF_CONFIG.items()}
    config |= {"architectures": [family.architecture], "model_type": name, "hidden_act": "silu"}
    if not family.qkv_bias:  # which Qwen2 always has, without saying so
        config["attention_bias"] = False
    if cfg.get("rope_scaling"):
        config["rope_scaling"] = {"rope_type": "llama3", **cfg["rope_scaling"]}
    return config | {"dtype": str(dtype).removeprefix("torch.")}
