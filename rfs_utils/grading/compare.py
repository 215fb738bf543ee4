"""Whether two answers say the same: the policy.

First `resolve` turns what was written into what it means: plus-minus signs become two values, a
chain such as `x = 2 + 3 = 5` is checked and becomes x = 5, inequalities in one variable become
intervals. Then `Comparison.equal` compares two meanings. Types must match, except that

* a value may carry a name or not: `x = 5`, `f(x) = 2x + 3` and `y = 2x + 3` equal their value;
* a unit counts only when both sides have one; a percentage also equals its fraction or its number;
* a region of the line may be written as intervals, as inequalities or as an operation on sets
  (see `regions`), a set of solutions as a bare list;
* named values in a list (`a = 4, b = 9`) may stand for a tuple, in the order of their names;
* names that contradict each other are different (see `labels`);
* an exact value may be followed by what it is approximately;
* digits without their base equal the digits with it, but another base does not;
* the letter of a choice may be upper or lower case.
"""

from itertools import product as combinations

from .answers import (
    Approximation,
    Choice,
    Clock,
    Equation,
    Inequality,
    Label,
    Labelled,
    Matrix,
    Node,
    Relation,
    Scalar,
    Sequence,
    SetOperation,
    Text,
)
from .conditions import FLIPPED, as_meaning, join, lone_name, solve_relation
from .evaluate import FINE, NORMAL, POINTS, Evaluator, close, negligible, signed_samples, vanishes
from .labels import in_order, may_name_the_same
from .limits import MAX_BITS, MAX_VALUES, Budget, Rejected
from .regions import Region, has_variables, to_region
from .rounding import rounds_to
from .whole_numbers import ENOUGH_POINTS, at_whole_numbers, counts

_PERCENT = (("percent", 1),)
_INFINITY = ("c", "inf")
_UNORDERED = ("", "{}")
_DOTS = Text("...")
_LISTS = ("", "and", "or", "and or")
_ORDERED = ("()", "[]", "(]", "[)", "<>")
_TEMPERATURES = {(("celsius", 1),): "C", (("fahrenheit", 1),): "F", (("kelvin", 1),): "K"}


class Comparison:
    """Compares values, paying for the work from one budget."""

    def __init__(self, budget: Budget | None = None):
        self.budget = budget or Budget()

    # -- numbers and expressions -------------------------------------------------------------------

    def same_value(self, a: Node, b: Node) -> bool:
        """Equal at every sample point; one point is enough when there are no variables."""
        if a == b:
            return self.is_defined(a)
        for point in POINTS:
            evaluator = Evaluator(self.budget, point)
            if not self.same_at(a, b, evaluator):
                # sqrt(1-x)^3 and sqrt((1-x)^3) differ where they are complex, and only there.
                complex_only = evaluator.sign_matters and not evaluator.is_real
                return complex_only and self.same_for_all_signs(a, b, evaluator, enough=2)
            if not evaluator.has_variables:
                return True
        return not evaluator.sign_matters or self.same_for_all_signs(a, b, evaluator)

    def same_for_all_signs(self, a: Node, b: Node, found: Evaluator, enough: int = 0) -> bool:
        """Equal wherever both are real numbers: not sqrt(x^2) and x, but sqrt(x)^2 and x.

        Where there are bars the places where a side is real count, too: ln|x| is more than ln x.
        `found` is the evaluation at a positive point, which tells the names and the bars; `enough` is the number of
        places where both must be real.
        """
        compared = 0
        for values in signed_samples(found.names):
            pair = self.real_values(a, b, values)
            if pair is None:
                continue
            (value_a, real_a), (value_b, real_b) = pair
            if not (real_a and real_b):
                if found.has_bars and real_a != real_b:
                    return False
                continue
            compared += 1
            if close(value_a, value_b, MAX_BITS):
                continue
            pair = self.real_values(a, b, values, FINE)
            if pair is None:
                continue
            (value_a, _), (value_b, _) = pair
            if not (close(value_a, value_b, MAX_BITS)
                    or negligible(value_a) and negligible(value_b)):
                return False
        return compared >= enough

    def real_values(self, a: Node, b: Node, values: dict, context=NORMAL):
        """Both values, each with whether it is a real number; None where one is undefined."""
        found = []
        for node in (a, b):
            evaluator = Evaluator(self.budget, 0, context, values)
            try:
                found.append((evaluator.value(node), evaluator.is_real))
            except Rejected as rejected:
                if rejected.code == "too_much_work":
                    raise
                return None
        return found

    def same_expression(self, a: Node, b: Node) -> bool:
        """`same_value`; n! and the like are compared at whole numbers."""
        try:
            return self.same_value(a, b)
        except Rejected as rejected:
            if rejected.code == "too_much_work" or not (counts(a) or counts(b)):
                raise
        compared = 0
        for one, other in at_whole_numbers(a, b):
            try:
                if not self.same_at(one, other, Evaluator(self.budget)):
                    return False
                compared += 1
            except Rejected as rejected:  # (n-k)! where n < k
                if rejected.code == "too_much_work":
                    raise
        return compared >= ENOUGH_POINTS

    def same_at(self, a: Node, b: Node, evaluator: Evaluator) -> bool:
        value_a, value_b = evaluator.value(a), evaluator.value(b)
        if close(value_a, value_b):
            return True
        if not (negligible(value_a) and negligible(value_b)):
            return False
        finer = Evaluator(self.budget, evaluator.point, FINE)
        return vanishes(value_a, finer.value(a)) and vanishes(value_b, finer.value(b))

    def is_defined(self, node: Node) -> bool:
        Evaluator(self.budget).value(node)
        return True

    def same_scalar(self, a: Scalar, b: Scalar) -> bool:
        a, b = _as_temperature(a, b), _as_temperature(b, a)
        if a.unit != b.unit and a.unit and b.unit:
            return False
        if self.same_expression(a.node, b.node):
            return True
        if (a.unit == _PERCENT) != (b.unit == _PERCENT):
            part, whole = (a, b) if a.unit == _PERCENT else (b, a)
            return self.same_value(("*", [part.node], [("n", 100)]), whole.node)
        return False

    def same_zero_set(self, a: Node, b: Node, positive: bool = False) -> bool:
        """Whether a = 0 and b = 0 are one equation: a / b is the same number everywhere.

        For inequalities that number must be positive.
        """
        values = []
        for point in POINTS:
            evaluator = Evaluator(self.budget, point)
            values.append((evaluator.value(a), evaluator.value(b)))
        if evaluator.sign_matters:
            for signed in signed_samples(evaluator.names):
                pair = self.real_values(a, b, signed, FINE)
                if pair and pair[0][1] and pair[1][1]:
                    values.append((pair[0][0], pair[1][0]))
        evaluator = Evaluator(self.budget)
        (a0, b0), *others = values
        if not a0 or not b0:
            return False
        if positive:
            ratio = evaluator.divide(a0, b0)
            if evaluator.is_negative(ratio):
                return False
        return all(close(evaluator.multiply(a0, b1), evaluator.multiply(a1, b0))
                   for a1, b1 in others)

    # -- everything --------------------------------------------------------------------------------

    def equal(self, a, b) -> bool:
        kind_a, kind_b = type(a), type(b)
        if (kind_a is Region) != (kind_b is Region) and Labelled not in (kind_a, kind_b):
            a, b = to_region(a, self.budget), to_region(b, self.budget)
            return a is not None and b is not None and a.same(b)
        if kind_a is not kind_b:
            return self.equal_across(a, b) or self.equal_across(b, a)
        if kind_a is Scalar:
            return self.same_scalar(a, b)
        if kind_a is Sequence:
            return self.same_sequence(a, b)
        if kind_a is Labelled:
            return self.same_labelled(a, b)
        if kind_a is Matrix:
            return a.kind == b.kind and len(a.rows) == len(b.rows) and \
                all(self.pairwise(x, y) for x, y in zip(a.rows, b.rows, strict=True))
        if kind_a is SetOperation:
            if a.operator == "\\setminus":
                return a.operator == b.operator and self.pairwise(a.parts, b.parts)
            return a.operator == b.operator and self.match(a.parts, b.parts)
        if kind_a is Region:
            return a.same(b)
        if kind_a is Equation:
            return self.same_zero_set(a.node, b.node)
        if kind_a is Inequality:
            return a.strict == b.strict and self.same_zero_set(a.node, b.node, positive=True)
        if kind_a is Relation:
            return a.operators == b.operators and self.pairwise(a.sides, b.sides)
        if kind_a is Clock:
            return _same_time(a, b) or _is_afternoon(a, b) or _is_afternoon(b, a)
        return a == b  # choices, based numbers, text

    def equal_across(self, a, b) -> bool:
        """Values of different types that the policy allows to be equal."""
        if type(a) is Labelled:
            if type(b) is Equation:
                return a.is_equation() and self.same_zero_set(a.equation(), b.node)
            return self.equal(a.value, b)
        if type(a) is Sequence and type(b) is Scalar:  # the set {5} is the list of one solution
            return a.brackets in _UNORDERED and len(a.items) == 1 and self.equal(a.items[0], b)
        if type(a) is Text and lone_name(b):  # the letters in "A and B"
            return len(a.key) == 1 and a.key.upper() == b.node[1]
        if type(a) is Choice and type(b) is Scalar:
            return b.node[0] in ("v", "c") and b.node[1].lower() == a.letter and b.unit is None
        return False

    def same_labelled(self, a: Labelled, b: Labelled) -> bool:
        """Two different variables may still be one equation: y = x + 1 and x = y - 1."""
        if may_name_the_same(a, b):
            return self.equal(a.value, b.value)
        return a.is_equation() and b.is_equation() and \
            self.same_zero_set(a.equation(), b.equation())

    def same_sequence(self, a: Sequence, b: Sequence) -> bool:
        if a.brackets in _UNORDERED and b.brackets in _UNORDERED:
            if _are_named(a.items) and _are_bare(b.items) or \
                    _are_named(b.items) and _are_bare(a.items):
                return False  # "x = 2, y = 1" says which is which, "1, 2" does not
            if _DOTS in a.items:  # 1, 2, ..., n
                return a.brackets == b.brackets and self.pairwise(a.items, b.items)
            return self.match(self.distinct(a), self.distinct(b))
        if a.brackets == b.brackets:
            return self.pairwise(a.items, b.items)
        for point, named in ((a, b), (b, a)):
            if point.brackets == "()" and named.brackets == "" and _are_labelled(named.items):
                return self.pairwise(point.items, in_order(named.items))
        return False

    def distinct(self, sequence: Sequence) -> list:
        """The items; a set does not change when an element is repeated."""
        if sequence.brackets != "{}":
            return sequence.items
        kept: list = []
        for item in sequence.items:
            self.budget.spend(10 * len(kept))
            if not any(self.equal(item, other) for other in kept):
                kept.append(item)
        return kept

    def pairwise(self, a: list, b: list) -> bool:
        return len(a) == len(b) and all(self.equal(x, y) for x, y in zip(a, b, strict=True))

    def match(self, a: list, b: list) -> bool:
        """Equal up to order; every comparison of two items costs."""
        if len(a) != len(b):
            return False
        rest = list(b)
        for item in a:
            for i, other in enumerate(rest):
                self.budget.spend(10)
                if self.equal(item, other):
                    del rest[i]
                    break
            else:
                return False
        return True

    # -- from what was written to what it means ----------------------------------------------------

    def resolve(self, answer):
        """The meaning of a parsed answer; contradictions are rejected."""
        kind = type(answer)
        if kind is Scalar:
            if not answer.choices:
                return answer
            return Sequence("", _expand(answer))
        if kind is Relation:
            return self.resolve_relation(answer)
        if kind is Sequence:
            return self.resolve_sequence(answer)
        if kind is SetOperation:
            return self.resolve_union(answer)
        if kind is Matrix:
            for row in answer.rows:
                row[:] = [self.resolve(cell) for cell in row]
        return self.resolve(answer.value) if kind is Approximation else answer

    def resolve_sequence(self, sequence: Sequence):
        if sequence.brackets in _ORDERED and \
                any(type(item) is Scalar and item.choices for item in sequence.items):
            return Sequence("", [self.resolve(point) for point in _expand_point(sequence)])
        items = [self.resolve(item) for item in sequence.items]
        joined = sequence.brackets
        if joined in _LISTS:
            region = join(sequence, items, self.budget)
            if region:
                return region
            intervals = _intervals(items)
            if intervals and joined in ("and", "or"):
                name, parts = intervals
                if joined == "or":
                    return Labelled(name, SetOperation("cup", parts))
                both = _overlap(parts)
                if both:
                    return Labelled(name, both)
            joined = ""
        if joined in _UNORDERED:  # a list inside a list is more of the list: 1 +- 2, 5
            flat: list = []
            for item in items:
                if type(item) is Sequence and item.brackets == "":
                    flat.extend(item.items)
                else:
                    flat.append(item)
            if "or" in sequence.brackets and len({item.name for item in flat
                                                  if type(item) is Labelled}) > 1:
                return Sequence("or", flat)  # x = 2 or y = 5 is no point
            return Sequence("{}", _without_name(flat)) if joined else _name_the_list(flat)
        return Sequence(joined, items)

    def resolve_union(self, union: SetOperation):
        parts = [self.resolve(part) for part in union.parts]
        for part in parts:
            if type(part) not in (Sequence, SetOperation, Labelled, Region):
                raise Rejected("not_an_expression")
        name = ""
        if type(parts[0]) is Labelled:  # the whole union was named
            name, parts[0] = parts[0].name, parts[0].value
            parts[1:] = [part.value if type(part) is Labelled and part.name == name else part
                         for part in parts[1:]]
        if union.operator == "cup" and all(
                type(part) is Sequence and part.brackets == "{}" for part in parts):
            merged = Sequence("{}", [item for part in parts for item in part.items])
            return Labelled(name, merged) if name else merged
        meaning = SetOperation(union.operator, parts)
        region = to_region(meaning, self.budget)
        if region is not None:
            return as_meaning(region, name)
        return Labelled(name, meaning) if name else meaning

    def resolve_relation(self, relation: Relation):
        operators = relation.operators
        if set(operators) == {"="}:
            return self.resolve_equation(relation.sides)
        if operators == ["in"]:
            name = lone_name(relation.sides[0])
            if name:
                return Labelled(name, self.resolve(relation.sides[1]))
        if "approx" in operators:
            exact = self.resolve_approximation(relation)
            if exact:
                return exact
        sides = [self.resolve(side) for side in relation.sides]
        solved = solve_relation(operators, sides, self.budget)
        if solved:
            return solved
        if operators == ["!="] and lone_name(sides[0]) and type(sides[1]) is Scalar:
            hole = Scalar(sides[1].node)
            return Labelled(lone_name(sides[0]), SetOperation("cup", [
                Sequence("()", [Scalar(("-", _INFINITY)), hole]),
                Sequence("()", [hole, Scalar(_INFINITY)])]))
        if set(operators) <= set(FLIPPED) and all(type(side) is Scalar for side in sides):
            return _resolve_inequality(operators, sides)
        return Relation(operators, sides)

    def resolve_approximation(self, relation: Relation):
        """`2\\sqrt3 \\approx 3.46` is its exact side, when the rest is that value rounded."""
        first = relation.operators.index("approx")
        rounded = relation.sides[first + 1:]
        if set(relation.operators[:first]) - {"="} or \
                set(relation.operators[first:]) != {"approx"} or \
                not all(type(side) is Approximation for side in rounded):
            return None
        exact = self.resolve_equation(relation.sides[:first + 1]) if first else \
            self.resolve(relation.sides[0])
        value = exact.value if type(exact) is Labelled else exact
        values = value.items if type(value) is Sequence and value.brackets == "" else [value]
        if not all(type(each) is Scalar and not has_variables(each.node) for each in values):
            return None
        for side in rounded:
            near = self.resolve(side.value)
            nears = near.items if type(near) is Sequence and near.brackets == "" else [near]
            if len(nears) != len(values) or not all(
                    type(n) is Scalar and rounds_to(v, n, side, self.budget)
                    for v, n in zip(values, nears, strict=True)):
                raise Rejected("contradiction")
            if len(values) == 1 and near.unit != _PERCENT:  # the unit may stand at the end
                value.unit = value.unit or near.unit
        return exact

    def resolve_equation(self, sides: list):
        """`name = value`, a calculation that ends in its value, or an equation."""
        first, last = sides[0], sides[-1]
        if type(first) is Label:
            if len(sides) == 1:  # area \\approx 12
                raise Rejected("not_an_expression")
            return Labelled(first.name, self.chain(sides[1:]), first.words)
        if type(first) is Sequence and first.brackets in ("()", "[]", "<>", "") and \
                len(sides) == 2 and first.items and \
                all(lone_name(item) for item in first.items):
            names = [lone_name(item) for item in first.items]  # (x, y) = (1, 2)
            value = self.resolve(last)
            if len(set(names)) < len(names):
                raise Rejected("contradiction")  # (y, y) = (1, 2)
            if set(names) <= {"x", "y", "z"} and names != sorted(names) and \
                    type(value) is Sequence and len(value.items) == len(names):
                pairs = [Labelled(*pair) for pair in zip(names, value.items, strict=True)]
                value, names = Sequence(value.brackets, in_order(pairs)), sorted(names)
            return Labelled(",".join(names), value)
        if lone_name(first):
            if len(sides) > 2 or not lone_name(last) or lone_name(first) < lone_name(last):
                value = self.chain(sides[1:])  # D = (0,1) \\cup (1,2) names the set, not x in it
                return Labelled(lone_name(first), value, words=type(value) is Region)
        if lone_name(last) and len(sides) == 2:
            return Labelled(lone_name(last), self.resolve(first))
        if len(sides) > 2:
            return self.chain(sides)
        left, right = (self.resolve(side) for side in sides)
        if type(left) is not Scalar or type(right) is not Scalar:
            return Relation(["="], [left, right])
        try:
            if self.same_scalar(left, right):
                return right
        except Rejected:
            pass
        if not (has_variables(left.node) or has_variables(right.node)):
            raise Rejected("contradiction")  # 4 = 5
        return Equation(("+", [left.node, ("-", right.node)]))

    def chain(self, sides: list):
        """The last of several sides, all of which must be equal."""
        sides = [self.resolve(side) for side in sides]
        for side in sides[:-1]:
            if not self.equal(side, sides[-1]):
                raise Rejected("contradiction")
        return sides[-1]


def _expand(scalar: Scalar) -> list[Scalar]:
    """The values of an expression with plus-minus signs.

    Independent signs are chosen independently; a minus-plus ties all signs together.
    """
    if 2**scalar.choices > MAX_VALUES:
        raise Rejected("too_complex")
    order: list[int] = []
    _collect_signs(scalar.node, order)
    values = []
    for signs in combinations((1, -1), repeat=scalar.choices):
        if scalar.choices == 1:
            signs = signs * len(order)
        chosen = dict(zip(order, signs, strict=True))
        values.append(Scalar(_choose(scalar.node, chosen), scalar.unit))
    return values


def _collect_signs(node, order: list[int]) -> None:
    if type(node) is tuple and node[0] == "pm":
        order.append(node[1])
    elif type(node) in (tuple, list):
        for part in node:
            _collect_signs(part, order)


def _choose(node, signs: dict[int, int]):
    if type(node) is tuple and node[0] == "pm":
        return ("n", node[2] * signs[node[1]])
    if type(node) in (tuple, list):
        return type(node)(_choose(part, signs) for part in node)
    return node


def _expand_point(sequence: Sequence) -> list[Sequence]:
    """(2, \\pm 3) is the points (2, 3) and (2, -3); a minus-plus ties all signs together."""
    items = sequence.items
    if not all(type(item) is Scalar for item in items):
        raise Rejected("not_an_expression")
    nodes = [item.node for item in items]
    found: list = []
    _collect_signs(nodes, found)
    order = sorted(set(found))
    tied = _has_minus_plus(nodes)
    if 2**(1 if tied else len(order)) > MAX_VALUES:
        raise Rejected("too_complex")
    expanded = []
    for signs in combinations((1, -1), repeat=1 if tied else len(order)):
        chosen = dict(zip(order, signs * len(order) if tied else signs, strict=True))
        expanded.append(Sequence(sequence.brackets, [
            Scalar(_choose(item.node, chosen), item.unit) for item in items]))
    return expanded


def _has_minus_plus(node) -> bool:
    if type(node) is tuple and node[0] == "pm":
        return node[2] < 0
    return type(node) in (tuple, list) and any(_has_minus_plus(part) for part in node)


def _as_temperature(a: Scalar, b: Scalar) -> Scalar:
    """25 C is 25 degrees where the other is a temperature."""
    letter = _TEMPERATURES.get(b.unit) if b.unit else None
    if letter and not a.unit and a.node[0] == "*" and a.node[1][1:] == [("v", letter)] and \
            not a.node[2]:
        return Scalar(a.node[1][0], b.unit)
    return a


def _same_time(a: Clock, b: Clock) -> bool:
    return a.time == b.time and (a.half == b.half or not a.half or not b.half)


def _is_afternoon(a: Clock, b: Clock) -> bool:
    """20:00 is 8:00 p.m."""
    hours, *rest = b.time
    return not a.half and b.half == "p" and hours < 12 and a.time == (hours + 12, *rest)


def _are_labelled(items: list) -> bool:
    return bool(items) and all(type(item) is Labelled for item in items)


def _are_named(items: list) -> bool:
    """Whether all have a variable for a name."""
    return _are_labelled(items) and not any(item.words for item in items)


def _are_bare(items: list) -> bool:
    return not any(type(item) is Labelled for item in items)


def _without_name(items: list) -> list:
    """The values of {x = 1, x = 2}."""
    if _are_named(items) and len({item.name for item in items}) == 1:
        return [item.value for item in items]
    return items


def _name_the_list(items: list):
    """`x = 1 or x = 2` and `x = 1, 2` are the list 1, 2 under one name."""
    first = items[0]
    if type(first) is Labelled and first.name and "()" not in first.name:
        rest = items[1:]
        same = all(type(item) is Labelled and item.name == first.name for item in rest)
        bare = all(type(item) is Scalar for item in rest)
        if rest and (same or bare):
            values: list = []
            for item in items:
                value = item.value if type(item) is Labelled else item
                is_list = type(value) is Sequence and value.brackets == ""
                values.extend(value.items if is_list else [value])
            return Labelled(first.name, Sequence("", values))
    return Sequence("", items)


def _resolve_inequality(operators: list[str], sides: list[Scalar]):
    """An interval when a variable stands alone: x > 2, 1 < x <= 3; otherwise left < right."""
    if operators[0] in (">", ">="):
        if any(operator not in (">", ">=") for operator in operators):
            raise Rejected("not_an_expression")
        sides, operators = sides[::-1], operators[::-1]
    elif any(operator in (">", ">=") for operator in operators):  # 0 < x > 36
        raise Rejected("not_an_expression")
    operators = [FLIPPED[operator] for operator in operators]
    if len(set(operators) - {"<", "<="}) or len(operators) > 2:
        raise Rejected("not_an_expression")
    names = [lone_name(side) for side in sides]
    nodes = [Scalar(side.node) for side in sides]
    low, high = Scalar(("-", _INFINITY)), Scalar(_INFINITY)
    left = "[" if operators[0] == "<=" else "("
    right = "]" if operators[-1] == "<=" else ")"
    if len(sides) == 3 and names[1]:
        return Labelled(names[1], Sequence(left + right, [nodes[0], nodes[2]]))
    if len(sides) == 2 and names[0] and not has_variables(sides[1].node):
        return Labelled(names[0], Sequence("(" + right, [low, nodes[1]]))
    if len(sides) == 2 and names[1] and not has_variables(sides[0].node):
        return Labelled(names[1], Sequence(left + ")", [nodes[0], high]))
    steps = [Inequality(("+", [b.node, ("-", a.node)]), operator == "<")
             for a, b, operator in zip(sides, sides[1:], operators, strict=False)]
    return steps[0] if len(steps) == 1 else Sequence("<>", steps)


def _intervals(items: list) -> tuple[str, list] | None:
    """The one variable and the intervals, when all items are inequalities in it."""
    if all(type(item) is Labelled and type(item.value) is Sequence
           and len(item.value.brackets) == 2 and len(item.value.items) == 2
           and item.name == items[0].name for item in items):
        return items[0].name, [item.value for item in items]
    return None


def _overlap(parts: list[Sequence]) -> Sequence | None:
    """x > 1 and x < 3: one bound from each."""
    if len(parts) != 2:
        return None
    for lower, upper in (parts, parts[::-1]):
        if lower.items[1].node == _INFINITY and upper.items[0].node == ("-", _INFINITY) and \
                upper.items[1].node != _INFINITY:
            return Sequence(lower.brackets[0] + upper.brackets[1],
                            [lower.items[0], upper.items[1]])
    return None
