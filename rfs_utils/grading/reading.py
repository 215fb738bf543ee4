"""Understanding one cleaned answer: special notations first, then the parser, else plain text."""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from .answers import Based, Choice, Clock, Scalar, SetOperation, Text
from .arithmetic import NUMBER_WORDS, number
from .compare import Comparison
from .limits import MAX_DIGITS, Rejected
from .normalize import open_fonts, plain, text_key
from .parser import parse

# Most answers are plain numbers and fractions; reading these needs no parser.
_SIMPLE = re.compile(r"(-?)(?:([0-9]+(?:\.[0-9]+)?)|([0-9]+)/([0-9]+)"
                     r"|\\frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\})")


class Reading(NamedTuple):
    """An answer as far as it was understood: its plain text and its meaning."""

    plain: str
    meaning: Any


def read(text: str, grouped: bool = True, labelled: bool = True) -> Reading:
    """Understand a cleaned answer; what is not an expression becomes Text with the reason.

    `grouped` says whether 300,200 is one number or two, `labelled` whether the letter of a choice
    may stand in front.
    """
    simple = _SIMPLE.fullmatch(text)
    if simple and len(text) < MAX_DIGITS:
        sign, digits, top, bottom, top_of_frac, bottom_of_frac = simple.groups()
        node = ("n", number(digits)) if digits else \
            ("*", [("n", int(top or top_of_frac))], [("n", int(bottom or bottom_of_frac))])
        return Reading(text, Scalar(("-", node) if sign else node))
    opened = open_fonts(text)
    words = plain(opened)
    meaning = _special(text, opened, labelled)
    if meaning is None:
        try:
            meaning = Comparison().resolve(_reals(opened) or parse(text, grouped))
        except Rejected as rejected:
            meaning = Text(text_key(words), rejected.code)
    return Reading(words, meaning)


# The reference answers of a data set come back in every epoch.
read_gold = lru_cache(maxsize=1024)(read)

_INTRODUCED = re.compile(r"(?:the )?(?:answer |option |choice ){1,2}(?:is )?\(?([a-hj])\)?", re.I)
_WRAPPED_LETTER = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf) ?\{ ?\(?([A-HJ])\)? ?\}")
_BRACKETED = re.compile(r"\(([A-HJa-hj])\)|([A-HJ])\)")
_WITH_CONTENT = re.compile(r"(?:(?:answer|option|choice):? )?(?:\(([A-HJ])\)|([A-HJ])[).]|([A-HJ]):(?= ))"
                           r"( ?)([A-Za-z0-9\\$(\[|.\-].*)", re.I)
_OTHER_CHOICE = re.compile(r"\([A-Ja-j]\)|\b[B-HJ]\b|\b(?:or|and|not)\b|[A-Z]$")
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-9]{2})(?::([0-9]{2}))?)? ?(?:([ap])\.? ?m)?", re.I)
_FULL_HOUR = re.compile(r"([0-9]{1,2}) ?o'clock(?: ?([ap])\.? ?m)?", re.I)
_NAMED_HOURS = {"noon": "p", "12 noon": "p", "midnight": "a", "12 midnight": "a"}
_REALS = re.compile(r"(?:(?:for|\\forall) ?)?(?:[a-z] ?(?:is|can be|may be|\\in) ?)?"
                    r"(?:(?:the )?set of )?(?:(?:all|any|every) )?(?:the )?"
                    r"(?:(positive|negative|non-?negative|non-?positive) )?"
                    r"(?:\\mathbb ?(?:\{R\}|R)|real(?:s| numbers?| values?(?: of)?| line)"
                    r"|real(?= [a-z]$))(?: [a-z])?"
                    r"(?:,? ?(?:except|excluding|other than|but not|but)(?: for)? ([^{}]+)"
                    r"|(?: (?:such that|where|with) [a-z])? ?\\neq? ?([^{}]+))?", re.I)
_SIGNED = {"": "(-\\infty,\\infty)", "positive": "(0,\\infty)", "negative": "(-\\infty,0)",
           "nonnegative": "[0,\\infty)", "nonpositive": "(-\\infty,0]"}
_EXCLUDED_NAME = re.compile(r"[a-z] ?(?:=|\\neq?) ?")
_SPELLED_BASE = re.compile(r"\(?([0-9][0-9A-F]*)\)? ?(?:\(?(?:in )?base[ -]?|_ ?\{?)"
                           r"([0-9]+|[a-z]+)[)}]?", re.I)
_ORDINAL = re.compile(r"([0-9]+) ?\^? ?\{?(st|nd|rd|th)\}?")
_SHORT_WORDS = frozenset("am an as at be by do go he if in is it me my no of on or so to up us "
                         "we".split())


def _special(text: str, opened: str, labelled: bool):
    """Answers with a notation of their own: choice letters, times, spelled bases, ordinals."""
    if opened.isdigit():
        return None
    if opened.casefold() in _NAMED_HOURS:
        return Clock((12, 0, 0), _NAMED_HOURS[opened.casefold()])
    if opened[:1].isdigit() or opened[:2].strip("(").isdigit():
        return _clock(opened) or _spelled_base(opened) or _ordinal(opened)
    if opened.casefold() in _SHORT_WORDS:  # "no" is a word, not the product of n and o
        return Text(opened.casefold())
    return _choice(text, opened, labelled)


def _reals(opened: str):
    """All real numbers in words, perhaps of one sign, perhaps except some."""
    match = _REALS.fullmatch(opened)
    if match is None:
        return None
    sign, excluded = match[1], match[2] or match[3]
    reals = parse(_SIGNED[(sign or "").lower().replace("-", "")])
    if not excluded:
        return reals
    return SetOperation("\\setminus", [
        reals, parse("\\{" + _EXCLUDED_NAME.sub("", excluded) + "\\}")])


def _choice(text: str, opened: str, labelled: bool) -> Choice | None:
    """(C), C), Option C, \\text{C}, or the letter followed by its content: (C) 42.

    A single bare letter stays a variable; it equals the choice all the same.
    """
    for match in (_BRACKETED.fullmatch(opened), _INTRODUCED.fullmatch(opened),
                  _WRAPPED_LETTER.fullmatch(text)):
        if match:
            return Choice(next(filter(None, match.groups())).lower())
    match = _WITH_CONTENT.fullmatch(opened) if labelled else None
    if match is None:
        return None
    *letters, blank, content = match.groups()
    letter = next(filter(None, letters))
    if _OTHER_CHOICE.search(content):  # two letters are a hedge
        return None
    usual = blank and (letter.isupper() or match[1] and content[0].isdigit())
    if not blank and not content[0].isdigit() and not text.startswith("\\"):
        return None  # (A)\sqrt2 is a product, \textbf{(A)}\sqrt2 is none
    if not blank and match[1] and letter.islower():
        return None
    written = text[text.index(content):] if content in text else content
    reading = read(written, labelled=False)
    if isinstance(reading.meaning, Text) and not usual:
        return None
    return Choice(letter.lower(), reading)


def _clock(opened: str) -> Clock | None:
    match = _FULL_HOUR.fullmatch(opened)
    if match:
        return Clock((int(match[1]), 0, 0), (match[2] or "").lower())
    match = _CLOCK.fullmatch(opened)
    if match is None:
        return None
    hours, minutes, seconds, half = match.groups()
    if minutes is None and (not half or not 1 <= int(hours) <= 12):
        return None  # a number
    return Clock((int(hours), int(minutes or 0), int(seconds or 0)), (half or "").lower())


def _spelled_base(opened: str) -> Based | Scalar | None:
    """52 base 8, 52 (base eight), (52)_8."""
    match = _SPELLED_BASE.fullmatch(opened)
    if match is None:
        return None
    base = NUMBER_WORDS.get(match[2].lower(), 0)
    if match[2].isdigit() and len(match[2]) < 3:
        base = int(match[2])
    if base == 10 and match[1].isdigit():
        return Scalar(("n", int(match[1])))
    return Based(match[1].upper().lstrip("0") or "0", base) if 2 <= base <= 36 else None


def _ordinal(opened: str) -> Scalar | None:
    """5th, 5^{\\text{th}}: a number whose unit is its place."""
    match = _ORDINAL.fullmatch(opened)
    if match is None or len(match[1]) > MAX_DIGITS:
        return None
    number = int(match[1])
    ending = "th" if number % 100 in (11, 12, 13) else \
        {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return Scalar(("n", number), (("ordinal", 1),)) if match[2] == ending else None
