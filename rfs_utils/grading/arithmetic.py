"""Arithmetic by recursive descent: one method per level of precedence.

    sum       term (+ term)*
    term      sign* product
    product   power (* power | / power | power)*
    power     postfix (^ exponent)*
    postfix   atom !?

Expressions are tuples (see `answers`); everything else is one of the classes there. Calculating
with anything that is not an expression is rejected, which is what `scalar` checks.
"""

from fractions import Fraction
from typing import Any

from .answers import Based, Matrix, Node, Relation, Scalar, Sequence
from .determinants import determinant
from .environments import EQUATIONS, RELATION_SIGNS, holds_a_relation, lines_to_commas
from .limits import Rejected
from .units import UnitReader

NUMBER_WORDS = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split())}

_OPENERS = {"(": ")", "[": "]", "set{": "}set", "langle": "rangle"}
_CLOSERS = {")": ")", "]": "]", "}set": "}", "rangle": ">"}
_ATOM_STARTS = frozenset(["var", "const", "fn", "\\frac", "\\sqrt", "\\binom", "(", "[", "{",
                          "lfloor", "lceil", "num", "repeat", "begin", "\\det"])
_INVERSE = {name: "arc" + name for name in ("sin", "cos", "tan")}
_BEFORE_A_SET = RELATION_SIGNS | {",", ";", "sep", "cup", "cap", "\\setminus"}
_TEMPERATURES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "vmatrix", "array", "smallmatrix"])
_PI = ("c", "pi")
REALS = Sequence("()", [Scalar(("-", ("c", "inf"))), Scalar(("c", "inf"))])


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


def scalar(value) -> Node:
    """The expression itself; anything else cannot be calculated with."""
    if type(value) is tuple:
        return value
    raise Rejected("not_an_expression")


def unwrap(value):
    """A grouped expression without a unit is an expression again."""
    if isinstance(value, Scalar) and value.unit is None:
        return value.node
    return value


class Arithmetic(UnitReader):
    """Expressions, brackets and matrices; `Parser` adds lists and relations."""

    def items(self):
        """One answer or a list of several; brackets and braces hold such, and `Parser` reads them."""
        raise NotImplementedError

    def item(self):
        """One answer: a side or a relation, which `Parser` reads."""
        raise NotImplementedError

    def side(self):
        """One member of a relation, which `Parser` reads."""
        raise NotImplementedError

    def sum(self):
        terms = [self.term()]
        if self.kind == "-" and type(terms[0]) is not tuple:  # a set minus another
            return terms[0]
        while self.kind in ("+", "-", "pm", "mp"):
            terms.append(scalar(self.term()))
        if len(terms) == 1:
            return terms[0]
        scalar(terms[0])
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
        if choice and isinstance(node, Sequence):
            return self.signed_point(choice, node)
        if choice:
            node = ("*", [choice, scalar(node)], [])
        return ("-", scalar(node)) if negative else node

    def signed_point(self, choice: Node, point: Sequence) -> Sequence:
        """\\pm(1, 2): the sign belongs to all coordinates."""
        if point.brackets != "()" or not all(isinstance(item, Scalar) for item in point.items):
            raise Rejected("not_an_expression")
        return Sequence("()", [Scalar(("*", [choice, item.node], []), item.unit, 1)
                               for item in point.items])

    def product(self):
        first = self.mixed_number() or self.power()
        factors: list = [first]
        divisors: list = []
        while True:
            kind = self.kind
            if kind == "*" or kind == "/":
                self.next()
                (factors if kind == "*" else divisors).append(self.signed_power())
            elif self.at_approximation():
                break
            elif kind in _ATOM_STARTS or kind == "|" and not self.in_bars:
                if kind in ("num", "repeat") and not _is_symbolic_factorial(factors[-1]):
                    raise Rejected("not_an_expression")  # "5 5" is two numbers, not 25
                factors.append(self.power())
            else:
                break
        if len(factors) == 1 and not divisors:
            return first
        matrices = [f for f in factors if isinstance(f, Matrix)]
        if len(matrices) == 1:
            return self.scaled(matrices[0], [f for f in factors if f is not matrices[0]], divisors)
        for node in factors + divisors:
            scalar(node)
        return ("*", factors, divisors)

    def scaled(self, matrix: Matrix, factors: list, divisors: list) -> Matrix:
        """A number times a matrix is the matrix of the products."""
        for node in factors + divisors:
            scalar(node)
        return Matrix(matrix.kind, [
            [Scalar(("*", [*factors, scalar(unwrap(cell))], divisors)) for cell in row]
            for row in matrix.rows])

    def signed_power(self):
        negative = False
        while self.kind in ("-", "+"):
            negative ^= self.kind == "-"
            self.next()
        node = scalar(self.power())
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
                outer_unit, self.unit = self.unit, (("degree", 1),)
                self.skip_degree_sign()
                if self.in_function:
                    self.unit = outer_unit
                    base = ("*", [scalar(base), _PI], [("n", 180)])
                elif self.kind == "var" and self.value in _TEMPERATURES:
                    self.unit = ((_TEMPERATURES[self.next()], 1),)
            elif self.kind == "^":
                self.next()
                base = ("^", scalar(base), self.exponent())
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
        node = scalar(self.power())  # 2^3^2 is 2^(3^2)
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
            if self.value in _TEMPERATURES:  # ^{\circ C}
                self.unit = ((_TEMPERATURES[self.next()], 1),)
            self.expect("}")

    def postfix(self):
        node = self.atom()
        if self.kind == "!":
            self.next()
            if self.kind == "!":  # a double factorial is something else
                raise Rejected("not_an_expression")
            return ("!", scalar(node))
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
            digits = self.next()
            self.next()
            return ("n", number(digits))
        self.enter()
        node: Any  # an expression or one of the classes of `answers`
        if kind in _OPENERS:
            node = self.group()
        elif kind == "{":
            node = self.braces()
        elif kind == "\\frac" or kind == "\\binom":
            self.next()
            top, bottom = self.argument(), self.argument()
            node = ("*", [top], [bottom]) if kind == "\\frac" else ("binom", top, bottom)
        elif kind == "\\sqrt":
            node = self.root()
        elif kind == "|":
            self.next()
            self.in_bars += 1
            inside = self.sum()
            node = determinant(cells(inside)) if isinstance(inside, Matrix) else \
                ("fn", "abs", scalar(inside))
            self.in_bars -= 1
            self.expect("|")
        elif kind in ("lfloor", "lceil"):
            self.next()
            node = ("fn", kind[1:], scalar(self.sum()))
            self.expect("r" + kind[1:])
        elif kind == "begin":
            node = self.equations(self.next()) if self.value in EQUATIONS else self.matrix()
        elif kind == "\\det":
            self.next()
            node = determinant(cells(self.atom()))
        else:
            raise Rejected("not_an_expression")
        self.depth -= 1
        return node

    def braces(self):
        """TeX's braces: a group, or a set whose braces were not escaped."""
        built = self.set_builder()
        if built is not None:
            return built
        alone = self.position == 0
        self.next()
        if alone and self.take("}"):
            return Sequence("{}", [])
        found = self.items()
        if isinstance(found, Sequence) and found.brackets in ("", "and", "or"):
            found = Sequence("{}", found.items)
        found = self.old_fraction(unwrap(found))
        self.expect("}")
        return found

    def set_builder(self):
        """{x | x > 2} is x > 2, and {x in R : x > 2} both conditions; None for other braces."""
        tokens, start = self.tokens, self.position
        if tokens[start + 1][0] != "var" or tokens[start + 2][0] not in ("|", ":", "in"):
            return None
        if self.kind == "{" and start and tokens[start - 1][0] not in _BEFORE_A_SET:
            return None  # \sqrt{x|x|}
        closer = "}set" if self.kind == "set{" else "}"
        self.next()
        name = Scalar(("v", self.next()))
        conditions = []
        if self.take("in"):
            self.in_bars += 1  # the bar that follows is no absolute value
            conditions.append(Relation(["in"], [name, self.side()]))
            self.in_bars -= 1
            if self.kind not in ("|", ":"):
                raise Rejected("not_an_expression")
        self.next()
        bars, self.in_bars = self.in_bars, 0
        found = self.items()
        self.in_bars = bars
        if ("var", name.node[1]) not in tokens[start + 3:self.position]:
            raise Rejected("not_an_expression")  # {y | x > 2}
        self.expect(closer)
        if not conditions:
            return found
        return Sequence("and", [*conditions, found])

    def old_fraction(self, top):
        """Plain TeX inside braces: {1 \\over 2} and {5 \\choose 2}."""
        if self.take("\\over"):
            return ("*", [scalar(top)], [scalar(unwrap(self.item()))])
        if self.take("\\choose"):
            return ("binom", scalar(top), scalar(unwrap(self.item())))
        return top

    def constant(self):
        name = self.next()
        if name == "empty":
            return Sequence("{}", [])
        if name == "reals":
            return REALS
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
        if opener == "set{":
            built = self.set_builder()
            if built is not None:
                return built
        self.next()
        if opener == "set{" and self.kind == "begin" and self.value in ("array", "aligned"):
            found = self.atom()  # the brace before a system of equations
            self.take("}set")
            return found
        bars, self.in_bars = self.in_bars, 0
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
            return unwrap(found)
        if isinstance(found, Sequence) and found.brackets in ("", "and", "or", "and or"):
            if found.brackets and brackets != "{}":  # "(1 or 2)" is not the point (1, 2)
                raise Rejected("not_an_expression")
            return Sequence(brackets, found.items)
        if brackets == "[]" and self.kind in ("^", "*", "/", "+", "-"):  # square grouping
            return scalar(unwrap(found))
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
        return scalar(self.atom())

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
            argument = scalar(self.atom())
        elif self.kind in ("(", "{", "[", "|"):
            argument = scalar(self.atom())
        else:
            argument = self.bare_argument()
        self.in_function -= 1
        self.depth -= 1
        if power == ("-", ("n", 1)) and name in _INVERSE:
            name, power = _INVERSE[name], None
        if name == "log" or name == "lg":
            node: Node = ("log", base or ("n", 10), argument)
        elif name in ("sqrt", "cbrt"):
            node = ("root", 2 if name == "sqrt" else 3, argument)
        else:
            node = ("fn", name, argument)
        return ("^", node, power) if power else node

    def argument_number(self) -> Node:
        """The base of a logarithm: all digits count, log_10 and \\log_{10} are the same."""
        return ("n", number(self.next())) if self.kind == "num" else scalar(self.atom())

    def exponent_of_function(self) -> Node:
        if self.kind == "{":
            return scalar(self.atom())
        negative = self.take("-")
        node = ("n", number(self.expect("num")))
        return ("-", node) if negative else node

    def bare_argument(self) -> Node:
        negative = self.take("-")
        factors = [scalar(self.power())]
        while self.kind in ("var", "const", "\\frac", "\\sqrt"):
            factors.append(scalar(self.power()))
        divisors: list[Node] = []
        if self.kind == "/" and factors[-1] == _PI:  # sin pi/6, but (sin x)/6
            self.next()
            divisors.append(scalar(self.power()))
        node = ("*", factors, divisors) if len(factors) > 1 or divisors else factors[0]
        return ("-", node) if negative else node

    def equations(self, kind: str):
        """The lines of cases, aligned and the like: a list of equations."""
        lines_to_commas(self.tokens, self.position, kind)
        self.kind, self.value = self.tokens[self.position]
        found = self.items()
        if self.kind != "end" or self.next() != kind:
            raise Rejected("not_an_expression")
        return found

    def matrix(self) -> Matrix | Node | Sequence:
        kind = self.next()
        if kind not in _MATRICES:
            raise Rejected("not_an_expression")
        if kind == "array" and self.take("{"):
            while not self.take("}"):
                if self.kind not in ("var", "const", "name", "|"):
                    raise Rejected("not_an_expression")
                self.next()
            if holds_a_relation(self.tokens, self.position):
                return self.equations(kind)
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
        found = Matrix("matrix", rows)
        return determinant(cells(found)) if kind == "vmatrix" else found


def cells(matrix) -> list[list[Node]]:
    """The expressions in a matrix; anything else is rejected."""
    if not isinstance(matrix, Matrix):
        raise Rejected("not_an_expression")
    return [[scalar(unwrap(cell)) for cell in row] for row in matrix.rows]


def _is_symbolic_factorial(node) -> bool:
    """Whether a number may follow as a factor: n! 2^n."""
    return type(node) is tuple and node[0] == "!" and node[1][0] != "n"
