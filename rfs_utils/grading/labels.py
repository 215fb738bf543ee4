"""The names that values are given: what they say, and in which order they stand for a tuple."""

import re

from .answers import Labelled
from .units import plural_free

# f(x) and f(t) are one function; f(2) and P(A) are values of it, each its own.
_ARGUMENTS = frozenset(["x", "y", "z", "t", "s", "u", "v", "w", "n", "k", "m", "\\theta"])
_UNKNOWNS = frozenset(["x", "y", "z", "n"])
_DIGITS = re.compile("([0-9]+)")
# Tuples whose order is another than the alphabet's: y = mx + b, and spherical coordinates.
_CUSTOMARY = [["m", "b"], ["\\rho", "\\theta", "\\phi"]]


def function_name(tokens: list[tuple]) -> str:
    """The name of f(x), f^{-1}(x), f(2), P(A|B), given its tokens up to the closing bracket."""
    kinds = [kind for kind, _ in tokens]
    opening = kinds.index("(")
    arguments = tokens[opening + 1:]
    if all(kind == "," or kind == "var" and value in _ARGUMENTS for kind, value in arguments):
        arguments = []
    inverse = "^-1" if opening > 1 else ""
    inside = " ".join(str(value or kind) for kind, value in arguments)
    return f"{tokens[0][1]}{inverse}({inside})"


def may_name_the_same(a: Labelled, b: Labelled) -> bool:
    """Whether two names do not contradict each other: area and A, f(x) and y, but not x and y."""
    if a.words != b.words:
        words, other = (a.name, b.name) if a.words else (b.name, a.name)
        letter = other.partition("(")[0]
        return len(letter) != 1 or letter in _UNKNOWNS or \
            any(word.startswith(letter.casefold()) for word in words.split())
    if a.words:
        short, long = sorted((_singular(a.name), _singular(b.name)), key=len)
        return short == long or long.startswith(short + " of ")
    if a.name == b.name:
        return True
    function_a, function_b = "(" in a.name, "(" in b.name
    if function_a == function_b:
        return False
    function, variable = (a.name, b.name) if function_a else (b.name, a.name)
    return function.endswith("()") or function[0].casefold() == variable.casefold()


def in_order(named: list[Labelled]) -> list:
    """The values as a tuple: in the alphabetical order of their names, but (m, b) of a line."""
    names = [item.name for item in named]
    if len(set(names)) != len(names):
        return []
    for customary in _CUSTOMARY:
        if set(names) == set(customary):
            return [named[names.index(name)].value for name in customary]
    return [item.value for item in sorted(named, key=lambda item: _alphabetical(item.name))]


def _alphabetical(name: str) -> tuple:
    """a_2 stands before a_10, and \\theta under t."""
    parts = _DIGITS.split(name.replace("\\", "").casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), name


def _singular(words: str) -> str:
    return " ".join(plural_free(word) for word in words.split() if word not in ("the", "a", "an"))
