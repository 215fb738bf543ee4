"""What the benchmarks share: a prompt of exact length, and results as CSV."""

import argparse
import csv
import io
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from rfs_utils.files import replace_file, write_json
from rfs_utils.hub.families import to_hf_config
from rfs_utils.hub.weights import to_hf_names
from rfs_utils.qwen3 import QWEN3_CONFIG_06B, QWEN3_CONFIG_TINY, Qwen3Model

# The sizes of models that are measured with random weights.
SHAPES = {
    "tiny": QWEN3_CONFIG_TINY,
    "smollm2": {
        "vocab_size": 49_152, "context_length": 8192, "emb_dim": 576, "n_heads": 9, "n_layers": 30, "hidden_dim": 1536,
        "head_dim": 64, "n_kv_groups": 3, "rope_base": 100_000.0, "rms_norm_eps": 1e-5, "dtype": torch.bfloat16,
        "qk_norm": False,
    },
    "smollm2-360m": {
        "vocab_size": 49_152, "context_length": 8192, "emb_dim": 960, "n_heads": 15, "n_layers": 32, "hidden_dim": 2560,
        "head_dim": 64, "n_kv_groups": 5, "rope_base": 100_000.0, "rms_norm_eps": 1e-5, "dtype": torch.bfloat16,
        "qk_norm": False,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936, "context_length": 32_768, "emb_dim": 896, "n_heads": 14, "n_layers": 24,
        "hidden_dim": 4864, "head_dim": 64, "n_kv_groups": 2, "rope_base": 1_000_000.0, "rms_norm_eps": 1e-6,
        "dtype": torch.bfloat16, "qk_norm": False, "qkv_bias": True,
    },
    "qwen3-0.6b": QWEN3_CONFIG_06B,
}  # fmt: skip
EXAMPLE = {"problem": "", "answer": "1"}  # prompts are counted in tokens, so the text itself does not matter


class FixedPrompt:
    """Stands for a tokenizer: every prompt is the same random ids, and no token ends a response."""

    pad_token_id, eos_token_id = 0, -1

    def __init__(self, prompt_tokens: int, vocab_size: int):
        self.ids = torch.randint(1, vocab_size, (prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()

    def encode(self, prompt: str) -> list[int]:
        return list(self.ids)

    def decode(self, ids) -> str:
        return ""


def random_model(shape: str, device: torch.device | str = "cpu") -> Qwen3Model:
    """A model of one of SHAPES with random weights, in bfloat16 but for the tiny one."""
    torch.manual_seed(0)
    model = Qwen3Model(SHAPES[shape])
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.ndim > 1):
            p.normal_(std=0.02)
    return model.to(device).eval()


def save_random_model(shape: str, folder: str | Path) -> None:
    """The same model as a directory that `transformers` opens."""
    model = random_model(shape)
    save_file(to_hf_names(dict(model.named_parameters())), Path(folder) / "model.safetensors", {"format": "pt"})
    write_json(Path(folder) / "config.json", to_hf_config(model.cfg, model.cfg["dtype"]))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none where there is no file: benchmarks that are called again go on with it."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict]) -> None:
    """A CSV with a line per row, whole or not at all; a row may lack columns that others have."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def listed(parser: argparse.ArgumentParser, text: str, known: Collection[str]) -> list[str]:
    """The names in a text such as "grpo,rloo"; ends the program with one sentence where one is unknown."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"unknown name {name!r}: known are {', '.join(known)}")
    return names


def format_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    """The ratios of paired runs: their median, lowest and highest, and how many there are."""
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
