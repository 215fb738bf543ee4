"""The verifiable reward: is this answer the right one? Defined in ch03, used by ch06, 6.6.

`extract_final_candidate` finds the answer in a response, `grade_answer` compares it with the
reference. Model output is untrusted, so nothing here evaluates code: a whitelist lexer, a small
parser and bounded arithmetic read the text (see `limits`), and whatever they cannot read is
compared as text. No input hangs, raises, or costs more than some hundredths of a second.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .answers import Based, Choice, Labelled, Sequence, Text
from .compare import Comparison
from .extract import extract_final_candidate
from .limits import MAX_CHARS, Rejected
from .normalize import clean, text_key
from .reading import Reading, read, read_gold

__all__ = ["Grade", "check_gold", "explain_grade", "extract_final_candidate", "grade_answer",
           "reason_counts"]

# 300,200: one number, or two where the reference shows that it is a list; 300,000 is one.
_GROUP_OR_ITEM = re.compile("[0-9],[1-9][0-9]{2}(?![0-9])(?!.*[0-9],0[0-9])")

# How often each reason was given in this process; "internal_error" should stay at zero.
reason_counts: Counter[str] = Counter()


class Grade(NamedTuple):
    """The verdict and why: "same_text", "same_value", "different", or why it was not compared."""

    correct: bool
    reason: str


def grade_answer(pred_text: str, gt_text: str) -> bool:
    """Whether the predicted answer equals the reference answer. Never raises."""
    return explain_grade(pred_text, gt_text).correct


def explain_grade(pred_text: str, gt_text: str) -> Grade:
    """`grade_answer` with the reason code, which is also counted in `reason_counts`."""
    try:
        grade = _grade(pred_text, gt_text)
    except Rejected as rejected:
        grade = Grade(False, rejected.code)
    except Exception:  # a bug must cost one reward, not the run; the count makes it visible
        grade = Grade(False, "internal_error")
    reason_counts[grade.reason] += 1
    return grade


def check_gold(problems: Iterable[str | Mapping]) -> list[tuple[int, str, str]]:
    """The reference answers that cannot be graded: (index, answer, reason), best none.

    An answer is usable when it can be read as mathematics or as words, and equals itself.
    `problems` are the answers, or mappings with the key "answer".
    """
    unusable = []
    for index, problem in enumerate(problems):
        gold = problem["answer"] if isinstance(problem, Mapping) else problem
        try:
            text = clean(gold)
            if not text:
                raise Rejected("empty")
            reading = read(text)
            if isinstance(reading.meaning, Text) and reading.meaning.code:
                reason = reading.meaning.code
            else:
                reason = "" if _compare(reading, read(text)) else "unequal_to_itself"
        except Rejected as rejected:
            reason = rejected.code
        except Exception:
            reason = "internal_error"
        if reason:
            unusable.append((index, gold, reason))
    return unusable


def _grade(pred: str, gold: str) -> Grade:
    """The cheapest comparison that decides: integers, the same text, then the meaning."""
    if not isinstance(pred, str) or not isinstance(gold, str):
        return Grade(False, "not_text")
    if len(pred) > MAX_CHARS or len(gold) > MAX_CHARS:
        return Grade(False, "too_long")
    if _is_integer(pred) and _is_integer(gold):
        same = pred.lstrip("0") == gold.lstrip("0")
        return Grade(same, "same_value" if same else "different")
    pred, gold = clean(pred), clean(gold)
    if not pred or not gold:
        return Grade(False, "empty")
    if pred == gold:
        return Grade(True, "same_text")
    reference = read_gold(gold)
    answer = read(pred)
    if answer.plain == reference.plain:
        return Grade(True, "same_text")
    if _compare(answer, reference):
        return Grade(True, "same_value")
    if _is_list(reference.meaning) and _GROUP_OR_ITEM.search(pred) and \
            _compare(read(pred, grouped=False), reference):
        return Grade(True, "same_value")
    for reading in (answer, reference):
        if isinstance(reading.meaning, Text) and reading.meaning.code:
            return Grade(False, reading.meaning.code)
    return Grade(False, "different")


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_list(meaning) -> bool:
    value = meaning.value if isinstance(meaning, Labelled) else meaning
    return isinstance(value, Sequence) and value.brackets in ("", "{}") and len(value.items) > 1


def _compare(answer: Reading, reference: Reading) -> bool:
    """Whether the meanings are equal; the value after the letter of a choice may stand for it."""
    for a, b in ((answer, reference), (reference, answer)):
        if isinstance(a.meaning, Choice) and a.meaning.content:
            if isinstance(b.meaning, Choice):
                return a.meaning.letter == b.meaning.letter and (
                    b.meaning.content is None or _compare(a.meaning.content, b.meaning.content))
            if _compare(a.meaning.content, b):
                return True
    for a, b in ((answer, reference), (reference, answer)):
        if isinstance(a.meaning, Text):
            return text_key(a.plain) == text_key(b.plain)
    # The digits of a based number; the other way round, 52_8 for 52, it is the value that counts.
    if isinstance(reference.meaning, Based) and not isinstance(answer.meaning, Based):
        return answer.plain.lstrip("0") == reference.meaning.digits
    return Comparison().equal(answer.meaning, reference.meaning)
