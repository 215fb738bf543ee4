"""What the layers of Qwen3-0.6B keep about each position for the backward pass, next to a row of logits.

    python benchmarks/activations.py --csv benchmarks/activations.csv

The difference between a model of two layers and one of one layer, both with random weights, times all its layers.
"""

import argparse
from pathlib import Path

import torch
from common import write_rows

from rfs_utils.kept import KeptForBackward
from rfs_utils.qwen3 import QWEN3_CONFIG_06B, Qwen3Model

POSITIONS = 612  # a prompt of 100 tokens and a response of 512


def saved_bytes(n_layers: int) -> int:
    """Bytes of what autograd keeps of one sequence, weights aside."""
    model = Qwen3Model(QWEN3_CONFIG_06B | {"n_layers": n_layers, "vocab_size": 1000})
    with KeptForBackward(model) as kept:
        model.hidden_states(torch.randint(1, 1000, (1, POSITIONS)))
    return kept.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    layers, vocab = QWEN3_CONFIG_06B["n_layers"], QWEN3_CONFIG_06B["vocab_size"]
    body = (saved_bytes(2) - saved_bytes(1)) * layers / POSITIONS
    row = {
        "layers_mb_a_position": round(body / 1e6, 2), "row_of_logits_mb": round(vocab * 4 / 1e6, 2),
        "positions": POSITIONS, "layers_gb_of_8_rollouts": round(8 * POSITIONS * body / 1e9, 1),
    }  # fmt: skip
    print(row)
    if args.csv:
        write_rows(args.csv, [row])


if __name__ == "__main__":
    main()
