"""Microseconds per grade: our grader, and math-verify and sympy when they are installed.

    python benchmarks/grading.py [--golds math500_test.json] [--repeat 5]

The pairs are those of tests/fixtures. With --golds, each reference answer of that file is also
graded against itself, its own spelling without blanks, and the reference of another problem.
Our grader runs uncached: the cache of parsed references is emptied before every call.
The sympy column is the usual `parse_expr` comparison; it evaluates its input as code, so it gets
only pairs of digits, letters and arithmetic signs.
"""

import argparse
import json
import logging
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rfs_utils.grading import grade_answer  # noqa: E402
from rfs_utils.grading.reading import read_gold  # noqa: E402

Pair = tuple[str, str]
HARMLESS = re.compile(r"[0-9a-z+\-/(). ]{1,30}")


def fixture_pairs() -> list[Pair]:
    cases = json.loads((ROOT / "tests/fixtures/grading_cases.json").read_text(encoding="utf-8"))
    return [(case["pred"], case["gold"]) for case in cases if case["mode"] == "candidate"]


def gold_pairs(path: Path) -> list[Pair]:
    golds = [problem["answer"] for problem in json.loads(path.read_text(encoding="utf-8"))]
    others = golds[:]
    random.Random(0).shuffle(others)
    return [pair for gold, other in zip(golds, others, strict=True)
            for pair in ((gold, gold), (gold.replace(" ", ""), gold), (other, gold))]


def ours(pred: str, gold: str) -> bool:
    read_gold.cache_clear()
    return grade_answer(pred, gold)


def with_math_verify() -> Callable | None:
    try:
        from math_verify import parse, verify
    except ImportError:
        return None
    logging.disable(logging.CRITICAL)
    return lambda pred, gold: verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{pred}}}"))


def with_sympy() -> Callable | None:
    try:
        from sympy import simplify
        from sympy.parsing.sympy_parser import (
            implicit_multiplication_application,
            parse_expr,
            standard_transformations,
        )
    except ImportError:
        return None
    how = (*standard_transformations, implicit_multiplication_application)

    def grade(pred: str, gold: str) -> bool:
        return simplify(parse_expr(pred, transformations=how)
                        - parse_expr(gold, transformations=how)) == 0
    return grade


def measure(grade: Callable, pairs: list[Pair], repeat: int) -> list[float]:
    """Microseconds that every single call kept one core busy, whatever else the machine does."""
    times = []
    for _ in range(repeat):
        for pred, gold in pairs:
            start = time.thread_time()
            try:
                grade(pred, gold)
            except Exception:
                pass  # the others may fail on what they cannot read; the time counts all the same
            times.append((time.thread_time() - start) * 1e6)
    return times


def report(name: str, pairs: list[Pair], times: list[float]) -> None:
    p99 = sorted(times)[int(0.99 * len(times))]
    print(f"{name:34} {len(pairs):6} pairs  median {statistics.median(times):8.1f}"
          f"  mean {statistics.mean(times):8.1f}  p99 {p99:9.1f}  us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--golds", type=Path, help="JSON list of problems with the key `answer`")
    parser.add_argument("--repeat", type=int, default=5, help="passes of our own grader")
    arguments = parser.parse_args()

    sets = {"fixture pairs": fixture_pairs()}
    if arguments.golds:
        sets["reference answers"] = gold_pairs(arguments.golds)
    for name, pairs in sets.items():
        measure(ours, pairs[:50], 1)  # warm up
        report(f"{name}, ours", pairs, measure(ours, pairs, arguments.repeat))
        trusted = [pair for pair in pairs if all(HARMLESS.fullmatch(text) for text in pair)
                   and not any(re.search("[a-z]{2}", text) for text in pair)]
        if name == "fixture pairs":
            # Not the pairs that are hostile by design.
            pairs = [pair for pair in pairs if "__" not in pair[0] and "**" not in pair[0]]
        for other, maker, some in [("math-verify", with_math_verify, pairs),
                                   ("sympy, harmless pairs", with_sympy, trusted)]:
            grade = maker()
            if grade is None:
                print(f"{name}, {other}: not installed")
            else:
                report(f"{name}, {other}", some, measure(grade, some, 1))


if __name__ == "__main__":
    main()
