"""What a value must be: types and ranges of settings, options and fields of files, each declared once."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class SettingError(ValueError):
    """A setting makes no sense; `names` are those that the sentence has, so that others can spell them their way."""

    def __init__(self, text: str, *names: str):
        super().__init__(text)
        self.names = names

    def spelt(self, spell: Callable[[str], str]) -> str:
        """The sentence with its names in another spelling, each where it stands first."""
        text = str(self)
        for name in self.names:
            text = re.sub(rf"\b{name}\b", lambda found: spell(found[0]), text, count=1)
        return text


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test of it."""

    text: str
    fits: Callable[[Any], bool]

    def check(self, name: str, value: object) -> None:
        """SettingError, a ValueError, with one sentence unless the value fits."""
        if not self.fits(value):
            raise SettingError(f"{name} must be {self.text}; got {shown(value)}", name)


def whole(low: int = 0, high: int = 2**53) -> Kind:
    """A whole number in a range, both ends included."""
    return Kind(
        f"a whole number from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float = -1e300, high: float = 1e300) -> Kind:
    """A finite number in a range, both ends included."""
    text = "a finite number" if (low, high) == (-1e300, 1e300) else f"a number from {low:,g} to {high:,g}"
    return Kind(text, lambda value: type(value) in (int, float) and low <= value <= high)


def one_of(*values: object) -> Kind:
    """One of some values; None among them is not told."""
    names = ", ".join(str(value) for value in values if value is not None)
    return Kind(f"one of {names}", lambda value: any(type(value) is type(v) and value == v for v in values))


def optional(kind: Kind, none: str = ", or null") -> Kind:
    """None, or of the kind; `none` is how a text says the first, where it can be written at all."""
    return Kind(f"{kind.text}{none}", lambda value: value is None or kind.fits(value))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list, of a length if one is given, whose items are all of the kind."""
    text = "a list" if length is None else f"a list of {length}"
    return Kind(
        f"{text}, each {kind.text}",
        lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(kind.fits, value)),
    )


def table_of(kind: Kind) -> Kind:
    """An object whose values are all of the kind."""
    return Kind(
        f"an object, each value {kind.text}",
        lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())),
    )


def record(**kinds: Kind) -> Kind:
    """An object with these fields, and maybe others."""
    return Kind(
        f"an object with {', '.join(kinds)}, each of its kind",
        lambda value: isinstance(value, dict) and all(k in value and kind.fits(value[k]) for k, kind in kinds.items()),
    )


def _is_text(value: object) -> bool:
    """Whether it is text that can be written: half a surrogate pair, which JSON can spell, cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


TEXT = Kind("a text", _is_text)
NAME = Kind("a text that is not empty", lambda value: _is_text(value) and value != "" and "\0" not in value)
PROMPT = Kind("a text with {problem} in it", lambda value: NAME.fits(value) and "{problem}" in value)
FLAG = Kind("true or false", lambda value: type(value) is bool)
ANY_NUMBER = Kind("a number", lambda value: type(value) in (int, float))  # what diverged may be infinite or NaN
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def shown(value: object) -> str:
    """A value as it is typed, in a few words where it is long."""
    if type(value) is int and abs(value) >= 10**20:
        return f"a number of {1 + int(value.bit_length() * math.log10(2))} digits"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"  # which may be nested however deep
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
