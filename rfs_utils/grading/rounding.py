"""An exact value and what it is approximately: 2\\sqrt3 \\approx 3.46."""

from fractions import Fraction

from .answers import Approximation, Scalar
from .evaluate import Evaluator
from .limits import Budget
from .regions import real_value

_PERCENT = (("percent", 1),)


def rounds_to(exact: Scalar, near: Scalar, written: Approximation, budget: Budget) -> bool:
    """Whether `near` is the exact value rounded, or cut off, at its last written digit."""
    if exact.unit != near.unit and exact.unit and near.unit and \
            _PERCENT not in (exact.unit, near.unit):
        return False
    a, b = (real_value(("*", [each.node], [("n", 100 if each.unit == _PERCENT else 1)]), budget)
            for each in (exact, near))
    if a is None or b is None or float in (type(a), type(b)):
        return False
    evaluator = Evaluator(budget)
    error, place = evaluator.divide(evaluator.add(a, -b), b), written.place
    if type(error) not in (int, Fraction):
        place = evaluator.inexact(place)
    return abs(error) <= place / 2 or written.cut_off and 0 <= error < place
