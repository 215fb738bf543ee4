"""Regions of the real line: finite unions of intervals and points, with exact ends.

A region is a sorted sequence of cuts; walking along the line, each cut enters or leaves it. A cut
is (value, side): side 0 lies just before the value, side 1 just after it. So [1, 2) is the cuts
(1, 0), (2, 0), the point 3 is (3, 0), (3, 1), and all reals are (-inf, 1), (inf, 0). Neighbours
that touch are one piece from the start: two regions are equal when their cuts are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cmp_to_key

from .answers import Node, Scalar, Sequence, SetOperation
from .evaluate import FINE, NORMAL, Evaluator, close, negligible, vanishes
from .limits import Budget, Rejected

Cut = tuple
_INFINITY = ("c", "inf")
_DEGREES = (("degree", 1),)
_INTERVALS = ("()", "[]", "(]", "[)")


@dataclass(slots=True)
class Region:
    """A set of real numbers."""

    cuts: list[Cut]

    def points(self) -> list | None:
        """The values of a region of single points, else None."""
        starts, ends = self.cuts[::2], self.cuts[1::2]
        if all(order(start[0], end[0]) == 0 for start, end in zip(starts, ends, strict=True)):
            return [start[0] for start in starts]
        return None

    def same(self, other: "Region") -> bool:
        return len(self.cuts) == len(other.cuts) and all(
            a[1] == b[1] and order(a[0], b[0]) == 0
            for a, b in zip(self.cuts, other.cuts, strict=True))


REALS = Region([(-math.inf, 1), (math.inf, 0)])


def order(a, b) -> int:
    """-1, 0 or 1; values that agree to 30 digits are one."""
    if close(a, b):
        return 0
    if type(a) is float or type(b) is float:
        return -1 if a == -math.inf or b == math.inf else 1
    return -1 if _inexact(a) < _inexact(b) else 1


def _inexact(a):
    return NORMAL.mpf(a.numerator) / a.denominator if hasattr(a, "denominator") else a


def interval(low, high, brackets: str) -> Region | None:
    """The interval between two values; None when it is none: (3, 1) or [-inf, 2]."""
    if low == -math.inf and brackets[0] == "[" or high == math.inf and brackets[1] == "]":
        return None
    if low == math.inf or high == -math.inf:
        return None
    between = order(low, high)
    if between > 0 or between == 0 and brackets != "[]":
        return None
    return Region([(low, 0 if brackets[0] == "[" else 1), (high, 1 if brackets[1] == "]" else 0)])


def points(values: list) -> Region:
    """The region of single points."""
    cuts: list[Cut] = []
    for value in sorted(values, key=cmp_to_key(order)):
        if not cuts or order(cuts[-1][0], value):
            cuts += [(value, 0), (value, 1)]
    return Region(cuts)


def combine(a: Region, b: Region, keep: Callable[[bool, bool], bool], budget: Budget) -> Region:
    """The places for which `keep(in a, in b)` holds; one walk along both."""
    cuts: list[Cut] = []
    i = j = 0
    inside = False
    while i < len(a.cuts) or j < len(b.cuts):
        budget.spend(10)
        if i == len(a.cuts):
            first = 1
        elif j == len(b.cuts):
            first = -1
        else:
            first = order(a.cuts[i][0], b.cuts[j][0]) or a.cuts[i][1] - b.cuts[j][1]
        cut = a.cuts[i] if first <= 0 else b.cuts[j]
        i += first <= 0
        j += first >= 0
        now = keep(i % 2 == 1, j % 2 == 1)
        if now != inside:
            cuts.append(cut)
            inside = now
    return Region(cuts)


OPERATIONS: dict[str, Callable[[bool, bool], bool]] = {
    "cup": lambda a, b: a or b,
    "cap": lambda a, b: a and b,
    "\\setminus": lambda a, b: a and not b,
}


def real_value(node: Node, budget: Budget):
    """The value of an end point, or None when it is no real number; -inf and inf are floats."""
    if has_variables(node):
        return None
    value = Evaluator(budget).value(node)
    if isinstance(value, NORMAL.mpc):
        return None
    if value and negligible(value):  # the sine of pi is 0, not a tiny number
        return 0 if vanishes(value, Evaluator(budget, context=FINE).value(node)) else value
    return value


def to_region(meaning, budget: Budget) -> Region | None:
    """The region that an interval, a set of numbers or an operation on them stands for."""
    kind = type(meaning)
    if kind is Region:
        return meaning
    if kind is SetOperation:
        parts = [to_region(part, budget) for part in meaning.parts]
        total = parts[0]
        for part in parts[1:]:
            if total is None or part is None:
                return None
            total = combine(total, part, OPERATIONS[meaning.operator], budget)
        return total
    if kind is not Sequence or not all(type(item) is Scalar and item.unit in (None, _DEGREES)
                                       for item in meaning.items):
        return None
    is_set = meaning.brackets == "{}"
    if not is_set and (meaning.brackets not in _INTERVALS or len(meaning.items) != 2):
        return None
    values = [real_value(item.node, budget) for item in meaning.items]
    if any(value is None or is_set and type(value) is float for value in values):
        return None
    if is_set:
        return points(values)
    low, high = values
    return interval(low, high, meaning.brackets)


def has_variables(node) -> bool:
    if type(node) is tuple and node[0] == "v":
        return True
    return type(node) in (tuple, list) and any(has_variables(part) for part in node)


def variables(node, found: set[str]) -> set[str]:
    """The names of the variables of an expression."""
    if type(node) is tuple and node and node[0] == "v":
        found.add(node[1])
    elif type(node) in (tuple, list):
        for part in node:
            variables(part, found)
    return found


def linear(node: Node) -> tuple[Node, Node] | None:
    """(slope, constant) of an expression that is linear in its variables as written, else None."""
    if not has_variables(node):
        return ("n", 0), node
    operation = node[0]
    if operation == "v":
        return ("n", 1), ("n", 0)
    if operation == "-":
        form = linear(node[1])
        return form and (("-", form[0]), ("-", form[1]))
    if operation == "+":
        forms = []
        for term in node[1]:
            form = linear(term)
            if form is None:
                return None
            forms.append(form)
        return ("+", [form[0] for form in forms]), ("+", [form[1] for form in forms])
    if operation == "*":
        _, factors, divisors = node
        moving = [factor for factor in factors if has_variables(factor)]
        if len(moving) != 1 or any(has_variables(divisor) for divisor in divisors):
            return None
        form = linear(moving[0])
        others = [factor for factor in factors if factor is not moving[0]]
        return form and (("*", [form[0], *others], divisors), ("*", [form[1], *others], divisors))
    return None


def solve(left: Node, right: Node, operator: str, budget: Budget) -> Region | None:
    """Where left < right (or <=, !=) holds, both linear in the one variable; None if they are not.

    Without a variable it holds everywhere, or it is a contradiction. |u| < c is -c < u < c.
    """
    budget.spend(50)
    for inside, bound, joined in ((left, right, "cap"), (right, left, "cup")):
        if inside[:2] == ("fn", "abs") and has_variables(inside) and not has_variables(bound):
            if operator == "!=":
                joined = "cap"
            low, high = ((("-", bound), inside[2]), (inside[2], bound)) if joined == "cap" else \
                ((bound, inside[2]), (inside[2], ("-", bound)))
            a = solve(*low, budget=budget, operator=operator)
            b = solve(*high, budget=budget, operator=operator)
            return None if a is None or b is None else combine(a, b, OPERATIONS[joined], budget)
    if operator == "<" or operator == "<=":
        if left == ("-", _INFINITY) or right == _INFINITY:
            return REALS if operator == "<" else None
    if _INFINITY in (left, right) or ("-", _INFINITY) in (left, right):
        return None
    form = linear(("+", [right, ("-", left)]))
    if form is None:
        return None
    slope, constant = (real_value(part, budget) for part in form)
    if slope is None or constant is None:
        return None
    if not slope:
        if not has_variables(left) and not has_variables(right):
            holds = constant > 0 or not constant and operator == "<="
            if not holds:
                raise Rejected("contradiction")
            return REALS
        return None
    evaluator = Evaluator(budget)
    end = -evaluator.divide(constant, slope)
    if operator == "!=":
        return combine(REALS, points([end]), OPERATIONS["\\setminus"], budget)
    closed = operator == "<="
    if slope > 0:
        return interval(end, math.inf, "[)" if closed else "()")
    return interval(-math.inf, end, "(]" if closed else "()")
