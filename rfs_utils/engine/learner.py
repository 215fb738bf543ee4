"""One step of reinforcement learning: collect experience, compare it, and update the weights with it.

The algorithm is the notebooks': everything here calls the functions exported from the chapters.
"""

import copy
import math
import random
import time
from dataclasses import replace

import torch

from ..ch07 import compute_advantages, kl_estimate
from ..data import GENERATED, ask_as, generated, problem_set
from ..files.kinds import SettingError
from ..qwen3 import Qwen3Model
from ..threads import fit
from ..tokenizer import ModelTokenizer
from . import parallel
from .config import TrainConfig
from .experience import Experience, collect, has_signal, join_experience
from .lora import add_adapters, without_adapters
from .memory import (
    DTYPES,
    MemoryPlan,
    cast_weights,
    plan_memory,
    return_freed_memory,
)
from .norms import use_lean_norms
from .optim import make_optimizer
from .rewards import parse_rewards
from .samplers import Sampler
from .sharding import gathered, shard
from .token_rules import apply_token_rule
from .update import Updater

MAX_REFILLS = 3  # rounds in which dynamic sampling looks for groups with a signal


def make_plan(config: TrainConfig, model: Qwen3Model, device: torch.device) -> MemoryPlan:
    """What `config.memory` means for this model and device, with the config's own dtype, optimizer and micro_batch."""
    plan = plan_memory(config.memory, device, sum(p.numel() for p in model.parameters()))
    if config.learns_in_float32:
        plan = replace(plan, optimizer="adamw")
    elif config.optimizer == "adamw":
        plan = replace(plan, dtype=torch.float32)  # on bfloat16 weights it would lose most of its small steps
    plan = replace(
        plan,
        dtype=plan.dtype if config.dtype == "auto" else DTYPES[config.dtype],
        optimizer=plan.optimizer if config.optimizer == "auto" else config.optimizer,
        max_tokens=config.micro_batch or plan.max_tokens,
    )
    if plan.dtype == torch.bfloat16 and plan.optimizer == "adamw" and not config.learns_in_float32:
        plan = replace(plan, optimizer="kahan")
    return plan


def training_problems(config: TrainConfig) -> list[dict]:
    """The problems that `config.data` names; of the generated ones as many as the run needs, from 2,000 to 16,000."""
    if config.data in GENERATED:
        count = min(16_000, max(2000, config.steps * config.prompts_per_step))  # there are not many more at level 1
        return generated(config.data, count, "train", seed=config.seed)
    return problem_set(config.data)


class Problems:
    """An endless stream of problems: each pass over them in another order, decided by the seed. `cursor` is saved."""

    def __init__(self, problems: list[dict], seed: int, cursor: int = 0):
        self.problems, self.seed, self.cursor = problems, seed, cursor
        self.epoch = -1
        self.order: list[int] = []

    def next(self, count: int) -> list[dict]:
        """The next problems."""
        found = [self._at(self.cursor + i) for i in range(count)]
        self.cursor += count
        return found

    def _at(self, position: int) -> dict:
        epoch, index = divmod(position, len(self.problems))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, list(range(len(self.problems)))
            random.Random(f"{self.seed} {epoch}").shuffle(self.order)
        return self.problems[self.order[index]]


class Learner:
    """A model with all that a step needs; `step` is the whole of reinforcement learning in one call."""

    def __init__(
        self,
        config: TrainConfig,
        model: Qwen3Model,
        tokenizer: ModelTokenizer,
        problems: list[dict],
        device: torch.device | str = "cpu",
    ):
        config.check()
        if config.prompts_per_step < parallel.world_size():
            raise SettingError(
                f"prompts_per_step must be at least the number of processes, {parallel.world_size()}; "
                f"got {config.prompts_per_step}", "prompts_per_step",
            )  # fmt: skip
        if config.max_new_tokens >= model.cfg["context_length"]:
            raise SettingError(
                f"max_new_tokens must be below the {model.cfg['context_length']} tokens that the model can hold, "
                f"got {config.max_new_tokens}", "max_new_tokens",
            )  # fmt: skip
        ask_as(tokenizer, config.prompt, config.stop, config.chat)
        self.config, self.model, self.tokenizer, self.device = config, model, tokenizer, torch.device(device)
        self.plan = make_plan(config, model, self.device)
        if config.memory == "low":
            return_freed_memory()
        cast_weights(model, torch.float32 if config.shard else self.plan.dtype)
        if self.plan.dtype == torch.bfloat16:
            use_lean_norms(model)
        self.method = config.resolved_method()
        self.rewards = parse_rewards(config.rewards)
        if config.lora_rank is not None:
            add_adapters(model, config.lora_rank, config.lora_alpha, config.seed)
        self.reference = None
        if self.method.kl_coef:
            frozen = config.lora_rank is not None
            self.reference = without_adapters(model) if frozen else copy.deepcopy(model).requires_grad_(False)
            cast_weights(self.reference, self.plan.dtype)  # no parts of it, and no optimiser
        if config.shard and parallel.world_size() > 1:
            shard(model, self.plan.dtype)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.plan.optimizer, trained, config.lr, config.weight_decay)
        self.updater = Updater(config, self.method, self.plan, model, self.reference, self.optimizer)
        self.sampler = Sampler(config.sampler)
        self.problems = Problems(problems, config.seed)
        self.done = 0  # steps
        self.samples = 0  # answers that this process has sampled for the last step, thrown away and greedy ones, too
        self.experience: Experience | None = None  # of the last step, on this process
        self.advantages: torch.Tensor | None = None

    def step(self) -> dict[str, float | None]:
        """Collect experience, update the weights, and return the step's metrics; the same on every process."""
        started = time.perf_counter()
        if self.device.type == "cpu":
            fit()
        self.done += 1
        self.optimizer.zero_grad()  # before sampling, whose cache takes the gradients' room
        with gathered(self.model):
            self.experience = batch = self.collect()
        ref_logps = self.updater.reference_logps(batch.rollouts)
        self.pay_for_divergence(batch, ref_logps)
        greedy = None if batch.greedy_rewards is None else batch.greedy_rewards.cpu()
        lengths = batch.rollouts.lengths.view_as(batch.rewards)
        shared = parallel.gather((batch.parts.cpu(), batch.rewards.cpu(), lengths.cpu(), greedy))
        self.advantages = advantages = self.compute_advantages(shared)
        lr = self.config.learning_rate(self.done)
        per_token, held = apply_token_rule(
            self.config.token_rule, advantages.flatten(), self.model, batch.rollouts, self.config.temperature
        )
        updates = self.updater.update(batch, per_token, lr, ref_logps, held)
        parts, rewards = (torch.cat([own[k] for own in shared]) for k in range(2))
        judged = rewards[~rewards.isnan()]
        sums = parallel.gather(self.sums(batch))
        totals = {name: sum(part[name] for part in sums) for name in sums[0]}
        seconds = time.perf_counter() - started
        return {
            "reward_avg": judged.mean().item() if len(judged) else None,
            "avg_response_len": totals["tokens"] / rewards.numel(),
            "reward_std": judged.std().item() if len(judged) > 1 else None,
            "accuracy": totals["correct"] / totals["judged"] if totals["judged"] else None,
            "truncated": totals["truncated"] / rewards.numel(),
            "entropy": -totals["logps"] / totals["tokens"],
            "zero_signal_groups": 1 - has_signal(parts, batch.weights.cpu()).float().mean().item(),
            **updates,
            **self.reward_metrics(parts.masked_fill(rewards.isnan()[:, :, None], math.nan)),
            "samples": totals["samples"],
            "tokens_per_second": totals["tokens"] / seconds,
        }

    def pay_for_divergence(self, batch: Experience, ref_logps: torch.Tensor | None) -> None:
        """With the KL in the reward: each answer's log-ratio to the reference, times kl_coef, goes off its reward."""
        if ref_logps is None or self.method.kl != "reward":
            return
        assert batch.rollouts.logps is not None  # they have been sampled
        divergence = (kl_estimate(batch.rollouts.logps, ref_logps, "k1") * batch.rollouts.mask).sum(dim=1)
        batch.rewards = batch.rewards - self.method.kl_coef * divergence.view_as(batch.rewards)

    def reward_metrics(self, parts: torch.Tensor) -> dict[str, float | None]:
        """The mean of each reward function over what was judged, where there are several."""
        if len(self.rewards) == 1:
            return {}
        means = {f"reward_{name}": parts[:, :, k].nanmean().item() for k, name in enumerate(self.rewards)}
        return {name: None if math.isnan(mean) else mean for name, mean in means.items()}

    def sums(self, batch: Experience) -> dict[str, float]:
        """What the metrics of all processes are made of; answers that were not judged are neither right nor wrong."""
        assert batch.rollouts.logps is not None  # they have been sampled
        correct = batch.correct[~batch.rewards.isnan() & ~batch.correct.isnan()]
        return {
            "tokens": batch.rollouts.lengths.sum().item(),
            "logps": batch.rollouts.logps.sum().item(),
            "correct": correct.sum().item(),
            "judged": len(correct),
            "truncated": batch.truncated.sum().item(),
            "samples": self.samples,
        }

    def collect(self) -> Experience:
        """Groups of answers to the next problems; with dynamic sampling, groups without signal are replaced."""
        config, missing = self.config, self.config.prompts_per_step
        model = self.sampler.at(self.done, self.model)
        kept: list[Experience] = []
        self.samples = 0
        each = config.num_rollouts + (self.method.baseline == "greedy")
        for attempt in range(1 + MAX_REFILLS * self.method.dynamic_sampling):
            examples = self.problems.next(missing)
            own = parallel.own_part(missing)
            # The draws depend on seed, step and place alone: not on the processes, nor on where a run was resumed.
            generator = torch.Generator().manual_seed((config.seed * 1_000_003 + self.done) * 10 + attempt)
            uniform = torch.rand(len(examples), config.num_rollouts, config.max_new_tokens, generator=generator)
            useful = torch.empty(0, dtype=torch.long)
            # A later attempt may be smaller than the number of processes; then some have nothing to do.
            self.samples += each * (own.stop - own.start)
            if own.start < own.stop:
                found = collect(
                    model, self.tokenizer, examples[own], uniform[own], self.rewards, self.method, self.plan,
                    self.device, self.done, config.temperature, config.top_p,
                )  # fmt: skip
                useful = found.has_signal.nonzero().squeeze(1)
            if not self.method.dynamic_sampling:
                return found
            if len(useful):
                kept.append(found.select(useful))
            missing -= sum(parallel.gather(len(useful)))
            if missing <= 0:
                break
        return join_experience(kept or [found], self.tokenizer.pad_token_id)

    def compute_advantages(self, shared: list[tuple]) -> torch.Tensor:
        """Advantages of this process's groups, (B, G); some methods compare with the rewards of all processes."""
        parts, rewards, lengths, greedies = zip(*shared, strict=True)
        options: dict = {"greedy_rewards": None if greedies[0] is None else torch.cat(greedies)}
        options["lengths"] = torch.cat(lengths)
        if self.method.separate_rewards:
            weights = torch.tensor([weight for _, weight in self.rewards.values()])
            advantages = compute_advantages(torch.cat(parts), self.method, weights, **options)
        else:
            advantages = compute_advantages(torch.cat(rewards), self.method, **options)
        first = sum(len(r) for r in rewards[: parallel.rank()])
        return advantages[first : first + len(rewards[parallel.rank()])].to(self.device)

    def state(self) -> dict:
        """What a checkpoint must hold besides weights, optimiser and random states."""
        return {"cursor": self.problems.cursor}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint whose weights and optimiser are loaded."""
        self.done, self.problems.cursor = state["step"], state["cursor"]
