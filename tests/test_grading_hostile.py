"""Model output is untrusted: nothing runs, nothing hangs, nothing escapes, whatever the text."""

import ast
import builtins
import inspect
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from grading_fuzz import LIMIT, PIECES, fuzz, seconds_of, texts
from hypothesis import given, settings
from hypothesis import strategies as st

import rfs_utils.grading as grading
from rfs_utils.grading import explain_grade, extract_final_candidate, grade_answer, reason_counts

MEGABYTE = 1_000_000


def nested(left: str, middle: str, right: str, depth: int) -> str:
    return left * depth + middle + right * depth


CODE = [
    "__import__('os').system('touch here')",
    "().__class__.__bases__[0].__subclasses__()",
    "exec('import os; os._exit(1)')", "eval('1+1')", "open('/etc/passwd').read()",
    "lambda: 5", "[x for x in ().__class__.__mro__]", "5 if True else 6", "5; import os",
    "{{5}}", "{0.__class__}", "%s%s%s", "${jndi:ldap://x}", "`rm -rf ~`", "$(rm -rf ~)",
    "5 # comment",
    "\\input{/etc/passwd}", "\\write18{ls}", "\\def\\x{\\x\\x}\\x", "\\newcommand{\\a}{\\a}",
    "'; DROP TABLE answers; --", "<script>5</script>", "Integer(5)", "S('5')", "Symbol('x')",
    "x.subs(x, 5)", "sympify('5')", "os.getpid()", "True", "None", "__debug__", "globals()",
    "print(5)", "5\nimport os", "\\text{__import__('os')}", "getattr(5, 'real')",
    "raise SystemExit",
]
TOWERS = [
    "9**9**9**9", "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", "10^{10^{10}}", "(9^9)^9^9",
    nested("2^{", "2", "}", 30), "9^" * 100 + "9", "2^{-10^{10}}", "0.5^{10^9}", "(-1)^{10^{400}}",
    "1.0000001^{10^{15}}", "\\sqrt{2}^{10^{12}}", "e^{e^{e^{e^{e}}}}", "\\exp(\\exp(\\exp(9)))",
    "\\pi^{\\pi^{\\pi^{\\pi}}}", "i^{10^{100}}", "i^{i^{i^{i}}}", "x^{x^{x^{x^{x}}}}",
    "(x+1)^{9999}", "((((x^{99})^{99})^{99})^{99})", "1e400", "1e999", "1e-999", "1e99999999999",
    "(((2^{99})^{99})^{99})", "\\sqrt[99]{2^{9999}}", "2^{16383}*2^{16383}", "(1/3)^{9999}",
    "+".join(f"1/{n}^{{99}}" for n in range(2, 60)), "*".join(["9^{999}"] * 80),
    "10^{0.30102999566}", "10^{0.3010299956639811}", "7^{0." + "3" * 399 + "}",
    "(1/3)^{1/9" + "9" * 300 + "}", "(10^{300}+1)^{1/99}", "\\sqrt{\\sqrt{2^{0.123456789}}}",
    "(2^{1.23456789})^{9.87654321}", "+".join(["7^{0.123456789}"] * 40), "2^{1/2047}", "2^{2047/2}",
    "\\sqrt{10^{400}+1}", "0^0", "0^{-1}", "\\sqrt[0]{5}", "\\sqrt[-1]{5}", "\\sqrt[10^9]{5}",
]
FACTORIALS = [
    "99999999!", "9!!!!!!!!", "((9!)!)!", "1000!", "500!" + "*500!" * 60, "x!", "(1/2)!", "(-1)!",
    "\\binom{10^9}{10^8}", "\\binom{500}{250}", "\\binom{x}{500}", "\\binom{\\pi}{400}",
    "\\binom{\\binom{99}{50}}{500}", "+".join(["\\binom{x}{99}"] * 40), "\\binom{0.5}{500}",
]
FUNCTIONS = [
    "\\sin(10^{100})", "\\tan(\\frac{\\pi}{2})", "\\ln 0", "\\ln(-1)", "\\log_1 5", "\\log_0 5",
    "\\arcsin(10^{30})", "\\cosh(10^{10})", nested("\\sin(", "1", ")", 38), nested("\\ln(", "9",
    ")", 38),
    "+".join(["\\sin(\\cos(\\tan(x)))"] * 30), "*".join(["\\sqrt{x+\\pi}"] * 60),
    "\\lfloor 10^{50}\\pi \\rfloor", "\\lfloor i \\rfloor", "|" * 399, nested("|", "x", "|", 30),
    "\\pm " * 100 + "1", "+".join(["\\pm 1"] * 50), ",".join(["\\pm 1"] * 90), "\\infty-\\infty",
    "0\\cdot\\infty", "\\frac{\\infty}{\\infty}", "\\infty^{\\infty}", "|\\infty|", "\\sin\\infty",
]
DEEP = [nested(left, "1", right, depth) for depth in (39, 50, 400, 20_000) for left, right in [
    ("(", ")"), ("{", "}"), ("[", "]"), ("\\{", "\\}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"),
    ("-", ""), ("-(", ")"), ("2^", ""), ("\\text{", "}"), ("\\left(", "\\right)"), ("(1,", ")"),
    ("|", "|"), ("\\boxed{", "}"), ("\\begin{pmatrix}", "\\end{pmatrix}"), ("1/", ""), ("x_{", "}"),
    ("\\mathbf{", "}"), ("f(", ")"), ("\\sin ", ""), ("\\log_", ""), ("\\frac", "")]]
UNUSUAL = [
    "", " ", "\x00", "5\x00", "\x005", "5\x07", "\x1b[31m5", "\ud800", "5\udfff", "\U0010ffff",
    "5\u202e", "\u202e5", "٥", "५", "Ⅴ", "５", "五", "🖐", "5️⃣", "²", "x²³", "⁵", "₅", "½½", "∞",
    "√", "√√√4",
    "\ufdfa" * 900, "ﬃ" * 999, "a\u0301" * 400, "\u200b" * 999, "\u200b5\u200b", "\ufeff5", "°",
    "%", "%%",
    "\\", "\\\\", "\\\\\\", "{", "}", "}{", "$", "$$", "$$$", "\\(", "\\)", "\\[", "_", "^",
    "^^", "__",
    "&", "#", "~", "~~~", "'", "''", '"', "`", "``", "*", "**", "****", "!", "|", "||", ",",
    ",,,", ";", ".",
    "..", "...", "-", "--", "+-", "=", "==", "5=", "=5", "<", "x<", "\\frac", "\\frac{1}",
    "\\frac{}{}",
    "\\sqrt", "\\sqrt[", "\\sqrt[3", "\\begin", "\\begin{pmatrix}", "\\end{pmatrix}", "\\text",
    "\\text{", "\\left", "\\right", "\\pm", "\\infty", "\\in", "\\cup", "\\binom", "\\log_",
    "^\\circ",
    "(", ")", "(,)", "(1,", "[1", "\\{", "\\{1", "5_", "5_{", "5_{}", "5_0", "5_1", "5_37",
    "5_{99999}",
    "f(", "f()", "f()=", "f(x)=", "AB=", "area =", "x=1=2=3", "1<2>3", "1 2/", "1\\frac", "5\\%\\%",
    "0.\\overline{}", "0.\\overline{" + "9" * 500 + "}", ".", ".\\overline", "1e", "1e+", "1e+-5",
]
LONG = [character * MEGABYTE for character in "5 x({[\\$^-,.!|*/=<%&_~+\x00½√é\u200b\ufdfa"] + [
    unit * (MEGABYTE // len(unit)) for unit in [
        "\\boxed{", "\\boxed{5}", "\\boxed", "\\boxed {", "{}", "\\{", "{\\", "5 ", "5,",
        "1,234,", "1/2 ",
        "-1", "(1,2),", "\\frac{1}{2}+", "\\text{a}", "ab ", "and ", "\\left(", "$5$ ", "a\n",
        "1e5 ",
        "\\!", "\\overline{3}", "½"]] + [
    "\\boxed{" + "5" * MEGABYTE + "}", "\\boxed{" + "{}" * (MEGABYTE // 2) + "}",
    "\\boxed{1" + " " * 200_000 + "$}", "\\boxed{" + "$ " * 200_000 + "1" + " $" * 200_000 + "}",
    "\\boxed{1\\" + "$ " * 200_000 + "}", "\\boxed{} " * 100_000, "\\boxed 1/" * 100_000,
    "\\boxed 1x" * 100_000,
    "\\boxed {" + " " * 200_000 + "}", "<think>" * 140_000, "</think>" * 120_000,
    "<think>\\boxed{1}</think>" * 40_000, "1-" * 500_000, "1 " * 500_000 + "/2",
    "\\boxed" + " " * MEGABYTE + "{5}", "\\boxed{5}" + " " * MEGABYTE, "5" + "x" * MEGABYTE,
    "\\boxed{" + "\\}" * (MEGABYTE // 2) + "}", "9" * 999, "1," * 499 + "1", "(" * 499 + ")" * 499,
    ",".join(str(n) for n in range(250)), "x" * 1000, "1 " * 499, "a_" * 499,
    "\\text{" + "a " * 490 + "}",
    "\\{" + ",".join(["x"] * 190) + "\\}",
    "\\{" + ",".join(f"\\sqrt{{{n}}}" for n in range(60)) + "\\}",
    "0." + "3" * 900, "." * 999, "1/" * 190 + "1", "1-" * 190 + "1", "+".join(["x^{9}"] * 65),
    "\\begin{pmatrix}" + "&".join(["1"] * 190) + "\\end{pmatrix}", "=".join(["x"] * 190),
    "=".join(["1"] * 190), "<".join(["x"] * 190), "\\cup".join(["(1,2)"] * 60),
    "1 and " * 150 + "1",
    "A" * 999, "1A" * 500, "1A" * 490 + "_", "1" + "A" * 990, "1 111" * 200, "1,111" * 200,
    "\\{" + ",".join(str(n) for n in range(180)) + "\\}", "_" * 999, "e" * 999,
    "1e1" * 300, "12:" * 300, "5 " + "cm " * 300,
    "5" + " m^2" * 200,
]
HOSTILE = CODE + TOWERS + FACTORIALS + FUNCTIONS + DEEP + UNUSUAL + LONG
GOLDS = ["5", "\\frac{1}{2}", "x^2+1", "(1,2)", "\\{1,2\\}", "\\text{(C)}", "52_8", "\\sqrt{2}"]


def attack(text: str) -> float:
    """Extract and grade a hostile text in every position; the seconds of the slowest call.

    These are seconds of this thread's work: what else the machine does must not fail a test.
    """
    slowest = 0.0
    for call in [
        lambda: extract_final_candidate(text, None),
        lambda: extract_final_candidate(text, "number_only"),
        lambda: extract_final_candidate(text, "number_then_full"),
        *[lambda gold=gold: grade_answer(text, gold) for gold in GOLDS],
        lambda: grade_answer("5", text),
        lambda: grade_answer(text + " ", text),  # both sides are read
        lambda: grade_answer(text + "+0", text),
        lambda: grading.check_gold([text]),
    ]:
        start = time.thread_time()
        call()
        slowest = max(slowest, time.thread_time() - start)
    return slowest


@pytest.fixture(autouse=True)
def no_internal_errors():
    before = reason_counts["internal_error"]
    yield
    assert reason_counts["internal_error"] == before


@pytest.fixture
def nothing_executed(monkeypatch):
    """Fail when anything is evaluated, imported from text, opened or run."""
    def refuse(*args, **kwargs):
        raise AssertionError("executed")
    for name in ("eval", "exec", "compile", "open"):
        monkeypatch.setattr(builtins, name, refuse)
    monkeypatch.setattr(os, "system", refuse)


def test_hostile_inputs_are_wrong_and_run_nothing(nothing_executed):
    for text in CODE + TOWERS + FACTORIALS + DEEP:
        for gold in ("7", "1/3", "y", "(1,2)"):
            assert grade_answer(text, gold) is False, text[:80]


def test_hostile_inputs_take_no_time():
    slow = [text for text in HOSTILE if attack(text) > 0.1]
    assert not [text[:60] for text in slow if attack(text) > 0.1]


def test_hostile_inputs_take_no_memory():
    for text in LONG + TOWERS + DEEP:
        tracemalloc.start()
        attack(text)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 50 * MEGABYTE, (text[:60], peak)


def test_worker_thread_grades_like_the_main_thread():
    texts = [text for text in HOSTILE if len(text) < 2_000]
    expected = [explain_grade(text, gold) for text in texts for gold in GOLDS]
    found: list = []
    worker = threading.Thread(target=lambda: found.extend(
        explain_grade(text, gold) for text in texts for gold in GOLDS))
    worker.start()
    worker.join(60)
    assert found == expected


def test_two_threads_do_not_disturb_each_other():
    pairs = [("\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}", True), ("\\sin\\pi", "0", True),
             ("1.4142135623730950488016887242097", "\\sqrt{2}", False), ("e^{-200}", "0", False)]
    wrong: list = []

    def work():
        for _ in range(200):
            wrong.extend(p for p in pairs if grade_answer(p[0], p[1]) != p[2])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_deep_call_stack_costs_a_reward_and_no_exception():
    def dive(depth: int):
        return dive(depth - 1) if depth else explain_grade("((((1))))", "1/1 + 0")
    deepest = sys.getrecursionlimit() - len(inspect.stack()) - 30
    before = reason_counts["internal_error"]
    assert dive(deepest).reason in ("same_value", "internal_error")
    reason_counts["internal_error"] = before


def test_sources_hold_nothing_that_evaluates_text():
    """Only the standard library and mpmath are imported; no dangerous name is used."""
    forbidden = {"eval", "exec", "compile", "sympify", "parse_expr", "signal", "threading", "sympy",
                 "__import__", "importlib", "subprocess", "os", "pickle",
                 "multiprocessing", "mpmathify"}
    allowed = {"re", "math", "fractions", "functools", "itertools", "collections", "typing", "zlib",
               "dataclasses", "unicodedata", "mpmath"}
    sources = sorted(Path(grading.__file__).parent.glob("*.py"))
    assert len(sources) > 5
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {name.name.split(".")[0] for name in node.names} <= allowed, source
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in allowed, source
            elif isinstance(node, ast.Name):
                assert node.id not in forbidden, (source, node.id)
            elif isinstance(node, ast.Attribute):
                assert node.attr not in forbidden - {"compile"}, (source, node.attr)
                if node.attr == "compile":
                    assert isinstance(node.value, ast.Name) and node.value.id == "re"


def test_importing_the_grader_imports_no_heavy_package():
    code = ("import sys, rfs_utils.grading\n"
            "print([name for name in ('torch', 'sympy') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(grading.__file__).parents[2], check=True)
    assert done.stdout.strip() == "[]"


def test_things_that_are_no_text():
    for thing in (None, 5, b"5", ["5"], {}, float("nan")):
        assert grade_answer(thing, "5") is False
        assert grade_answer("5", thing) is False
        assert extract_final_candidate(thing, None) == ""


# -- fuzzing ---------------------------------------------------------------------------------------

def test_seeded_fuzz():
    """20,000 texts here; `python tests/grading_fuzz.py` grades a million."""
    result = fuzz(20_000, seed=0)
    assert not result["raised"]
    # Seconds of this thread's work; a slow call is tried again, the garbage collector may have come.
    assert [(text, gold) for seconds, text, gold in result["slowest"]
            if seconds > LIMIT and seconds_of(text, gold) > LIMIT] == []
    assert result["correct"] > 2_000
    assert len(result["reasons"]) > 8


def test_the_fuzz_repeats_itself():
    assert list(texts(3, 200)) == list(texts(3, 200)) != list(texts(4, 200))


answers = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.one_of(st.text(max_size=60), answers), st.one_of(st.text(max_size=60), answers))
def test_any_two_texts(pred, gold):
    grade = explain_grade(pred, gold)
    assert grade.reason != "internal_error"
    assert grade == explain_grade(pred, gold)  # the same verdict every time, cached or not


@settings(max_examples=300, derandomize=True, deadline=None)
@given(answers)
def test_what_can_be_read_equals_itself_in_other_clothes(text):
    if grade_answer(text, text) and text.count("$") == 0 and text == text.strip():
        assert grade_answer("$" + text + "$", text) or text.endswith(("\\", "."))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.fractions(), st.fractions())
def test_fractions_are_compared_exactly(a, b):
    assert grade_answer(f"{a}", f"\\frac{{{b.numerator}}}{{{b.denominator}}}") == (a == b)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6),
       st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_decimals_are_compared_exactly(a, b):
    assert grade_answer(f"{a:f}", f"{b:f}") == (a == b)
    assert grade_answer(f"{a:f}", f"{a:f}0")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(max_size=200), st.sampled_from((None, "number_only", "number_then_full")))
def test_extraction_returns_a_piece_of_the_text(text, fallback):
    found = extract_final_candidate(text, fallback)
    assert found.replace("-", "−") in text.replace("-", "−")


@pytest.mark.parametrize("command", ["mathbb", "Bbb", "begin", "end", "text", "mathrm", "operatorname", "boxed", "sqrt",
                                     "frac", "binom", "overline", "log_", "angle", "color", "left", "begin{array}"])
def test_a_command_without_anything_in_its_braces(command):
    for text in (f"\\{command}{{}}2", f"\\{command}{{}}", f"\\{command}{{ }}", f"\\{command}", f"2\\{command}{{}}{{}}"):
        for pred, gold in ((text, "2"), ("2", text)):
            assert explain_grade(pred, gold).reason != "internal_error", (pred, gold)
