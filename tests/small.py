"""Models and tokenizers small enough to be made on the spot; tests do not need the shipped ones."""

import tempfile
from functools import cache
from pathlib import Path

import torch

from rfs_utils.exercises.pretrain import train_tokenizer
from rfs_utils.models import save_model
from rfs_utils.qwen3 import QWEN3_CONFIG_TINY, Qwen3Model
from rfs_utils.tokenizer import Qwen3Tokenizer

# As many rows as the tokenizer needs.
SMALL = QWEN3_CONFIG_TINY | {"vocab_size": 512, "emb_dim": 32, "n_layers": 2, "head_dim": 16, "hidden_dim": 48}

_FOLDER = tempfile.TemporaryDirectory()


@cache
def tokenizer_file() -> Path:
    path = Path(_FOLDER.name) / "tokenizer.json"
    train_tokenizer(path, num_problems=200)
    return path


def make_tokenizer(**options) -> Qwen3Tokenizer:
    return Qwen3Tokenizer(tokenizer_file(), **options)


def make_model(seed: int = 0, std: float = 0.2, **cfg) -> Qwen3Model:
    """Random weights, large enough that different inputs give clearly different outputs; `cfg` is what differs."""
    torch.manual_seed(seed)
    model = Qwen3Model(SMALL | cfg).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=std if weight.dim() == 2 else 0.2)
    return model


def make_directory(folder: Path, seed: int = 0, chat: bool = False, **cfg) -> Path:
    return save_model(make_model(seed, **cfg), make_tokenizer(apply_chat_template=chat), folder)


def ids_of(model: Qwen3Model, rows: int = 2, tokens: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.cfg["vocab_size"], (rows, tokens), generator=generator)
