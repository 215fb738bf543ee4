"""Loading and saving models: a registry of names, and Hugging Face model directories on disk."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .hub.download import download_model, download_qwen3_grpo_checkpoints
from .hub.weights import (
    check_fit,
    load_weights,
    open_checkpoint,
    shares_head,
    to_hf_names,
    weights_file,
)
from .qwen3 import Qwen3Model, rope_tables
from .runs.card import export_card
from .tokenizer import CHAT_TEMPLATE, Qwen3Tokenizer

__all__ = [
    "ALIASES", "HUB_MODELS", "SHIPPED", "download_qwen3_grpo_checkpoints", "export_model", "get_device", "load_model",
    "load_model_and_tokenizer", "load_tokenizer", "load_weights", "model_directory", "native_dtype", "read_config",
    "save_model",
]  # fmt: skip

WEIGHTS_DIR = Path(__file__).parent / "weights"
SHIPPED = ("tiny-base", "tiny-reasoning")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub, and whether it speaks the chat format."""

    repo_id: str
    chat: bool


HUB_MODELS = {
    "qwen3-0.6b-base": HubModel("Qwen/Qwen3-0.6B-Base", chat=False),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B", chat=True),
}
ALIASES = {"base": "qwen3-0.6b-base", "reasoning": "qwen3-0.6b"}  # the printed book's names

# Our config keys and those of a Hugging Face config.json.
_HF_CONFIG = {
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
# What the architecture here does not have: each must be absent or have this value.
_HF_FIXED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False, "rope_scaling": None}
# Beside the weights, what an exported model keeps of the directory it came from.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip


def get_device() -> torch.device:
    """The best device here: CUDA, then Apple's MPS, then the CPU. Prints which."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        print(f"Using {torch.cuda.get_device_name(device)}")
    elif torch.backends.mps.is_available():
        device = torch.device("mps")
        print("Using Apple Silicon GPU (MPS)")
    else:
        device = torch.device("cpu")
        print("Using CPU")
    return device


def load_model_and_tokenizer(
    which_model: str | Path,
    device: torch.device | str,
    use_compile: bool = False,
    local_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Qwen3Model, Qwen3Tokenizer]:
    """A model, in eval mode on `device`, and its tokenizer.

    `which_model` is "tiny-base" or "tiny-reasoning" (shipped with the package), "qwen3-0.6b-base" ("base") or
    "qwen3-0.6b" ("reasoning"), which are downloaded once from the Hugging Face hub, or the path of a Hugging
    Face Qwen3 directory. `local_dir` is a model directory to read instead, or else a folder for downloads, in
    place of the hub's shared cache. The weights have the type of the model's config unless `dtype` is given,
    and float32 where the device does not calculate in bfloat16.
    Raises ValueError for an unknown name, for a download that fails, and for a directory that is incomplete,
    damaged or whose tokenizer does not fit the model.
    """
    directory = model_directory(which_model, local_dir)
    model = load_model(directory, device, dtype)
    tokenizer = load_tokenizer(directory, chat=_chat_by_name(which_model))
    if tokenizer.vocab_size > model.cfg["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} tokens, but the model's embedding "
            f"has only {model.cfg['vocab_size']} rows: they do not belong together"
        )
    if use_compile:
        model.compile()
    return model, tokenizer


def model_directory(which_model: str | Path, local_dir: str | Path | None = None) -> Path:
    """The directory of a model's files, downloaded when it is on the hub and not here yet.

    Raises ValueError, naming the known models, when there is none.
    """
    name = ALIASES.get(str(which_model), str(which_model))
    if local_dir is not None and (name not in HUB_MODELS or (Path(local_dir) / "config.json").is_file()):
        return Path(local_dir)
    if name in SHIPPED:
        return WEIGHTS_DIR / name
    if name in HUB_MODELS:
        return download_model(HUB_MODELS[name].repo_id, local_dir)
    if Path(which_model).is_dir():
        return own_model(which_model) or Path(which_model)
    known = ", ".join([*SHIPPED, *HUB_MODELS])
    raise ValueError(f"unknown model {str(which_model)!r}: known models are {known}, or the path of a model directory")


def own_model(folder: str | Path) -> Path | None:
    """The model directory that a folder is, or has in it as the folder of a run; None when there is none."""
    folder = Path(folder)
    return next((found for found in (folder, folder / "model") if (found / "config.json").is_file()), None)


def _chat_by_name(which_model: str | Path) -> bool | None:
    name = ALIASES.get(str(which_model), str(which_model))
    return HUB_MODELS[name].chat if name in HUB_MODELS else None


def load_model(
    directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Qwen3Model:
    """The model of a Hugging Face Qwen3 directory, in eval mode, its weights of the config's type or of `dtype`.

    Each tensor is read, cast and moved by itself, so that there is never a second copy of the weights.
    A file's own output head is used where it differs from the embedding, as `transformers` does.
    """
    directory = Path(directory)
    cfg = read_config(directory / "config.json")
    dtype = native_dtype(dtype or cfg["dtype"], device)
    path = weights_file(directory)
    stored = open_checkpoint(path)
    if not cfg["tied"] and "out_head.weight" not in stored:
        raise ValueError(f"{path} has no output head, but its config.json says that the model has one of its own")
    tied = cfg["tied"] and shares_head(stored)
    with torch.device("meta"):  # shapes without memory; the weights take their place below
        model = Qwen3Model(cfg | {"dtype": dtype, "tied": tied})
    check_fit(model, stored, tied, path)
    names = [name for name, _ in model.named_parameters()]
    state = {name: stored[name].read().to(device=device, dtype=dtype) for name in names}
    model.load_state_dict(state, assign=True)
    tables = rope_tables(cfg["head_dim"], cfg["context_length"], cfg["rope_base"])
    model.cos, model.sin = (table.to(device) for table in tables)
    return model.eval()


def native_dtype(dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """`dtype`, but float32 instead of bfloat16 where the device only imitates it.

    That is an NVIDIA GPU older than compute capability 8.0, such as the T4, and Apple's MPS before macOS 14.
    `torch.cuda.is_bf16_supported()` says True there as well, because it counts the slow imitation.
    """
    device = torch.device(device)
    if dtype != torch.bfloat16:
        return dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float32
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.float32
    return dtype


def load_tokenizer(directory: str | Path, chat: bool | None = None) -> Qwen3Tokenizer:
    """The tokenizer of a model directory; `chat` says whether it speaks the chat format.

    Without `chat` the token at which the model stops decides: <|im_end|> is a chat model, <|endoftext|> a base
    model. A chat template alone says nothing, because Qwen's base models come with one too.
    """
    directory = Path(directory)
    tokenizer = Qwen3Tokenizer(directory / "tokenizer.json")
    if chat is None:
        chat = tokenizer.backend.token_to_id("<|im_end|>") in stop_tokens(directory)
    tokenizer.set_chat(chat)
    return tokenizer


def stop_tokens(directory: str | Path) -> set[int]:
    """The ids at which a model's text ends: from generation_config.json, or else from config.json."""
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        ids = _read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return set(ids) if isinstance(ids, list) else {ids}
    return set()


def read_config(path: str | Path) -> dict:
    """Our config dictionary from a Hugging Face config.json; ValueError when it is not a Qwen3 config."""
    hf = _read_json(Path(path))
    if hf.get("model_type") != "qwen3":
        raise ValueError(f"{path} describes a {hf.get('model_type')!r} model; only 'qwen3' is supported")
    rope = hf.get("rope_parameters") or {}  # where newer versions of `transformers` write it
    hf.setdefault("rope_theta", rope.get("rope_theta"))
    hf.setdefault("tie_word_embeddings", False)  # `transformers` leaves out what is the default
    if rope.get("rope_type", "default") != "default":
        hf["rope_scaling"] = rope["rope_type"]
    for key, value in _HF_FIXED.items():
        if hf.get(key, value) != value:
            raise ValueError(f"{path} has {key} = {hf[key]!r}; only {value!r} is supported")
    missing = [key for key in _HF_CONFIG.values() if hf.get(key) is None]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    cfg = {ours: hf[theirs] for ours, theirs in _HF_CONFIG.items()}
    name = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    cfg["dtype"] = getattr(torch, str(name), None)
    if cfg["dtype"] not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{path} asks for weights of type {name!r}; expected float32, bfloat16 or float16")
    return cfg


def save_model(
    model: Qwen3Model,
    tokenizer: Qwen3Tokenizer,
    directory: str | Path,
    card: str = "",
    files_from: str | Path | None = None,
) -> Path:
    """Write a Hugging Face model directory that `transformers` opens; `card` is the text of its README.md.

    `files_from` is a model directory whose tokenizer files, chat template among them, are taken over as they are.
    The files are written to a temporary folder beside it, which then takes its place. Raises ValueError
    when `directory` exists and is not a model directory, so that nothing else is ever overwritten.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / "config.json").is_file():
        check_new(directory, "and is not a model directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_model_files(model, tokenizer, temporary, card)
        for name in _TOKENIZER_FILES if files_from is not None else ():
            if (Path(files_from) / name).is_file():
                shutil.copyfile(Path(files_from) / name, temporary / name)
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {directory}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def check_new(directory: Path, reason: str, choice: str = "another folder") -> None:
    """ValueError with the reason and what to choose instead, unless a directory is empty or does not exist."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists {reason}; choose {choice}")


def export_model(source: str | Path, directory: str | Path, which_model: str | Path | None = None) -> Path:
    """Write a trained model as a directory that `transformers`, TRL and vLLM open, with a card; returns the directory.

    `source` is a run folder of `rfs train`, a model directory, or a checkpoint file, for which `which_model`
    says what was trained. Raises ValueError for anything else, and when `directory` holds something already.
    """
    source, directory = Path(source), Path(directory)
    check_new(directory, "already and is not empty")
    if source.is_file():
        if which_model is None:
            raise ValueError(f"{source} holds weights only; say with --model which model they belong to")
        origin = model_directory(which_model)
        model, tokenizer = load_model_and_tokenizer(which_model, "cpu")
        load_weights(model, source)
    else:
        origin = own_model(source)
        if origin is None:
            raise ValueError(
                f"{source} is neither a run folder with a trained model in it, nor a model directory, nor a checkpoint"
            )
        model, tokenizer = load_model_and_tokenizer(origin, "cpu")
    card = export_card(directory.resolve().name, source.resolve().name, model, tokenizer)
    return save_model(model, tokenizer, directory, card, files_from=origin)


def _write_model_files(model: Qwen3Model, tokenizer: Qwen3Tokenizer, directory: Path, card: str) -> None:
    write_config_files(model, tokenizer, directory)
    weights = to_hf_names(dict(model.named_parameters()))
    state = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


def write_config_files(model: Qwen3Model, tokenizer: Qwen3Tokenizer, directory: Path) -> None:
    """Write what a Hugging Face model directory holds besides the weights: the configuration and the tokenizer."""
    cfg = {"tied": True, **model.cfg}
    config = {theirs: cfg[ours] for ours, theirs in _HF_CONFIG.items()}
    config |= {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": str(model.tok_emb.weight.dtype).removeprefix("torch."),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tokenizer_config = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.backend.id_to_token(tokenizer.pad_token_id),
        "model_max_length": cfg["context_length"],
    }
    if tokenizer.apply_chat_template:
        tokenizer_config["chat_template"] = CHAT_TEMPLATE
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.backend.save(str(directory / "tokenizer.json"))


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; expected a Hugging Face model directory") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content
