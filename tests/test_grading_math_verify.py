"""Audit against math-verify, an independent grader; for development, and skipped without it.

It is no referee: both graders are compared with our labels, and the disagreements are printed
(`pytest -s`), each of which should be explained by the policy in `rfs_utils.grading.compare`.
"""

import logging

import pytest
from test_grading import CASES, own_pairs

from rfs_utils.grading import grade_answer

pytestmark = pytest.mark.nightly
math_verify = pytest.importorskip("math_verify", reason="math-verify is not installed")


def verified(pred: str, gold: str) -> bool:
    logging.disable(logging.CRITICAL)
    try:
        return bool(math_verify.verify(math_verify.parse(f"\\boxed{{{gold}}}"),
                                       math_verify.parse(f"\\boxed{{{pred}}}")))
    except Exception:
        return False
    finally:
        logging.disable(logging.NOTSET)


def test_disagreements_with_math_verify():
    pairs = [(case["pred"], case["gold"], case["equal"]) for case in CASES
             if case["mode"] == "candidate" and case["cat"] != "noise"] + own_pairs()[::20]
    ours = theirs = 0
    for pred, gold, equal in pairs:
        mine, other = grade_answer(pred, gold), verified(pred, gold)
        ours += mine == equal
        theirs += other == equal
        if mine != other:
            print(f"{'equal' if equal else 'not equal':9}  ours {mine!s:5}  math-verify {other!s:5}"
                  f"  {pred!r} for {gold!r}")
    print(f"right: ours {ours}, math-verify {theirs}, of {len(pairs)}")
    assert ours >= theirs
