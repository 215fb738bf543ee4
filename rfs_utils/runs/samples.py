"""The rollouts that a run has kept: reading samples.jsonl with a check of every field, and showing them as text."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..files import parse_json
from ..terminal import wrapped


def read_samples(folder: Path) -> list[dict]:
    """The rollouts that a run has kept; an unfinished last line is left out. ValueError for a damaged one."""
    path = Path(folder) / "samples.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_json(line))
        except ValueError:
            raise ValueError(f"{path} is damaged: line {number} is not JSON") from None
        if fault := find_fault(records[-1]):
            raise ValueError(f"{path} is damaged: line {number} {fault}")
    return records


def find_fault(record: object) -> str | None:
    """What is wrong with a kept rollout, or None."""
    if not isinstance(record, dict):
        return "is no rollout; expected an object with step, reward, tokens and more"
    for name, (fits, expected) in FIELDS.items():
        if name not in record:
            return f"has no {name}; expected {expected}"
        if not fits(record[name]):
            return f"has a wrong {name}; expected {expected}"
    if not _is_parts(record.get("parts", {})):
        return "has wrong parts; expected the value of each reward by its name"
    if len(record["tokens"]) != len(record["logps"]):
        return f"has {len(record['tokens'])} tokens and {len(record['logps'])} logps; expected as many"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_list(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_parts(value: object) -> bool:
    return isinstance(value, dict) and all(x is None or _is_number(x) for x in value.values())


# Of a line of samples.jsonl: whether a value fits, and what is expected.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (lambda value: isinstance(value, int) and 0 <= value < 10**15, "a whole number"),
    "reward": (lambda value: value is None or _is_number(value), "a number, or null where it was not judged"),
    "advantage": (_is_number, "a number"),
    "tokens": (partial(_is_list, fits=_is_text), "a list of texts"),
    "logps": (partial(_is_list, fits=lambda x: _is_number(x) and x <= 0), "a list of log-probabilities"),
    "problem": (_is_text, "a text"),
    "answer": (_is_text, "a text"),
}


def format_reward(reward: float | None) -> str:
    """A reward in words; None is what no reward function has judged."""
    return "not judged" if reward is None else f"reward {reward:g}"


def best_samples(records: list[dict], step: int | None = None, limit: int = 8, search: str | None = None) -> list[dict]:
    """The kept rollouts of a step (default: the last), best advantage first; ValueError when there are none.

    With `search`, those with all of its words in problem or answer, in any case.
    """
    steps = sorted({record["step"] for record in records})
    if not steps:
        raise ValueError("this run has kept no rollouts")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"no rollouts were kept at step {step}: there are those of {', '.join(map(str, steps))}")
    words = (search or "").lower().split()
    found = [r for r in records if r["step"] == step and all(word in text_of(r) for word in words)]
    if not found:
        raise ValueError(f"no rollout of step {step} has the words {search!r}")
    return sorted(found, key=lambda r: -r["advantage"])[:limit]


def text_of(record: dict) -> str:
    """What can be searched of a rollout: problem, expected answer and the model's answer, in small letters."""
    return " ".join([record["problem"], record["answer"], "".join(record["tokens"])]).lower()


def format_samples_text(records: list[dict]) -> str:
    """Rollouts for a terminal."""
    return "\n\n".join(map(format_sample_text, records))


def format_sample_text(record: dict) -> str:
    """A kept rollout in lines that fit a terminal."""
    earned = f"{format_reward(record['reward'])}  advantage {record['advantage']:+.2f}"
    head = f"step {record['step']}  {earned}  {len(record['tokens'])} tokens"
    problem = wrapped(f"{record['problem']}  (answer: {record['answer']})")
    return "\n".join([head, problem, wrapped("".join(record["tokens"]), "  ")])
