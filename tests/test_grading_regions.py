"""Regions of the real line: every way to write one is the same set, every other set another."""

import os
import random
from fractions import Fraction

import pytest

from rfs_utils.grading import explain_grade, grade_answer
from rfs_utils.grading.limits import Budget
from rfs_utils.grading.regions import OPERATIONS, REALS, combine, interval, order, points

PLACES = [Fraction(n, 2) for n in range(-1, 20)]  # the ends 0..9, between them, and beyond


def holds(region, place) -> bool:
    """Whether a region holds a place: the cuts before it, counted."""
    before = sum(order(value, place) < 0 or order(value, place) == 0 and side == 0
                 for value, side in region.cuts)
    return before % 2 == 1


def random_region(rng: random.Random):
    total = points([])
    for _ in range(rng.randint(0, 3)):
        low, high = sorted(rng.sample(range(10), 2))
        piece = points([low]) if rng.random() < 0.3 else \
            interval(low, high, rng.choice("([") + rng.choice(")]"))
        total = combine(total, piece, OPERATIONS["cup"], Budget())
    return total


@pytest.mark.parametrize("operator, keep", [
    ("cup", lambda a, b: a or b), ("cap", lambda a, b: a and b),
    ("\\setminus", lambda a, b: a and not b)])
def test_operations_hold_at_every_place(operator, keep):
    rng = random.Random(1)
    for _ in range(300):
        a, b = random_region(rng), random_region(rng)
        both = combine(a, b, OPERATIONS[operator], Budget())
        for place in PLACES:
            assert holds(both, place) == keep(holds(a, place), holds(b, place))


def test_equal_regions_have_equal_cuts():
    rng = random.Random(2)
    for _ in range(300):
        a, b = random_region(rng), random_region(rng)
        same = all(holds(a, place) == holds(b, place) for place in PLACES)
        assert a.same(b) == same
        without = combine(REALS, combine(REALS, a, OPERATIONS["\\setminus"], Budget()),
                          OPERATIONS["\\setminus"], Budget())
        assert without.same(a)


def spellings(low: int, high: int, left: str, right: str, rng: random.Random) -> list[str]:
    """One interval as users write it."""
    less = {"(": "<", "[": "\\le"}[left], {")": "<", "]": "\\le"}[right]
    more = {"(": ">", "[": "\\ge"}[left], {")": ">", "]": "\\ge"}[right]
    k, c = rng.randint(2, 5), rng.randint(1, 9)
    middle = Fraction(low + high, 2)
    outside = {"(": "]", "[": ")"}[left], {")": "[", "]": "("}[right]
    return [
        f"{left}{low},{high}{right}",
        f"x\\in{left}{low}, {high}{right}",
        f"{low}{less[0]} x{less[1]} {high}",
        f"{high}{more[1]} x{more[0]} {low}",
        f"x{more[0]} {low}, x{less[1]} {high}",
        f"x{less[1]} {high} \\text{{ and }} x{more[0]} {low}",
        f"{k * low + c}{less[0]} {k}x+{c}{less[1]} {k * high + c}",
        f"{-high}{less[1]} -x{less[0]} {-low}",
        f"\\{{x\\in\\mathbb{{R}} : {low}{less[0]} x{less[1]} {high}\\}}",
        f"{left}{low},\\infty)\\cap(-\\infty,{high}{right}",
        f"{left}{low},{middle})\\cup[{middle},{high}{right}",
        f"[{low - 1},{high + 1}]\\setminus([{low - 1},{low}{outside[0]}\\cup{outside[1]}{high},{high + 1}])",
    ]


def test_every_spelling_of_an_interval_equals_every_other_and_no_neighbour():
    rng = random.Random(3)
    for _ in range(40):
        low = rng.randint(-9, 5)
        high = low + rng.randint(1, 6)
        left, right = rng.choice("(["), rng.choice(")]")
        here = spellings(low, high, left, right, rng)
        for gold in here:
            for pred in here:
                assert grade_answer(pred, gold), (pred, gold, explain_grade(pred, gold))
        neighbours = [
            (low, high, "[("[left == "["], right), (low, high, left, ")]"[right == ")"]),
            (low - 1, high, left, right), (low, high + 1, left, right)]
        for neighbour in neighbours:
            for pred in spellings(*neighbour, rng):
                gold = rng.choice(here)
                assert not grade_answer(pred, gold), (pred, gold)


def test_punctured_regions():
    rng = random.Random(4)
    for _ in range(60):
        low, hole, high = sorted(rng.sample(range(-20, 20), 3))
        forms = [f"({low},{high})\\setminus\\{{{hole}\\}}", f"({low},{hole})\\cup({hole},{high})",
                 f"{low}<x<{high}, x\\ne {hole}", f"x>{low}, x<{high}, x\\ne{hole}",
                 f"{low}<x<{hole} \\text{{ or }} {hole}<x<{high}",
                 f"({hole},{high})\\cup({low},{hole})", f"({low},{high}) - \\{{{hole}\\}}"]
        wrong = [f"({low},{high})", f"({low},{hole})\\cup({hole},{high}]", f"{low}<x<{high}",
                 f"({low},{hole}]\\cup({hole},{high})", f"({low},{high})\\setminus\\{{{low}\\}}",
                 f"({low},{hole}),({hole},{high})", f"x\\ne {hole}",
                 f"({low},{hole})\\cap({hole},{high})"]
        for gold in forms:
            assert all(grade_answer(pred, gold) for pred in forms), gold
            assert not any(grade_answer(pred, gold) for pred in wrong), gold


@pytest.mark.parametrize("text", [
    "\\cup".join(f"({n},{n + 1})" for n in range(60)),
    "\\cap".join(f"({-n},{n + 1})" for n in range(60)),
    "\\mathbb{R}\\setminus\\{" + ",".join(map(str, range(150))) + "\\}",
    ", ".join(f"x\\ne{n}" for n in range(80)), " or ".join(f"x>{n}" for n in range(90)),
    "|" * 30 + "x" + "|" * 30 + "<2", "abs(" * 30 + "x" + ")" * 30 + "<2",
    "<".join("1234567") + "<x", "x<" + "2(" * 38 + "x" + ")" * 38,
    "\\begin{cases}" + "x>1\\\\" * 80 + "\\end{cases}", "\\begin{cases}" * 60,
    "\\begin{aligned}" + "x&=1\\\\" * 70 + "\\end{aligned}", "{1," * 38 + "2" + "}" * 38,
    "(" + ",".join(["\\pm 1"] * 90) + ")", "(" + ",".join(["\\pm 1"] * 4) + ")",
    "\\binom{n}{k}" * 40, "+".join(["(n-k)!"] * 50), "\\begin{vmatrix}1&2\\\\3&" * 30,
    "0." + "12" * 190 + "\\ldots", "1,\\ldots" * 90, "C. " * 300, "C. (C) " * 100,
    "2 \\approx 2" * 60, "f(" * 300 + "=5", "all real numbers except " * 40,
])
def test_long_regions_and_lists_are_bounded(text):
    for gold in ("\\mathbb{R}", "x\\ne 1", "(0,1)\\cup(1,2)", "5", "1,2", text + " "):
        assert explain_grade(text, gold).reason != "internal_error"
        assert explain_grade(gold, text).reason != "internal_error"


PIECES = r"""0 1 2 5 10 .5 3.14 1,234 300,200 0.333 \ldots ... x y n k - + * / ^ ! = < > \le \ge \ne \pm
\mp \approx ( ) [ ] { } \{ \} , ; : | & \\ \frac \frac{1}{2} \sqrt{2} \binom{n}{k} n! (n-k)! x> <x<3 x\ne9
(0,36) [1,2] (-\infty,2) \mathbb{R} \setminus \cup \cap and or \text{and} \text{or} \begin{cases} \end{cases}
\begin{aligned} \end{aligned} \begin{array}{l} \end{array} \begin{vmatrix}1&2\\3&4\end{vmatrix} \begin{vmatrix}
\end{vmatrix} \det \det\begin{pmatrix}1&2\\3&4\end{pmatrix} C. (C) c: \textbf{(C)} °C ℃ ^\circ F F( 8 a.m. pm
: all real numbers except \text{Area} Area: length= f(2)= f(x)= P(A)= AB= (x,y)= \boxed{ \nicefrac \approx3.46
(\approx approximately about x\in \infty \emptyset a=4 b=9 (2,\pm3) \left\{ \right. -x 2x |x| o'clock""".split()
GOLDS = ["5", "(0,9)\\cup(9,36)", "\\mathbb{R}", "x>5", "(1,2)", "\\{1,2\\}", "200, 300", "2\\sqrt3",
         "\\text{(C)}", "f(2)=5", "\\binom{n}{k}", "25^\\circ\\text{C}", "8:00\\text{ a.m.}", "1,2,\\ldots,n"]


def test_seeded_fuzz_of_these_notations():
    """10,000 texts here; RFS_FUZZ=1000000 in the environment for the long run."""
    rng = random.Random(20240602)
    previous = "5"
    for _ in range(int(os.environ.get("RFS_FUZZ", 10_000))):
        text = "".join(rng.choice(PIECES) + rng.choice(("", "", " ")) for _ in range(rng.randint(1, 12)))
        assert explain_grade(text, previous).reason != "internal_error", (text, previous)
        previous = text if rng.random() < 0.5 else rng.choice(GOLDS)
