"""Evaluation on problem sets: batched generation, grading, and the usual figures."""

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from .ch06 import reward_rlvr, sample_batch
from .data import render_prompt
from .grading import extract_final_candidate, grade_answer
from .qwen3 import Qwen3Model
from .sampling import Stops, has_ended
from .statistics import pass_at_k, wilson_interval
from .terminal import bar
from .threads import fit
from .tokenizer import Tokenizer, encode_prompts, stops

Answer = tuple[int, int]  # index of a problem, number of the sample


@dataclass
class Evaluation:
    """Graded answers, one record for each sample of each problem, in the problems' order.

    A record has the keys unique_id, sample, level, type, answer (the expected one), response (without the end token),
    tokens (with it), correct (0 or 1) and truncated (whether the response ran into max_new_tokens).
    """

    records: list[dict]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self._mean("correct")

    @property
    def mean_tokens(self) -> float:
        """Mean response length in tokens, the end-of-sequence token included."""
        return self._mean("tokens")

    @property
    def truncated(self) -> float:
        """Share of responses that ran into max_new_tokens, 0 to 1."""
        return self._mean("truncated")

    def _mean(self, field: str) -> float:
        return sum(r[field] for r in self.records) / len(self.records)

    def by(self, field: str) -> dict[str, "Evaluation"]:
        """The same evaluation for each value of a field, such as "level"; "Level 10" comes after "Level 9"."""
        groups = defaultdict(list)
        for record in self.records:
            groups[str(record[field])].append(record)

        def natural(value: str) -> list:
            return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", value)]

        return {value: Evaluation(groups[value]) for value in sorted(groups, key=natural)}


def evaluate_model(
    model: Qwen3Model,
    tokenizer: Tokenizer,
    problems: Sequence[dict],
    device: torch.device | str = "cpu",
    max_new_tokens: int = 512,
    temperature: float | None = 0.0,
    top_p: float | None = 1.0,
    batch_size: int = 128,
    progress: bool = False,
) -> Evaluation:
    """Answer every problem once, greedily by default or without a temperature, and grade it with chapter 6's reward.

    Problems of similar length share a batch.
    """
    if not problems:
        raise ValueError("there are no problems to evaluate; expected at least one")
    records: list[dict] = [{} for _ in problems]
    shown = bar(total=len(problems), desc="evaluating", shown=progress)
    for batch in answer_batches(model, tokenizer, problems, device, max_new_tokens, temperature, top_p, batch_size):
        for (index, _), record in batch.items():
            records[index] = record
        shown.update(len(batch))
    shown.close()
    return Evaluation(records)


def answer_batches(
    model: Qwen3Model,
    tokenizer: Tokenizer,
    problems: Sequence[dict],
    device: torch.device | str,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    batch_size: int,
    num_samples: int = 1,
    seed: int | None = None,
    done: Collection[Answer] = (),
) -> Iterator[dict[Answer, dict]]:
    """Answer problems batch by batch, shortest prompts first; yields the graded records of each batch.

    A batch has at most `batch_size` responses. Those of `done` are left out. With a `seed`, each batch draws from
    a seed of its own, so that an evaluation that stopped goes on as if it never had; the global one is set.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    temperature = temperature or 0.0
    prompts = [render_prompt(problem["problem"], tokenizer) for problem in problems]
    widths = [len(ids) for ids in encode_prompts(tokenizer, prompts)]
    order = sorted(range(len(prompts)), key=widths.__getitem__)
    at_once = min(num_samples, batch_size)  # samples of one problem in a batch
    step = batch_size // at_once
    for start in range(0, len(order), step):
        for first in range(0, num_samples, at_once):
            samples = range(first, min(first + at_once, num_samples))
            batch = order[start : start + step]
            rows = [i for i in batch if any((i, sample) not in done for sample in samples)]
            if not rows:
                continue
            if seed is not None:  # what a row draws depends on the rows beside it: all of them again, or none
                rows = batch
                torch.manual_seed(zlib.crc32(f"{seed} {first} {batch}".encode()))
            if torch.device(device).type == "cpu":
                fit()
            rollouts = sample_batch(
                model, tokenizer, [prompts[i] for i in rows], device, len(samples), max_new_tokens, temperature, top_p
            )
            answers = [(i, sample) for i in rows for sample in samples]
            graded = _grade(answers, rollouts, problems, stops(tokenizer))
            yield {answer: record for answer, record in graded.items() if answer not in done}


def _grade(answers: list[Answer], rollouts, problems: Sequence[dict], stops: Stops) -> dict[Answer, dict]:
    graded = {}
    lengths = rollouts.lengths.tolist()
    ended = has_ended(rollouts.tokens, rollouts.lengths, stops).tolist()
    for row, (index, sample) in enumerate(answers):
        problem, text = problems[index], rollouts.texts[row]
        level = problem.get("level", "")
        graded[index, sample] = {
            "unique_id": problem.get("unique_id", index),
            "sample": sample,
            "level": level_name(level),
            "type": problem.get("type", problem.get("subject", "")),
            "answer": problem["answer"],
            "response": text,
            "tokens": lengths[row],
            "correct": int(reward_rlvr(text, problem["answer"])),
            "truncated": not ended[row],
        }
    return graded


# ------------------------------------------------------------------ room for answers


def level_name(level: int | str | None) -> str | None:
    """MATH's "Level 3", for which MATH-500 has 3."""
    return f"Level {level}" if isinstance(level, int) else level


def check_room(
    model: Qwen3Model, tokenizer: Tokenizer, problems: Sequence[dict], max_new_tokens: int | None = None
) -> int:
    """`max_new_tokens`, or 2048 or as many as fit; ValueError unless they fit the context after every prompt."""
    if not problems:
        raise ValueError("there are no problems to evaluate; expected at least one")
    context = model.cfg["context_length"]
    longest = longest_prompt(tokenizer, problems)
    if context <= longest or max_new_tokens is not None and max_new_tokens > context - longest:
        raise ValueError(
            f"{max_new_tokens or 'more'} new tokens do not fit: the longest prompt has {longest} of the "
            f"{context} tokens that the model can hold"
        )
    return max_new_tokens or min(2048, context - longest)


def longest_prompt(tokenizer: Tokenizer, problems: Sequence[dict]) -> int:
    """Tokens of the longest prompt."""
    prompts = [render_prompt(problem["problem"], tokenizer) for problem in problems]
    return max(map(len, encode_prompts(tokenizer, prompts)))


# ------------------------------------------------------------------ figures


def majority_answer(responses: Sequence[str]) -> str:
    """The final answer given most often; answers that the grader finds equal count together, the first wins a tie.

    Empty when no response has a boxed answer.
    """
    votes: dict[str, int] = {}
    known: dict[str, str] = {}  # each spelling's first equal one, so that the grader sees a spelling only once
    for response in responses:
        answer = extract_final_candidate(response, fallback=None)
        if not answer:
            continue
        if answer not in known:
            known[answer] = next((other for other in votes if grade_answer(answer, other)), answer)
        votes[known[answer]] = votes.get(known[answer], 0) + 1
    return max(votes, key=votes.__getitem__, default="")


def format_evaluation(result: Evaluation) -> str:
    """The figures of an evaluation as text: accuracy with its interval, length, truncation, by level and subject.

    With several samples of each problem, accuracy is the mean over all samples, the interval that of as many
    single answers as there are problems (a little wide), and pass@k and the majority's accuracy are added.
    """
    num_samples = 1 + max(record["sample"] for record in result.records)
    num_problems = len(result.records) // num_samples
    low, high = wilson_interval(result.accuracy * num_problems, num_problems)
    lines = [
        f"accuracy     {result.accuracy:6.1%}   (95 % interval {low:.1%} to {high:.1%}, {num_problems} problems)",
        f"mean tokens  {result.mean_tokens:6.1f}",
        f"truncated    {result.truncated:6.1%}",
    ]
    if num_samples > 1:
        lines += _sample_lines(result, num_samples)
    for field in ("level", "type"):
        groups = result.by(field)
        if len(groups) > 1:
            lines.append("")
            lines += [
                f"{name or 'other':28}{len(part.records):6} answers{part.accuracy:8.1%}{part.mean_tokens:9.1f} tokens"
                for name, part in groups.items()
            ]
    return "\n".join(lines)


def _sample_lines(result: Evaluation, num_samples: int) -> list[str]:
    problems = [result.records[i : i + num_samples] for i in range(0, len(result.records), num_samples)]
    right = [sum(record["correct"] for record in problem) for problem in problems]
    lines, k = [], 1
    while k <= num_samples:
        lines.append(f"pass@{k:<8}{sum(pass_at_k(num_samples, c, k) for c in right) / len(right):6.1%}")
        k *= 2
    votes = [majority_answer([record["response"] for record in problem]) for problem in problems]
    won = sum(bool(v) and grade_answer(v, p[0]["answer"]) for v, p in zip(votes, problems, strict=True))
    return [*lines, f"majority     {won / len(problems):6.1%}   (of {num_samples} samples)"]
