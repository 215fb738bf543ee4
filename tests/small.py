"""Models and tokenizers small enough to be made on the spot; tests do not need the shipped ones."""

import tempfile
from functools import cache
from pathlib import Path

import torch

from rfs_utils.exercises.pretrain import train_tokenizer
from rfs_utils.models import save_model
from rfs_utils.qwen3 import QWEN3_CONFIG_TINY, Qwen3Model
from rfs_utils.tokenizer import Qwen3Tokenizer

_FOLDER = tempfile.TemporaryDirectory()


@cache
def tokenizer_file() -> Path:
    path = Path(_FOLDER.name) / "tokenizer.json"
    train_tokenizer(path, num_problems=200)
    return path


def make_tokenizer(**options) -> Qwen3Tokenizer:
    return Qwen3Tokenizer(tokenizer_file(), **options)


def make_model(seed: int = 0, std: float = 0.1, **cfg) -> Qwen3Model:
    """Random weights, large enough that different inputs give clearly different outputs."""
    torch.manual_seed(seed)
    rows = -(-make_tokenizer().vocab_size // 64) * 64
    small = {"vocab_size": rows, "emb_dim": 32, "n_layers": 2, "head_dim": 16, "hidden_dim": 64}
    model = Qwen3Model(QWEN3_CONFIG_TINY | small | cfg).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=std)
            else:
                weight.uniform_(0.5, 1.5)
    return model


def make_directory(folder: Path, seed: int = 0, chat: bool = False, **cfg) -> Path:
    return save_model(make_model(seed, **cfg), make_tokenizer(apply_chat_template=chat), folder)


def ids_of(model: Qwen3Model, rows: int = 2, tokens: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.cfg["vocab_size"], (rows, tokens), generator=generator)
