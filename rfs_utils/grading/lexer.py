"""Text to tokens, by whitelist: an unknown character or command means "not an expression".

A token is a pair (kind, value):

    num   "58500", "3.21"        a number as written, group separators removed
    repeat ("0.1", "6")          a repeating decimal
    var   "x", "a_1", "\\theta"  a variable; letters that are not a known word multiply
    const "pi", "e", "i", "inf", "empty", "reals"
    fn    "sin", "sqrt" ...      a function that is applied to what follows
    word  "apples"               text that may be a counted unit
    name  "even"                 other text: a word standing outside \\text
    sep   "and", "or"
    money "dollar"               a currency sign
    based ("1A", 16)             digits beyond 9 with a base
    begin / end "pmatrix"
    anything else is its own kind: + - * / ^ ( ) [ ] { } set{ }set , = < <= \\frac ...
"""

import re

from .limits import MAX_DIGITS, MAX_TOKENS, Rejected
from .normalize import FONT_COMMANDS, TEXT_COMMANDS
from .units import BARE

FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh "
                      "ln log lg exp abs sqrt cbrt".split())
_NAMES = {"pi": ("const", "pi"), "oo": ("const", "inf"), "inf": ("const", "inf"),
          "infinity": ("const", "inf"), "infty": ("const", "inf"), "e": ("const", "e"),
          "i": ("const", "i"), "asin": ("fn", "arcsin"), "acos": ("fn", "arccos"),
          "atan": ("fn", "arctan"), "det": ("\\det", ""), "and": ("sep", "and"), "or": ("sep", "or"),
          **{name: ("fn", name) for name in FUNCTIONS}}
_GREEK = ("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu "
          "nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma "
          "Phi Psi Omega ell").split()
_COMMANDS = {
    **{name: ("var", "\\" + name.removeprefix("var")) for name in _GREEK},
    **{name: ("fn", name) for name in FUNCTIONS - {"sqrt", "abs", "cbrt"}},
    **{name: ("\\" + name, "") for name in ("frac", "sqrt", "binom", "circ", "setminus",
                                              "over", "choose", "det")},
    **{name: ("*", "") for name in ("cdot", "times", "ast")}, "div": ("/", ""),
    "pi": ("const", "pi"), "infty": ("const", "inf"),
    "emptyset": ("const", "empty"), "varnothing": ("const", "empty"),
    **{name: ("<=", "") for name in ("le", "leq", "leqslant")}, "lt": ("<", ""),
    **{name: (">=", "") for name in ("ge", "geq", "geqslant")}, "gt": (">", ""),
    **{name: ("!=", "") for name in ("ne", "neq")},
    **{name: ("\\setminus", "") for name in ("backslash", "smallsetminus")},
    "R": ("const", "reals"), "reals": ("const", "reals"), "ldots": ("dots", ""),
    **{name: ("approx", "") for name in ("approx", "sim", "simeq", "cong", "equiv",
                                         "approxeq", "thickapprox", "doteq")},
    **{name: (name, "") for name in ("pm", "mp", "in", "cup", "cap")},
    **{name: ("|", "") for name in ("mid", "vert", "lvert", "rvert")},
    **{name: (name, "") for name in ("lfloor", "rfloor", "lceil", "rceil", "langle", "rangle")},
    "degree": ("^circ", ""), "{": ("set{", ""), "}": ("}set", ""), "lbrace": ("set{", ""),
    "rbrace": ("}set", ""), "%": ("%", ""), "$": ("money", "dollar"), "\\": ("\\\\", ""),
    "&": ("&", ""), "land": ("sep", "and"), "lor": ("sep", "or"),
}
_ASCII_OPS = {"**": "^", "==": "=", "\\%": "%"}
_PRODUCTS = frozenset(["abc", "pqr", "rst", "uvw", "xyz"])
_VOWEL = re.compile("[aeiouy]")
_MONEY = {"$": "dollar", "€": "euro", "£": "pound sterling", "₹": "rupee", "¢": "cent"}

# No alternative repeats a group that itself repeats without bound, so matching is linear.
_TOKEN = re.compile(r"""
    (?P<space>\ +)
  | (?P<num>[0-9]+(?:\.[0-9]*)?|\.[0-9]+|\.(?=\\))
  | (?P<letters>[A-Za-z]+)
  | (?P<command>\\(?:[A-Za-z]+|.))
  | (?P<op>\*\*|<=|>=|!=|==|\+/-|[-+*/^_=<>(){}\[\],;:|!%&])
  | (?P<money>[$€£₹¢])
""", re.VERBOSE)
_MAY_CONTINUE = frozenset(", \\(_eEABCDF")  # what a longer way of writing a number goes on with
_COMMAS = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])(?:\.[0-9]+)?")
_BLANKS = re.compile(r"[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/]| [0-9])(?:\.[0-9]+)?")
_POWER_OF_TEN = re.compile(r"[eE]([+-]?[0-9]{1,3})(?![0-9A-Za-z.])")
_REPEAT = re.compile(r"([0-9]*\.[0-9]*)\\(?:overline|bar|dot)\s*\{?([0-9]+)\}?")
_REPEAT_PARENS = re.compile(r"([0-9]+\.)\(([0-9]+)\)")
_CUT_OFF = re.compile(r"([0-9]*\.[0-9]+) ?\\ldots")
_BASED = re.compile(r"([0-9]+[A-F][0-9A-F]*)_(?:\{(1[1-6])\}|(1[1-6])(?![0-9]))")
_GROUP = re.compile(r"\s*\{([^{}]*)\}")
_GROUP_OR_LETTER = re.compile(r"\s*(?:\{([^{}]*)\}|([A-Za-z]))")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{([^{}]*)\}|([A-Za-z0-9]))")
_PRIMES = re.compile(r"'+|\^\{?\\prime\}?")
_ANGLE = re.compile(r"\s*([A-Z]{1,3})")


def lex(text: str, grouped: bool = True) -> list[tuple]:
    """The tokens of a cleaned answer; `grouped` says whether 300,200 is one number or two."""
    tokens: list[tuple] = []
    _lex(text, tokens, in_text=False, grouped=grouped)
    return tokens


def _lex(text: str, out: list[tuple], in_text: bool, grouped: bool) -> None:
    position, brackets = 0, 0 if grouped else MAX_TOKENS  # inside brackets nothing is grouped
    while position < len(text):
        if len(out) > MAX_TOKENS:
            raise Rejected("too_complex")
        match = _TOKEN.match(text, position)
        if match is None:
            raise Rejected("not_an_expression")
        kind, value = match.lastgroup, match[0]
        if kind == "num":
            position = _number(text, position, match, out, grouped=brackets == 0)
            continue
        position = match.end()
        if kind == "op":
            if value in "([":
                brackets += 1
            elif value in ")]":
                brackets -= 1
            out.append(("pm", "") if value == "+/-" else (_ASCII_OPS.get(value, value), ""))
        elif kind == "letters":
            position = _letters(text, match, out, in_text)
        elif kind == "command":
            name = value[1:]
            brackets += (name == "{") - (name == "}")
            position = _command(text, name, position, out, in_text, grouped)
        elif kind == "money":
            out.append(("money", _MONEY[value]))


def _number(text: str, start: int, match: re.Match, out: list[tuple], grouped: bool) -> int:
    """Append the number at `start`; separators count as such outside brackets: (1,234) is a pair.

    Groups are strict: "58,50" is a list of two numbers, "4 5 6" three numbers, "1,234" one.
    """
    if text[match.end():match.end() + 1] not in _MAY_CONTINUE and len(match[0]) <= MAX_DIGITS:
        out.append(("num", match[0]))
        return match.end()
    special = _REPEAT.match(text, start) or _REPEAT_PARENS.match(text, start)
    if special:
        if special.end() - start > MAX_DIGITS:
            raise Rejected("too_many_digits")
        out.append(("repeat", special.groups()))
        return special.end()
    cut_off = _CUT_OFF.match(text, start)
    if cut_off and len(cut_off[1]) <= MAX_DIGITS:
        period = _period(cut_off[1])
        before = out[-1][0] if out else ""
        if period and before != "approx":
            out.append(("repeat", period))
        elif before in ("=", "approx"):  # \\pi = 3.14... says what it is approximately
            out[-1:] = [("approx", ""), ("num", cut_off[1])]
        else:
            raise Rejected("not_an_expression")
        return cut_off.end()
    based = _BASED.match(text, start)
    if based:
        out.append(("based", (based[1], int(based[2] or based[3]))))
        return based.end()
    match = (grouped and _COMMAS.match(text, start)) or _BLANKS.match(text, start) or match
    digits, end = match[0].replace(",", "").replace(" ", ""), match.end()
    if digits == ".":
        raise Rejected("not_an_expression")
    if len(digits) > MAX_DIGITS:
        raise Rejected("too_many_digits")
    power = _POWER_OF_TEN.match(text, end)
    if power:
        if abs(int(power[1])) > MAX_DIGITS:
            raise Rejected("too_many_digits")
        digits, end = f"{digits}e{int(power[1])}", power.end()
    out.append(("num", digits))
    return end


def _period(digits: str) -> tuple[str, str] | None:
    """0.1666... is ("0.1", "6"): the shortest period that is written twice at the end."""
    decimals = digits.partition(".")[2]
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        if decimals[-2 * length:-length] == period:
            return digits[:-2 * length], period
    return None  # 3.14159... goes on in a way that nobody said


def _letters(text: str, match: re.Match, out: list[tuple], in_text: bool) -> int:
    """A run of letters: a known name, a word of text, or a product of variables.

    Words never become products, or "listen" would equal "silent". Two letters, and the three
    letters that formulas use together (xyz), are products.
    """
    run, end = match[0], match.end()
    after_number = bool(out) and out[-1][0] in ("num", ")", "}", "const", "word")
    if run.lower() in ("approximately", "approx", "about", "roughly"):
        out.append(("approx", ""))
        return end + text.startswith(".", end)
    elif run.lower() in ("and", "or"):
        out.append(("sep", run.lower()))
    elif run in ("sq", "cu") and after_number:
        out.append(("word", run))
        return end + text.startswith(".", end)
    elif in_text:
        out.append(("word", run))
    elif run in _NAMES:
        out.append(_NAMES[run])
        if len(run) == 1:
            return end
    elif len(run) == 1:
        return _variable(text, run, end, out)
    elif run in BARE and after_number:
        out.append(("word", run))
    elif len(run) == 2:
        _letter(run[0], out)
        return _variable(text, run[1], end, out)
    elif run[:-1] in FUNCTIONS:
        out.append(("fn", run[:-1]))
        _letter(run[-1], out)
    elif len(run) == 3 and "".join(sorted(run)) in _PRODUCTS:
        for letter in run[:2]:
            _letter(letter, out)
        return _variable(text, run[2], end, out)
    else:
        spaced = match.start() > 0 and text[match.start() - 1] == " "
        countable = after_number and spaced and len(run) >= 4 and _VOWEL.search(run)
        out.append(("word" if countable else "name", run))
    return end


def _letter(letter: str, out: list[tuple]) -> None:
    out.append(_NAMES.get(letter) or ("var", letter))


def _variable(text: str, name: str, end: int, out: list[tuple]) -> int:
    """A variable with its subscript and primes; `e` and `i` are the constants."""
    if name in _NAMES and not text.startswith("_", end):
        out.append(_NAMES[name])
        return end
    for pattern in (_SUBSCRIPT, _PRIMES):
        match = pattern.match(text, end)
        if match:
            end = match.end()
            if pattern is _PRIMES:
                name += "'" * max(1, match[0].count("'"))
            else:
                name += "_" + (match[1] or match[2] or "").replace(" ", "")
    out.append(("var", name))
    return end


def _command(text: str, name: str, end: int, out: list[tuple], in_text: bool,
             grouped: bool) -> int:
    if name in TEXT_COMMANDS:
        group = _GROUP.match(text, end)
        if group is None:
            raise Rejected("not_an_expression")
        if name in ("mathrm", "operatorname") and group[1] in _NAMES:
            _lex(group[1], out, in_text=False, grouped=grouped)
        else:
            _lex(" ".join(group[1].split()), out, in_text=True, grouped=grouped)
        return group.end()
    if name in FONT_COMMANDS:
        return end  # the braces that follow stay, as grouping
    if name in ("begin", "end"):
        group = _GROUP.match(text, end)
        if group is None:
            raise Rejected("not_an_expression")
        out.append((name, group[1].strip()))
        return group.end()
    if name in ("mathbb", "Bbb"):
        group = _GROUP_OR_LETTER.match(text, end)
        if group is None or (group[1] or group[2] or "").strip() != "R":
            raise Rejected("not_an_expression")
        out.append(("const", "reals"))
        return group.end()
    if name == "angle":
        corner = _ANGLE.match(text, end)
        if corner is None:
            raise Rejected("not_an_expression")
        out.append(("var", "angle " + corner[1]))
        return corner.end()
    token = _COMMANDS.get(name)
    if token is None:
        raise Rejected("not_an_expression")
    if token[0] == "var":
        return _variable(text, token[1], end, out)
    out.append(token)
    return end
