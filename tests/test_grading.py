"""The grader's policy: pairs of answers that are equal, and near misses that are not."""

import json
import os
from pathlib import Path

import pytest

from rfs_utils.grading import (
    check_gold,
    explain_grade,
    extract_final_candidate,
    grade_answer,
    reason_counts,
)

FIXTURES = Path(__file__).parent / "fixtures"
CASES = json.loads((FIXTURES / "grading_cases.json").read_text(encoding="utf-8"))
EXTRACTIONS = json.loads((FIXTURES / "extraction_cases.json").read_text(encoding="utf-8"))


def own_pairs(name: str = "grading_pairs.txt") -> list[tuple[str, str, bool]]:
    """The pairs of a file in fixtures: "prediction === reference" or with =/=."""
    pairs = []
    for line in (FIXTURES / name).read_text(encoding="utf-8").split("\n"):
        for sign in (" === ", " =/= "):
            if sign in line and not line.startswith("# "):
                pred, gold = line.split(sign)
                pairs.append((pred, gold, sign == " === "))
    return pairs


def math500() -> list[dict]:
    """MATH-500 from the shared folder beside the repository, or from RFS_SHARED; else skip."""
    root = Path(__file__).resolve().parents[1]
    shared = os.environ.get("RFS_SHARED")
    for folder in [Path(shared)] if shared else [root.parent / "shared"]:
        file = folder / "data" / "math500_test.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    pytest.skip("math500_test.json is not in ../shared/data (or $RFS_SHARED/data)")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['cat']}: {case['why']}")
def test_policy_and_example_pairs(case):
    pred = case["pred"]
    if case["mode"] == "response":
        pred = extract_final_candidate(pred, fallback=None)
    grade = explain_grade(pred, case["gold"])
    assert grade.correct == case["equal"], (case["pred"], case["gold"], grade)


def test_own_pairs():
    pairs = own_pairs()
    assert len(pairs) > 900
    assert wrong_pairs(pairs) == []


def test_pairs_of_the_kinds_that_users_met():
    """Regions of the line, names that contradict, and other notations: equal ones, near misses."""
    pairs = own_pairs("grading_kinds.txt")
    assert len(pairs) > 600
    assert wrong_pairs(pairs) == []


def wrong_pairs(pairs: list[tuple[str, str, bool]]) -> list[tuple]:
    return [(pred, gold, "should be equal" if equal else "FALSE ACCEPT", explain_grade(pred, gold))
            for pred, gold, equal in pairs if grade_answer(pred, gold) != equal]


def test_every_answer_equals_itself_however_it_is_wrapped():
    golds = {gold for _, gold, _ in own_pairs()} | {case["gold"] for case in CASES}
    for gold in sorted(golds):
        for wrapped in (gold, f" {gold} ", f"${gold}$", f"\\({gold}\\)", f"\\boxed{{{gold}}}"):
            if "$" in gold and wrapped.startswith("$"):
                continue  # the dollar of \$36 inside $...$ is another matter
            assert grade_answer(wrapped, gold), wrapped


@pytest.mark.parametrize("case", EXTRACTIONS, ids=lambda case: case["why"])
def test_extraction(case):
    assert extract_final_candidate(case["text"], case["fallback"]) == case["expected"]


@pytest.mark.parametrize("text, expected", [
    ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed {5}", "5"),
    ("\\boxed\n{5}", "5"),
    ("\\boxed{{5}}", "{5}"),
    ("\\boxed{5}}", "5"),
    ("\\boxed5", "5"),
    ("\\boxed 5", "5"),
    ("\\boxed -5.", "-5"),
    ("\\boxed 3/4 it is", "3/4"),
    ("\\boxed 5x", ""),
    ("\\boxed it", ""),
    ("\\fbox{42}", "42"),
    ("\\boxed{\\fbox{5}}", "5"),
    ("\\boxed{5}, in \\boxed as asked", "5"),
    ("\\boxed{5}, in a \\boxed{} as asked", "5"),
    ("\\boxed{4}, no: \\boxed 5", "5"),
    ("\\boxed{5} \\fbox{", ""),
    ("\\boxed{1$ $ }", "1"),
    ("\\boxed{1\\$ $ }", "1\\$"),
    ("\\Boxed{5}", ""),
    ("boxed{5}", ""),
    ("\\boxed{5} \\boxedx{6}", "5"),
    ("\\boxed{ }", ""),
    ("\\boxed{\\left\\{1,2\\right.}", "\\left\\{1,2\\right."),
    ("\\boxed{5\\}}", "5\\}"),
    ("\\boxed{\\$5}", "\\$5"),
    ("", ""),
])
def test_extraction_without_fallback(text, expected):
    assert extract_final_candidate(text, fallback=None) == expected


@pytest.mark.parametrize("text, expected", [
    ("<think>\\boxed{5}", ""),
    ("<think>\\boxed{5}</think>", ""),
    ("<think>\\boxed{5}</think> so it is 5", ""),
    ("<think>\\boxed{1}</think> \\boxed{2}", "2"),
    ("a thought that the prompt began \\boxed{1}</think> \\boxed{2}", "2"),
    ("a thought that the prompt began \\boxed{1}</think>", ""),
    ("\\boxed{5} <think> or \\boxed{6}", "5"),
    ("<think>a</think> \\boxed{5} <think>b \\boxed{6}</think>", "5"),
    ("<think>a <think> b</think> \\boxed{7}", "7"),
    ("<think>\\boxed{1", ""),
    ("<think>\\boxed{</think>1}", ""),
])
def test_a_box_in_a_thought_is_no_answer(text, expected):
    assert extract_final_candidate(text, fallback=None) == expected


@pytest.mark.parametrize("text, fallback, expected", [
    ("<think>7", "number_only", ""),
    ("<think>7", "number_then_full", ""),
    ("<think>7</think> eight", "number_then_full", " eight"),
    ("<think>7</think> it is 8", "number_only", "8"),
])
def test_what_was_only_thought_is_no_answer(text, fallback, expected):
    assert extract_final_candidate(text, fallback) == expected


@pytest.mark.parametrize("text, expected", [
    ("7-5", "5"),
    ("7−5", "5"),
    ("x-5", "5"),
    ("(2)-5", "5"),
    ("x = -5", "-5"),
    ("(-5)", "-5"),
    ("9--5", "-5"),
    ("3 1/2", "3 1/2"),
    ("-3 1/2", "-3 1/2"),
    ("3 4/2", "4/2"),
    ("0.5 1/2", "1/2"),
    ("it is 1,234,567.", "1,234,567"),
    ("so 12,34", "34"),
    ("3/4 of them", "3/4"),
    ("x = -0.5", "-0.5"),
    ("1e5 metres", "1e5"),
    ("5.", "5"),
    ("12 of 20 5" + " x" * 5_000, "5"),
])
def test_last_number(text, expected):
    assert extract_final_candidate(text, fallback="number_only") == expected


def test_extraction_default_and_unknown_fallback():
    assert extract_final_candidate("no box") == "no box"
    with pytest.raises(ValueError):
        extract_final_candidate("5", fallback="number")


def test_math500_references_can_be_graded():
    problems = math500()
    assert len(problems) == 500
    assert check_gold(problems) == []
    assert all(grade_answer(problem["answer"], problem["answer"]) for problem in problems)


def test_a_constant_answer_earns_nothing_on_math500():
    assert sum(grade_answer("123", problem["answer"]) for problem in math500()) == 0


def test_check_gold_lists_what_cannot_be_graded():
    golds = ["5", "\\text{even}", "\\oops{5}", "", "1/0", {"answer": "x=5"}, "5\x00", "9" * 2_000]
    assert [(index, reason) for index, _, reason in check_gold(golds)] == [
        (2, "not_an_expression"), (3, "empty"), (4, "undefined"), (6, "control_character"),
        (7, "too_long")]


@pytest.mark.parametrize("pred, gold, reason", [
    ("5", "5", "same_value"),
    ("x+1", "x+1", "same_text"),
    ("1+x", "x+1", "same_value"),
    ("6", "5", "different"),
    ("", "5", "empty"),
    ("5" * 2_000, "5", "too_long"),
    ("5\x00", "5", "control_character"),
    ("max(5,4)", "5", "not_an_expression"),
    ("9^{9^{9^{9}}}", "5", "too_large"),
    ("(" * 50 + "5" + ")" * 50, "5", "too_complex"),
    ("4=5", "5", "contradiction"),
    ("\\frac{5}{0}", "5", "undefined"),
    (None, "5", "not_text"),
])
def test_reasons_are_given_and_counted(pred, gold, reason):
    before = reason_counts[reason]
    assert explain_grade(pred, gold).reason == reason
    assert reason_counts[reason] == before + 1


def test_an_internal_error_is_a_counted_rejection(monkeypatch):
    def broken(text):
        raise ZeroDivisionError
    monkeypatch.setattr("rfs_utils.grading.clean", broken)
    before = reason_counts["internal_error"]
    assert explain_grade("x", "y") == (False, "internal_error")
    assert reason_counts["internal_error"] == before + 1
    reason_counts["internal_error"] = before
