"""Factorials and binomial coefficients of variables: compared at small positive whole numbers."""

from collections.abc import Iterator
from zlib import crc32

from .answers import Node
from .regions import has_variables, variables

_POINTS, _LARGEST = 40, 11
ENOUGH_POINTS = 6  # of these; at the others one side may be undefined: (n-k)! where n < k


def counts(node) -> bool:
    """Whether there is a factorial, or a binomial coefficient, of a variable."""
    if type(node) is tuple and node[0] in ("!", "binom") and has_variables(node):
        return True
    return type(node) in (tuple, list) and any(counts(part) for part in node)


def at_whole_numbers(a: Node, b: Node) -> Iterator[tuple[Node, Node]]:
    """Both expressions with fixed numbers for their variables, again and again."""
    names = sorted(variables(b, variables(a, set())))
    for point in range(_POINTS):
        values = {name: 1 + crc32(f"{name}/{point}".encode()) % _LARGEST for name in names}
        yield _substitute(a, values), _substitute(b, values)


def _substitute(node, values: dict[str, int]):
    if type(node) is tuple and node[0] == "v":
        return ("n", values[node[1]])
    if type(node) in (tuple, list):
        return type(node)(_substitute(part, values) for part in node)
    return node
