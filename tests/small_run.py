"""`rfs` with ten held-out problems in place of hundreds, for tests that need processes of their own."""

import sys

from rfs_utils.cli import main
from rfs_utils.runs import held_out

held_out.NUM_PROBLEMS = held_out.NUM_HARDER = 10


def every_second(responses, examples, **info):
    """A reward that always differs within a group."""
    return [float(i % 2) for i in range(len(responses))]


def some_unjudged(responses, examples, **info):
    """A reward that depends on the texts alone, and judges two thirds of them."""
    sums = [sum(map(ord, text)) for text in responses]
    return [None if number % 3 == 0 else float(number % 2) for number in sums]


if __name__ == "__main__":
    sys.exit(main())
