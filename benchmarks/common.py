"""What the benchmarks share: a prompt of exact length, and results as CSV."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

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
    """A CSV with a line per row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def format_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    """The ratios of paired runs: their median, lowest and highest, and how many there are."""
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
