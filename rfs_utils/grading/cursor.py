"""A position in the tokens of one answer, with the bounds and the state that all levels share."""

from .limits import MAX_DEPTH, Rejected

END = ("end of text", "")


class Cursor:
    """The token at hand is (self.kind, self.value)."""

    def __init__(self, tokens: list[tuple]):
        self.tokens = tokens
        self.tokens.extend([END] * 4)  # so that looking ahead never leaves the list
        self.position = 0
        self.kind, self.value = tokens[0]
        self.depth = 0
        self.in_function = 0  # degrees inside sin and cos are angles, elsewhere a unit
        self.in_bars = 0
        self.signs = 0  # plus-minus signs seen
        self.opposed = False  # whether a minus-plus was seen: then all signs go together
        self.unit: tuple | None = None  # a unit seen inside the expression: degrees, money

    def next(self):
        if self.kind is END[0]:
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

    def at_approximation(self) -> bool:
        """Whether an approximate value begins here with a bracket or a comma: (\\approx 3.46)."""
        return self.kind in ("(", ",", "sep") and self.tokens[self.position + 1][0] == "approx"

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Rejected("too_complex")
