"""Notations that users met, each tried with many values: right ones and near misses."""

import math
import random
from fractions import Fraction
from itertools import permutations

from rfs_utils.grading import grade_answer


def test_an_exact_value_with_its_rounding():
    """The rounded and the cut-off decimal pass, a decimal one step away does not."""
    rng = random.Random(1)
    for _ in range(200):
        a, b = rng.randint(1, 9), rng.choice([2, 3, 5, 6, 7, 11])
        exact, value, places = f"{a}\\sqrt{{{b}}}", a * math.sqrt(b), rng.randint(2, 5)
        step = Fraction(1, 10**places)
        near = Fraction(round(value * 10**places), 10**places)
        cut = Fraction(math.floor(value * 10**places), 10**places)
        for shown, right in [(near, True), (cut, True), (near + step, near + step == cut),
                             (cut - step, False), (near + 2 * step, False), (-near, False)]:
            decimal = f"{float(shown):.{places}f}"
            assert grade_answer(f"{exact} \\approx {decimal}", exact) == right, (exact, decimal)
            assert grade_answer(f"x = {exact} ≈ {decimal}", exact) == right, (exact, decimal)
        assert not grade_answer(f"{float(near):.{places}f}", exact)


def test_named_values_stand_for_a_tuple_in_the_order_of_their_names():
    rng = random.Random(2)
    for names in ("ab", "pq", "xyz", "rst", "cdk"):
        values = rng.sample(range(-20, 20), len(names))
        point = f"({','.join(map(str, values))})"
        pairs = [f"{name} = {value}" for name, value in zip(names, values, strict=True)]
        for order in permutations(pairs):
            assert grade_answer(", ".join(order), point)
            assert grade_answer("\\begin{cases} " + " \\\\ ".join(order) + " \\end{cases}", point)
        for wrong in permutations(values):
            swapped = [f"{name} = {value}" for name, value in zip(names, wrong, strict=True)]
            assert grade_answer(", ".join(swapped), point) == (list(wrong) == values)
            assert grade_answer(", ".join(swapped), ", ".join(pairs)) == (list(wrong) == values)


def test_points_with_signs_are_their_expansion():
    rng = random.Random(3)
    for _ in range(50):
        a, b = rng.sample(range(1, 30), 2)
        assert grade_answer(f"({a},\\pm {b})", f"({a},-{b}),({a},{b})")
        assert grade_answer(f"(\\pm {a},{b})", f"({a},{b}),(-{a},{b})")
        assert grade_answer(f"(\\pm {a},\\mp {b})", f"({a},-{b}),(-{a},{b})")
        assert not grade_answer(f"({a},\\pm {b})", f"({a},{b}),(-{a},{b})")
        assert not grade_answer(f"(\\pm {a},\\pm {b})", f"({a},{b}),(-{a},-{b})")
        assert not grade_answer(f"({a},\\pm {b})", f"({a},{b})")


def test_determinants():
    rng = random.Random(4)
    for size in (1, 2, 3, 4):
        for _ in range(20):
            rows = [[rng.randint(-5, 5) for _ in range(size)] for _ in range(size)]
            value = sum(math.prod(rows[i][j] for i, j in enumerate(order)) * sign(order)
                        for order in permutations(range(size)))
            cells = "\\\\".join("&".join(map(str, row)) for row in rows)
            for written in (f"\\begin{{vmatrix}}{cells}\\end{{vmatrix}}",
                            f"\\det\\begin{{pmatrix}}{cells}\\end{{pmatrix}}"):
                assert grade_answer(written, str(value)), (written, value)
                assert not grade_answer(written, str(value + 1))


def sign(order: tuple[int, ...]) -> int:
    return (-1) ** sum(a > b for i, a in enumerate(order) for b in order[i + 1:])


def test_decimals_that_are_cut_off_are_their_fraction():
    for bottom in (3, 6, 7, 9, 11, 12, 13, 15, 33, 37):
        for top in range(1, bottom):
            value = Fraction(top, bottom)
            digits = str(top * 10**24 // bottom).rjust(24, "0")
            if math.gcd(10**24, value.denominator) == value.denominator:
                continue  # it ends
            assert grade_answer(f"0.{digits}\\ldots", f"{top}/{bottom}"), (top, bottom)
            assert not grade_answer(f"0.{digits}", f"{top}/{bottom}")
            assert not grade_answer(f"0.{digits}\\ldots", f"{top + 1}/{bottom}")


def test_labels_of_choices():
    rng = random.Random(5)
    for letter in "ABCDE":
        value, other = rng.sample(range(2, 99), 2)
        another = rng.choice([each for each in "ABCDE" if each != letter])
        for written in (f"{letter}. {value}", f"({letter}) {value}", f"{letter}: {value}",
                        f"{letter.lower()}. {value}", f"\\textbf{{({letter})}}\\ {value}",
                        f"\\text{{({letter})}} {value}", f"{letter}) {value}"):
            assert grade_answer(written, str(value)), written
            assert grade_answer(written, f"\\text{{({letter})}}"), written
            assert grade_answer(letter, written), written
            assert not grade_answer(written, str(other)), written
            assert not grade_answer(written, f"\\text{{({another})}}"), written
            assert not grade_answer(written, f"{letter}. {other}"), written
            assert not grade_answer(written, f"{another}. {value}"), written


def test_lists_of_three_digit_numbers():
    rng = random.Random(6)
    for _ in range(50):
        numbers = rng.sample(range(100, 1000), rng.randint(2, 4))
        gold = ", ".join(map(str, numbers))
        rng.shuffle(numbers)
        assert grade_answer(",".join(map(str, numbers)), gold)
        assert not grade_answer(",".join(map(str, numbers[1:])), gold)
        assert not grade_answer("".join(map(str, numbers)), gold)
        numbers[0] += 1 if numbers[0] + 1 not in numbers else 2
        assert not grade_answer(",".join(map(str, numbers)), gold)
