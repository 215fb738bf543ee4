"""Loading and saving models: a registry of names, and Hugging Face model directories on disk."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .qwen3 import Qwen3Model
from .tokenizer import Qwen3Tokenizer

WEIGHTS_DIR = Path(__file__).parent / "weights"
SHIPPED = ("tiny-base", "tiny-reasoning")

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
    "att.out_proj.weight": "self_attn.o_proj.weight",
    "att.q_norm.scale": "self_attn.q_norm.weight",
    "att.k_norm.scale": "self_attn.k_norm.weight",
    "ff.fc1.weight": "mlp.gate_proj.weight",
    "ff.fc2.weight": "mlp.up_proj.weight",
    "ff.fc3.weight": "mlp.down_proj.weight",
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
}
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
) -> tuple[Qwen3Model, Qwen3Tokenizer]:
    """A model, in eval mode on `device`, and its tokenizer.

    `which_model` is "tiny-base" or "tiny-reasoning" (shipped with the package) or the path of a Hugging
    Face Qwen3 directory; `local_dir`, when given, is the directory to read instead of the shipped one.
    Raises ValueError for an unknown name, and for a directory that is incomplete, damaged or whose
    tokenizer does not fit the model.
    """
    directory = model_directory(which_model, local_dir)
    model = load_model(directory, device)
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size > model.cfg["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} tokens, but the model's embedding "
            f"has only {model.cfg['vocab_size']} rows: they do not belong together"
        )
    if use_compile:
        model.compile()
    return model, tokenizer


def model_directory(which_model: str | Path, local_dir: str | Path | None = None) -> Path:
    """The directory of a model's files; ValueError names the known models when there is none."""
    if local_dir is not None:
        return Path(local_dir)
    if str(which_model) in SHIPPED:
        return WEIGHTS_DIR / str(which_model)
    if Path(which_model).is_dir():
        return Path(which_model)
    known = ", ".join(SHIPPED)
    raise ValueError(f"unknown model {str(which_model)!r}: known models are {known}, or the path of a model directory")


def load_model(directory: str | Path, device: torch.device | str = "cpu") -> Qwen3Model:
    """The model of a Hugging Face Qwen3 directory, in eval mode."""
    directory = Path(directory)
    cfg = read_config(directory / "config.json")
    model = Qwen3Model(cfg)
    load_weights(model, directory / "model.safetensors")
    return model.to(device).eval()


def load_tokenizer(directory: str | Path) -> Qwen3Tokenizer:
    """The tokenizer of a model directory; it speaks the chat format when the directory has a chat template."""
    directory = Path(directory)
    config = _read_json(directory / "tokenizer_config.json")
    return Qwen3Tokenizer(directory / "tokenizer.json", apply_chat_template="chat_template" in config)


def read_config(path: str | Path) -> dict:
    """Our config dictionary from a Hugging Face config.json; ValueError when it is not a Qwen3 config."""
    hf = _read_json(Path(path))
    if hf.get("model_type") != "qwen3":
        raise ValueError(f"{path} describes a {hf.get('model_type')!r} model; only 'qwen3' is supported")
    hf.setdefault("rope_theta", (hf.get("rope_parameters") or {}).get("rope_theta"))
    missing = [key for key in _HF_CONFIG.values() if hf.get(key) is None]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    cfg = {ours: hf[theirs] for ours, theirs in _HF_CONFIG.items()}
    cfg["dtype"] = getattr(torch, hf.get("dtype") or hf.get("torch_dtype") or "float32")
    return cfg


def load_weights(model: Qwen3Model, path: str | Path) -> None:
    """Fill a model from a `.safetensors` file or a `.pth` state dict, in Hugging Face's or the book's names.

    Raises ValueError when the file is missing, damaged, or belongs to a model of another shape; the model is
    left as it was in that case.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; expected a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the checkpoint {path} is damaged or incomplete: {error}") from None
    except Exception as error:  # torch.load raises many types, pickle's own among them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {path} cannot be read as plain weights: {reason}") from None
    state = from_hf_names(state)
    if "out_head" not in dict(model.named_children()):
        head = state.pop("out_head.weight", None)
        if head is not None and not torch.equal(head, state.get("tok_emb.weight", head)):
            raise ValueError(
                f"{path} has an output head of its own, but this model shares it with the embedding; "
                "build the model with cfg['tied'] = False"
            )
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(
            f"the checkpoint {path} does not fit the model: {len(odd)} weights differ in name or shape, "
            f"{odd[0]} among them (expected {expected.get(odd[0])}, found {found.get(odd[0])})"
        )
    model.load_state_dict(state)


def from_hf_names(state: dict) -> dict:
    """A state dict with our names; names that are ours already stay."""
    ours = {theirs: mine for mine, theirs in _HF_NAMES.items()}
    layer = {theirs: mine for mine, theirs in _HF_LAYER_NAMES.items()}
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            name = f"trf_blocks.{index}.{layer.get(rest, rest)}"
        renamed[ours.get(name, name)] = tensor
    return renamed


def to_hf_names(state: dict) -> dict:
    """A state dict with Hugging Face's names."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("trf_blocks."):
            _, index, rest = name.split(".", 2)
            name = f"model.layers.{index}.{_HF_LAYER_NAMES[rest]}"
        renamed[_HF_NAMES.get(name, name)] = tensor
    return renamed


def save_model(model: Qwen3Model, tokenizer: Qwen3Tokenizer, directory: str | Path, card: str = "") -> Path:
    """Write a Hugging Face model directory that `transformers` opens; `card` is the text of its README.md.

    The files are written to a temporary folder beside it, which then takes its place. Raises ValueError
    when `directory` exists and is not a model directory, so that nothing else is ever overwritten.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / "config.json").is_file() and any(directory.iterdir()):
        raise ValueError(f"{directory} exists and is not a model directory; choose another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_model_files(model, tokenizer, temporary, card)
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write_model_files(model: Qwen3Model, tokenizer: Qwen3Tokenizer, directory: Path, card: str) -> None:
    cfg = {"tied": True, **model.cfg}
    config = {theirs: cfg[ours] for ours, theirs in _HF_CONFIG.items()}
    config |= {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": str(cfg["dtype"]).removeprefix("torch."),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tokenizer_config = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": "<|endoftext|>",
        "model_max_length": cfg["context_length"],
    }
    if tokenizer.apply_chat_template:
        tokenizer_config["chat_template"] = CHAT_TEMPLATE
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    state = {name: t.detach().cpu().contiguous() for name, t in to_hf_names(model.state_dict()).items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


# The user and assistant turns of Qwen3's chat format, as a template for `transformers`.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


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
