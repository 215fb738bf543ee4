"""The bounds that make grading safe: model output is untrusted text.

Nothing here is a time-out. Every quantity that could grow (characters, tokens, nesting, digits,
the size of exact numbers, the number of operations) has a limit that is checked before the work is
done, so that the worst input costs little more than a long ordinary one.
"""

MAX_CHARS = 1_000      # a longer answer is wrong, whatever it says
MAX_TOKENS = 400       # tokens of one answer
MAX_DEPTH = 40         # nested brackets, braces, exponents and function arguments
MAX_DIGITS = 400       # digits of one written number
MAX_BITS = 16_384      # of an exact numerator or denominator
MAX_VALUES = 16        # answers that the plus-minus signs of one expression may stand for
BUDGET = 20_000        # shared by all arithmetic of one answer; one unit is about a microsecond


class Rejected(Exception):
    """The text cannot be graded as mathematics; `code` says why."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


class Budget:
    """Counts work down; whoever spends the last unit is rejected."""

    def __init__(self, units: int = BUDGET):
        self.left = units

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Rejected("too_much_work")
