"""What the benchmarks share: a prompt of exact length, and results as CSV."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from rfs_utils.files import replace_file

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


def write_rows(path: Path, rows: list[dict]) -> None:
    """A CSV with a line per row, whole or not at all; a row may lack columns that others have."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def format_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    """The ratios of paired runs: their median, lowest and highest, and how many there are."""
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
