"""A seeded fuzz of the grader: many strings of the kinds that cost time, each extracted and graded.

    python tests/grading_fuzz.py [--count 1000000] [--seed 0] [--golds math500_test.json]

The texts are long decimals and exponents, nested roots, fractions and braces, factorials, binomials,
lists, long blanks, unicode, and mutations of reference answers. The report names the slowest calls,
every exception, and how often each reason was given. Exit status 1 when a call took over 0.1 s of
this thread's time or raised.
"""

import argparse
import heapq
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from rfs_utils.grading import check_gold, explain_grade, extract_final_candidate

LIMIT = 0.1  # seconds
GOLDS = ["5", "-3", "1/2", "\\frac{3}{4}", "x^2+2x+1", "(1,2)", "\\{1,2\\}", "\\text{(C)}", "52_8",
         "\\sqrt{2}", "2\\pi", "y=2x+3", "[0,\\infty)", "x>2", "1\\pm\\sqrt{19}", "50\\%", "10:30",
         "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\frac{\\sqrt{x^2+1}}{|x|}", "\\ln(x^2)", "n!",
         "\\binom{n}{k}", "(-\\infty,2)\\cup(3,5]", "3+4i", "36\\text{ cm}^2", "\\text{even}"]
PIECES = """0 1 2 5 9 10 .5 3.14 1,234 1e3 1A x y n e i \\pi \\theta a_1 + - * / ^ ** ! = < > <= \\le \\ge
\\ne \\pm \\mp \\cdot \\times ( ) [ ] { } \\{ \\} , ; | & \\\\ _ % \\% $ \\$ ~ \\frac \\frac{1}{2} \\dfrac
\\sqrt \\sqrt{2} \\sqrt[3] \\binom \\sin \\cos^2 \\log_2 \\ln \\arctan \\text{ \\text{cm} \\mathbf{ \\left(
\\right) \\left. \\boxed{ \\boxed \\fbox{ <think> </think> \\begin{pmatrix} \\end{pmatrix} \\cup \\cap
\\setminus \\in \\infty \\emptyset \\mathbb{R} ^\\circ ^{ _{ _8 and or cm percent million (C) C) apples per
square \\overline{3} . ' " ` \\! \\, \\lfloor \\rfloor \\langle \\rangle \\angle f( f(x)= x= √ ² ½ π ° − ≈ ℃
\x00 \u200b é 五 10:30 base 5th \\approx \\dots \\color{red}""".split() + [" ", "\n"]


def digits(rng: random.Random, most: int) -> str:
    return "".join(rng.choices("0123456789", k=rng.randint(1, most)))


def number(rng: random.Random) -> str:
    """Short, long and very long numbers: whole, decimal, repeating, with a power of ten."""
    most = rng.choice((1, 2, 3, 12, 60, 399))
    return rng.choice((
        lambda: digits(rng, most), lambda: digits(rng, most), lambda: "-" + digits(rng, most),
        lambda: f"{digits(rng, 3)}.{digits(rng, most)}", lambda: f"0.{digits(rng, most)}",
        lambda: f"{digits(rng, most)}e{rng.choice(('', '-'))}{digits(rng, 3)}",
        lambda: f"0.\\overline{{{digits(rng, most)}}}", lambda: "1" + "0" * most,
        lambda: "9" * most, lambda: f"10^{{{digits(rng, 3)}}}"))()


def expression(rng: random.Random, depth: int) -> str:
    """Nested mathematics that mostly parses, so that the arithmetic is reached."""
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice((number, number, lambda r: r.choice("xynkabt"),
                           lambda r: r.choice(("\\pi", "e", "i", "2", "3", "\\infty"))))(rng)
    a = lambda: expression(rng, depth - 1)  # noqa: E731
    return rng.choice((
        lambda: f"{a()}+{a()}", lambda: f"{a()}-({a()})", lambda: f"({a()})({a()})",
        lambda: f"({a()})/({a()})", lambda: f"\\frac{{{a()}}}{{{a()}}}", lambda: f"({a()})^{{{a()}}}",
        lambda: f"({a()})^{{{number(rng)}}}", lambda: f"{number(rng)}^{{{number(rng)}}}",
        lambda: f"\\sqrt{{{a()}}}", lambda: f"\\sqrt[{rng.randint(2, 100)}]{{{a()}}}",
        lambda: f"({a()})!", lambda: f"\\binom{{{a()}}}{{{rng.choice((a(), digits(rng, 3)))}}}",
        lambda: f"|{a()}|", lambda: f"\\lfloor {a()} \\rfloor", lambda: f"\\pm {a()}",
        lambda: f"\\{rng.choice(('sin', 'cos', 'tan', 'ln', 'exp', 'arctan', 'arcsin', 'sinh', 'cot'))}"
                f"({a()})",
        lambda: f"\\log_{{{a()}}}({a()})"))()


def repeated(rng: random.Random) -> str:
    """Many terms, factors, items or relations of one form."""
    term = expression(rng, rng.randint(0, 2))
    joint = rng.choice(("+", "-", "*", "\\cdot ", "/", ",", ", ", "=", "<", "\\cup", " and ", "^", "&", " "))
    count = rng.randint(2, 80)
    terms = [term if rng.random() < 0.5 else term.replace("1", str(n)).replace("x", f"x_{n % 10}")
             for n in range(count)]
    text = joint.join(terms)
    left, right = rng.choice((("", ""), ("", ""), ("(", ")"), ("\\{", "\\}"), ("[", "]"), ("\\sqrt{", "}"),
                              ("\\begin{pmatrix}", "\\end{pmatrix}"), ("x=", ""), ("|", "|")))
    return (left + text + right)[:rng.choice((1_000, 1_000, 5_000))]


def nested(rng: random.Random) -> str:
    """Something opened many times, and closed as often or nearly."""
    left, right = rng.choice((
        ("(", ")"), ("{", "}"), ("[", "]"), ("\\{", "\\}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"),
        ("\\sqrt{1+", "}"), ("\\sqrt[3]{x+", "}"), ("-", ""), ("2^{", "}"), ("2^", ""), ("(1+", ")^{-1}"),
        ("\\text{", "}"), ("\\boxed{", "}"), ("\\frac{", "}{7}"), ("|", "|"), ("\\sin(", ")"), ("(", ")!"),
        ("\\binom{9}{", "}"), ("\\left(", "\\right)"), ("x_{", "}"), ("f(", ")"), ("1/(2+", ")"),
        ("\\log_{2}(9+", ")"), ("<think>", "</think>"), ("(x^2+", ")^2"), ("(", ")^{1/2}")))
    depth = rng.choice((2, 5, 12, 20, 38, 60, 300, 2_000))
    return left * depth + expression(rng, 1) + right * max(0, depth + rng.choice((0, 0, 0, -1, 1)))


def mutated(rng: random.Random, golds: list[str]) -> str:
    """A reference answer with a few characters or pieces inserted, doubled, removed or swapped."""
    text = rng.choice(golds)
    for _ in range(rng.randint(1, 4)):
        text = changed_once(rng, text, golds)
    return text[:1_200]


def changed_once(rng: random.Random, text: str, golds: list[str]) -> str:
    i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    return rng.choice((
        lambda: text[:i] + rng.choice(PIECES) + text[i:],
        lambda: text[:i] + rng.choice(PIECES) + text[j:],
        lambda: text[:j] + text[i:],
        lambda: text[:i] + text[j:],
        lambda: text[:i] + number(rng) + text[i:],
        lambda: text[:i] + text[i:j][::-1] + text[j:],
        lambda: text + rng.choice((",", "+", "=", "^", " \\text{ or } ")) + rng.choice(golds)))()


def pieces(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) + rng.choice(("", "", " ")) for _ in range(rng.randint(1, 30)))


def unicode(rng: random.Random) -> str:
    top = rng.choice((127, 0x3FF, 0x2FFF, 0x10FFFF))
    return "".join(chr(rng.randint(0, top)) for _ in range(rng.randint(0, 40)))


def padded(rng: random.Random) -> str:
    """Long runs of one thing around and inside an answer."""
    filler = rng.choice((" ", " ", "\n", "\t", "$", "$ ", "~", "0", "9", "1A", ",", ".", "-", "{}", "\\ ",
                         "\\!", "\\boxed ", "\\boxed{} ", "x", "\u00a0", "½", "1 ", "111,", "111 ", "A1", "_"))
    run = filler * (rng.choice((10, 100, 400, 900, 20_000)) // len(filler))
    middle = expression(rng, 1)
    return rng.choice((run + middle, middle + run, middle + run + middle, middle + run + "$",
                       "{" + run + middle + "}", "x" + run + "=" + middle))


KINDS: list[tuple[float, Callable]] = [
    (0.34, lambda rng, golds: expression(rng, rng.randint(1, 5))),
    (0.10, lambda rng, golds: repeated(rng)),
    (0.08, lambda rng, golds: nested(rng)),
    (0.25, mutated),
    (0.12, lambda rng, golds: pieces(rng)),
    (0.05, lambda rng, golds: unicode(rng)),
    (0.06, lambda rng, golds: padded(rng)),
]


def texts(seed: int, count: int, golds: list[str] = GOLDS) -> Iterator[str]:
    """`count` strings; the same seed gives the same strings."""
    rng = random.Random(seed)
    weights, makers = zip(*KINDS, strict=True)
    for maker in rng.choices(makers, weights, k=count):
        yield maker(rng, golds)


def fuzz(count: int, seed: int, golds: list[str] = GOLDS) -> dict:
    """Grade each text against a reference, the text before it, or a variant of itself.

    Returns the seconds of the slowest calls, what raised, and the counts of the reasons.
    """
    rng = random.Random(-1 - seed)
    slowest: list[tuple[float, str, str]] = []
    raised: list[tuple[str, str, str]] = []
    reasons: Counter[str] = Counter()
    previous, correct, total = "5", 0, 0.0
    for text in texts(seed, count, golds):
        gold = rng.choice((rng.choice(golds), rng.choice(golds), previous, text, text + "+0"))
        start = time.thread_time()
        try:
            boxed = extract_final_candidate(f"\\boxed{{{text}}}", None)
            extract_final_candidate(text, rng.choice((None, "number_only", "number_then_full")))
            grade = explain_grade(text if rng.random() < 0.8 else boxed, gold)
            if rng.random() < 0.02:
                check_gold([text])
        except Exception as error:
            raised.append((repr(error), text, gold))
        else:
            reasons[grade.reason] += 1
            correct += grade.correct
            if grade.reason == "internal_error":
                raised.append(("internal_error", text, gold))
        seconds = time.thread_time() - start
        total += seconds
        if len(slowest) < 10 or seconds > slowest[0][0]:
            (heapq.heappush if len(slowest) < 10 else heapq.heapreplace)(slowest, (seconds, text, gold))
        previous = text
    return {"count": count, "seconds": total, "correct": correct, "reasons": reasons, "raised": raised,
            "slowest": sorted(slowest, reverse=True)}


def seconds_of(text: str, gold: str) -> float:
    """The seconds of this thread that the same calls take once more."""
    start = time.thread_time()
    extract_final_candidate(f"\\boxed{{{text}}}", None)
    extract_final_candidate(text)
    explain_grade(text, gold)
    check_gold([text])
    return time.thread_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golds", type=Path, help="JSON list of problems with the key `answer`, to mutate")
    arguments = parser.parse_args()
    golds = GOLDS
    if arguments.golds:
        golds = GOLDS + [row["answer"] for row in json.loads(arguments.golds.read_text(encoding="utf-8"))]
    result = fuzz(arguments.count, arguments.seed, golds)
    print(f"{result['count']} strings, seed {arguments.seed}: {result['seconds']:.0f} s in the grader, "
          f"{result['seconds'] / result['count'] * 1e6:.0f} us each, {result['correct']} accepted")
    print("reasons:", ", ".join(f"{name} {n}" for name, n in result["reasons"].most_common()))
    print("slowest:")
    for seconds, text, gold in result["slowest"]:
        print(f"  {seconds * 1e3:7.1f} ms  {text[:150]!r} ({len(text)})  for  {gold[:60]!r} ({len(gold)})")
    print(f"exceptions: {len(result['raised'])}")
    for error, text, gold in result["raised"][:20]:
        print(f"  {error}  {text[:300]!r}  for  {gold[:300]!r}")
    return int(bool(result["raised"]) or result["slowest"][0][0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
