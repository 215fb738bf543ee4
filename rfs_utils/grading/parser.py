"""Recursive descent over the tokens: one method per level of precedence.

    items     item , item ; item and item
    item      label = ... | side (relation side)*
    side      operand (cup operand)*          an operand may carry a unit
    sum       product (+ product)*
    product   power (* power | / power | power)*
    power     postfix (^ exponent)?
    postfix   atom !?

Expressions are tuples (see `answers`); everything else is one of the classes there. Arithmetic on
anything that is not an expression is rejected, which is what `_scalar` checks.
"""

from fractions import Fraction

from . import units
from .answers import Based, Matrix, Node, Relation, Scalar, Sequence, SetOperation, Text
from .lexer import lex
from .limits import MAX_DEPTH, Rejected

NUMBER_WORDS = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split())}

_RELATIONS = frozenset(["=", "<", "<=", ">", ">=", "!=", "approx", "in"])
_SET_OPERATORS = frozenset(["cup", "cap", "\\setminus"])
_OPENERS = {"(": ")", "[": "]", "set{": "}set", "langle": "rangle"}
_CLOSERS = {")": ")", "]": "]", "}set": "}", "rangle": ">"}
_ATOM_STARTS = frozenset(["var", "const", "fn", "\\frac", "\\sqrt", "\\binom", "(", "[", "{",
                          "lfloor", "lceil", "num", "repeat", "begin"])
_FUNCTION_LETTERS = frozenset("fghpqrABCDEFGHKLMNPQRSTVW")
_INVERSE = {name: "arc" + name for name in ("sin", "cos", "tan")}
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "vmatrix", "array", "smallmatrix"])
_PI = ("c", "pi")
_END = ("end of text", "")


def parse(text: str):
    """The answer written in `text` (already cleaned); Rejected when it is not an expression."""
    parser = _Parser(lex(text))
    answer = parser.items()
    if parser.kind != _END[0]:
        raise Rejected("not_an_expression")
    return answer


def number(digits: str) -> int | Fraction:
    """The exact value of a written number: 0.1 is one tenth."""
    if digits.isdigit():
        return int(digits)
    mantissa, _, power = digits.partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = int(power or 0) - len(decimals)
    value = int(whole + decimals)
    return value * 10**shift if shift >= 0 else Fraction(value, 10**-shift)


def _repeating(start: str, period: str) -> Fraction:
    """0.1666... written as ("0.1", "6"): shift the period out, subtract, divide."""
    whole, _, decimals = start.partition(".")
    scale, nines = 10 ** len(decimals), 10 ** len(period) - 1
    return Fraction(int((whole + decimals) or 0) * nines + int(period), scale * nines)


class _Parser:
    def __init__(self, tokens: list[tuple]):
        self.tokens = tokens
        self.tokens.extend([_END] * 4)  # so that looking ahead never leaves the list
        self.position = 0
        self.kind, self.value = tokens[0]
        self.depth = 0
        self.in_function = 0  # degrees inside sin and cos are angles, elsewhere a unit
        self.in_bars = 0
        self.signs = 0  # plus-minus signs seen
        self.opposed = False  # whether a minus-plus was seen: then all signs go together
        self.unit: tuple | None = None  # a unit seen inside the expression: degrees, money

    # -- tokens ------------------------------------------------------------------------------------

    def next(self):
        if self.kind is _END[0]:
            raise Rejected("not_an_expression")
        value = self.value
        self.position += 1
        self.kind, self.value = self.tokens[self.position]
        return value

    def take(self, kind: str) -> bool:
        if self.kind == kind:
            self.next()
            return True
        return False

    def expect(self, kind: str):
        if self.kind != kind:
            raise Rejected("not_an_expression")
        return self.next()

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Rejected("too_complex")

    # -- lists, relations, sets --------------------------------------------------------------------

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
        return Sequence("", found) if len(joined_by) != 1 else \
            Sequence(joined_by.pop(), found)

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
                while tokens[end][0] not in (")", _END[0]):
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

    # -- units -------------------------------------------------------------------------------------

    def trailing_unit(self, node: Node) -> tuple[Node, tuple | None]:
        """Read "\\%", "cm^2", "square feet", "miles per hour", "million dollars" after a number."""
        unit = self.unit
        if self.take("%"):
            return node, (("percent", 1),)
        if self.kind == "money":
            return node, ((self.next(), 1),)
        if self.kind not in ("word", "name"):
            return node, unit
        scale = units.SCALES.get(self.value.casefold())
        if scale:
            self.next()
            node = ("*", [node, ("n", scale)], [])
        powers: dict[str, int] = {}
        sign, prefix, count = 1, 1, 0
        while True:
            if self.kind in ("word", "name"):
                word = self.value
                lower = word.casefold()
                self_standing = self.kind == "word"
                self.next()
                if lower in ("square", "sq", "cubic", "cu"):
                    prefix = 2 if lower.startswith("sq") else 3
                    continue
                if lower == "per" and powers:
                    sign = -1
                    continue
                if lower in ("squared", "cubed") and powers:
                    last = next(reversed(powers))
                    powers[last] *= 2 if lower == "squared" else 3
                    continue
                if word in units.COMPOUND:
                    powers.update(units.COMPOUND[word])
                    continue
                name = units.base_unit(word)
                if name is None:
                    if not (self_standing and units.is_counting_word(word)):
                        raise Rejected("not_an_expression")
                    name, count = units.plural_free(word), count + 1
                    if count > 3:
                        raise Rejected("not_an_expression")
                power = prefix * self.unit_power()
                powers[name] = powers.get(name, 0) + sign * power
                sign = prefix = 1
            elif self.kind == "/" and powers:
                self.next()
                sign = -1
                if self.kind not in ("word", "name"):
                    raise Rejected("not_an_expression")
            elif self.kind in ("*", "-") and powers and self.tokens[self.position + 1][0] == "word":
                self.next()
            else:
                break
        if sign == -1 or prefix != 1:
            raise Rejected("not_an_expression")
        if "percent" in powers and len(powers) > 1:
            raise Rejected("not_an_expression")
        if "celsius" in powers or "fahrenheit" in powers:  # 20 degrees Celsius
            powers.pop("degree", None)
            unit = None if unit == (("degree", 1),) else unit
        named = tuple(sorted(powers.items()))
        if named == (("unit", 1),):  # "5 units" says no more than 5
            named = ()
        if unit and named and unit != named:
            raise Rejected("not_an_expression")
        return node, named or unit

    def unit_power(self) -> int:
        if not self.take("^"):
            return 1
        braces = self.take("{")
        negative = self.take("-")
        digits = self.expect("num")
        if braces:
            self.expect("}")
        if len(digits) != 1 or not digits.isdigit():
            raise Rejected("not_an_expression")
        return -int(digits) if negative else int(digits)

    # -- arithmetic --------------------------------------------------------------------------------

    def sum(self):
        terms = [self.term()]
        while self.kind in ("+", "-", "pm", "mp"):
            terms.append(_scalar(self.term()))
        if len(terms) == 1:
            return terms[0]
        _scalar(terms[0])
        return ("+", terms)

    def term(self):
        """A product with the signs in front of it; "--5" is 5."""
        negative, choice = False, None
        while True:
            if self.kind == "-":
                negative = not negative
            elif self.kind in ("pm", "mp"):
                if choice:
                    raise Rejected("not_an_expression")
                choice = ("pm", self.signs, 1 if self.kind == "pm" else -1)
                self.opposed = self.opposed or self.kind == "mp"
                self.signs += 1
            elif self.kind == "money":
                self.unit = ((self.value, 1),)
            elif self.kind != "+":
                break
            self.next()
        node = self.product()
        if choice:
            node = ("*", [choice, _scalar(node)], [])
        return ("-", _scalar(node)) if negative else node

    def product(self):
        first = self.mixed_number() or self.power()
        factors, divisors = [first], []
        while True:
            kind = self.kind
            if kind == "*" or kind == "/":
                self.next()
                (factors if kind == "*" else divisors).append(self.signed_power())
            elif kind in _ATOM_STARTS or kind == "|" and not self.in_bars:
                if kind == "num" or kind == "repeat":  # "5 5" is two numbers, not 25
                    raise Rejected("not_an_expression")
                factors.append(self.power())
            else:
                break
        if len(factors) == 1 and not divisors:
            return first
        matrices = [f for f in factors if isinstance(f, Matrix)]
        if len(matrices) == 1:
            return self.scaled(matrices[0], [f for f in factors if f is not matrices[0]], divisors)
        for node in factors + divisors:
            _scalar(node)
        return ("*", factors, divisors)

    def scaled(self, matrix: Matrix, factors: list, divisors: list) -> Matrix:
        """A number times a matrix is the matrix of the products."""
        for node in factors + divisors:
            _scalar(node)
        return Matrix(matrix.kind, [
            [Scalar(("*", [*factors, _scalar(_unwrap(cell))], divisors)) for cell in row]
            for row in matrix.rows])

    def signed_power(self):
        negative = False
        while self.kind in ("-", "+"):
            negative ^= self.kind == "-"
            self.next()
        node = _scalar(self.power())
        return ("-", node) if negative else node

    def mixed_number(self) -> Node | None:
        """"1\\frac{4}{5}" and "1 4/5" are 9/5; "2\\frac{3}{2}" could be meant either way."""
        tokens, start = self.tokens, self.position
        if self.kind != "num" or not self.value.isdigit():
            return None
        after = tokens[start + 1][0]
        if after == "num":
            if tokens[start + 2][0] != "/" or tokens[start + 3][0] != "num":
                raise Rejected("not_an_expression")
            whole, top, bottom = self.value, tokens[start + 1][1], tokens[start + 3][1]
            end = start + 4
        elif after == "\\frac":
            self.next()
            self.next()
            top, bottom = self.argument(), self.argument()
            whole, end = tokens[start][1], self.position
            if top[0] != "n" or bottom[0] != "n":
                return ("*", [("n", int(whole)), top], [bottom])
            top, bottom = str(top[1]), str(bottom[1])
        else:
            return None
        if not (top.isdigit() and bottom.isdigit() and int(top) < int(bottom)):
            raise Rejected("not_an_expression")
        self.position = end
        self.kind, self.value = tokens[end]
        return ("n", int(whole) + Fraction(int(top), int(bottom)))

    def power(self):
        base = self.postfix()
        while True:
            if self.kind == "^circ" or self.at_degree_sign():
                self.skip_degree_sign()
                if self.in_function:
                    base = ("*", [_scalar(base), _PI], [("n", 180)])
                else:
                    self.unit = (("degree", 1),)
            elif self.kind == "^":
                self.next()
                base = ("^", _scalar(base), self.exponent())
                if self.kind == "!":
                    raise Rejected("not_an_expression")
            else:
                return base

    def exponent(self) -> Node:
        self.enter()
        sign = False
        while self.kind in ("-", "+"):
            sign ^= self.kind == "-"
            self.next()
        node = _scalar(self.power())  # 2^3^2 is 2^(3^2)
        self.depth -= 1
        return ("-", node) if sign else node

    def at_degree_sign(self) -> bool:
        tokens, start = self.tokens, self.position
        return self.kind == "^" and (
            tokens[start + 1][0] == "\\circ"
            or tokens[start + 1][0] == "{" and tokens[start + 2][0] == "\\circ")

    def skip_degree_sign(self) -> None:
        if self.take("^circ"):
            return
        self.next()
        braces = self.take("{")
        self.expect("\\circ")
        if braces:
            self.expect("}")

    def postfix(self):
        node = self.atom()
        if self.kind == "!":
            self.next()
            if self.kind == "!":  # a double factorial is something else
                raise Rejected("not_an_expression")
            return ("!", _scalar(node))
        return node

    def atom(self):
        kind = self.kind
        if kind == "num":
            digits = self.next()
            return self.based(digits) if self.kind == "_" else ("n", number(digits))
        if kind == "var":
            return ("v", self.next())
        if kind == "const":
            return self.constant()
        if kind == "fn":
            return self.function()
        if kind == "repeat":
            return ("n", _repeating(*self.next()))
        if kind == "based":
            return Based(*self.next())
        if kind == "{" and self.tokens[self.position + 2][0] == "}" \
                and self.tokens[self.position + 1][0] == "num":  # {14}, the most frequent group
            self.next()
            node = ("n", number(self.next()))
            self.next()
            return node
        self.enter()
        if kind in _OPENERS:
            node = self.group()
        elif kind == "{":
            self.next()
            node = self.old_fraction(_unwrap(self.item()))
            self.expect("}")
        elif kind == "\\frac" or kind == "\\binom":
            self.next()
            top, bottom = self.argument(), self.argument()
            node = ("*", [top], [bottom]) if kind == "\\frac" else ("binom", top, bottom)
        elif kind == "\\sqrt":
            node = self.root()
        elif kind == "|":
            self.next()
            self.in_bars += 1
            node = ("fn", "abs", _scalar(self.sum()))
            self.in_bars -= 1
            self.expect("|")
        elif kind in ("lfloor", "lceil"):
            self.next()
            node = ("fn", kind[1:], _scalar(self.sum()))
            self.expect("r" + kind[1:])
        elif kind == "begin":
            node = self.matrix()
        else:
            raise Rejected("not_an_expression")
        self.depth -= 1
        return node

    def old_fraction(self, top):
        """Plain TeX inside braces: {1 \\over 2} and {5 \\choose 2}."""
        if self.take("\\over"):
            return ("*", [_scalar(top)], [_scalar(_unwrap(self.item()))])
        if self.take("\\choose"):
            return ("binom", _scalar(top), _scalar(_unwrap(self.item())))
        return top

    def constant(self):
        name = self.next()
        if name == "empty":
            return Sequence("{}", [])
        if name == "reals":
            return Sequence("()", [Scalar(("-", ("c", "inf"))), Scalar(("c", "inf"))])
        return ("c", name)

    def based(self, digits: str) -> Based | Node:
        """52_8, 52_{8} or 52_{\\text{eight}}."""
        self.next()
        braces = self.take("{")
        if self.kind in ("word", "name") and self.value == "base":
            self.next()
        if self.kind in ("word", "name"):
            base = NUMBER_WORDS.get(self.value.casefold(), 0)
        else:
            base = int(self.value) if self.kind == "num" and self.value.isdigit() else 0
        self.next()
        if braces:
            self.expect("}")
        if not 2 <= base <= 36:
            raise Rejected("not_an_expression")
        return ("n", number(digits)) if base == 10 else Based(digits.lstrip("0") or "0", base)

    def group(self):
        """Brackets: a point, interval or set, or only grouping when they hold one expression."""
        opener = self.kind
        self.next()
        bars, self.in_bars = self.in_bars, 0
        if opener == "set{" and self.kind == "var" and \
                self.tokens[self.position + 1][0] in ("|", ":"):  # {x | x > 2} is x > 2
            self.next()
            self.next()
            found = self.item()
            self.expect("}set")
            return found
        if self.kind == _OPENERS[opener]:
            found = Sequence("", [])
        else:
            found = self.items()
        self.in_bars = bars
        closer = _CLOSERS.get(self.kind)
        self.next()
        if closer is None or (opener in ("set{", "langle")) != (closer in "}>"):
            raise Rejected("not_an_expression")
        brackets = {"set{": "{", "langle": "<"}.get(opener, opener) + closer
        if brackets == "()" and not isinstance(found, Sequence):
            return _unwrap(found)
        if isinstance(found, Sequence) and found.brackets in ("", "and", "or"):
            return Sequence(brackets, found.items)
        if brackets == "[]" and self.kind in ("^", "*", "/", "+", "-"):  # square grouping
            return _scalar(_unwrap(found))
        return found if isinstance(found, Matrix) else Sequence(brackets, [found])

    def argument(self) -> Node:
        """What follows \\frac or \\sqrt: a group in braces, or one character."""
        if self.kind == "num" and len(self.value) > 1:
            if not self.value.isdigit():
                raise Rejected("not_an_expression")
            first, rest = self.value[0], self.value[1:]
            self.tokens[self.position] = ("num", rest)
            self.value = rest
            return ("n", int(first))
        return _scalar(self.atom())

    def root(self) -> Node:
        self.next()
        index = 2
        if self.take("["):
            index = int(self.value) if self.kind == "num" and self.value.isdigit() else 0
            self.next()
            self.expect("]")
            if not 2 <= index <= 100:
                raise Rejected("not_an_expression")
        return ("root", index, self.argument())

    def function(self) -> Node:
        """A function with or without brackets: \\sin(2x), \\sin 2x, \\sin^2 x, \\log_2 8."""
        name = self.next()
        self.enter()
        self.in_function += 1
        base = power = None
        if name in ("log", "lg") and self.take("_"):
            base = self.argument_number()
        if self.take("^"):
            power = self.exponent_of_function()
        if name in ("sqrt", "cbrt"):
            argument = _scalar(self.atom())
        elif self.kind in ("(", "{", "[", "|"):
            argument = _scalar(self.atom())
        else:
            argument = self.bare_argument()
        self.in_function -= 1
        self.depth -= 1
        if power == ("-", ("n", 1)) and name in _INVERSE:
            name, power = _INVERSE[name], None
        if name == "log" or name == "lg":
            node = ("log", base or ("n", 10), argument)
        elif name in ("sqrt", "cbrt"):
            node = ("root", 2 if name == "sqrt" else 3, argument)
        else:
            node = ("fn", name, argument)
        return ("^", node, power) if power else node

    def argument_number(self) -> Node:
        """The base of a logarithm: all digits count, log_10 and \\log_{10} are the same."""
        return ("n", number(self.next())) if self.kind == "num" else _scalar(self.atom())

    def exponent_of_function(self) -> Node:
        if self.kind == "{":
            return _scalar(self.atom())
        negative = self.take("-")
        node = ("n", number(self.expect("num")))
        return ("-", node) if negative else node

    def bare_argument(self) -> Node:
        negative = self.take("-")
        factors = [_scalar(self.power())]
        while self.kind in ("var", "const", "\\frac", "\\sqrt"):
            factors.append(_scalar(self.power()))
        divisors = []
        if self.kind == "/" and factors[-1] == _PI:  # sin pi/6, but (sin x)/6
            self.next()
            divisors.append(_scalar(self.power()))
        node = ("*", factors, divisors) if len(factors) > 1 or divisors else factors[0]
        return ("-", node) if negative else node

    def matrix(self) -> Matrix:
        kind = self.next()
        if kind not in _MATRICES:
            raise Rejected("not_an_expression")
        if kind == "array" and self.take("{"):
            while not self.take("}"):
                if self.kind not in ("var", "const", "|"):
                    raise Rejected("not_an_expression")
                self.next()
        rows: list[list] = [[]]
        while self.kind != "end":
            rows[-1].append(self.side())
            if self.take("\\\\"):
                if self.kind != "end":
                    rows.append([])
            elif self.kind != "end":
                self.expect("&")
        if self.next() != kind or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise Rejected("not_an_expression")
        return Matrix("determinant" if kind == "vmatrix" else "matrix", rows)


def _scalar(value) -> Node:
    """The expression itself; anything else cannot be calculated with."""
    if type(value) is tuple:
        return value
    raise Rejected("not_an_expression")


def _unwrap(value):
    """A grouped expression without a unit is an expression again."""
    if isinstance(value, Scalar) and value.unit is None:
        return value.node
    return value
