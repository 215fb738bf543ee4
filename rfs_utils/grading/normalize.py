"""One normalisation table: many ways of typing an answer become one plain LaTeX string.

Only spelling changes here, never meaning: unicode symbols become their LaTeX command, spacing and
font size disappear, wrappers such as `$...$`, `**...**` or a final full stop are taken off.
"""

import re
import unicodedata

from .extract import BOX, braced
from .limits import MAX_CHARS, Rejected

_GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
          "final_sigma sigma tau upsilon phi chi psi omega").split()

_SYMBOLS = {
    **{dash: "-" for dash in "−‐‑‒–﹣－"},
    **{times: "*" for times in "×·⋅∙∗"},
    **{slash: "/" for slash in "÷∕⁄"},
    **{ignored: None for ignored in "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\ufe0e\ufe0f"},
    **{chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK)},
    **{chr(0x391 + i): f"\\{name.capitalize()} " for i, name in enumerate(_GREEK)},
    "ϕ": "\\phi ", "ϵ": "\\epsilon ", "ϑ": "\\theta ",
    "√": " sqrt ", "∞": "\\infty ", "°": "^\\circ ", "º": "^\\circ ", "˚": "^\\circ ",
    "∘": "\\circ ", "℃": "^\\circ\\text{C}", "℉": "^\\circ\\text{F}",
    "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ",
    "±": "\\pm ", "∓": "\\mp ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ", "∖": "\\setminus ",
    "∅": "\\emptyset ", "⌀": "\\emptyset ", "ℝ": "\\mathbb{R}", "∠": "\\angle ",
    "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ",
    "⌈": "\\lceil ", "⌉": "\\rceil ", "∣": "|", "。": ".",
    "’": "'", "‘": "'", "′": "'", "“": '"', "”": '"',
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}",
    "⅘": "\\frac{4}{5}", "⅙": "\\frac{1}{6}", "⅚": "\\frac{5}{6}", "⅛": "\\frac{1}{8}",
    "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
}
_TABLE = str.maketrans(_SYMBOLS)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋"
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")
_TO_LINE = str.maketrans(_RAISED + _LOWERED, "0123456789+-ni" + "0123456789+-")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"""
    (?P<size>    \\(?:left|right)(?![A-Za-z])\s*\.?
               | \\(?:big|Big|bigg|Bigg)[lrm]?(?![A-Za-z])
               | \\(?:displaystyle|textstyle|scriptstyle|limits|nolimits)(?![A-Za-z])
               | \\(?:color|textcolor)\s*\{[^{}]*\}
               | (?<!\\)\\!\ * )
  | (?P<comma>   (?<=[0-9])\{,\}(?=[0-9]) )
  | (?P<spacing> \\(?:quad|qquad|thinspace|enspace|space)(?![A-Za-z])
               | \\[hv]space\*?\s*\{[^{}]*\}
               | (?<!\\)\\[,;:>\ ] | ~ )
  | (?P<frac>    \\(?:[dtcsx]|nice|flat)(?=frac|binom) )
  | (?P<dots>    \\(?:[lch]?dots|dots[bcimo])(?![A-Za-z]) | \.\.\. )
""", re.VERBOSE)
_MARKUP_MEANS = {"size": "", "comma": ",", "spacing": " ", "frac": "\\",
                 "dots": "\\ldots "}
# A tilde is a blank in TeX, but in front of an answer it says "about".
_HEDGE = re.compile(r"(^|\\(?:boxed|fbox)\{|[(\[<>$*`\"]|(?<!~)=)\s*~+")
_UNION_LETTER = re.compile(r"(?<=[)\]]) ?U ?(?=[(\[])")
_OPEN_DOLLAR = re.compile(r"(?<!\\)\$")
_WRAPPERS = [("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"')]
_MARKS = frozenset("\\$*`\". ,;=")

TEXT_COMMANDS = frozenset(
    "text mbox textrm textbf textit textnormal textsf texttt mathrm operatorname".split())
FONT_COMMANDS = frozenset(
    "mathbf mathit mathsf mathtt boldsymbol bm bf rm it underline".split())
_FONT_GROUP = re.compile(rf"\\(?:{'|'.join(sorted(TEXT_COMMANDS | FONT_COMMANDS))})"
                         r"(?![A-Za-z])\s*\{([^{}]*)\}")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")


def clean(text: str) -> str:
    """The answer in plain LaTeX spelling; control characters and excess length are rejected."""
    if len(text) > MAX_CHARS:
        raise Rejected("too_long")
    if not text.isascii():
        text = _LOWERED_RUN.sub(lambda m: "_{" + m[0].translate(_TO_LINE) + "}", text)
        text = _RAISED_RUN.sub(lambda m: "^{" + m[0].translate(_TO_LINE) + "}", text)
        text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
        if len(text) > 2 * MAX_CHARS:  # a symbol may become a longer command, within reason
            raise Rejected("too_long")
    if _CONTROL.search(text):
        raise Rejected("control_character")
    text = text.strip()
    if "~" in text:
        text = _HEDGE.sub(r"\1\\approx ", text)
    if "\\" in text or "~" in text or "{," in text or "..." in text:
        text = _MARKUP.sub(lambda match: _MARKUP_MEANS[match.lastgroup or ""], text)
    if text[:1] in _MARKS or text[-1:] in _MARKS:
        text = _unwrap(text)
    if "U" in text:  # (1,2) U (3,4)
        text = _UNION_LETTER.sub(r"\\cup ", text)
    return " ".join(text.split())


def _unwrap(text: str) -> str:
    """Take off inline-math and Markdown marks, the equals sign before and the mark after."""
    for _ in range(4):
        before = text = text.strip()
        if "$" in text and len(_OPEN_DOLLAR.findall(text)) != 1:  # a single one is money
            text = _OPEN_DOLLAR.sub("", text)
        box = BOX.match(text)
        if box and text.startswith("{", box.end()):
            inside = braced(text, box.end())
            if inside is not None and box.end() + len(inside) + 2 == len(text):
                text = inside
        for left, right in _WRAPPERS:
            if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
                text = text[len(left):-len(right)]
        if text.endswith((".", ",", ";")) and not text.endswith(".."):
            text = text[:-1]
        if text.startswith("=") and not text.startswith("=="):
            text = text[1:]
        if text == before:
            break
    return text


def open_fonts(text: str) -> str:
    """A cleaned answer without its `\\text` and font commands."""
    if "\\" not in text:
        return text
    for _ in range(3):  # fonts inside fonts
        text, count = _FONT_GROUP.subn(r"\1", text)
        if not count:
            break
    return " ".join(text.split()).rstrip(".")


def plain(opened: str) -> str:
    """Spaces only where they matter: "5 5" is not 55, but "6 - 5i" is "6-5i"."""
    return _LOOSE_SPACE.sub("", opened) if " " in opened else opened


_WORDS = re.compile(r"[A-Za-z][A-Za-z ,;'\-]+[!?.]?")
_ARTICLE = re.compile(r"(?:an?|the) ")


def text_key(plain_text: str) -> str:
    """What two text answers must share: words lose case, articles and hyphens; symbols do not."""
    words = plain_text.strip("\"'` ")
    if not _WORDS.fullmatch(words):
        return plain_text
    words = words.rstrip("!?.").replace("-", " ").casefold()
    return _ARTICLE.sub("", words, count=1) if _ARTICLE.match(words) else words
