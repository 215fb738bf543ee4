"""Problem sets and prompts: the generated tiny world, and files in the same JSON fields as MATH.

A problem is a dictionary with MATH's fields: problem, answer, level, type, solution, unique_id.
"""

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .files import parse_json, write_atomically
from .files.kinds import SettingError, shown
from .hub.download import download_first
from .tokenizer import Tokenizer, set_prompt

PROMPTS = {  # by name: texts with {problem} in them
    name: (Path(__file__).parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")
    for name in ("default", "few-shot")
}
MAX_PROMPT = 2**16  # bytes
CHAT = ("auto", "on", "off")  # whether a prompt goes into the chat format; auto: as the model's directory says
FIELDS = ("problem", "answer", "level", "type", "solution", "unique_id")
TRAIN_LEVELS = (1, 2, 3, 4, 5)
MIXED_LEVELS = (2, 4, 6, 8)  # easy ones and ones that pre-training has not shown
HARDER_LEVELS = (6, 7, 8)  # never in reinforcement learning; 8 not even in pre-training
MAX_LEVEL = 11  # twelve events, one for each month
MAX_TOTAL = 99

NAMES = {"Tom": "he", "Sam": "he", "Ben": "he", "Ali": "he", "Mia": "she", "Eva": "she", "Ann": "she", "Zoe": "she"}
ITEMS = ("coins", "apples", "cards", "shells", "books", "stamps", "beads", "pens")
GAINS = ("{who} finds {n} more", "{who} buys {n} more", "{who} gets {n} more")
LOSSES = ("{who} loses {n}", "{who} sells {n}", "{who} gives away {n}")
DOUBLE = "the number doubles"
# fmt: off
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
# fmt: on


class Story(NamedTuple):
    """A start, and what happened in consecutive months: events such as "+5", "-3" or "*2"."""

    start: int
    events: tuple[str, ...]
    first_month: int = 0

    def months(self) -> list[str]:
        """The month of each event."""
        return [MONTHS[(self.first_month + i) % 12] for i in range(len(self.events))]

    def equations(self) -> list[str]:
        """One for each event: ["7+5=12", "12-3=9"]. Doubling is written 9+9=18."""
        total, equations = self.start, []
        for event in self.events:
            sign, n = event[0], int(event[1:])
            if sign == "*":
                sign, n = "+", total
            new = total + n if sign == "+" else total - n
            equations.append(f"{total}{sign}{n}={new}")
            total = new
        return equations

    def steps(self) -> str:
        """The worked solution without the final answer: one line for each month."""
        return "\n".join(f"{month}:{equation}" for month, equation in zip(self.months(), self.equations(), strict=True))

    def answer(self) -> str:
        """The final number."""
        return self.equations()[-1].split("=")[1]

    def split(self) -> str:
        """A fifth of all stories belong to the test side. The equations alone decide it, never a seed, a name
        or a month, so that no choice of arguments can make the two sides overlap."""
        return "test" if zlib.crc32("\n".join(self.equations()).encode()) % 5 == 0 else "train"


def render_prompt(prompt: str, tokenizer: Tokenizer | None = None) -> str:
    """The text put before the model for a problem: the tokenizer's own prompt with the problem in it, or the default.

    The default, prompts/default.txt, is one fixed instruction, the problem, and "Answer:".
    """
    return (getattr(tokenizer, "prompt", None) or PROMPTS["default"]).replace("{problem}", prompt)


def ask_as(tokenizer: Tokenizer, prompt: str | None, stop: str | None, chat: str | None = None) -> None:
    """`set_prompt` where a prompt, a stop text or a chat format, one of CHAT, is given.

    A prompt without a stop text has none; the others alone go with the prompt that the tokenizer has.
    """
    if prompt or stop or chat not in (None, "auto"):
        kept = {name: getattr(tokenizer, name, None) for name in ("prompt", "stop", "chat")}
        given = kept["chat"] if chat in (None, "auto") else chat == "on"
        set_prompt(tokenizer, prompt or kept["prompt"], stop if prompt or stop else kept["stop"], given)


def load_prompt(prompt: str) -> str:
    """The text of a prompt: a name of PROMPTS, a UTF-8 file, or the text itself, known by its {problem}.

    A file's last line break is not part of it. ValueError for another name, and for a file without {problem}, which
    can stand in it more than once.
    """
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if "{problem}" in prompt:
        return prompt
    try:
        with open(prompt, "rb") as file:
            content = file.read(MAX_PROMPT + 1)
        text = content[:MAX_PROMPT].decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except FileNotFoundError:
        known = ", ".join(PROMPTS)
        raise ValueError(
            f"unknown prompt {shown(prompt)}: known names are {known}, or the path of a text with {{problem}} in it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read the prompt {shown(prompt)}: {reason}") from None
    if len(content) > MAX_PROMPT:
        raise ValueError(
            f"the prompt {prompt} has more than {MAX_PROMPT:,} bytes; expected a short text with {{problem}}"
        )
    if "{problem}" not in text or "\0" in text:
        raise ValueError(f"the prompt {prompt} must be a text with {{problem}} in it, where the problem is to stand")
    return text


# ------------------------------------------------------------------ the tiny world


def _draw_story(rng: random.Random, num_events: int, kinds: str = "++--*") -> Story:
    """A story in which every total is in 0..99."""
    total = start = rng.randint(2, 20)
    events: list[str] = []
    while len(events) < num_events:
        kind = rng.choice(kinds)
        n = 2 if kind == "*" else rng.randint(1, 9)
        new = {"+": total + n, "-": total - n, "*": total * 2}[kind]
        if 0 <= new <= MAX_TOTAL and new != total:
            events.append(f"{kind}{n}")
            total = new
    return Story(start, tuple(events), rng.randrange(12))


def _tell(rng: random.Random, story: Story) -> str:
    """The story in words."""
    name, item = rng.choice(list(NAMES)), rng.choice(ITEMS)
    sentences = [f"{name} has {story.start} {item}."]
    for month, event in zip(story.months(), story.events, strict=True):
        form = DOUBLE if event[0] == "*" else rng.choice(GAINS if event[0] == "+" else LOSSES)
        sentences.append(f"In {month} {form.format(who=NAMES[name], n=event[1:])}.")
    return " ".join([*sentences, f"How many {item} does {name} have now?"])


def tiny_stories(rng: random.Random, split: str, levels: Sequence[int]) -> Iterator[tuple[str, Story]]:
    """Endless stories of one side, levels in turn, each as a problem's text and the story itself."""
    while True:
        for level in levels:
            story = _draw_story(rng, level + 1)
            while story.split() != split:
                story = _draw_story(rng, level + 1)
            yield _tell(rng, story), story


def _check_generated(num_problems: int, split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; known splits are 'train' and 'test'")
    if num_problems < 1:
        raise ValueError(f"num_problems must be at least 1, got {num_problems}")


def generate_tiny_problems(
    num_problems: int, split: str = "train", levels: Sequence[int] = TRAIN_LEVELS, seed: int = 0
) -> list[dict]:
    """Word problems of the tiny world, levels in turn, no story twice.

    A level-k problem has k + 1 events. `split` is "train" or "test": the two never share a story,
    whatever the seeds. Raises ValueError for an unknown split, a bad count or a bad level.
    """
    _check_generated(num_problems, split)
    if not levels or not all(isinstance(k, int) and 1 <= k <= MAX_LEVEL for k in levels):
        raise ValueError(f"levels must be whole numbers from 1 to {MAX_LEVEL}, got {list(levels)}")
    stories = {level: tiny_stories(random.Random(f"{split}-{level}-{seed}"), split, [level]) for level in levels}
    seen: set[tuple] = set()
    problems = []
    for index in range(num_problems):
        level = levels[index % len(levels)]
        for _ in range(10_000):
            text, story = next(stories[level])
            if tuple(story.equations()) not in seen:
                break
        else:
            raise ValueError(f"level {level} has too few different {split} stories for {num_problems} problems")
        seen.add(tuple(story.equations()))
        problems.append(
            {
                "problem": text,
                "answer": story.answer(),
                "level": f"Level {level}",
                "type": "Doubling" if "*2" in story.events else "Adding and taking away",
                "solution": f"{story.steps()}\n\\boxed{{{story.answer()}}}",
                "unique_id": f"{split}/{seed}/{index + 1}",
            }
        )
    return problems


def generate_stories(num_problems: int, split: str = "train", events: int = 1, seed: int = 0) -> list[dict]:
    """The tiny world's stories in plain sentences, without months and doubling, for a language model; no text twice.

    "Tom has 4 pens. Tom finds 2 more. How many pens does Tom have now?" has one event. Splits and errors are those of
    `generate_tiny_problems`.
    """
    _check_generated(num_problems, split)
    if not 1 <= events <= MAX_LEVEL:
        raise ValueError(f"events must be a whole number from 1 to {MAX_LEVEL}, got {events}")
    rng = random.Random(f"stories-{split}-{events}-{seed}")
    problems: dict[str, dict] = {}
    for _ in range(100 * num_problems):
        story = _draw_story(rng, events, "+-")
        if story.split() != split:
            continue
        name, item = rng.choice(list(NAMES)), rng.choice(ITEMS)
        forms = [rng.choice(GAINS if event[0] == "+" else LOSSES) for event in story.events]
        told = [f"{form.format(who=name, n=event[1:])}." for form, event in zip(forms, story.events, strict=True)]
        text = " ".join([f"{name} has {story.start} {item}.", *told, f"How many {item} does {name} have now?"])
        if text in problems:
            continue
        problems[text] = {
            "problem": text,
            "answer": story.answer(),
            "level": f"Level {events}",
            "type": "Adding and taking away",
            "solution": f"{'. '.join(story.equations())}. \\boxed{{{story.answer()}}}",
            "unique_id": f"stories-{events}/{split}/{seed}/{len(problems) + 1}",
        }
        if len(problems) == num_problems:
            return list(problems.values())
    raise ValueError(f"there are too few different {split} stories of {events} events for {num_problems} problems")


def generated(data: str, num_problems: int, split: str, seed: int = 0) -> list[dict]:
    """Problems of a name in GENERATED."""
    if data in TINY:
        return generate_tiny_problems(num_problems, split, TINY[data], seed)
    return generate_stories(num_problems, split, int(data.removeprefix("stories-")), seed)


# ------------------------------------------------------------------ problem files


def load_problems(path: str | Path) -> list[dict]:
    """Read problems from a JSON list or a JSON-lines file.

    Raises ValueError, naming the file and the index or line, when the file is not such a list or when a
    problem lacks "problem" or "answer".
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the problem file {path}: {error}") from None
    if text.lstrip().startswith("["):
        try:
            rows = list(enumerate(parse_json(text)))
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from None
        where = "problem with index"
    else:
        rows, where = [], "line"
        # Not splitlines(), which also cuts at characters that JSON allows inside a text.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append((number, parse_json(line, number)))
                except ValueError as error:
                    raise ValueError(f"{path}, {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no problems; expected a JSON list or one JSON object a line")
    for number, row in rows:
        for field in ("problem", "answer"):
            value = row.get(field) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{path}, {where} {number}: the field {field!r} must be a non-empty text")
    return [row for _, row in rows]


MATH_TRAIN_URLS = (
    "https://raw.githubusercontent.com/rasbt/math_full_minus_math500/refs/heads/main/math_full_minus_math500.json",
    "https://f001.backblazeb2.com/file/reasoning-from-scratch/MATH/math_full_minus_math500.json",
)
MATH500_URLS = (
    "https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/main/test.jsonl",
    "https://raw.githubusercontent.com/rasbt/reasoning-from-scratch/main/ch03/01_main-chapter-code/math500_test.json",
)


def load_math_train(
    local_path: str | Path = "math_train.json",
    save_copy: bool = True,
    urls: Sequence[str] = MATH_TRAIN_URLS,
    **download_options,
) -> list[dict]:
    """The 12,000 problems of MATH that are not in MATH-500: from a local file, or else downloaded and kept there.

    `urls` are tried in turn; `download_options` are those of `download.download_bytes`. Raises ValueError with one
    sentence when a file is damaged, has another number of problems, or cannot be downloaded.
    """
    return _load_math("MATH's training problems", 12_000, Path(local_path), save_copy, urls, download_options)


def load_math500_test(
    local_path: str | Path = "math500_test.json",
    save_copy: bool = True,
    urls: Sequence[str] = MATH500_URLS,
    **download_options,
) -> list[dict]:
    """The 500 problems of MATH-500, kept for evaluation; arguments and errors as in `load_math_train`."""
    return _load_math("MATH-500", 500, Path(local_path), save_copy, urls, download_options)


def _load_math(
    what: str, count: int, path: Path, save_copy: bool, urls: Sequence[str], download_options: dict
) -> list[dict]:
    def check(content: bytes) -> list[dict]:
        return parse_math(content, count)

    if path.exists():
        try:
            return check(path.read_bytes())
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{path} is not {what}: {error}; move it away to download it again, or give another local_path"
            ) from None
    instead = f"copy {urls[0]} to {path} from another machine"
    problems = download_first(urls, check, what, instead, **download_options)
    if save_copy:
        write_atomically(path, json.dumps(problems, indent=2, ensure_ascii=False).encode())
    return problems


def parse_math(content: bytes, count: int) -> list[dict]:
    """Problems from a JSON list or JSON lines; ValueError unless there are `count`, each with problem and answer."""
    try:
        if content.lstrip().startswith(b"["):
            problems = parse_json(content)
        else:
            problems = [parse_json(line) for line in content.splitlines() if line.strip()]
    except ValueError:
        raise ValueError("it is not JSON, or was cut short") from None
    for index, problem in enumerate(problems):
        if not isinstance(problem, dict) or not all(isinstance(problem.get(k), str) for k in ("problem", "answer")):
            raise ValueError(f"the problem with index {index} lacks the text of 'problem' or 'answer'")
    if len(problems) != count:
        raise ValueError(f"it holds {len(problems):,} problems where {count:,} are expected")
    return problems


TINY = {"tiny": TRAIN_LEVELS, "tiny-mixed": MIXED_LEVELS}
MOST_GENERATED = 5000  # held-out stories asked at once: tiny has not many more at level 1
GENERATED = (*TINY, "stories-1", "stories-2")  # the number is that of events
PROBLEM_SETS = {"math500": (load_math500_test, "math500_test.json"), "math-train": (load_math_train, "math_train.json")}


def problem_set(data: str, split: str = "train", limit: int | None = None) -> list[dict]:
    """The problems that a name (of PROBLEM_SETS or GENERATED) or the path of a problem file stands for.

    `split` and `limit` matter for those that are generated. ValueError for anything else.
    """
    if data in GENERATED and limit and limit > MOST_GENERATED:
        raise SettingError(f"limit must be at most {MOST_GENERATED:,} of the generated {data}; got {limit:,}", "limit")
    if data in GENERATED:
        return generated(data, max(500, limit or 0), split)
    if data in PROBLEM_SETS:
        load, file = PROBLEM_SETS[data]
        return load(file)
    if not Path(data).is_file():
        known = ", ".join([*PROBLEM_SETS, *GENERATED])
        raise ValueError(f"unknown data {data!r}: known names are {known}, or the path of a problem file")
    return load_problems(data)
