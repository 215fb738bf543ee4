"""Answers as they are written: lists of items, relations between sides, sets.

    items     item , item ; item and item
    item      label = ... | side (relation side)*
    side      set (cup set | setminus set)*
    set       operand (cap operand)*
    operand   an expression with its unit, brackets, a matrix, or words

The levels below are in `arithmetic`, what the answer means is worked out in `compare`.
"""

from fractions import Fraction

from .answers import Approximation, Label, Relation, Scalar, Sequence, SetOperation, Text
from .arithmetic import NUMBER_WORDS, REALS, Arithmetic, unwrap
from .cursor import END
from .labels import function_name
from .lexer import lex
from .limits import Rejected

_RELATIONS = frozenset(["=", "<", "<=", ">", ">=", "!=", "approx", "in"])
_SET_OPERATORS = frozenset(["cup", "cap", "\\setminus"])
_SAYS_NOTHING = frozenset("answer result solution value final the our is therefore so thus "
                          "hence".split())
_NO_LABEL = frozenset("not no never about roughly maybe nearly almost except perhaps probably "
                      "possibly likely guess wrong incorrect false least most less more".split())
_APPROXIMATE = frozenset(["num", "-", "+", "*", "^", "{", "}", "%", "money", "word", "name", "pm",
                          "mp", "^circ", "\\circ"])
_JOINS = {"cup": "or", "cap": "and"}
_LETTER_R = Scalar(("v", "R"))
_FUNCTION_LETTERS = frozenset("fghpqrABCDEFGHKLMNPQRSTVW")


def parse(text: str, grouped: bool = True):
    """The answer written in `text` (already cleaned); Rejected when it is not an expression.

    `grouped` says whether 300,200 is one number or two.
    """
    parser = Parser(lex(text, grouped))
    answer = parser.items()
    if parser.kind in ("\\over", "\\choose"):
        answer = Scalar(parser.old_fraction(unwrap(answer)))
    if parser.kind != END[0]:
        raise Rejected("not_an_expression")
    return answer


class Parser(Arithmetic):
    """The upper levels of the grammar."""

    def items(self):
        """One answer, or the bare list of several."""
        found = [self.item()]
        joined_by = set()
        while self.kind in (",", ";", "sep") or \
                self.kind in _JOINS and isinstance(found[-1], Relation):  # x < 1 \cup x > 3
            joined_by.add("," if self.kind in (",", ";") else _JOINS.get(self.kind, self.value))
            self.next()
            if self.kind == "sep" and "," in joined_by:  # "1, 2, and 3"
                joined_by.add(self.next())
            found.append(self.item())
        if len(found) == 1:
            return found[0]
        return Sequence(" ".join(sorted(joined_by - {","})), found)

    def item(self):
        """A side, a relation, or a labelled value such as `f(x) = ...` or `Area = ...`."""
        sides, operators = [self.label() or self.side()], []
        while self.kind in _RELATIONS or self.at_approximation():
            in_brackets = self.kind == "("  # 2\sqrt3 (\approx 3.46)
            if self.kind not in _RELATIONS:  # the bracket, or the comma before "about"
                self.next()
            operators.append(self.kind)
            self.next()
            sides.append(self.approximation() if operators[-1] == "approx" else self.side())
            if in_brackets:
                self.expect(")")
        if not operators:
            return sides[0]
        if isinstance(sides[0], Text):
            raise Rejected("not_an_expression")
        if isinstance(sides[0], Label):
            if sides[0].name and set(operators) <= {"=", "approx"}:
                return Relation(operators, sides)
            label = sides.pop(0)
            del operators[0]
            value = Relation(operators, sides) if operators else sides[0]
            return Relation(["="], [label, value]) if label.name and label.words else value
        return Relation(operators, sides)

    def approximation(self):
        """What follows an approximately sign: a number that shows how exact it is, or any side."""
        start = self.position
        side = self.side()
        written = self.tokens[start:self.position]
        digits = [value for kind, value in written if kind == "num"]
        if not digits or any(kind not in _APPROXIMATE for kind, _ in written):
            return side
        mantissa = digits[0].partition("e")[0]
        decimals = mantissa.partition(".")[2]
        last_digit = Fraction(1, 10 ** len(decimals))
        if not decimals and len(mantissa) > 3:  # 31,400 may be rounded to hundreds
            zeros = len(mantissa) - len(mantissa.rstrip("0"))
            last_digit *= 10 ** min(zeros, len(mantissa) - 3)
        size = Fraction(mantissa)
        return Approximation(side, last_digit / size, len(decimals) > 1) if size else side

    def label(self) -> Label | None:
        """`f(x)`, `AB` or some words, when an equals sign follows; None otherwise."""
        tokens, start = self.tokens, self.position
        kind, value = tokens[start]
        end = start
        if kind in ("word", "name"):
            while tokens[end][0] in ("word", "name"):
                end += 1
            words = [word.casefold() for _, word in tokens[start:end]]
            if len(words) > 6 or tokens[end][0] not in ("=", ":") or not _NO_LABEL.isdisjoint(words):
                return None
            if tokens[end][0] == ":" and kind == "name" and not value[0].isupper():
                return None  # Area: 12, but not lambda: 12
            tokens[end] = ("=", "")
            name = "" if _SAYS_NOTHING.issuperset(words) else " ".join(words)
        elif kind == "var" and value[0] in _FUNCTION_LETTERS:
            end += 1
            if tokens[end][0] == "var" and value.isupper() and tokens[end][1].isupper():
                name, end = "".join(sorted(value + tokens[end][1])), end + 1  # the segment AB
            else:
                if tokens[end][0] == "^":
                    if [token[0] for token in tokens[end:end + 5]] != ["^", "{", "-", "num", "}"]:
                        return None
                    end += 5
                if tokens[end][0] != "(":
                    return None
                depth = 1
                while depth and tokens[end + 1][0] != END[0]:
                    end += 1
                    depth += {"(": 1, ")": -1}.get(tokens[end][0], 0)
                if depth:
                    return None
                name, end = function_name(tokens[start:end]), end + 1
            if end >= len(tokens) or tokens[end][0] != "=":
                return None
        elif kind == "\\det":  # \\det A, \\det(A)
            end = start + 1
            while tokens[end][0] in ("(", "var", ")"):
                end += 1
            if tokens[end][0] != "=":
                return None
            name = "det(" + "".join(value for _, value in tokens[start + 1:end]) + ")"
        else:
            return None
        self.position = end
        self.kind, self.value = tokens[end]
        return Label(name, kind in ("word", "name"))

    def side(self):
        """One member of a relation: an expression with its unit, or a set."""
        left = self.intersection()
        while self.kind == "\\setminus" or self.kind in ("cup", "-") and _is_set(left):
            operator = "\\setminus" if self.kind == "-" else self.kind
            bare_minus = self.kind == "-"
            self.next()
            right = self.intersection()
            if bare_minus and not (isinstance(right, Sequence) and right.brackets == "{}"):
                raise Rejected("not_an_expression")  # (1,2) - (3,4) are vectors
            if isinstance(left, SetOperation) and left.operator == operator == "cup":
                left.parts.append(right)
            else:
                left = SetOperation(operator, [left, right])
        return left

    def intersection(self):
        left = self.set_operand()
        while not isinstance(left, Scalar) and self.take("cap"):
            left = SetOperation("cap", [left, self.set_operand()])
        return left

    def set_operand(self):
        """An operand; a number alone in braces is a set here: (0,9) \\setminus {5}."""
        in_braces, before = self.kind == "{", self.tokens[self.position - 1][0]
        side = self.operand()
        if side == _LETTER_R and (before == "in" or before in _SET_OPERATORS
                                  or self.kind in _SET_OPERATORS):
            return REALS  # x \in R, \mathbf{R} \setminus \{0\}
        if in_braces and isinstance(side, Scalar) and \
                (before in _SET_OPERATORS or self.kind in _SET_OPERATORS):
            return Sequence("{}", [side])
        return side

    def operand(self):
        if self.kind in ("word", "name"):
            return self.text()
        if self.take("dots"):
            return Text("...")
        outer_unit, self.unit = self.unit, None
        signs_before = self.signs
        node = self.sum()
        if type(node) is tuple:
            node, unit = self.trailing_unit(node)
            node = Scalar(node, unit, 1 if self.opposed else self.signs - signs_before)
        self.unit = outer_unit
        return node

    def text(self):
        words = []
        while self.kind in ("word", "name"):
            words.append(self.next())
        if len(words) == 1 and words[0].casefold() in NUMBER_WORDS:
            return Scalar(("n", NUMBER_WORDS[words[0].casefold()]))
        return Text(" ".join(words).casefold())


def _is_set(side) -> bool:
    return isinstance(side, (Sequence, SetOperation)) and \
        not (isinstance(side, Sequence) and side.brackets in ("", "<>"))
