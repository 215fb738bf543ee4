"""Equations in lines: cases, aligned and the like, turned into a list before they are parsed."""

from .cursor import END
from .limits import Rejected

EQUATIONS = frozenset(["cases", "rcases", "aligned", "align", "align*", "gathered", "gather",
                        "gather*", "split"])
RELATION_SIGNS = frozenset(["=", "<", "<=", ">", ">=", "!=", "approx", "in"])


def holds_a_relation(tokens: list[tuple], start: int) -> bool:
    """Whether an equals sign or the like stands before the end of an environment."""
    end = tokens.index(END, start)
    kinds = [kind for kind, _ in tokens[start:end]]
    return not RELATION_SIGNS.isdisjoint(kinds[:kinds.index("end")] if "end" in kinds else [])


def lines_to_commas(tokens: list[tuple], start: int, kind: str) -> None:
    """Replace the line ends and alignment marks of the environment that begins at `start`.

    A line that begins with a relation sign goes on with the line before. An alignment mark
    beside no relation sign is the condition of a piecewise function, which is rejected.
    """
    position = start
    kept: list[tuple] = []
    while tokens[position] != ("end", kind):
        token = tokens[position]
        following = tokens[position + 1]
        if token[0] == "&":
            if following[0] not in RELATION_SIGNS and \
                    not (kept and kept[-1][0] in RELATION_SIGNS):
                raise Rejected("not_an_expression")
        elif token[0] in ("begin", END[0]):
            raise Rejected("not_an_expression")
        elif token[0] == "\\\\":
            if following[0] == "&":
                following = tokens[position + 2]
            if following[0] not in RELATION_SIGNS and following[0] not in ("end", "&") and \
                    kept and kept[-1][0] not in (",", ";", "sep"):
                kept.append((",", ""))
        else:
            kept.append(token)
        position += 1
    if kept and kept[-1][0] in (",", ";"):
        kept.pop()
    tokens[start:position] = kept
