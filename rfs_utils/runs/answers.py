"""An evaluation in a file of its own: every answer is kept, and one that stopped goes on where it was."""

import json
import os
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch

from ..data import PROMPTS, render_prompt
from ..evaluate import Evaluation, answer_batches, check_room
from ..files import kinds, parse_json
from ..memory_errors import is_out_of_memory
from ..qwen3 import Qwen3Model
from ..sampling import check_sampling
from ..terminal import bar
from ..tokenizer import ModelTokenizer, stop_ids

_SCALAR = kinds.Kind("a text or a number", lambda value: not isinstance(value, (list, dict)))
RECORD = kinds.record(  # of an answers file, a line after the first
    key=kinds.TEXT, sample=kinds.whole(), answer=kinds.TEXT, response=kinds.TEXT, tokens=kinds.whole(),
    correct=kinds.number(0, 1), truncated=kinds.FLAG, level=_SCALAR, type=_SCALAR,
)  # fmt: skip


def evaluate_to_file(
    model: Qwen3Model,
    tokenizer: ModelTokenizer,
    problems: Sequence[dict],
    path: str | Path,
    device: torch.device | str = "cpu",
    max_new_tokens: int | None = None,
    temperature: float | None = 0.0,
    top_p: float | None = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    limit: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Answer the first `limit` problems `num_samples` times each, and append every batch to a JSON-lines file.

    `max_new_tokens` is 2048 unless given, or less where the model's context is shorter.
    The first line of the file holds the settings. Answers already there are kept and not computed again; the last
    line is dropped if it was cut short. Raises ValueError when the file is something else, or was made with other
    weights, problems or settings, and when a response of `max_new_tokens` would not fit the model's context.
    """
    temperature, top_p = temperature or 0.0, 1.0 if top_p is None else top_p
    if num_samples < 1 or num_samples > 1 and temperature == 0:
        raise ValueError(
            "the number of samples must be at least 1, and just 1 at temperature 0, where answers are all alike; "
            f"got {num_samples} at temperature {temperature}"
        )
    max_new_tokens = check_room(model, tokenizer, problems, max_new_tokens)
    check_sampling(max_new_tokens, temperature, top_p)
    settings = _settings(model, tokenizer, problems, max_new_tokens, temperature, top_p, num_samples, seed)
    chosen = problems[:limit]
    keys = problem_keys(problems)
    path = Path(path)
    kept = resume_answers(path, settings)
    wanted = [(index, sample) for index in range(len(chosen)) for sample in range(num_samples)]
    records = {a: kept[keys[a[0]], a[1]] for a in wanted if (keys[a[0]], a[1]) in kept}
    shown = bar(total=len(wanted), initial=len(records), desc="evaluating", shown=progress)
    batches = answer_batches(
        model, tokenizer, chosen, device, max_new_tokens, temperature, top_p, batch_size, num_samples,
        seed if temperature > 0 else None, set(records),
    )  # fmt: skip
    with path.open("a", encoding="utf-8") as file, shown:
        try:
            for batch in batches:
                lines = [json.dumps({"key": keys[i], **record}, ensure_ascii=False) for (i, _), record in batch.items()]
                file.write("\n".join(lines) + "\n")
                file.flush()
                records |= batch
                shown.update(len(batch))
                shown.set_postfix_str(f"right {sum(r['correct'] for r in records.values()) / len(records):.1%}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"the memory of {device} is too small for batches of {batch_size}; choose a smaller batch size, "
                f"the {len(records)} answers in {path} are kept"
            ) from None
    return Evaluation([records[answer] for answer in wanted])


def problem_keys(problems: Sequence[dict]) -> list[str]:
    """A name for each problem in an answers file: its unique_id where all have different ones, else its index."""
    ids = [str(problem.get("unique_id", "")) for problem in problems]
    return ids if "" not in ids and len(set(ids)) == len(ids) else [str(i) for i in range(len(problems))]


def _settings(model, tokenizer, problems, max_new_tokens, temperature, top_p, num_samples, seed) -> dict:
    """What decides the answers; the number of problems does not, nor, for greedy ones, the batch size."""
    content = json.dumps([[p["problem"], p["answer"]] for p in problems], ensure_ascii=False)
    ids, prompt, stop = stop_ids(tokenizer), render_prompt("{problem}", tokenizer), getattr(tokenizer, "stop", None)
    sampling = {"top_p": top_p, "samples": num_samples, "seed": seed} if temperature > 0 else {}
    return {
        "weights": weights_fingerprint(model),
        "problems": sha256(content.encode()).hexdigest()[:12],
        "chat_format": tokenizer.apply_chat_template,
        **({"stop_ids": list(ids)} if len(ids) > 1 else {}),
        **({"prompt": prompt} if prompt != PROMPTS["default"] else {}),
        **({"stop": stop} if stop else {}),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        **sampling,
    }


@torch.no_grad()
def weights_fingerprint(model: Qwen3Model) -> str:
    """Eight hex digits from a sample of every weight matrix, the same on every device."""
    mark = 0
    for _, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        mark = zlib.crc32(sample.numpy().tobytes(), mark)
    return f"{mark:08x}"


def resume_answers(path: Path, settings: dict) -> dict[tuple[str, int], dict]:
    """The records of an answers file by key and sample; a new file gets its first line, a torn last line goes.

    Raises ValueError when the file is no answers file, is damaged, or has other settings; it is not changed then.
    """
    head = json.dumps({"settings": settings})
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if not lines:
        if content and not head.encode().startswith(content):
            raise ValueError(f"{path} is not a file of answers; choose another output file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror}") from None
        return {}
    found = _settings_line(lines[0])
    if found is None:
        raise ValueError(f"{path} is not a file of answers; choose another output file")
    for name in sorted(settings.keys() | found.keys()):
        if found.get(name) != settings.get(name):
            raise ValueError(
                f"{path} was made with {name} = {kinds.shown(found.get(name))}, not {kinds.shown(settings.get(name))}; "
                "choose another output file, or the settings it was made with"
            )
    records = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if not RECORD.fits(record):
            raise ValueError(f"{path}, line {number}: not a record of an answer; the file is damaged")
        records[record.pop("key"), record["sample"]] = record
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return records


def _settings_line(line: bytes) -> dict | None:
    try:
        settings = parse_json(line)["settings"]
    except (ValueError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None
