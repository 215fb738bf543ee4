"""Finding the answer in a response. Defined in ch03; ch06 calls it with `fallback=None`."""

import re

from .limits import MAX_CHARS

_MAX_BRACES = 10_000
_BRACE = re.compile(r"[{}]|\\[\s\S]")
_THINK = re.compile(r"</?think>")
_MAX_MENTIONS = 1_000
# Up to the brace or the number; an empty box and the bare command are only mentioned.
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=[{0-9.\-−])(?!\{\s*\})")
_UNSIGNED = (r"(?:([0-9]+ )?([0-9]+)/([0-9]+)"
             r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
             r"(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)")
# A minus after an operand is a subtraction: 7-5 ends in 5.
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z)\]}])-)?" + _UNSIGNED)
_BARE = re.compile("[-−]?" + _UNSIGNED)
_GOES_ON = re.compile(r"[0-9A-Za-z^_({]|\\[A-Za-z%]")  # \boxed 5x boxes no number
_DIGIT = re.compile("[0-9]")


def extract_final_candidate(text: str, fallback: str | None = "number_then_full") -> str:
    """The answer that a response commits to, or "".

    The last box decides, even when it is not closed: `\\boxed{...}`, `\\fbox{...}`, or `\\boxed 5`
    without braces. A box that is only mentioned (empty, or without a number after it) is none.
    Without a box the fallback does: None gives "" (for rewards: no box, no reward), "number_only"
    the last number in the text, "number_then_full" that number or else the whole text. What stands
    in a thought, between <think> and </think> or the end of the text, is no answer.
    """
    if fallback not in (None, "number_only", "number_then_full"):
        raise ValueError(f"unknown fallback: {fallback!r}")
    if not isinstance(text, str):
        return ""
    spoken = _outside_thoughts(text)
    for part in reversed(spoken):
        boxed = last_box(part)
        if boxed is not None:
            break
    if boxed:
        return _strip_dollars(boxed)
    if fallback is None:
        return ""
    for part in reversed(spoken):
        number = _last_number(part)
        if number:
            return number
    return "" if fallback == "number_only" else spoken[-1]


def _outside_thoughts(text: str) -> list[str]:
    """The stretches of a response outside its thoughts, at least one, maybe empty.

    A </think> without its <think> ends a thought that the prompt began.
    """
    if "think>" not in text:
        return [text]
    parts: list[str] = []
    start, inside = 0, False
    for mark in _THINK.finditer(text):
        if mark[0] == "<think>":
            if not inside:
                parts.append(text[start:mark.start()])
            inside = True
        else:
            if not inside:
                parts.clear()
            start, inside = mark.end(), False
    if not inside:
        parts.append(text[start:])
    return [part for part in parts if part and not part.isspace()] or [""]


def last_box(text: str) -> str | None:
    """What the last \\boxed or \\fbox holds, by one linear scan; None when there is no box.

    Blanks may stand before the brace. A box without an end holds nothing (""). Escaped braces
    (\\{ and \\}) are text and do not count.
    """
    starts = [match.end() for match in BOX.finditer(text)]
    for start in starts[:-_MAX_MENTIONS - 1:-1]:
        if text.startswith("{", start):
            return braced(text, start) or ""
        number = _BARE.match(text, start, start + MAX_CHARS)
        if number and not _GOES_ON.match(text, number.end()):
            return number[0]
    return None


def braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its closing one; None without that one."""
    depth = 0
    for count, brace in enumerate(_BRACE.finditer(text, start)):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1:brace.start()]
        if count > _MAX_BRACES:
            break
    return None


def _strip_dollars(text: str) -> str:
    """Without the blanks and $ signs around it; a final \\$ is money and stays."""
    text = text.strip().lstrip("$ ")
    kept = text.rstrip("$ ")
    return kept + "$" if kept.endswith("\\") and text.startswith("$", len(kept)) else kept


def _last_number(text: str) -> str:
    """The last number as written: 3/4, 3 1/2, 0.5, 1,234 or 6.02E-23; "−5" gives "-5".

    Only the end of the text up to its last digit is searched, so that long texts cost nothing.
    """
    backwards = _DIGIT.search(text[::-1])
    if backwards is None:
        return ""
    end = len(text) - backwards.start()
    window = text[max(0, end - MAX_CHARS):end].replace("−", "-")
    numbers = list(_NUMBER.finditer(window))
    if not numbers:
        return ""
    last = numbers[-1]
    whole, top, bottom = last.groups()
    if whole and int(top) >= int(bottom):  # "3 4/2" is two numbers
        return f"{top}/{bottom}"
    return last[0]
