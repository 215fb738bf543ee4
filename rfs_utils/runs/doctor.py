"""Why a run may not learn: what its log shows, in plain words, each with the evidence and what to try.

The checks are rules of thumb over the columns of metrics.csv; what each column is, chapter 7 tells. A run that a
signal or a crash has cut short can be examined, too.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ..engine.config import FULL_LR, LORA_LR, TrainConfig, read_config
from ..files import read_fields
from ..grading import extract_final_candidate
from ..terminal import wrapped
from .folder import RESULT, read_run
from .held_out import NUM_PROBLEMS
from .samples import read_samples

MANY_CUT = 0.15  # share of answers that were cut off


@dataclass(frozen=True)
class Finding:
    """Something that keeps a run from learning."""

    name: str
    says: str
    evidence: str
    advice: str


class Log:
    """What a run has left, and what the checks ask it."""

    def __init__(self, folder: str | Path):
        """ValueError when it is not the folder of a run with at least one step, or a file in it is damaged."""
        self.folder = folder = Path(folder)
        for name in ("config.toml", "metrics.csv"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is not the folder of a run; expected {name} in it")
        self.config = TrainConfig(**read_config(folder / "config.toml"))
        self.metrics = read_run(folder, ("step", "reward_avg"))
        self.steps = int(max((step for step in self.metrics["step"] if step is not None), default=0))
        if not self.steps:
            raise ValueError(f"{folder / 'metrics.csv'} has no step of training")
        self.samples = read_samples(folder)
        result = folder / "result.json"
        self.result = read_fields(result, RESULT) if result.is_file() else None

    def column(self, name: str) -> list[float]:
        """The finite values of a column, one for each step that has one; none where there is no such column."""
        pairs = zip(self.metrics["step"], self.metrics.get(name, ()), strict=False)
        return [value for step, value in pairs if step and value is not None and math.isfinite(value)]

    def first(self, name: str) -> float | None:
        """The mean of a column over the first fifth of the run, at least three steps."""
        values = self.column(name)
        return statistics.fmean(values[: max(3, len(values) // 5)]) if values else None

    def last(self, name: str) -> float | None:
        """The same of the last fifth."""
        values = self.column(name)
        return statistics.fmean(values[-max(3, len(values) // 5) :]) if values else None

    def best(self, name: str) -> float:
        """The highest mean of five steps in a row, 0 where there are none."""
        values = self.column(name)
        parts = [values[i : i + 5] for i in range(max(1, len(values) - 4))]
        return max((statistics.fmean(part) for part in parts if part), default=0.0)

    def mean(self, name: str, default: float = 0.0) -> float:
        """The mean of a column over the whole run."""
        return statistics.fmean(self.column(name) or [default])

    @cached_property
    def held_out(self) -> list[tuple[int, float]]:
        """Steps and accuracies of the evaluations, the one before training and the final one included."""
        pairs = zip(self.metrics["step"], self.metrics.get("eval_accuracy", ()), strict=False)
        found = {int(step): value for step, value in pairs if step is not None and value is not None}
        if self.result:
            found[int(self.result["steps"])] = self.result["accuracy_after"]
        return sorted(found.items())

    @property
    def before(self) -> float | None:
        """Held-out accuracy before training."""
        return self.held_out[0][1] if self.held_out and self.held_out[0][0] == 0 else None

    @property
    def margin(self) -> float:
        """What the last held-out accuracy may differ by chance: two standard errors of a share of one half."""
        whole = self.result and self.config.data == "tiny" and self.config.eval_data in ("auto", "tiny")
        return 1 / math.sqrt(NUM_PROBLEMS if whole else self.config.eval_problems)

    def has_fallen(self) -> bool:
        """Whether the last evaluation is clearly below the one before training."""
        return self.before is not None and len(self.held_out) > 1 and self.held_out[-1][1] < self.before - self.margin

    def rise(self, name: str) -> float:
        """How much a column differs between the first and the last third, in standard errors of that difference."""
        values = self.column(name)
        third = len(values) // 3
        if third < 2:
            return 0.0
        one, two = values[:third], values[-third:]
        error = math.sqrt((statistics.variance(one) + statistics.variance(two)) / third)
        return (statistics.fmean(two) - statistics.fmean(one)) / max(error, 1e-9)

    def accuracies(self) -> str:
        """The evaluations in words; of more than five only the first, the lowest, the highest and the last."""
        shown = self.held_out
        if len(shown) > 5:
            lowest, highest = (pick(shown, key=lambda pair: pair[1]) for pick in (min, max))
            shown = sorted({shown[0], lowest, highest, shown[-1]})
        return ", ".join(f"{value:.0%} {'before' if step == 0 else f'at step {step}'}" for step, value in shown)


def not_finite(log: Log) -> Finding | None:
    """Updates that were skipped."""
    skipped = sum(map(bool, log.column("skipped_updates")))
    if not skipped:
        return None
    rewards = log.metrics["reward_avg"]
    endless = sum(value is not None and not math.isfinite(value) for value in rewards)
    return Finding(
        "not finite",
        "Updates were skipped, since the gradient was infinite or not a number.",
        f"in {skipped} of {log.steps} steps, with --lr {log.config.lr:g}; in {endless} the mean reward was not finite",
        f"a reward of smaller numbers than those of {log.config.rewards}" if endless else
        f"--lr {lower_rate(log):g}; --dtype float32 if it was another; --max-grad-norm 1",
    )  # fmt: skip


def not_judged(log: Log) -> Finding | None:
    """Rewards that are None."""
    judged = len(log.column("reward_avg"))
    if judged > log.steps / 2:
        return None
    return Finding(
        "not judged",
        "The reward function could not judge the answers, and what is not judged teaches nothing.",
        f"in {log.steps - judged} of {log.steps} steps every reward of {log.config.rewards} was None",
        "call the reward function on a few answers of `rfs samples`, and look at what it returns",
    )


def short_limit(log: Log) -> Finding | None:
    """A limit on length that cuts most answers off from the beginning."""
    begin, cut, limit = log.column("truncated")[:1], log.first("truncated"), log.config.max_new_tokens
    if cut is None or min(cut, *begin) < MANY_CUT:  # the first step's answers come before any update
        return None
    return Finding(
        "length limit",
        "The limit on length cuts answers off before they give their result.",
        f"{cut:.0%} of the answers of the first steps were cut off at {limit} tokens",
        f"--max-new-tokens {4 * limit}; or --stop TEXT, where answers go on after their end",
    )


def forgot_to_end(log: Log) -> Finding | None:
    """Answers that have grown into the limit."""
    start, end = log.first("truncated"), log.last("truncated")
    if start is None or end is None or start >= MANY_CUT or end < 0.5:
        return None
    lengths = f"mean length {log.first('avg_response_len') or 0:.0f}, then {log.last('avg_response_len') or 0:.0f}"
    paid = log.rise("reward_avg") > 2 and log.config.rewards != "accuracy"
    return Finding(
        "forgot to end",
        "Answers have grown until the limit cut them off; the policy has forgotten how to end.",
        f"cut off: {start:.0%} of the first steps' answers, {end:.0%} of the last steps'; {lengths} tokens"
        + (f"; the reward {log.config.rewards} rose meanwhile" if paid else ""),
        "a reward that does not pay for length" if paid else f"--lr {lower_rate(log):g}; --method dapo, which fines it",
    )


def never_paid(log: Log) -> Finding | None:
    """A reward of nothing from start to end."""
    rewards = log.column("reward_avg")
    if not rewards or max(rewards) > 0 or min(rewards) < max(rewards):
        return None
    boxed = sum(bool(result_of(record)) for record in log.samples)
    answers = log.steps * log.config.prompts_per_step * log.config.num_rollouts
    advice = "a reward for parts of what is wanted, as in exercise 6.1"
    if log.samples and boxed < len(log.samples) / 4:
        advice = f"--prompt few-shot or --chat, so that answers get a box; {advice}"
    elif log.samples:
        advice = f"easier problems; compare with the expected answers, whose notation may be another; {advice}"
    return Finding(
        "never paid",
        "No answer has ever earned anything, so there was nothing to reinforce.",
        f"0 of {answers:,} answers; {boxed} of the {len(log.samples)} kept ones have a boxed result{example(log)}",
        advice,
    )


def result_of(record: dict) -> str | None:
    """What a kept answer has in its last box."""
    return extract_final_candidate("".join(record["tokens"]), fallback=None)


def example(log: Log) -> str:
    """One kept answer's result and what was expected, as words of an evidence."""
    for record in log.samples:
        if given := result_of(record):
            return f", such as {given!r} where {record['answer']!r} was expected"
    return ""


def too_easy(log: Log) -> Finding | None:
    """Problems that were solved from the beginning, or soon."""
    solved = [right > 0.9 for right in log.column("accuracy")]
    if not solved or statistics.fmean(solved) < 0.7 or log.mean("zero_signal_groups") < 0.6:
        return None
    return Finding(
        "too easy",
        "The problems are solved: in most groups all answers are right, and alike ones teach nothing.",
        f"{log.mean('accuracy'):.0%} of the sampled answers were right, {log.mean('zero_signal_groups'):.0%} of the "
        "groups had no signal",
        "harder problems with --data, or --method dapo, which replaces groups without a signal",
    )


def too_cold(log: Log) -> Finding | None:
    """A temperature at which the answers of a group are all alike."""
    without, entropy = log.first("zero_signal_groups"), log.first("entropy")
    if log.config.temperature >= 0.5 or without is None or entropy is None or without < 0.7:
        return None
    return Finding(
        "too cold",
        "The sampling temperature is so low that the answers of a group are alike, and none is better than another.",
        f"at --temperature {log.config.temperature:g} {without:.0%} of the first steps' groups had no signal; entropy "
        f"{entropy:.2g}",
        "--temperature 1",
    )


def no_signal(log: Log) -> Finding | None:
    """Groups whose answers all earn the same, on problems that are not solved."""
    without, config = log.mean("zero_signal_groups"), log.config
    if without < 0.7 or log.mean("accuracy") > 0.8:
        return None
    return Finding(
        "no signal",
        "Most groups had no signal: all their answers earned the same, so none was better than another.",
        f"{without:.0%} of the groups of {config.num_rollouts}; {log.mean('accuracy'):.0%} of all answers were right; "
        f"entropy {log.first('entropy') or 0:.2g} in the first steps, {log.last('entropy') or 0:.2g} in the last",
        f"--num-rollouts {2 * config.num_rollouts}; --method dapo, which replaces such groups; easier problems",
    )


def too_hot(log: Log) -> Finding | None:
    """A temperature at which a model that can do something does nothing."""
    sampled = log.first("accuracy")
    if log.config.temperature <= 1.2 or sampled is None or log.before is None or sampled > log.before / 3:
        return None
    return Finding(
        "too hot",
        "The sampling temperature is so high that answers are noise.",
        f"at --temperature {log.config.temperature:g} {sampled:.0%} of the first steps' answers were right, greedily "
        f"{log.before:.0%}; entropy {log.first('entropy') or 0:.2f}",
        "--temperature 1",
    )


def hacked(log: Log) -> Finding | None:
    """A reward that rises while right answers become fewer."""
    start, end = log.first("accuracy"), log.last("accuracy")
    if start is None or end is None or log.rise("reward_avg") < 2 or end > 0.8 * start:
        return None
    return Finding(
        "reward without accuracy",
        "The reward rises while right answers become fewer: it pays for something else.",
        f"{log.config.rewards}: {log.first('reward_avg'):.2f} in the first steps, {log.last('reward_avg'):.2f} in the "
        f"last; right answers {start:.0%}, then {end:.0%}",
        "read the best paid answers with `rfs samples`; --rewards accuracy, or a condition on it",
    )


def memorised(log: Log) -> Finding | None:
    """Problems that are solved in training, while others are not."""
    right = log.last("accuracy")
    if right is None or not log.held_out or right < 0.8 or log.held_out[-1][1] > right - 0.3:
        return None
    return Finding(
        "memorised",
        "The training problems are solved and others are not: the model has learned these by heart.",
        f"{right:.0%} of the sampled answers were right at last; held-out accuracy {log.accuracies()}",
        "more, and more different problems in --data; fewer --steps",
    )


def collapsed(log: Log) -> Finding | None:
    """Updates that have destroyed what the model could do."""
    right = log.column("accuracy")
    best = max(log.best("accuracy"), *right[:1], 0.0)  # the first step's answers come before any update
    end = log.last("accuracy") or 0.0
    lost = best > 0.05 and end < best / 3 and (log.before is None or log.has_fallen())
    if not lost or early(log) and not is_wild(log):
        return None
    entropy = ", then ".join(f"{value:.2g}" for value in (log.column("entropy")[:1] + log.column("entropy")[-1:]))
    evidence = [f"held-out accuracy {log.accuracies()}"] if log.held_out else []
    evidence += [f"of the sampled answers {best:.0%} were right at best, {end:.0%} at last"]
    evidence += [f"entropy {entropy}"] if entropy else []
    advice = [f"--lr {lower_rate(log):g}", *fewer_updates(log), "--warmup-steps 10"]
    return Finding(
        "collapse",
        "The run has collapsed: too large updates have destroyed what the model could do.",
        "; ".join(evidence),
        "; ".join([*advice, "--stop-on-collapse ends such a run early"]),
    )


def fewer_updates(log: Log) -> list[str]:
    """Advice for a run that uses its rollouts several times."""
    updates = log.config.updates_per_step
    return [f"--updates-per-step {max(1, updates // 4)}"] if updates > 1 else []


def is_wild(log: Log) -> bool:
    """Whether the learning rate is far above the usual one."""
    return log.config.lr > 5 * usual_rate(log.config)


def early(log: Log) -> bool:
    """Whether a run has ended so early that it may still get better; chapter 6's gets worse for 15 steps or so."""
    return log.steps <= 20


def dip(log: Log) -> Finding | None:
    """A run that was stopped while it still got worse, as many do first."""
    if not early(log) or is_wild(log) or not log.has_fallen():
        return None
    return Finding(
        "early dip",
        "The run has stopped in the early dip: many runs get worse before they get better (chapter 6, section 6.11.7).",
        f"held-out accuracy {log.accuracies()}, after {log.steps} steps",
        f"more steps: rfs train --resume {log.folder} --steps {max(50, 2 * log.steps)}",
    )


def certain(log: Log) -> Finding | None:
    """A policy that has stopped trying anything else, and is not right."""
    begin, end, warmer = log.column("entropy")[:1], log.last("entropy"), 1.2 * log.config.temperature
    if end is None or end > min(0.02, begin[0] / 5) or (log.last("accuracy") or 0) > 0.8:
        return None
    return Finding(
        "entropy",
        "The policy has become certain too early: it tries nothing new, and what it does is often wrong.",
        f"entropy {begin[0]:.2g} at first, {end:.2g} at last; right answers {log.last('accuracy') or 0:.0%}; "
        f"{log.mean('zero_signal_groups'):.0%} of the groups had no signal",
        "; ".join([f"--lr {lower_rate(log):g}", *fewer_updates(log), f"--temperature {warmer:g}"]),
    )


def moved(log: Log) -> str:
    """The reward of the first and the last steps, in words."""
    return f"mean reward {log.first('reward_avg'):.2f} in the first steps, {log.last('reward_avg'):.2f} in the last"


def is_flat(log: Log) -> bool:
    """Whether there was a signal, and the reward has not risen; of a short run nobody can tell."""
    solved = (log.last("accuracy") or 0) > 0.8
    without = log.mean("zero_signal_groups") > 0.7 or not log.column("reward_avg")
    return not (solved or without or log.steps < 12 or log.rise("reward_avg") > 2)


def rate_too_low(log: Log) -> Finding | None:
    """A learning rate far below the usual one."""
    usual = usual_rate(log.config)
    if not is_flat(log) or log.config.lr > usual / 10:
        return None
    return Finding(
        "rate too low",
        "The learning rate is too low: there was a signal, and the weights hardly moved.",
        f"--lr {log.config.lr:g}, where {usual:g} is usual; {moved(log)}",
        f"--lr {usual:g}",
    )


def held_back(log: Log) -> Finding | None:
    """A KL term that is stronger than the reward."""
    strength, kl = log.config.resolved_method().kl_coef or 0.0, log.last("kl")
    if not is_flat(log) or strength < 0.5 or kl is None:
        return None
    return Finding(
        "held back",
        "The KL term is stronger than the reward, and holds the policy at the starting model.",
        f"--kl-coef {strength:g}, KL {kl:.2g} per token, gradient norm {log.mean('grad_norm'):.2g}; {moved(log)}",
        f"--kl-coef {strength / 100:g}",
    )


def flat(log: Log) -> Finding | None:
    """A run with a signal in which nothing has moved, and no reason to be seen."""
    if not is_flat(log):
        return None
    return Finding(
        "flat",
        "There was a signal, and the reward has not risen; the log does not say why.",
        f"{moved(log)}; {log.mean('zero_signal_groups'):.0%} of the groups without a signal, --lr {log.config.lr:g}",
        f"more steps; --lr {3 * log.config.lr:g}; --prompts-per-step {2 * log.config.prompts_per_step}",
    )


def unfinished(log: Log) -> Finding | None:
    """A run without a result."""
    if log.result is not None:
        return None
    return Finding(
        "unfinished",
        "The run has not come to its end, or still goes on.",
        f"metrics.csv has {log.steps} of {log.config.steps} steps, and there is no result.json",
        f"rfs train --resume {log.folder}",
    )


def usual_rate(config: TrainConfig) -> float:
    """The learning rate that a run has by default."""
    return FULL_LR if config.lora_rank is None else LORA_LR


def lower_rate(log: Log) -> float:
    """A learning rate to try in place of one that was too high."""
    return float(f"{min(usual_rate(log.config), log.config.lr / 3):.1g}")


Check = Callable[[Log], Finding | None]
# What leaves nothing to learn from; of these the first one found is told, since the others follow from it.
CAUSES: tuple[Check, ...] = (not_finite, not_judged, too_hot, too_cold, short_limit, never_paid)
# What a run has learned that was not wanted.
LESSONS: tuple[Check, ...] = (forgot_to_end, hacked, memorised)
# How a run looks whose reason is none of those; again the first one.
LOOKS: tuple[Check, ...] = (
    too_easy, collapsed, dip, certain, no_signal, rate_too_low, held_back, flat
)  # fmt: skip

CHECKS = (*CAUSES, *LESSONS, *LOOKS, unfinished)


def examine(folder: str | Path, result: dict | None = None) -> list[Finding]:
    """What may keep a run from learning, likeliest causes first; empty when its log shows nothing of the kind.

    `result` is what result.json will hold, where it is not written yet.
    """
    log = Log(folder)
    log.result = log.result or result or None
    found = first(CAUSES, log) or [finding for check in LESSONS if (finding := check(log))] or first(LOOKS, log)
    return found + first([unfinished], log)


def first(checks: Sequence[Check], log: Log) -> list[Finding]:
    """What the first of the checks that finds something finds."""
    return next(([finding] for check in checks if (finding := check(log))), [])


def format_findings(folder: str | Path, findings: Sequence[Finding]) -> str:
    """The findings as text of at most 79 columns."""
    if not findings:
        evaluated = Log(folder).accuracies()
        known = f"; held-out accuracy {evaluated}" if evaluated else ""
        return wrapped(f"Nothing in the log says that {folder} went wrong{known}.")
    parts = []
    for number, finding in enumerate(findings, 1):
        lines = [wrapped(finding.says, f"{number}. "), wrapped(finding.evidence, "   seen: ")]
        parts.append("\n".join([*lines, wrapped(finding.advice, "   try:  ")]))
    return "\n\n".join(parts)


def remark(folder: str | Path) -> str:
    """The first reason why a run that has just stopped may not have learned, in a few lines; empty without one."""
    findings = [finding for finding in examine(folder) if finding.name not in ("unfinished", "flat")]
    if not findings:
        return ""
    return wrapped(f"{findings[0].says} Try {findings[0].advice}. Why: rfs doctor {folder}")


def as_records(findings: Sequence[Finding]) -> list[dict]:
    """The findings for JSON."""
    return [asdict(finding) for finding in findings]
