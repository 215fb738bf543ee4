"""The settings of a training run: a dataclass, a TOML file, and one clear sentence when a value makes no sense."""

import difflib
import json
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from math import cos, pi
from pathlib import Path

from ..ch07 import KL_KINDS, METHODS, Method
from ..data import CHAT, PROMPTS, load_prompt
from ..files.kinds import (
    FLAG,
    NAME,
    PROMPT,
    Kind,
    SettingError,
    number,
    one_of,
    optional,
    shown,
    whole,
)
from .memory import DTYPES, MEMORY
from .optim import OPTIMIZERS
from .rewards import parse_rewards
from .samplers import SAMPLER, SAMPLERS
from .token_rules import EXPECTED, TOKEN_RULE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FULL_LR, LORA_LR = 3e-4, 1e-3  # benchmarks/lora_rates.csv
SCHEDULES = ("constant", "linear", "cosine")
TRACKERS = ("trackio", "wandb")


# Settings that may change when a run goes on. With any other one it would no longer be the run that it was.
MAY_CHANGE = (
    "steps", "eval_data", "eval_every", "eval_problems", "checkpoint_every", "keep_checkpoints", "stop_on_collapse",
    "tensorboard", "track", "out",
)  # fmt: skip


def option(default, text: str, kind: Kind = NAME):
    """A setting with its one-line description, which the command line shows, and what it must be."""
    return field(default=default, metadata={"help": text, "kind": kind})


@dataclass
class TrainConfig:
    """Everything that decides a run; the same values give the same run up to the rounding of the hardware."""

    model: str = option("tiny-base", "tiny-base, tiny-reasoning, qwen3-0.6b-base, qwen3-0.6b, or a model directory")
    method: str = option("grpo", f"the algorithm: {', '.join(METHODS)}", one_of(*METHODS))
    data: str = option(
        "tiny",
        "training problems: tiny, stories-1, stories-2, math-train, or a JSON(-lines) file with problem and answer",
    )
    eval_data: str = option(
        "auto", "held-out problems: tiny, stories-1, stories-2, math500, or a file; auto follows the data"
    )
    steps: int = option(50, "number of steps; each samples, rewards and updates", whole(1, 10**6))
    prompts_per_step: int = option(8, "problems in each step", whole(1, 10**5))
    num_rollouts: int = option(8, "sampled answers to each problem, at least 2", whole(2, 10**5))
    updates_per_step: int = option(1, "passes over each set of rollouts", whole(1, 10**4))
    minibatches: int = option(1, "parts in which a pass takes its groups; an optimiser step for each", whole(1, 10**4))
    max_new_tokens: int = option(96, "longest answer, in tokens", whole(1, 10**6))
    temperature: float = option(1.0, "sampling temperature", number(1e-3, 1e3))
    top_p: float = option(
        1.0, "sample from the likeliest tokens that hold this share of the probability", number(1e-6, 1)
    )
    prompt: str | None = option(
        None,
        f"how problems are put: {', '.join(PROMPTS)}, or a text file with {{problem}} in it "
        "(default: as the model's directory says, else default)",
        optional(PROMPT, ""),
    )
    stop: str | None = option(None, "text that ends an answer, too; \\n is a line break", optional(NAME, ""))
    chat: str = option(
        "auto",
        "whether prompts go into the model's chat format: on, off, or auto, as its directory says",
        one_of(*CHAT),
    )
    rewards: str = option("accuracy", "reward functions with weights, such as accuracy,format=0.5,my_module:my_reward")
    lr: float = option(
        None, f"learning rate, at its highest (default: {FULL_LR}; with lora_rank {LORA_LR})", number(1e-12, 100)
    )
    warmup_steps: int = option(0, "steps in which the learning rate grows to its highest", whole(0, 10**6))
    schedule: str = option("constant", f"learning rate after that: {', '.join(SCHEDULES)}", one_of(*SCHEDULES))
    weight_decay: float = option(0.0, "AdamW's weight decay", number(0, 1e6))
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", number(1e-9, 1e9))
    clip_low: float | None = option(
        None, "importance ratios are clipped below 1 - clip_low", optional(number(0, 1e12), "")
    )
    clip_high: float | None = option(
        None, "importance ratios are clipped above 1 + clip_high", optional(number(0, 1e12), "")
    )
    negative_weight: float | None = option(
        None, "negative advantages are multiplied by this", optional(number(0, 1e6), "")
    )
    kl_coef: float | None = option(
        None, "strength of the KL penalty towards the starting model", optional(number(0, 1e6), "")
    )
    kl: str | None = option(None, f"how that KL is estimated: {', '.join(KL_KINDS)}", one_of(None, *KL_KINDS))
    token_rule: str = option("all", f"which tokens learn, and how: {EXPECTED}", TOKEN_RULE)
    sampler: str = option("same", f"where samples come from: {SAMPLERS}, a copy renewed every K steps", SAMPLER)
    ratio_to: str = option(
        "sampler",
        "what importance ratios compare with where the sampler is another: the sampler, or the trainer before the step",
        one_of("sampler", "trainer"),
    )
    memory: str = option(
        "auto", "auto fits the device and keeps small models in float32; low takes the least memory", one_of(*MEMORY)
    )
    dtype: str = option(
        "auto", f"type of the weights: auto follows memory, or {', '.join(DTYPES)}", one_of("auto", *DTYPES)
    )
    optimizer: str = option("auto", f"auto follows memory, or {', '.join(OPTIMIZERS)}", one_of("auto", *OPTIMIZERS))
    lora_rank: int | None = option(
        None, "train LoRA adapters of this rank, from 1 on, beside frozen weights", optional(whole(1, 2**15), "")
    )
    lora_alpha: float = option(32.0, "adapters are multiplied by lora_alpha / lora_rank", number(1e-6, 1e6))
    micro_batch: int = option(0, "response tokens back-propagated at a time; 0 follows memory", whole(0, 10**9))
    shard: bool = option(
        False, "under torchrun, each process keeps a part of the weights and AdamW's states (FSDP2)", FLAG
    )
    eval_every: int = option(10, "steps between evaluations on held-out problems; 0 is never", whole(0, 10**6))
    eval_problems: int = option(100, "held-out problems in these evaluations", whole(1, 10**6))
    checkpoint_every: int = option(
        50, "steps between checkpoints, besides the best and the last; 0 is only these", whole(0, 10**6)
    )
    keep_checkpoints: int = option(2, "checkpoints to keep, besides the best", whole(1, 10**6))
    stop_on_collapse: bool = option(False, "stop when the run has collapsed, instead of only warning", FLAG)
    tensorboard: bool = option(False, "write TensorBoard files, too (needs the package tensorboard)", FLAG)
    track: str | None = option(
        None,
        f"log to Trackio or Weights & Biases, too: {', '.join(TRACKERS)} (needs the package of that name)",
        one_of(None, *TRACKERS),
    )
    seed: int = option(0, "seed of problems and sampling", whole(0, 2**32 - 1))
    out: str | None = option(
        None, "folder for the results, new or empty (default: the next free one under runs/)", optional(NAME)
    )

    def __post_init__(self) -> None:
        """Put the default rate in, and the text of the prompt in place of its name or file."""
        if self.lr is None:
            self.lr = FULL_LR if self.lora_rank is None else LORA_LR
        if self.prompt is not None and NAME.fits(self.prompt):
            self.prompt = load_prompt(self.prompt)

    def check(self) -> None:
        """ValueError with one sentence for the first setting that makes no sense."""
        for name, kind in setting_kinds().items():
            kind.check(name, getattr(self, name))
        parse_rewards(self.rewards)
        if self.shard and self.lora_rank is not None:
            text = "shard divides the weights that learn, few with lora_rank; expected only one of the two"
            raise SettingError(text, "shard", "lora_rank")
        if self.dtype == "bfloat16" and self.optimizer == "adamw" and not self.learns_in_float32:
            text = "with dtype bfloat16, optimizer adamw would lose most of its small steps; expected another"
            raise SettingError(text, "dtype", "optimizer")
        if self.shard and self.optimizer not in ("auto", "adamw"):
            text = f"with shard, optimizer must be auto or adamw, got {self.optimizer}"
            raise SettingError(text, "shard", "optimizer")
        if self.sampler != "same" and (self.shard or self.lora_rank is not None):
            text = f"with shard or lora_rank, sampler must be same, got {self.sampler}"
            raise SettingError(text, "shard", "lora_rank", "sampler")
        method = METHODS[self.method]
        if self.kl == "reward" and self.kl_coef and (method.separate_rewards or method.positives_only):
            text = f"kl reward lowers the sum of rewards, which method {self.method} never compares; expected another"
            raise SettingError(text, "kl", "method")
        for text, package in (("--tensorboard", self.tensorboard and "tensorboard"), ("--track", self.track)):
            if package and find_spec(package) is None:
                raise ValueError(f"{text} needs the package {package}: pip install {package}")

    @property
    def learns_in_float32(self) -> bool:
        """Whether the weights that learn are float32, whatever type is computed with: parts of weights, or adapters."""
        return self.shard or self.lora_rank is not None

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


def setting_kinds() -> dict[str, Kind]:
    """What each setting must be."""
    return {setting.name: setting.metadata["kind"] for setting in fields(TrainConfig)}


def check_unchanged(config: TrainConfig, made_with: dict, where: str | Path) -> None:
    """ValueError when a setting that must stay is another one than a checkpoint was made with."""
    for name, value in asdict(config).items():
        if name not in MAY_CHANGE and name in made_with and made_with[name] != value:
            raise ValueError(
                f"{where} has {name} = {shown(value)}, but its run was begun with {shown(made_with[name])}; "
                "put that back to go on, or begin a new run"
            )


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
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise ValueError(f"{path} is not a TOML file: {reason}") from None
    kinds = setting_kinds()
    known = list(kinds)
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches({"learning_rate": "lr"}.get(key, key), known, n=1)
            hint = f"the nearest known one is {near[0]!r}" if near else "`rfs train --help` lists the known ones"
            raise ValueError(f"{path}: unknown setting {key!r}; {hint}")
        wanted = field_type(key)
        if wanted is float and type(value) is int and abs(value) < 1e300:
            settings[key] = value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"{path}: {key} must be of type {wanted.__name__}, got {shown(value)}")
        try:
            if key == "prompt":
                value = settings[key] = load_prompt(str(value))
            kinds[key].check(key, value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return settings


def format_config(config: TrainConfig) -> str:
    """The settings as TOML; those without a value are left out."""
    # JSON's strings, numbers and booleans are TOML's, too, but for a character that TOML wants escaped.
    lines = (f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in asdict(config).items() if v is not None)
    return "".join(lines).replace("\x7f", "\\u007f")
