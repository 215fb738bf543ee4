"""The training engine behind `rfs train`: several prompts a step, held-out evaluation, a folder of results.

The algorithm is the notebooks': this module calls the functions exported from the chapters.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .ch06 import (
    append_csv_metrics,
    group_advantages,
    reward_rlvr,
)
from .data import HARDER_LEVELS, generate_tiny_problems, render_prompt
from .evaluate import Evaluation, evaluate_model
from .lean import (
    MEMORY,
    MemoryPlan,
    backpropagate,
    cast_weights,
    plan_memory,
    policy_gradient_part,
    return_freed_memory,
    sample_rollouts,
)
from .models import load_model_and_tokenizer, save_model
from .optim import OPTIMIZERS, make_optimizer
from .plots import plot_training, read_metrics, save_figure
from .qwen3 import Qwen3Model
from .sampling import check_group, check_sampling
from .tokenizer import Qwen3Tokenizer

METHODS = ("grpo",)


@dataclass
class TrainConfig:
    """Everything that decides a run; the same values give the same run up to the rounding of the hardware."""

    model: str = "tiny-base"
    method: str = "grpo"
    steps: int = 50
    prompts_per_step: int = 8
    num_rollouts: int = 8
    max_new_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    lr: float = 3e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    memory: str = "auto"
    optimizer: str = "auto"
    micro_batch: int = 0
    eval_every: int = 10
    seed: int = 0
    out: str | None = None

    def check(self) -> None:
        """ValueError with one sentence for the first setting that makes no sense."""
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: known methods are {', '.join(METHODS)}")
        for name in ("steps", "prompts_per_step", "max_new_tokens", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_group(self.num_rollouts, self.temperature)
        check_sampling(top_p=self.top_p)
        for name in ("lr", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.memory not in MEMORY:
            raise ValueError(f"unknown memory setting {self.memory!r}: known settings are {', '.join(MEMORY)}")
        if self.optimizer not in ("auto", *OPTIMIZERS):
            raise ValueError(
                f"unknown optimizer {self.optimizer!r}: known optimizers are auto, {', '.join(OPTIMIZERS)}"
            )
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch must be a number of tokens, or 0 to choose; got {self.micro_batch}")


def make_plan(config: TrainConfig, model: Qwen3Model, device: torch.device) -> MemoryPlan:
    """What `config.memory` means for this model and device, with the config's own optimizer and micro_batch."""
    plan = plan_memory(config.memory, device, sum(p.numel() for p in model.parameters()))
    if config.optimizer == "adamw":
        plan = replace(plan, dtype=torch.float32)  # on bfloat16 weights it would lose most of its small steps
    return replace(
        plan,
        optimizer=plan.optimizer if config.optimizer == "auto" else config.optimizer,
        max_tokens=config.micro_batch or plan.max_tokens,
    )


def train_step(
    model: Qwen3Model,
    tokenizer: Qwen3Tokenizer,
    optimizer: torch.optim.Optimizer,
    examples: list[dict],
    config: TrainConfig,
    device: torch.device,
    plan: MemoryPlan | None = None,
) -> dict[str, float]:
    """One update on a group of rollouts for each of several problems; returns the step's metrics.

    The loss is back-propagated a micro-batch at a time, of rollouts with an advantage only; `plan` is
    `make_plan`'s unless given.
    """
    plan = plan or make_plan(config, model, device)
    optimizer.zero_grad()  # before sampling, whose cache takes the gradients' room
    prompts = [render_prompt(example["problem"]) for example in examples]
    rollouts = sample_rollouts(
        model, tokenizer, prompts, device,
        config.num_rollouts, config.max_new_tokens, config.temperature, config.top_p, plan.cache_bytes,
    )  # fmt: skip
    answers = [example["answer"] for example in examples for _ in range(config.num_rollouts)]
    scores = [reward_rlvr(text, answer) for text, answer in zip(rollouts.texts, answers, strict=True)]
    rewards = torch.tensor(scores, device=device).view(len(examples), config.num_rollouts)
    without_signal = (rewards == rewards[:, :1]).all(dim=1)
    metrics = {
        "loss": 0.0,
        "reward_avg": rewards.mean().item(),
        "avg_response_len": rollouts.lengths.float().mean().item(),
        "zero_signal_groups": without_signal.float().mean().item(),
        "grad_norm": 0.0,
    }
    if not without_signal.all():  # else there is nothing to learn, and AdamW's momentum must not move the weights
        advantages = group_advantages(rewards).flatten()
        loss = backpropagate(
            model, rollouts, policy_gradient_part(advantages),
            config.temperature, config.top_p, plan.max_tokens, rows=advantages.nonzero().squeeze(1),
        )  # fmt: skip
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        metrics |= {"loss": loss, "grad_norm": grad_norm.item()}
    return metrics


def train(config: TrainConfig, report: Callable[[str], None] = print) -> dict:
    """Run a training from start to end and write its folder; returns what result.json holds.

    The folder holds metrics.csv, result.json, curves.png, examples.json and the trained model as a Hugging
    Face directory in `model`. Raises ValueError for bad settings, before anything is written.
    """
    config.check()
    device = torch.device("cuda" if torch.cuda.is_available() and not config.model.startswith("tiny") else "cpu")
    model, tokenizer = load_model_and_tokenizer(config.model, device)
    problems = generate_tiny_problems(max(2000, config.steps * config.prompts_per_step), "train", seed=config.seed)
    held_out = generate_tiny_problems(500, "test", seed=0)
    harder = generate_tiny_problems(150, "test", HARDER_LEVELS, seed=0)
    evaluate = partial(evaluate_model, tokenizer=tokenizer, device=device, max_new_tokens=config.max_new_tokens)
    # The longest chains need more room than training gives.
    evaluate_harder = partial(evaluate, problems=harder, max_new_tokens=2 * config.max_new_tokens)
    folder = make_run_folder(config)

    plan = make_plan(config, model, device)
    cast_weights(model, plan.dtype)
    if config.memory == "low":
        return_freed_memory()
    before, harder_before = evaluate(model, problems=held_out, progress=True), evaluate_harder(model)
    torch.manual_seed(config.seed)
    optimizer = make_optimizer(plan.optimizer, model.parameters(), config.lr, config.weight_decay)
    seconds = 0.0
    bar = tqdm(range(1, config.steps + 1), desc="training", unit="step")
    for step in bar:
        started = time.perf_counter()
        first = (step - 1) * config.prompts_per_step
        examples = [problems[i % len(problems)] for i in range(first, first + config.prompts_per_step)]
        metrics = train_step(model, tokenizer, optimizer, examples, config, device, plan)
        seconds += time.perf_counter() - started
        due = step % config.eval_every == 0
        result = evaluate(model, problems=held_out[:100]) if due else None
        metrics["eval_accuracy"] = result.accuracy if due else None
        metrics["eval_tokens"] = result.mean_tokens if due else None
        metrics["seconds"] = seconds
        append_csv_metrics(folder / "metrics.csv", step, config.steps, **metrics)
        bar.set_postfix(reward=f"{metrics['reward_avg']:.2f}", tokens=f"{metrics['avg_response_len']:.0f}")

    after, harder_after = evaluate(model, problems=held_out, progress=True), evaluate_harder(model)
    result = {
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "tokens_before": before.mean_tokens,
        "tokens_after": after.mean_tokens,
        "harder_accuracy_before": harder_before.accuracy,
        "harder_accuracy_after": harder_after.accuracy,
        "steps": config.steps,
        "seconds": round(seconds, 2),
        "seed": config.seed,
        "method": config.method,
        "model": config.model,
    }
    write_json(folder / "result.json", result)
    write_json(folder / "examples.json", compare_examples(held_out, before, after))
    save_figure(plot_training(read_metrics(folder / "metrics.csv")), folder / "curves.png")
    save_model(model, tokenizer, folder / "model")
    report(format_report(held_out, before, after, harder_before, harder_after))
    report(f"\n{config.steps} steps took {seconds:.1f} s. Written to {folder}: metrics.csv, result.json, curves.png,")
    report("examples.json, and the trained model in model/.")
    return result


def make_run_folder(config: TrainConfig) -> Path:
    """A new, empty folder: `config.out`, or the next free name under runs/. Never one that holds something."""
    if config.out is not None:
        folder = Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists already and is not empty; choose another --out")
    else:
        name = f"{Path(config.model).name}-{config.method}-seed{config.seed}"
        number = 1
        folder = Path("runs") / name
        while folder.exists():
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create the output folder {folder}: {error.strerror}") from None
    return folder


def write_json(path: Path, content: dict | list) -> None:
    """Write JSON to a temporary name and rename it, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def compare_examples(problems: list[dict], before: Evaluation, after: Evaluation) -> list[dict]:
    """Three problems with both answers: levels 1, 3 and 5 where the set has them."""
    wanted = ("Level 1", "Level 3", "Level 5")
    first = [next((i for i, p in enumerate(problems) if p["level"] == level), 0) for level in wanted]
    return [
        {
            "problem": problems[i]["problem"],
            "answer": problems[i]["answer"],
            "before": before.records[i]["response"],
            "after": after.records[i]["response"],
        }
        for i in first
    ]


def format_report(
    problems: list[dict], before: Evaluation, after: Evaluation, harder_before: Evaluation, harder_after: Evaluation
) -> str:
    """The table by level and three example answers, as text."""
    lines = [f"{'':22}{'accuracy':>18}{'mean tokens':>20}", f"{'':22}" + f"{'before':>9}{'after':>9}{'':2}" * 2]
    rows = [(level, part, after.by("level")[level]) for level, part in before.by("level").items()]
    rows.append((f"all {len(before.records)} held-out", before, after))
    rows += [
        (f"{level} (not in RL)", part, harder_after.by("level")[level])
        for level, part in harder_before.by("level").items()
    ]
    lines += [
        f"{name:22}{a.accuracy:9.1%}{b.accuracy:9.1%}  {a.mean_tokens:9.1f}{b.mean_tokens:9.1f}" for name, a, b in rows
    ]
    for example in compare_examples(problems, before, after):
        lines += [
            f"\n{example['problem']}  (answer: {example['answer']})",
            f"  before: {example['before'].strip()!r}",
            f"  after:  {example['after'].strip()!r}",
        ]
    return "\n".join(lines)
