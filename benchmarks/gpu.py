"""Seconds, tokens a second and peak memory of one GRPO step on a GPU: this engine and TRL's GRPOTrainer.

    pip install "rfs-utils[bench]" peft
    python benchmarks/gpu.py --csv benchmarks/gpu.csv

Models of the shapes of our tiny one, SmolLM2-135M and Qwen3-0.6B with random weights, in float32, in bfloat16, and in
bfloat16 with adapters of rank 8 (LoRA); each contestant in a process of its own, as in step_speed.py. What does not
fit, or comes after `--minutes`, is left empty. AdamW throughout, but for our bfloat16 weights, whose small steps need
Kahan summation. `--device cpu` tries the program out.
"""

import argparse
import subprocess
import time
from pathlib import Path

import torch
from common import SHAPES, write_rows
from step_speed import alone

VARIANTS = {"float32": ("float32", 0), "bfloat16": ("bfloat16", 0), "lora": ("bfloat16", 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "smollm2", "qwen3-0.6b"])
    parser.add_argument("--minutes", type=float, default=8, help="nothing more is begun after so many")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    args.prompts = 1
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    ends, rows = time.monotonic() + 60 * args.minutes, []
    for shape in args.shapes:
        args.shape = shape
        for variant, (dtype, rank) in VARIANTS.items():
            args.dtype, args.lora_rank = dtype, rank
            for contestant in ("ours", "trl"):
                row = {"shape": args.shape, "weights": variant, "contestant": contestant}
                row |= measure(args, contestant, ends - time.monotonic())
                rows.append(row | {"device": name, "rollouts": args.rollouts, "tokens": args.tokens})
                print(rows[-1], flush=True)
                if args.csv:
                    write_rows(args.csv, rows)


def measure(args, contestant: str, seconds_left: float) -> dict:
    """Seconds a step, tokens a second and peak memory; empty, with the reason, where there are none."""
    if seconds_left <= 0:
        return {"note": "no time left"}
    try:
        found = alone(args, contestant)
    except subprocess.CalledProcessError as error:
        return {"note": f"failed with exit code {error.returncode}"}
    if found is None:
        return {"note": "not installed"}
    return found | {"tokens_per_second": round(args.rollouts * args.tokens / found["seconds"])}


if __name__ == "__main__":
    main()
