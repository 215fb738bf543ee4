"""Seconds of one GRPO step on the same work: this engine, the printed book's package, and TRL's GRPOTrainer.

    pip install reasoning-from-scratch "rfs-utils[bench]"
    python benchmarks/step_speed.py --rounds 5 --csv benchmarks/step_speed.csv
    python benchmarks/step_speed.py --scaling --csv benchmarks/step_scaling.csv
    python benchmarks/step_speed.py --shape smollm2 --tokens 24 --steps 3 --csv benchmarks/step_speed_smollm2.csv

The work: a model of the tiny shape, or of another `--shape`, with random weights, one prompt, 8 rollouts of exactly 64
tokens (no end of sequence), random rewards, one AdamW step in float32. The printed book's package takes part at the
tiny shape only. Contestants take turns, each in a process of its own; a round compares medians of their
steps, and the result is the median of the rounds' ratios. Packages that are not installed are left out. `--scaling`
measures this engine alone, over rollouts, tokens and prompts, with the peak memory of each process.
"""

import argparse
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import EXAMPLE, SHAPES, FixedPrompt, format_ratios, random_model, save_random_model, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WEIGHTS = Path(__file__).resolve().parent.parent / "rfs_utils" / "weights" / "tiny-base"


def random_rewards(count: int) -> list[float]:
    """Never all the same."""
    return [1.0, 0.0] + [float(random.random() < 0.5) for _ in range(count - 2)]


def timed(step, count: int) -> list[float]:
    """Seconds of each of several calls."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def make_ours(args):
    from rfs_utils.engine.config import TrainConfig
    from rfs_utils.engine.learner import Learner

    config = TrainConfig(
        prompts_per_step=args.prompts, num_rollouts=args.rollouts, max_new_tokens=args.tokens, lr=1e-5,
        dtype=args.dtype, optimizer="auto" if args.lora_rank else "adamw" if args.dtype == "float32" else "kahan",
        lora_rank=args.lora_rank or None,
    )  # fmt: skip
    model, prompt = random_model(args.shape, args.device), FixedPrompt(args.prompt_tokens, 256)
    learner = Learner(config, model, prompt, [EXAMPLE], args.device)
    learner.rewards = {"accuracy": (lambda texts, examples, **info: random_rewards(len(texts)), 1.0)}
    return lambda count: timed(learner.step, count)


def make_book(args):
    from reasoning_from_scratch import ch06
    from reasoning_from_scratch.qwen3 import Qwen3Model

    from rfs_utils.qwen3 import QWEN3_CONFIG_TINY

    config = QWEN3_CONFIG_TINY | {"vocab_size": json.loads((WEIGHTS / "config.json").read_text())["vocab_size"]}
    model = Qwen3Model({**config, "qk_norm": True})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rewards: list[float] = []
    ch06.reward_rlvr = lambda *_: rewards.pop()
    tokenizer = FixedPrompt(args.prompt_tokens, 256)

    def step():
        rewards[:] = random_rewards(args.rollouts)
        optimizer.zero_grad()
        stats = ch06.compute_grpo_loss(model, tokenizer, EXAMPLE, "cpu", args.rollouts, args.tokens, 1.0, 1.0)
        stats["loss_tensor"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return lambda count: timed(step, count)


def make_trl(args):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    dtype = getattr(torch, args.dtype)
    folder = tempfile.mkdtemp()
    save_random_model(args.shape, folder)
    prompt = tokenizer.decode(FixedPrompt(args.prompt_tokens, 256).ids)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.started)

    def run(count: int) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model.generation_config.eos_token_id = None
        config = GRPOConfig(
            output_dir=f"{folder}/out", max_steps=count + 2, per_device_train_batch_size=args.rollouts,
            num_generations=args.rollouts, max_completion_length=args.tokens, learning_rate=1e-5, beta=0.0,
            use_cpu=args.device == "cpu", bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, generation_kwargs={"min_new_tokens": args.tokens},
        )  # fmt: skip
        clock = Clock()
        clock.seconds = []
        trainer = GRPOTrainer(
            model=model, processing_class=tokenizer, args=config, callbacks=[clock],
            reward_funcs=lambda completions, **_: random_rewards(len(completions)),
            train_dataset=Dataset.from_list([{"prompt": prompt}] * 64), peft_config=lora_config(args.lora_rank),
        )  # fmt: skip
        trainer.train()
        return clock.seconds[2:]  # the first two warm up

    return run


def lora_config(rank: int):
    """The same adapters as ours, for TRL; None without a rank."""
    if not rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")


CONTESTANTS = {"ours": make_ours, "book": make_book, "trl": make_trl}
PACKAGES = {"book": "reasoning_from_scratch", "trl": "trl"}


def alone(args, name: str, **sizes: int) -> dict | None:
    """A contestant's seconds and peak memory in a process of its own; None when its package is not installed."""
    if name != "ours" and importlib.util.find_spec(PACKAGES[name]) is None:
        return None
    if name == "book" and args.shape != "tiny":
        return None
    names = ("prompts", "rollouts", "tokens", "steps", "shape", "dtype", "device", "lora_rank")
    options = {option: getattr(args, option) for option in names} | sizes
    command = [sys.executable, __file__, "--one", name, "--prompt-tokens", args.prompt_tokens]
    command += [x for option, value in options.items() for x in (f"--{option.replace('_', '-')}", value)]
    done = subprocess.run([str(x) for x in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args) -> list[dict]:
    """Rows of seconds a step by round and contestant; prints the ratios."""
    rows = []
    for number in range(args.rounds):
        for name in CONTESTANTS:
            found = alone(args, name)
            if found is not None:
                rows.append({"round": number, "contestant": name, **found})
                print(rows[-1], flush=True)
    seconds = {name: [row["seconds"] for row in rows if row["contestant"] == name] for name in CONTESTANTS}
    for name in ("book", "trl"):
        if not seconds[name]:
            print(f"{name}: left out, {PACKAGES[name]} is not installed or does not take part at this shape")
            continue
        print(f"{name} / ours: {format_ratios(seconds[name], seconds['ours'])}")
    return rows


def scaling(args) -> list[dict]:
    """Seconds and memory of this engine over the size of the work, each in a process of its own."""
    rows = []
    for prompts, rollouts, tokens in (
        (1, 8, 64), (1, 16, 64), (1, 32, 64), (1, 64, 64), (1, 8, 128), (1, 8, 256), (2, 8, 64), (4, 8, 64), (8, 8, 64),
    ):  # fmt: skip
        sizes = {"prompts": prompts, "rollouts": rollouts, "tokens": tokens}
        rows.append(sizes | alone(args, "ours", **sizes))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=1, help="prompts a step; the other contestants take one")
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=9, help="timed steps in a round")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank; 0 trains all weights")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--one", choices=CONTESTANTS, help="one contestant once, as JSON")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    random.seed(0)
    if args.one:
        run = CONTESTANTS[args.one](args)
        run(2)  # warms up
        seconds = statistics.median(run(args.steps))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if args.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": round(seconds, 4), "peak_mb": round(peak / 1e6)}))
        return
    rows = scaling(args) if args.scaling else compare(args)
    if args.csv:
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
