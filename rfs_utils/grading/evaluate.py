"""The value of an expression: exact while it can be, 40 digits after that.

Values are int, Fraction, an mpmath number, or the float infinity (which takes part in nothing but
a change of sign). Variables stand for fixed positive numbers, different ones at each of the sample
points, so that equal expressions have equal values and different ones practically never do. Where a
root, an absolute value or a logarithm of variables occurs they also take negative, small and large
values: x is not the square root of x^2.

Every operation pays from the budget before it is done, by the size of what it works on.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from zlib import crc32

import mpmath

from .answers import Node
from .limits import MAX_BITS, Budget, Rejected


def _context(digits: int):
    """A private mpmath context: its precision is set once, so threads cannot disturb each other.

    Only functions that leave the context's precision alone are called below.
    """
    context = mpmath.mp.clone()
    context.dps = digits
    return context


NORMAL, FINE = _context(40), _context(80)
_TOLERANCE = NORMAL.mpf(10) ** -30
_EXACT = frozenset([int, Fraction])
_EXACT_BITS = 80  # a longer decimal could pass for an irrational number at this precision
POINTS = (0, 1, 2)
_SIGNED_POINTS = range(1, 8)
# A variable is negative at the points that share an odd number of bits with its code, so that any
# two variables meet in all four combinations of signs, and the first three in all eight.
_SIGN_CODES = (1, 2, 4, 7, 3, 5, 6)
_SCALES = (1, Fraction(1, 16), 30, 1_000)
_HALF = Fraction(1, 2)
_RECIPROCALS = {"sec": "cos", "csc": "sin", "cot": "tan"}
_MPMATH_NAMES = {name: name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "ln", "exp")}
_MPMATH_NAMES.update(arcsin="asin", arccos="acos", arctan="atan")


@lru_cache(maxsize=1024)
def sample(name: str, point: int) -> Fraction:
    """The value of a variable at a sample point: between 1 and 5."""
    return Fraction(7919 + crc32(f"{name}/{point}".encode()) % 31_607, 7919)


def signed_samples(names: Iterable[str]) -> Iterator[dict[str, Fraction]]:
    """Values of both signs and of several magnitudes for the variables, one dict per point."""
    ordered = sorted(set(names))
    for point in _SIGNED_POINTS:
        values = {}
        for i, name in enumerate(ordered):
            sign = (-1) ** (point & _SIGN_CODES[i % len(_SIGN_CODES)]).bit_count()
            values[name] = sign * sample(name, point) * _SCALES[(point // 2 + i) % len(_SCALES)]
        yield values


class Evaluator:
    """Evaluates expressions at one sample point, paying for each operation from the budget.

    `values` are the variables' values, by default those of the sample point.
    """

    def __init__(self, budget: Budget, point: int = 0, context=NORMAL,
                 values: dict[str, Fraction] | None = None):
        self.budget = budget
        self.point = point
        self.mp = context
        self.values = values
        self.names: list[str] = []  # the variables met, as often as they were met
        self.sign_matters = False  # a root, absolute value or logarithm of variables was met
        self.has_bars = False  # ... an absolute value of variables
        self.is_real = True  # no even root or logarithm of a negative number was met

    @property
    def has_variables(self) -> bool:
        return bool(self.names)

    def value(self, node: Node):
        self.budget.spend(1)
        return _OPERATIONS[node[0]](self, node)

    # -- leaves ------------------------------------------------------------------------------------

    def variable(self, node):
        name = node[1]
        self.names.append(name)
        return self.values[name] if self.values else sample(name, self.point)

    def constant(self, node):
        name = node[1]
        if name == "inf":
            return math.inf
        return +self.mp.pi if name == "pi" else self.mp.mpc(0, 1) if name == "i" else +self.mp.e

    # -- arithmetic --------------------------------------------------------------------------------

    def pair(self, a, b, cost: int = 3):
        """Two values of one kind, exact or not; infinity is neither."""
        kind_a, kind_b = type(a), type(b)
        if kind_a in _EXACT and kind_b in _EXACT:
            bits = max(_bits(a), _bits(b))
            if bits > MAX_BITS:
                raise Rejected("too_large")
            self.budget.spend(4 + _cost(bits))
            return a, b, True
        if kind_a is float or kind_b is float:
            raise Rejected("undefined")
        self.budget.spend(cost)
        return self.inexact(a), self.inexact(b), False

    def inexact(self, a):
        return _inexact(a, self.mp)

    def add(self, a, b):
        a, b, exact = self.pair(a, b)
        if not exact and a and b and abs(self.mp.mag(a) - self.mp.mag(b)) > 60:
            raise Rejected("too_large")  # the smaller term would be lost in rounding
        return a + b

    def multiply(self, a, b):
        a, b, _ = self.pair(a, b)
        return a * b

    def divide(self, a, b):
        a, b, exact = self.pair(a, b)
        if not b:
            raise Rejected("undefined")
        if not exact:
            return a / b
        quotient = Fraction(a) / b
        return quotient.numerator if quotient.denominator == 1 else quotient

    def sum(self, node):
        terms = node[1]
        total = self.value(terms[0])
        for term in terms[1:]:
            total = self.add(total, self.value(term))
        return total

    def negative(self, node):
        return -self.value(node[1])

    def product(self, node):
        _, factors, divisors = node
        total = self.value(factors[0])
        for factor in factors[1:]:
            total = self.multiply(total, self.value(factor))
        for divisor in divisors:
            total = self.divide(total, self.value(divisor))
        return total

    # -- powers and roots --------------------------------------------------------------------------

    def power(self, node):
        met = len(self.names)
        base = self.value(node[1])
        in_base = len(self.names)
        exponent = _whole(self.value(node[2]))
        if type(exponent) is not int:
            if len(self.names) > in_base:  # x^n with a negative x and some n is no real number
                self.is_real = self.is_real and not self.is_negative(base)
            elif in_base > met and not _has_odd_root(exponent):
                self.sign_matters = True
        return self.raise_to(base, exponent)

    def root(self, node):
        met = len(self.names)
        base = self.value(node[2])
        if len(self.names) > met and node[1] % 2 == 0:
            self.sign_matters = True
        return self.raise_to(base, Fraction(1, node[1]))

    def is_negative(self, a) -> bool:
        """Whether a number is negative or not real."""
        return isinstance(a, self.mp.mpc) or a < 0

    def raise_to(self, base, exponent):
        """base^exponent: exact while small, and real for odd roots of negative numbers."""
        self.pair(base, exponent)
        exponent = _whole(exponent)
        if type(base) in _EXACT:
            if type(exponent) is int:
                return self.whole_power(base, exponent)
        if not base:
            if type(base) in _EXACT and type(exponent) is Fraction and exponent > 0:
                return 0
            raise Rejected("undefined")
        if type(exponent) is not int and self.is_negative(base):
            if _has_odd_root(exponent) and not isinstance(base, self.mp.mpc):
                sign = -1 if exponent.numerator % 2 else 1
                return sign * self.raise_to(-base, exponent)
            self.is_real = False
        elif type(base) in _EXACT and type(exponent) is Fraction:
            root = self.exact_root(base, exponent.denominator)
            if root is not None:
                return self.whole_power(root, exponent.numerator)
        self.budget.spend(40)
        base = self.inexact(base)
        if type(exponent) is int:
            if abs(exponent) > 10_000 or abs(self.mp.mag(base)) > 10_000:
                raise Rejected("too_large")
            return base ** exponent
        if type(exponent) is Fraction and exponent == _HALF:
            return self.mp.sqrt(base)
        return self.mp.exp(self.moderate(self.inexact(exponent) * self.mp.ln(base), 14))

    def whole_power(self, base, exponent: int):
        if base in (0, 1, -1):
            if base == 0 and exponent <= 0:
                raise Rejected("undefined")
            return base ** (abs(exponent) % 2 if base == -1 else 1)
        bits = _bits(base)
        if bits * abs(exponent) > MAX_BITS:
            raise Rejected("too_large")
        self.budget.spend(_cost(bits * exponent))
        return base ** exponent if exponent >= 0 else Fraction(1) / base ** -exponent

    def exact_root(self, a: int | Fraction, k: int) -> int | Fraction | None:
        """The k-th root of a number > 0 when it is rational and small enough to try."""
        if isinstance(a, Fraction):
            top = self.exact_root(a.numerator, k)
            bottom = None if top is None else self.exact_root(a.denominator, k)
            return None if top is None or bottom is None else Fraction(top, bottom)
        bits = a.bit_length()
        if a == 1:
            return 1
        if k >= bits or bits > 2_048:  # with k >= bits the root lies between 1 and 2
            return None
        self.budget.spend(4 + (bits >> 4))
        root = math.isqrt(a) if k == 2 else _floor_root(a, k)
        return root if root**k == a else None

    # -- functions ---------------------------------------------------------------------------------

    def moderate(self, a, bits: int = 30):
        """An argument small enough for its function to be cheap and accurate."""
        if a and self.mp.mag(a) > bits:
            raise Rejected("too_large")
        return a

    def function(self, node):
        name = node[1]
        met = len(self.names)
        a = self.value(node[2])
        if name == "abs":
            if len(self.names) > met:
                self.has_bars = self.sign_matters = True
            return abs(a)
        if type(a) is float:
            raise Rejected("undefined")
        if name == "floor" or name == "ceil":
            return self.rounded(a, name)
        self.budget.spend(40)
        a, mp = self.moderate(self.inexact(a)), self.mp
        if name in _RECIPROCALS:
            return self.divide(1, getattr(mp, _RECIPROCALS[name])(a))
        if name == "ln":
            if not a:
                raise Rejected("undefined")
            self.sign_matters = self.sign_matters or len(self.names) > met
        if name.startswith("arc"):  # arccos(cos x) is x for some x only
            self.sign_matters = self.sign_matters or len(self.names) > met
        if name == "exp" or name.endswith("h"):
            self.moderate(a, 14)
        value = getattr(mp, _MPMATH_NAMES[name])(a)
        if not mp.isfinite(value):  # arctan i; an infinity would be close to every number
            raise Rejected("undefined")
        if isinstance(value, mp.mpc):
            self.is_real = False
        return value

    def rounded(self, a, name: str) -> int:
        if type(a) in _EXACT:
            return math.floor(a) if name == "floor" else math.ceil(a)
        if isinstance(a, self.mp.mpc):
            raise Rejected("undefined")
        self.moderate(a, 60)
        return int(self.mp.floor(a) if name == "floor" else self.mp.ceil(a))

    def logarithm(self, node):
        met = len(self.names)
        base, a = self.value(node[1]), self.value(node[2])
        self.pair(base, a)
        self.budget.spend(60)
        if not a or not base or base == 1:
            raise Rejected("undefined")
        self.sign_matters = self.sign_matters or len(self.names) > met
        self.is_real = self.is_real and not (self.is_negative(base) or self.is_negative(a))
        return self.mp.ln(self.inexact(a)) / self.mp.ln(self.inexact(base))

    def factorial(self, node):
        n = _whole(self.value(node[1]))
        if type(n) is not int or not 0 <= n <= 500:
            raise Rejected("too_large")
        self.budget.spend(n)
        return math.factorial(n)

    def binomial(self, node):
        """n(n-1)...(n-k+1)/k!, for any n and a small whole k."""
        n, k = _whole(self.value(node[1])), _whole(self.value(node[2]))
        if type(k) is not int or not 0 <= k <= 500:
            raise Rejected("too_large")
        if type(n) is int and n >= 0:
            if n < k:
                return 0
            k = min(k, n - k)
        total = 1
        for i in range(k):
            total = self.divide(self.multiply(total, self.add(n, -i)), i + 1)
        return total


_OPERATIONS = {
    "n": lambda evaluator, node: node[1],
    "v": Evaluator.variable, "c": Evaluator.constant, "+": Evaluator.sum, "-": Evaluator.negative,
    "*": Evaluator.product, "^": Evaluator.power, "root": Evaluator.root,
    "fn": Evaluator.function, "log": Evaluator.logarithm, "!": Evaluator.factorial,
    "binom": Evaluator.binomial,
}


def _bits(a: int | Fraction) -> int:
    if type(a) is int:
        return a.bit_length()
    return max(a.numerator.bit_length(), a.denominator.bit_length())


def _cost(bits: int) -> int:
    """The price of one exact operation: fractions are reduced, and a gcd is quadratic."""
    return bits * bits >> 17


def _has_odd_root(exponent) -> bool:
    """Whether powers of negative numbers with this exponent are real: x^(2/3) is, x^(1/2) is not."""
    return type(exponent) is Fraction and exponent.denominator % 2 == 1


def _whole(a):
    """A fraction with denominator 1 as the integer it is."""
    return a.numerator if type(a) is Fraction and a.denominator == 1 else a


def _inexact(a, context):
    if type(a) is int:
        return context.mpf(a)
    if type(a) is Fraction:
        return context.mpf(a.numerator) / a.denominator
    return a


def _floor_root(a: int, k: int) -> int:
    """Newton's method from above; the start exceeds the root by less than a factor of two.

    The caller sees to k < the bits of a, so that no power here is longer than twice a.
    """
    guess = 1 << -(-a.bit_length() // k)
    while True:
        better = ((k - 1) * guess + a // guess ** (k - 1)) // k
        if better >= guess:
            return guess
        guess = better


def close(a, b, exact_bits: int = _EXACT_BITS) -> bool:
    """Exact values must be the same; others agree to a relative 1e-30.

    A longer exact value than `exact_bits` is close to no inexact one.
    """
    kind_a, kind_b = type(a), type(b)
    exact_a, exact_b = kind_a in _EXACT, kind_b in _EXACT
    if exact_a and exact_b:
        return a == b
    if kind_a is float or kind_b is float:  # infinity equals itself only
        return kind_a is kind_b and a == b
    if (exact_a and _bits(a) > exact_bits) or (exact_b and _bits(b) > exact_bits):
        return False
    a, b = _inexact(a, NORMAL), _inexact(b, NORMAL)
    return abs(a - b) <= _TOLERANCE * max(abs(a), abs(b))


def negligible(a) -> bool:
    """Zero, or small enough to be what rounding left of a zero."""
    return not a or (type(a) not in _EXACT and abs(a) < _TOLERANCE)


def vanishes(coarse, fine) -> bool:
    """Whether a value, computed with 40 and with 80 digits, is zero but for rounding.

    A true value such as e^-100 is the same at both precisions; a rounding error shrinks.
    """
    if not fine:
        return True
    if not coarse or type(coarse) in _EXACT:
        return False
    return FINE.mag(fine) - NORMAL.mag(coarse) < -60
