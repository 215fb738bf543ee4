"""What Sphinx's pages lack: a search over sections, descriptions for search engines, and what axe-core asks for."""

import json
import re
from html import escape
from pathlib import Path

from docutils import nodes

# Text in finished pages that accessibility tools object to, and what stands there instead.
REPAIRS = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages of the book">',
    '<aside class="toc-drawer': '<aside aria-label="Sections of this page" class="toc-drawer',
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '<th class="head"><p></p></th>': "<td></td>",
    'role="heading"><span class="caption-text">': 'role="heading" aria-level="2"><span class="caption-text">',
}
# The theme hides the list of sections below 82em and the list of pages below 63em. Here text and sections, which are
# read together, have room from 1000 pixels on, and the list of pages from 1200 on.
WIDTHS = {"82em": "999.98px", "67em": "1199.98px", "63em": "1199.98px"}


def texts(node: nodes.Node) -> tuple[str, str]:
    """Prose and code of a part of a page, without its subsections and headings."""
    prose, code = [], []
    for text in node.findall(nodes.Text):
        above = []
        parent = text.parent
        while parent is not node:
            above.append(parent)
            parent = parent.parent
        if any(isinstance(one, (nodes.section, nodes.title, nodes.raw, nodes.math, nodes.math_block)) for one in above):
            continue
        (code if any(isinstance(one, nodes.literal_block) for one in above) else prose).append(text.astext())
    return " ".join(" ".join(prose).split()), " ".join(" ".join(code).split())


def sections(name: str, page: nodes.document) -> list[list[str]]:
    """Page, anchor, title of the page, heading, prose and code of every section."""
    found: list[list[str]] = []
    for section in page.findall(nodes.section):
        heading = section.next_node(nodes.title).astext()
        title = found[0][3] if found else heading
        found.append([f"{name}.html", section["ids"][0] if found else "", title, heading, *texts(section)])
    return found


def note_sections(app, page: nodes.document, name: str) -> None:
    """Sphinx calls it with each page that is ready to be written."""
    app.sections += sections(name, page)
    paragraph = next(page.findall(nodes.paragraph), None)
    if paragraph is not None:
        app.descriptions[name] = " ".join(paragraph.astext().split())


def describe(app, name: str, template: str, context: dict, page: nodes.document | None) -> None:
    """Sphinx calls it before it fills in a page's template."""
    text = app.descriptions.get(name, app.config.html_title)
    context["metatags"] = f'<meta name="description" content="{escape(text)}">' + context.get("metatags", "")


def repair(site: Path) -> None:
    """Change what is wrong in finished pages and in the theme's widths."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for old, new in REPAIRS.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    sheet = site / "_static" / "styles" / "furo.css"
    text, count = re.subn(r"max-width:(82|67|63)em", lambda m: f"max-width:{WIDTHS[m[1] + 'em']}", sheet.read_text())
    if count != 4:
        raise ValueError(f"the theme has {count} rules for the widths that are changed here, not 4")
    sheet.write_text(text)


def finish(app, error: Exception | None) -> None:
    if error is None:
        site = Path(app.outdir)
        (site / "_static" / "sections.js").write_text(
            f"const SECTIONS = {json.dumps(app.sections, ensure_ascii=False)};\n", encoding="utf-8"
        )
        repair(site)


def setup(app) -> None:
    app.sections, app.descriptions = [], {}
    app.connect("builder-inited", lambda app: setattr(app.builder, "search", False))  # its index knows no kinds of text
    app.connect("doctree-resolved", note_sections)
    app.connect("html-page-context", describe)
    app.connect("build-finished", finish)
