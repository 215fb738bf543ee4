"""Memory and time of one full GRPO step at the shape of Qwen3-0.6B, or another, with random weights; prints JSON.

    python benchmarks/step_memory.py --rollouts 8 --max-new-tokens 512 --memory low
    python benchmarks/step_memory.py --rollouts 8 --max-new-tokens 512 --memory low --lora-rank 8
    python benchmarks/step_memory.py --rollouts 4 --max-new-tokens 128 --peer
    python benchmarks/step_memory.py --chapter --optimizer 8bit --micro-batch 1
    python benchmarks/step_memory.py --shape smollm2-360m --prompts 4 --rollouts 8 --max-new-tokens 24

No response ends early, so that all lengths are exact, and rewards are random, so that every rollout has an advantage.
The peak is the whole process's resident memory, or on CUDA the allocator's. `--peer` runs the same step with the
printed book's package in a process of its own: give an environment that has it as `--peer-python`
(pip install torch reasoning-from-scratch).
"""

import argparse
import json
import os
import random
import resource
import sys
import time
from functools import wraps
from pathlib import Path

import torch
from common import EXAMPLE, SHAPES, FixedPrompt, random_model


class Clock:
    """Seconds and peak memory by phase; `watch` wraps a function that belongs to a phase.

    CPU seconds of one thread, unlike wall time, say something on a busy machine too.
    """

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.cpu_seconds, self.peaks = device, {}, {}, {}

    def peak_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e9

    def forget_times(self) -> None:
        self.seconds.clear()
        self.cpu_seconds.clear()

    def watch(self, phase: str, function):
        @wraps(function)
        def timed(*args, **kwargs):
            started, cpu_started = time.perf_counter(), time.process_time()
            result = function(*args, **kwargs)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
            self.cpu_seconds[phase] = self.cpu_seconds.get(phase, 0.0) + time.process_time() - cpu_started
            self.peaks[phase] = self.peak_gb()
            return result

        return timed

    def report(self) -> dict:
        return {
            "peak_gb": round(self.peak_gb(), 2),
            "seconds": round(self.seconds["step"], 1),
            "cpu_seconds": {k: round(v, 1) for k, v in self.cpu_seconds.items()},
            "phase_seconds": {k: round(v, 1) for k, v in self.seconds.items() if k != "step"},
            "peak_gb_after": {k: round(v, 2) for k, v in self.peaks.items()},
        }


def random_reward(*_) -> float:
    """0 or 1, never the same for a whole group: the first two rollouts get one each."""
    random_reward.count += 1
    return float(random_reward.count % 2 if random_reward.count <= 2 else random.random() < 0.5)


def run_ours(args, device: torch.device) -> dict:
    """The trainer's own step."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from rfs_utils.engine import experience, learner, update
    from rfs_utils.engine.config import TrainConfig

    config = TrainConfig(
        prompts_per_step=args.prompts, num_rollouts=args.rollouts, max_new_tokens=args.max_new_tokens,
        temperature=args.temperature, top_p=args.top_p, lr=1e-5, memory=args.memory, optimizer=args.optimizer,
        micro_batch=args.micro_batch, lora_rank=args.lora_rank, dtype=args.dtype,
    )  # fmt: skip
    model = random_model(args.shape, device)
    tokenizer = FixedPrompt(args.prompt_tokens, model.cfg["vocab_size"])
    clock = Clock(device)
    experience.sample_rollouts = clock.watch("sampling", experience.sample_rollouts)
    update.backpropagate = clock.watch("backward", update.backpropagate)
    ours = learner.Learner(config, model, tokenizer, [EXAMPLE], device)
    ours.rewards = {"accuracy": (lambda texts, examples, **info: [random_reward() for _ in texts], 1.0)}
    ours.optimizer.step = clock.watch("optimizer", ours.optimizer.step)
    step = clock.watch("step", ours.step)
    for _ in range(args.steps):
        random_reward.count = 0
        clock.forget_times()
        metrics = step()
    if metrics["avg_response_len"] != args.max_new_tokens or not 0 < metrics["grad_norm"] < float("inf"):
        raise RuntimeError(f"this was not a full step: {metrics}")
    return {
        "package": "rfs-utils", "memory": args.memory, "optimizer": ours.plan.optimizer,
        "dtype": str(ours.plan.dtype).removeprefix("torch."), "micro_batch": ours.plan.max_tokens,
        "lora_rank": config.lora_rank, **clock.report(),
    }  # fmt: skip


def run_chapter(args, device: torch.device) -> dict:
    """Chapter 6's own functions, with the settings of its notebook for Qwen3-0.6B."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from rfs_utils import ch06
    from rfs_utils.engine.optim import make_optimizer

    model = random_model(args.shape, device)
    tokenizer = FixedPrompt(args.prompt_tokens, model.cfg["vocab_size"])
    optimizer = make_optimizer(args.optimizer, model.parameters(), 1e-5)
    clock = Clock(device)
    ch06.reward_rlvr = random_reward
    ch06.sample_batch = clock.watch("sampling", ch06.sample_batch)
    update = clock.watch("update", ch06.update_weights)

    def step():
        stats = ch06.compute_grpo_loss(
            model, tokenizer, EXAMPLE, device, args.rollouts, args.max_new_tokens, args.temperature, args.top_p,
            args.micro_batch or None,
        )  # fmt: skip
        if not update(model, optimizer, stats):
            raise RuntimeError("this was not a full step")

    for _ in range(args.steps):
        random_reward.count = 0
        clock.forget_times()
        clock.watch("step", step)()
    return {
        "package": "rfs-utils, chapter 6", "optimizer": args.optimizer, "dtype": "bfloat16",
        "micro_batch": args.micro_batch, **clock.report(),
    }  # fmt: skip


def run_peer(args, device: torch.device) -> dict:
    """The book's package: its model, and the loop body of its chapter 6 with its own functions."""
    from importlib.metadata import version

    from reasoning_from_scratch import ch06
    from reasoning_from_scratch.qwen3 import QWEN_CONFIG_06_B, Qwen3Model

    model = Qwen3Model(QWEN_CONFIG_06_B).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    clock = Clock(device)
    ch06.reward_rlvr = random_reward
    ch06.sample_response = clock.watch("sampling", ch06.sample_response)
    ch06.sequence_logprob = clock.watch("log-probs", ch06.sequence_logprob)
    tokenizer = FixedPrompt(args.prompt_tokens, model.cfg["vocab_size"])

    def step():
        optimizer.zero_grad()
        stats = ch06.compute_grpo_loss(
            model, tokenizer, EXAMPLE, device, args.rollouts, args.max_new_tokens, args.temperature, args.top_p
        )
        clock.watch("backward", stats["loss_tensor"].backward)()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        clock.watch("optimizer", optimizer.step)()

    for _ in range(args.steps):
        random_reward.count = 0
        clock.forget_times()
        clock.watch("step", step)()
    return {
        "package": f"reasoning-from-scratch {version('reasoning-from-scratch')}", "optimizer": "adamw",
        "dtype": "bfloat16", **clock.report(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--prompts", type=int, default=1, help="problems in a step of the trainer's")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1, help="full steps; times are the last one's")
    parser.add_argument("--memory", default="low", choices=["auto", "low"])
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--lora-rank", type=int, help="train adapters of this rank beside frozen weights")
    parser.add_argument("--temperature", type=float, default=0.8, help="the book's default, as is --top-p's")
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peer", action="store_true", help="measure the book's package instead")
    parser.add_argument("--chapter", action="store_true", help="measure chapter 6's functions instead of the trainer's")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has reasoning-from-scratch")
    args = parser.parse_args()
    if args.peer and Path(args.peer_python) != Path(sys.executable):
        arguments = [args.peer_python, __file__, *sys.argv[1:], "--peer-python", args.peer_python]
        os.execv(args.peer_python, arguments)  # the same process, so that stopping it stops the measurement
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    device = torch.device(args.device)
    settings = {
        "shape": args.shape, "prompts": args.prompts, "rollouts": args.rollouts,
        "max_new_tokens": args.max_new_tokens, "prompt_tokens": args.prompt_tokens, "steps": args.steps,
        "temperature": args.temperature, "top_p": args.top_p, "device": device.type,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    run = run_peer if args.peer else run_chapter if args.chapter else run_ours
    found = run(args, device)
    print(json.dumps({**found, **settings}))


if __name__ == "__main__":
    main()
