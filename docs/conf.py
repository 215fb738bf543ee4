"""Sphinx's settings for the site of the book; docs/book.py calls Sphinx."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import repairs  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = (ROOT / "README.md").read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
version = release = PROJECT["version"]
extensions = ["myst_nb", "sphinx_copybutton"]
# contents.md and the README are included by the front page; notebooks to download are no pages.
exclude_patterns = ["README.md", "contents.md", "notebooks/**"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide it"
myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
HOME = PROJECT["urls"]["Repository"]
COLAB = HOME.replace("https://github.com/", "https://colab.research.google.com/github/")
myst_substitutions = {"repository": f"<{HOME}>", "colab": f"[In Colab]({COLAB}/blob/main/ch06/ch06.ipynb)"}
myst_heading_anchors = 4

html_theme = "furo"
html_title = project
html_static_path = ["book.css", "book.js", "search.js"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_favicon = "favicon.svg"
html_use_index = False
html_copy_source = html_show_sourcelink = False  # each page offers its notebook
html_show_copyright = False
html_math_renderer = "mathml"
copybutton_selector = ".cell_input pre, .highlight-bash pre"
pygments_style = "a11y-light"
pygments_dark_style = "github-dark"


def mathml(node: nodes.math | nodes.math_block, block: bool) -> str:
    """A formula in TeX as MathML, which browsers draw without a script."""
    text = node.astext()
    try:
        markup = tex2mathml(text, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, text, location=node)
        return ""
    markup = markup.replace("<mo>‖</mo>", '<mo stretchy="false">‖</mo>')  # as tall as letters, not as a fraction
    # Browsers put no space between a function and its argument, as in log p; before a bracket there should be none.
    return re.sub(r'<mo>&ApplyFunction;</mo>(?!\s*<mo stretchy="false">\()', '<mspace width="0.17em"/>', markup)


def visit_math(translator, node: nodes.math) -> None:
    translator.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app) -> dict:
    repairs.setup(app)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": False}
