"""Determinants as expressions."""

from .answers import Node
from .limits import Rejected

_MAX_ROWS, _MAX_SIZE = 4, 1_000


def determinant(rows: list[list[Node]]) -> Node:
    """The determinant as an expression, by its first row.

    Larger ones than 4 x 4 are rejected, and those of long expressions: each is written several
    times, and determinants of determinants would grow without bound.
    """
    if len(rows) != len(rows[0]) or len(rows) > _MAX_ROWS:
        raise Rejected("not_an_expression")
    if sum(_size(cell) for row in rows for cell in row) > _MAX_SIZE:
        raise Rejected("too_complex")
    return _expanded(rows)


def _size(node) -> int:
    return 1 + sum(map(_size, node)) if type(node) in (tuple, list) else 1


def _expanded(rows: list[list[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, first in enumerate(rows[0]):
        minor = _expanded([row[:column] + row[column + 1:] for row in rows[1:]])
        term: Node = ("*", [first, minor], [])
        terms.append(("-", term) if column % 2 else term)
    return ("+", terms)
