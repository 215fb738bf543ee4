"""Weights on disk: safetensors files, whole or in shards, and `.pth` state dicts.

Names are Hugging Face's or the printed book's, with or without the parts that torch's wrappers of a model put in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import nn

from ..files import read_fields
from ..files.kinds import NAME, table_of
from ..memory_errors import is_out_of_memory
from ..qwen3 import Qwen3Model

# Our module names (the printed book's) and those of Hugging Face checkpoints.
_HF_NAMES = {
    "tok_emb.weight": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "out_head.weight": "lm_head.weight",
}
_HF_LAYER_NAMES = {
    "att.W_query.weight": "self_attn.q_proj.weight",
    "att.W_key.weight": "self_attn.k_proj.weight",
    "att.W_value.weight": "self_attn.v_proj.weight",
    "att.W_query.bias": "self_attn.q_proj.bias",
    "att.W_key.bias": "self_attn.k_proj.bias",
    "att.W_value.bias": "self_attn.v_proj.bias",
    "att.out_proj.weight": "self_attn.o_proj.weight",
    "att.q_norm.scale": "self_attn.q_norm.weight",
    "att.k_norm.scale": "self_attn.k_norm.weight",
    "ff.fc1.weight": "mlp.gate_proj.weight",
    "ff.fc2.weight": "mlp.up_proj.weight",
    "ff.fc3.weight": "mlp.down_proj.weight",
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
}
# What torch.compile, DataParallel and its distributed kin, FSDP and activation checkpointing put into names.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # types of weights that can be read
_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "out_head.weight", "tok_emb.weight"


def plain_names(state: dict) -> dict:
    """A state dict with the names that the model has without torch's wrappers: "_orig_mod.x" and "module.x" are "x".

    Raises ValueError when two names become the same one.
    """
    plain = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise ValueError(f"the weight {short} is there twice, under names such as {name}")
        plain[short] = tensor
    return plain


def unwrapped(model: nn.Module) -> Qwen3Model:
    """The model inside torch's wrappers; one without a wrapper is returned as it is."""
    while True:
        inner = next((child for name, child in model.named_children() if name in _WRAPPERS), None)
        if inner is None:
            return cast(Qwen3Model, model)
        model = inner


def from_hf_names(state: dict) -> dict:
    """A state dict with our names; names that are ours already stay."""
    state = plain_names(state)
    ours = {theirs: mine for mine, theirs in _HF_NAMES.items()}
    layer = {theirs: mine for mine, theirs in _HF_LAYER_NAMES.items()}
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("model.layers.") and name.count(".") > 2:
            _, _, index, rest = name.split(".", 3)
            name = f"trf_blocks.{index}.{layer.get(rest, rest)}"
        renamed[ours.get(name, name)] = tensor
    return renamed


def to_hf_names(state: dict) -> dict:
    """A state dict with Hugging Face's names."""
    renamed = {}
    for name, tensor in plain_names(state).items():
        if name.startswith("trf_blocks."):
            _, index, rest = name.split(".", 2)
            name = f"model.layers.{index}.{_HF_LAYER_NAMES[rest]}"
        renamed[_HF_NAMES.get(name, name)] = tensor
    return renamed


# ------------------------------------------------------------------ reading


@dataclass
class StoredTensor:
    """A tensor on disk: its shape, and a function that reads a copy of it."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def open_checkpoint(path: str | Path) -> dict[str, StoredTensor]:
    """The weights of a `.safetensors` file, an index of shards or a `.pth` state dict, under our names, not yet read.

    Raises ValueError when a file is missing, damaged, cut short, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; expected a .safetensors or .pth file")
    if path.name.endswith(".index.json"):
        stored = _open_shards(path)
    elif path.suffix == ".safetensors":
        stored = _open_safetensors(path)
    else:
        stored = _open_state_dict(path)
    return from_hf_names(stored)


def weights_file(directory: str | Path) -> Path:
    """The weights of a model directory: model.safetensors, or the index of its shards. ValueError without either."""
    for name in ("model.safetensors", _INDEX):
        if (Path(directory) / name).is_file():
            return Path(directory) / name
    raise ValueError(f"{directory} has no weights; expected model.safetensors or {_INDEX} in it")


def shard_files(index: str | Path) -> dict[str, Path]:
    """Which file each weight is in, from an index of shards; ValueError when the index or a shard is missing or odd."""
    index = Path(index)
    try:
        names = read_fields(index, {"weight_map": table_of(NAME)})["weight_map"]
    except ValueError as error:
        raise ValueError(f"{index} is not an index of weight files, or is damaged: {error}") from None
    files = {weight: index.parent / Path(file).name for weight, file in names.items()}
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise ValueError(f"{index.parent} is incomplete: {len(missing)} weight files are missing, such as {missing[0]}")
    return files


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    files = shard_files(index)
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        stored |= _open_safetensors(file)
    if stored.keys() != files.keys():
        odd = sorted(stored.keys() ^ files.keys())
        raise ValueError(f"the weight files beside {index} do not match it: {len(odd)} weights differ, {odd[0]} first")
    return stored


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            types = {name: found.get_dtype() for name, found in slices.items()}
    except Exception as error:  # the library has a type of its own, and raises torch's for what torch does not know
        if is_out_of_memory(error):
            raise
        raise ValueError(f"the checkpoint {path} is damaged or incomplete: {error}") from None
    for name, found in types.items():
        if found not in FLOATS:
            raise ValueError(f"the weight {name} in {path} is of type {found}; expected one of {', '.join(FLOATS)}")
    return {name: StoredTensor(shape, partial(_read_safetensor, path, name)) for name, shape in shapes.items()}


def _read_safetensor(path: Path, name: str) -> torch.Tensor:
    # The file is opened for every tensor anew: an open one stays mapped, and the pages read so far would
    # count as a second copy of the weights.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _open_state_dict(path: Path) -> dict[str, StoredTensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many types, pickle's own among them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {path} cannot be read as plain weights: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"the checkpoint {path} is no state dict; expected names of weights with their tensors")
    odd = [name for name, tensor in state.items() if not tensor.is_floating_point() or tensor.layout != torch.strided]
    if odd or not all(isinstance(name, str) for name in state):
        raise ValueError(f"the checkpoint {path} has weights that are no floating-point numbers, such as {odd[:1]}")
    return {name: StoredTensor(tuple(tensor.shape), tensor.clone) for name, tensor in state.items()}


# ------------------------------------------------------------------ into a model


def load_weights(model: Qwen3Model, path: str | Path) -> None:
    """Fill a model from a `.safetensors` file or a `.pth` state dict, in Hugging Face's or the book's names.

    The book keeps an output head beside the embedding and trains both. Where a checkpoint's two differ, the
    model gets a head of its own; where they are equal, or there is only the embedding, the model shares it.
    Raises ValueError when the file is missing, damaged, or belongs to a model of another shape; the model is
    left as it was in that case.
    """
    model, stored = unwrapped(model), open_checkpoint(path)
    tied = shares_head(stored)
    check_fit(model, stored, tied, path)
    set_head(model, tied)
    with torch.no_grad():
        for name, parameter in plain_names(dict(model.named_parameters())).items():
            parameter.copy_(stored[name].read())


def shares_head(stored: dict[str, StoredTensor]) -> bool:
    """Whether a checkpoint's output head is its embedding: there is none, or the two are equal."""
    if _HEAD not in stored or _EMBEDDING not in stored:
        return True
    return stored[_HEAD].shape == stored[_EMBEDDING].shape and torch.equal(
        stored[_HEAD].read(), stored[_EMBEDDING].read()
    )


def check_fit(model: Qwen3Model, stored: dict[str, StoredTensor], tied: bool, path: str | Path) -> None:
    """ValueError unless names and shapes are the model's; `tied` says whether the head is the embedding."""
    parameters = plain_names(dict(model.named_parameters()))
    expected = {name: tuple(p.shape) for name, p in parameters.items() if name != _HEAD}
    found = {name: tensor.shape for name, tensor in stored.items()}
    if tied:
        found.pop(_HEAD, None)
    else:
        expected[_HEAD] = expected[_EMBEDDING]
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(
            f"the checkpoint {path} does not fit the model: {len(odd)} weights differ in name or shape, "
            f"{odd[0]} among them (expected {expected.get(odd[0])}, found {found.get(odd[0])})"
        )


def set_head(model: Qwen3Model, tied: bool) -> None:
    """Let a model share its embedding as output head, or give it a head of its own, not yet filled."""
    if tied == model.cfg.get("tied", True):
        return
    model.cfg = {**model.cfg, "tied": tied}
    if tied:
        del model.out_head
    else:
        rows, columns = model.tok_emb.weight.shape
        options = {"device": model.tok_emb.weight.device, "dtype": model.tok_emb.weight.dtype}
        model.out_head = nn.Linear(columns, rows, bias=False, **options)
