"""LoRA adapters on disk, in the format of the package `peft`: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..files import check_fields, read_object, write_json
from ..files.kinds import NAME, Kind, number, one_of, whole
from ..qwen3 import Qwen3Model
from ..rounding import round_stochastically
from .weights import from_hf_names, open_checkpoint, to_hf_names

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PREFIX = "base_model.model."
_KINDS = {"peft_type": one_of("LORA"), "base_model_name_or_path": NAME, "r": whole(1, 2**15),
          "lora_alpha": number(1e-9, 1e9)}  # fmt: skip
_ABSENT = Kind("absent, since only plain LoRA is supported", lambda value: not value)
_OTHER_KINDS = (
    "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """What is added to some linear layers of a model: alpha / rank * B A."""

    base: str  # name or path of the model
    rank: int
    alpha: float
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]  # of each layer A, (rank, in), and B, (out, rank)


@torch.no_grad()
def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """weight + scale * b @ a, in the weight's type.

    Most changes that an adapter makes are smaller than the grid of bfloat16: rounded to the nearest number, they would
    be lost. So they are rounded at random, always by the same numbers.
    """
    exact = weight + scale * (b @ a)
    if weight.dtype != torch.bfloat16:
        return exact.to(weight.dtype)
    generator = torch.Generator(weight.device).manual_seed(0)
    bits = torch.randint(2**16, exact.shape, dtype=torch.int32, device=weight.device, generator=generator)
    return round_stochastically(exact.float(), bits).to(weight.dtype)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and not a whole model."""
    return (directory / ADAPTER_FILES[0]).is_file() and not (directory / "config.json").is_file()


def adapter_base(directory: Path) -> str:
    """The name or path of the model that an adapter belongs to."""
    return _read_config(directory)["base_model_name_or_path"]


def write_adapter(adapter: Adapter, directory: Path, more: Mapping[str, bytes] | None = None) -> None:
    """Write ADAPTER_FILES, and `more` by name, into a folder that is there; OSError when one cannot be written."""
    names = {_theirs(name): name for name in adapter.weights}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": adapter.base, "r": adapter.rank,
        "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted({name.rpartition(".")[2] for name in names}), "inference_mode": True,
    }  # fmt: skip
    tensors = {}
    for theirs, name in names.items():
        for letter, tensor in zip("AB", adapter.weights[name], strict=True):
            tensors[f"{_PREFIX}{theirs}.lora_{letter}.weight"] = tensor.cpu().contiguous()
    write_json(directory / ADAPTER_FILES[0], config)
    for name, content in (more or {}).items():
        (directory / name).write_bytes(content)
    try:
        save_file(tensors, directory / ADAPTER_FILES[1], metadata={"format": "pt"})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {directory}: {error}") from None


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a directory; ValueError when it is damaged or more than plain LoRA of linear layers."""
    config, path = _read_config(directory), directory / ADAPTER_FILES[1]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, stored in open_checkpoint(path).items():
        layer, _, letter = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        found.setdefault(_ours(layer), {})[letter] = stored.read()
    for layer, parts in found.items():
        shapes = [tuple(parts[letter].shape) for letter in "AB" if letter in parts]
        if parts.keys() != {"A", "B"} or shapes[0][0] != config["r"] or shapes[1][1:] != (config["r"],):
            raise ValueError(f"{path} has no A and B of rank {config['r']} for {layer or 'a layer without a name'}")
    weights = {layer: (parts["A"], parts["B"]) for layer, parts in found.items()}
    return Adapter(config["base_model_name_or_path"], config["r"], config["lora_alpha"], weights)


def merge_adapter(model: Qwen3Model, directory: Path) -> None:
    """Add a stored adapter to the weights of its model; ValueError when it does not fit."""
    adapter = read_adapter(directory)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, (a, b) in adapter.weights.items():
        if name not in layers or layers[name].weight.shape != (len(b), a.shape[1]):
            raise ValueError(f"the adapter in {directory} does not fit the model {adapter.base}: {name} differs")
    for name, parts in adapter.weights.items():
        weight = layers[name].weight
        a, b = (x.to(weight.device, torch.float32) for x in parts)
        weight.data = merge(weight.data, a, b, adapter.alpha / adapter.rank)


def _read_config(directory: Path) -> dict:
    path = directory / ADAPTER_FILES[0]
    config = read_object(path)
    check_fields(config, _KINDS, path)
    check_fields({name: config.get(name) for name in _OTHER_KINDS}, dict.fromkeys(_OTHER_KINDS, _ABSENT), path)
    return config


def _theirs(layer: str) -> str:
    """Hugging Face's name of a layer of ours."""
    return next(iter(to_hf_names({f"{layer}.weight": None}))).removesuffix(".weight")


def _ours(layer: str) -> str:
    """Our name of a layer of Hugging Face's."""
    return next(iter(from_hf_names({f"{layer}.weight": None}))).removesuffix(".weight")
