"""What an answer can be. Different types are unequal unless the policy in `compare` says otherwise.

A scalar expression is a tree of plain tuples, (operation, operands...):

    ("n", 5)  ("v", "x")  ("c", "pi")  ("+", [terms])  ("-", a)  ("*", [factors], [divisors])
    ("^", a, b)  ("root", k, a)  ("fn", "sin", a)  ("log", base, a)  ("!", a)  ("binom", n, k)
    ("pm", index, sign)
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Node = tuple


@dataclass(slots=True)
class Scalar:
    """One number or expression, with the unit that follows it."""

    node: Node
    unit: tuple | None = None
    choices: int = 0  # how many independent plus-minus signs the tree holds


@dataclass(slots=True)
class Sequence:
    """Items in brackets. "()", "[)" and the like are ordered (points, intervals); "{}" is a set
    and "" a bare list, and both are unordered."""

    brackets: str
    items: list


@dataclass(slots=True)
class SetOperation:
    """Sets joined by one operator: cup, cap or setminus."""

    operator: str
    parts: list


@dataclass(slots=True)
class Matrix:
    kind: str
    rows: list[list]


@dataclass(slots=True)
class Relation:
    """Sides joined by = < <= > >= != approx in, as written."""

    operators: list[str]
    sides: list


@dataclass(slots=True)
class Labelled:
    """A value with the name it was given: x = 5, f(x) = 2x + 3, x in [1, 2]."""

    name: str
    value: Any
    words: bool = False  # the name is no variable or function but words: area = 12

    def is_equation(self) -> bool:
        """Whether it can be read as name - value = 0."""
        return type(self.value) is Scalar and not self.words and "(" not in self.name

    def equation(self) -> Node:
        return ("+", [("v", self.name), ("-", self.value.node)])


@dataclass(slots=True)
class Label:
    """The name in front of an equals sign, before it is known what it names."""

    name: str
    words: bool


@dataclass(slots=True)
class Approximation:
    """A written number after an approximately sign; `place` is its last digit, relative to it.

    With two decimals or more it may be cut off instead of rounded.
    """

    value: Any
    place: Fraction
    cut_off: bool


@dataclass(slots=True)
class Equation:
    """left - right = 0, where neither side is merely a name."""

    node: Node


@dataclass(slots=True)
class Inequality:
    """node > 0, or node >= 0 when not strict."""

    node: Node
    strict: bool


@dataclass(slots=True)
class Based:
    """Digits with a base: 52_8."""

    digits: str
    base: int


@dataclass(slots=True)
class Clock:
    """A time of day; `half` is "a", "p" or "" when not said."""

    time: tuple[int, ...]
    half: str


@dataclass(slots=True)
class Choice:
    """The letter of a multiple-choice answer, in lower case, and what was written after it."""

    letter: str
    content: Any = None


@dataclass(slots=True)
class Text:
    """Words, or anything that is not an expression (then `code` says why)."""

    key: str
    code: str = ""
