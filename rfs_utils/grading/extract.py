"""Finding the answer in a response. Defined in ch03; ch06 calls it with `fallback=None`."""

import re

from .limits import MAX_CHARS

_MAX_BRACES = 10_000
_BRACE = re.compile(r"[{}]|\\[\s\S]")
_BLANKS = re.compile(r"\s*")
_NUMBER = re.compile(r"-?(?:[0-9]+/[0-9]+"
                     r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
                     r"(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)")
_DIGIT = re.compile("[0-9]")


def extract_final_candidate(text: str, fallback: str | None = "number_then_full") -> str:
    """The answer that a response commits to, or "".

    The last `\\boxed{...}` decides, even when it is not closed. Without a box the fallback does:
    None gives "" (for rewards: no box, no reward), "number_only" the last number in the text,
    "number_then_full" that number or else the whole text.
    """
    if fallback not in (None, "number_only", "number_then_full"):
        raise ValueError(f"unknown fallback: {fallback!r}")
    if not isinstance(text, str):
        return ""
    boxed = last_box(text)
    if boxed:
        return _strip_dollars(boxed)
    if fallback is None:
        return ""
    return _last_number(text) or ("" if fallback == "number_only" else text)


def last_box(text: str) -> str:
    """What the last \\boxed holds, by one linear scan for its closing brace.

    Blanks may stand before the brace; with anything else there, or without an end, it holds
    nothing. Escaped braces (\\{ and \\}) are text and do not count.
    """
    start = text.rfind("\\boxed")
    if start < 0:
        return ""
    start = _BLANKS.match(text, start + len("\\boxed")).end()
    if not text.startswith("{", start):
        return ""
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
    return ""


def _strip_dollars(text: str) -> str:
    """Without the blanks and $ signs around it; a final \\$ is money and stays."""
    text = text.strip().lstrip("$ ")
    while text.endswith(("$", " ")) and not text.endswith("\\$"):
        text = text[:-1]
    return text


def _last_number(text: str) -> str:
    """The last number as written: fraction, decimal, 1,234 or 6.02E-23; "−5" gives "-5".

    Only the end of the text up to its last digit is searched, so that long texts cost nothing.
    """
    backwards = _DIGIT.search(text[::-1])
    if backwards is None:
        return ""
    end = len(text) - backwards.start()
    window = text[max(0, end - MAX_CHARS):end].replace("−", "-")
    found = _NUMBER.findall(window)
    return found[-1] if found else ""
