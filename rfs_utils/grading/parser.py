"""Answers as they are written: lists of items, relations between sides, sets.

    items     item , item ; item and item
    item      label = ... | side (relation side)*
    side      operand (cup operand)*
    operand   an expression with its unit, brackets, a matrix, or words

The levels below are in `arithmetic`, what the answer means is worked out in `compare`.
"""

from .answers import Relation, Scalar, Sequence, SetOperation, Text
from .arithmetic import NUMBER_WORDS, Arithmetic
from .cursor import END
from .lexer import lex
from .limits import Rejected

_RELATIONS = frozenset(["=", "<", "<=", ">", ">=", "!=", "approx", "in"])
_SET_OPERATORS = frozenset(["cup", "cap", "\\setminus"])
_FUNCTION_LETTERS = frozenset("fghpqrABCDEFGHKLMNPQRSTVW")


def parse(text: str):
    """The answer written in `text` (already cleaned); Rejected when it is not an expression."""
    parser = Parser(lex(text))
    answer = parser.items()
    if parser.kind != END[0]:
        raise Rejected("not_an_expression")
    return answer


class Parser(Arithmetic):
    """The upper levels of the grammar."""

    def items(self):
        """One answer, or the bare list of several."""
        found = [self.item()]
        joined_by = set()
        while self.kind in (",", ";", "sep"):
            joined_by.add("," if self.kind in (",", ";") else self.value)
            self.next()
            if self.kind == "sep" and "," in joined_by:  # "1, 2, and 3"
                joined_by.add(self.next())
            found.append(self.item())
        if len(found) == 1:
            return found[0]
        joined_by.discard(",")
        return Sequence(joined_by.pop() if len(joined_by) == 1 else "", found)

    def item(self):
        """A side, a relation, or a labelled value such as `f(x) = ...` or `Area = ...`."""
        sides, operators = [self.label() or self.side()], []
        while self.kind in _RELATIONS:
            operators.append(self.kind)
            self.next()
            sides.append(self.side())
        if not operators:
            return sides[0]
        if isinstance(sides[0], Text):
            if operators[0] != "=":
                raise Rejected("not_an_expression")
            if sides[0].key == "":  # words name the value and say nothing about it
                del sides[0], operators[0]
                return sides[0] if not operators else Relation(operators, sides)
        return Relation(operators, sides)

    def label(self) -> Text | None:
        """`f(x)`, `AB` or some words, when an equals sign follows; None otherwise."""
        tokens, start = self.tokens, self.position
        kind, value = tokens[start]
        end = start
        if kind in ("word", "name"):
            while tokens[end][0] in ("word", "name"):
                end += 1
            if end - start > 4 or tokens[end][0] != "=":
                return None
            if any(word.casefold() in ("not", "no", "never") for _, word in tokens[start:end]):
                return None
            name = ""
        elif kind == "var" and value[0] in _FUNCTION_LETTERS:
            end += 1
            if tokens[end][0] == "var" and value.isupper() and tokens[end][1].isupper():
                name, end = value + tokens[end][1], end + 1  # the segment AB
            else:
                if tokens[end][0] == "^":
                    if [token[0] for token in tokens[end:end + 5]] != ["^", "{", "-", "num", "}"]:
                        return None
                    end += 5
                if tokens[end][0] != "(":
                    return None
                while tokens[end][0] not in (")", END[0]):
                    end += 1
                name, end = value + "()", end + 1
            if end >= len(tokens) or tokens[end][0] != "=":
                return None
        else:
            return None
        self.position = end
        self.kind, self.value = tokens[end]
        return Text(name)

    def side(self):
        """One member of a relation: an expression with its unit, or a set."""
        left = self.operand()
        while self.kind in _SET_OPERATORS:
            operator = self.kind
            self.next()
            right = self.operand()
            if isinstance(left, SetOperation) and left.operator == operator == "cup":
                left.parts.append(right)
            else:
                left = SetOperation(operator, [left, right])
        return left

    def operand(self):
        if self.kind in ("word", "name"):
            return self.text()
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
