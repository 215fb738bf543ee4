"""Conditions on one variable become regions: x > 2, 0 < x < 36, x \\ne 9."""

from .answers import Labelled, Relation, Scalar, Sequence
from .limits import Budget
from .regions import (
    OPERATIONS,
    REALS,
    Region,
    combine,
    points,
    real_value,
    solve,
    to_region,
    variables,
)

FLIPPED = {">": "<", ">=": "<=", "<": "<", "<=": "<="}


def solve_relation(operators: list[str], sides: list, budget: Budget) -> Labelled | None:
    """Where inequalities that are linear in one variable hold; None for any others."""
    if operators == ["!="] and lone_name(sides[0]) and type(sides[1]) is Sequence and \
            sides[1].brackets in ("", "{}"):  # x \ne \pm 1
        region = all_but(sides[1].items, budget)
        return None if region is None else Labelled(lone_name(sides[0]), region)
    if not set(operators) <= {*FLIPPED, "!="} or \
            "!=" in operators and len(operators) > 1 or \
            not all(type(side) is Scalar for side in sides):
        return None
    names: set[str] = set()
    for side in sides:
        variables(side.node, names)
    if len(names) != 1:
        return None
    if operators[0] in (">", ">="):
        sides, operators = sides[::-1], operators[::-1]
        if not set(operators) <= {">", ">="}:
            return None
    elif not set(operators) <= {"<", "<=", "!="}:
        return None
    total = REALS
    for left, operator, right in zip(sides, operators, sides[1:], strict=False):
        part = solve(left.node, right.node, FLIPPED.get(operator, operator), budget)
        if part is None:
            return None
        total = combine(total, part, OPERATIONS["cap"], budget)
    return Labelled(names.pop(), total) if total.cuts else None


def join(sequence: Sequence, items: list, budget: Budget) -> Labelled | Region | None:
    """Conditions on one variable: `x > 1, x < 3` holds where all do, with "or" where one does.

    Numbers that follow an unequal sign are excluded as well: x \\ne 1, 2.
    """
    if not any(type(item) is Region or type(item) is Labelled and type(item.value) is Region
               for item in items) or sequence.brackets == "and or":
        return None
    if len(items) == 1:
        return items[0]
    either = sequence.brackets == "or"
    unequal = [type(written) is Relation and written.operators == ["!="]
               for written in sequence.items]
    if either and any(unequal):  # x \ne 1 or x \ne 2 means both, as written it says nothing
        return None
    names = {item.name for item in items if type(item) is Labelled}
    if len(names) > 1 or any(type(item) is Labelled and item.words for item in items):
        return None
    total, excludes = None, False
    for is_unequal, item in zip(unequal, items, strict=True):
        if type(item) is Scalar and excludes:
            part = all_but([item], budget)
            operator = "cap"
        else:
            excludes = is_unequal
            value = item.value if type(item) is Labelled else item
            if type(value) is Scalar and either and type(item) is Labelled:
                value = Sequence("{}", [value])
            if type(item) is not Labelled and total is not None:
                return None
            part = to_region(value, budget)
            operator = "cup" if either else "cap"
        if part is None:
            return None
        total = part if total is None else \
            combine(total, part, OPERATIONS[operator], budget)
    assert total is not None  # there are two items or more
    if not total.cuts:  # x < 1, x > 3
        return None
    return as_meaning(total, names.pop() if names else "")


def all_but(numbers: list, budget: Budget) -> Region | None:
    """All reals but some numbers."""
    values = [real_value(number.node, budget) if type(number) is Scalar else None
              for number in numbers]
    if any(value is None or type(value) is float for value in values):
        return None
    return combine(REALS, points(values), OPERATIONS["\\setminus"], budget)


def as_meaning(region: Region, name: str):
    """A region with its name; one of single points is the set of them."""
    single = region.points()
    meaning = region if single is None else \
        Sequence("{}", [Scalar(("n", value)) for value in single])
    return Labelled(name, meaning) if name else meaning


def lone_name(side) -> str:
    """The name of the variable that is all there is on this side, or ""."""
    return side.node[1] if type(side) is Scalar and side.node[0] == "v" and not side.unit else ""
