"""The settings of a training run: a dataclass, a TOML file, and one clear sentence when a value makes no sense."""

import difflib
import json
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from math import cos, pi
from pathlib import Path

from ..ch07 import KL_KINDS, METHODS, Method
from ..sampling import check_group, check_sampling
from .memory import DTYPES, MEMORY
from .optim import OPTIMIZERS
from .rewards import parse_rewards

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEDULES = ("constant", "linear", "cosine")


def option(default, text: str):
    """A setting with its one-line description, which the command line shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """Everything that decides a run; the same values give the same run up to the rounding of the hardware."""

    model: str = option("tiny-base", "tiny-base, tiny-reasoning, qwen3-0.6b-base, qwen3-0.6b, or a model directory")
    method: str = option("grpo", f"the algorithm: {', '.join(METHODS)}")
    data: str = option("tiny", "training problems: tiny, math-train, or a JSON(-lines) file with problem and answer")
    eval_data: str = option("auto", "held-out problems: tiny, math500, or a file; auto follows the data")
    steps: int = option(50, "number of steps; each samples, rewards and updates")
    prompts_per_step: int = option(8, "problems in each step")
    num_rollouts: int = option(8, "sampled answers to each problem, at least 2")
    updates_per_step: int = option(1, "optimiser steps on each set of rollouts")
    max_new_tokens: int = option(96, "longest answer, in tokens")
    temperature: float = option(1.0, "sampling temperature")
    top_p: float = option(1.0, "sample from the likeliest tokens that hold this share of the probability")
    rewards: str = option("accuracy", "reward functions with weights, such as accuracy,format=0.5,my_module:my_reward")
    lr: float = option(3e-4, "learning rate, at its highest")
    warmup_steps: int = option(0, "steps in which the learning rate grows to its highest")
    schedule: str = option("constant", f"learning rate after that: {', '.join(SCHEDULES)}")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    clip_low: float | None = option(None, "importance ratios are clipped below 1 - clip_low")
    clip_high: float | None = option(None, "importance ratios are clipped above 1 + clip_high")
    negative_weight: float | None = option(None, "negative advantages are multiplied by this")
    kl_coef: float | None = option(None, "strength of the KL penalty towards the starting model")
    kl: str | None = option(None, f"how that KL is estimated: {', '.join(KL_KINDS)}")
    memory: str = option("auto", "auto fits the device and keeps small models in float32; low takes the least memory")
    dtype: str = option("auto", f"type of the weights: auto follows memory, or {', '.join(DTYPES)}")
    optimizer: str = option("auto", f"auto follows memory, or {', '.join(OPTIMIZERS)}")
    micro_batch: int = option(0, "response tokens back-propagated at a time; 0 follows memory")
    shard: bool = option(False, "under torchrun, each process keeps a part of the weights and AdamW's states (FSDP2)")
    eval_every: int = option(10, "steps between evaluations on held-out problems; 0 is never")
    eval_problems: int = option(100, "held-out problems in these evaluations")
    checkpoint_every: int = option(50, "steps between checkpoints, besides the best and the last; 0 is only these")
    keep_checkpoints: int = option(2, "checkpoints to keep, besides the best")
    stop_on_collapse: bool = option(False, "stop when the run has collapsed, instead of only warning")
    tensorboard: bool = option(False, "write TensorBoard files, too (needs the package tensorboard)")
    seed: int = option(0, "seed of problems and sampling")
    out: str | None = option(None, "folder for the results, new or empty (default: the next free one under runs/)")

    def check(self) -> None:
        """ValueError with one sentence for the first setting that makes no sense."""
        for name, known in (
            ("method", METHODS), ("memory", MEMORY), ("dtype", ("auto", *DTYPES)), ("schedule", SCHEDULES),
            ("optimizer", ("auto", *OPTIMIZERS)), ("kl", (None, *KL_KINDS)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                names = ", ".join(str(value) for value in known if value)
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: known are {names}")
        for name in ("steps", "prompts_per_step", "updates_per_step", "max_new_tokens", "eval_problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "micro_batch", "eval_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        check_group(self.num_rollouts, self.temperature)
        check_sampling(top_p=self.top_p)
        for name in ("lr", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "clip_low", "clip_high", "negative_weight", "kl_coef"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number, 0 or more; got {value}")
        parse_rewards(self.rewards)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below {2**32}, got {self.seed}")
        if self.dtype == "bfloat16" and self.optimizer == "adamw" and not self.shard:
            raise ValueError("with dtype bfloat16, adamw would lose most of its small steps; expected another")
        if self.shard and self.optimizer not in ("auto", "adamw"):
            raise ValueError(f"with shard, optimizer must be auto or adamw, got {self.optimizer}")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard")

    def resolved_method(self) -> Method:
        """The row of METHODS, with the clip range, weight of negative advantages and KL term that this config has."""
        own = ("clip_low", "clip_high", "negative_weight", "kl_coef", "kl")
        return METHODS[self.method].changed(**{name: getattr(self, name) for name in own})

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 1."""
        if step <= self.warmup_steps:
            return self.lr * step / (self.warmup_steps + 1)
        done = (step - self.warmup_steps - 1) / max(1, self.steps - self.warmup_steps)
        return self.lr * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[self.schedule]


def field_type(name: str) -> type:
    """The plain type of a setting: str, int, float or bool."""
    annotation = next(f.type for f in fields(TrainConfig) if f.name == name)
    return next(kind for kind in (bool, int, float, str) if kind.__name__ in str(annotation))


def read_config(path: str | Path) -> dict:
    """Settings from a TOML file; ValueError, naming the file, for bad TOML, unknown keys and values of a wrong type."""
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    known = [f.name for f in fields(TrainConfig)]
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches({"learning_rate": "lr"}.get(key, key), known, n=1)
            hint = f"the nearest known one is {near[0]!r}" if near else "`rfs train --help` lists the known ones"
            raise ValueError(f"{path}: unknown setting {key!r}; {hint}")
        wanted = field_type(key)
        if wanted is float and type(value) is int:
            settings[key] = value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"{path}: {key} must be of type {wanted.__name__}, got {value!r}")
    return settings


def format_config(config: TrainConfig) -> str:
    """The settings as TOML; those without a value are left out."""
    # JSON's strings, numbers and booleans are TOML's, too.
    return "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in asdict(config).items() if v is not None)
