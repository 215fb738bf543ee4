"""The book as a site: it builds without a warning, its links lead somewhere, and it needs no other host."""

import json
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
from browser import in_chromium, needs_chromium
from notebooks import ROOT, all_notebooks, has_solutions

sys.path.insert(0, str(ROOT / "docs"))
import book
import cells
import repairs

PAGES = book.pages()
CODE = ("pre", "code", "script", "style")
per_page = pytest.mark.parametrize("path", PAGES, ids=[path.stem for path in PAGES])


class Page(HTMLParser):
    """What a page links to, loads and shows."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.tags, self.ids, self.text = path, [], Counter(), []
        self.prose, self.code = [], 0  # text outside of code; how many elements of code are open
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if attributes.get("id"):
            self.ids[attributes["id"]] += 1
        self.code += tag in CODE

    def handle_endtag(self, tag):
        self.code -= tag in CODE

    def handle_data(self, data):
        self.text.append(data)
        if not self.code:
            self.prose.append(data)

    def find(self, *names: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag in names]

    def links(self) -> list[str]:
        return [attributes["href"] for attributes in self.find("a") if attributes.get("href")]

    def loads(self) -> list[str]:
        """Addresses that a browser fetches to show the page: all but links and their relatives without a request."""
        here = []
        for tag, attributes in self.tags:
            relative = tag == "link" and attributes.get("rel") in ("next", "prev", "index", "search", "canonical")
            if tag == "a" or relative:
                continue
            sets = [part.split()[0] for part in attributes.get("srcset", "").split(",") if part.strip()]
            here += sets + [attributes[name] for name in ("src", "href", "data", "poster") if attributes.get(name)]
        return [address for address in here if not address.startswith(("#", "data:"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; the command that makes it ends with an error when Sphinx warns."""
    out = tmp_path_factory.mktemp("site") / "book"
    command = [sys.executable, str(ROOT / "docs" / "book.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def html(site: Path, notebook: Path) -> Path:
    return site / notebook.relative_to(ROOT).with_suffix(".html")


def target(page: Page, link: str) -> tuple[Path, str]:
    """The file and the anchor that a relative link means."""
    address, anchor = urldefrag(link)
    path = unquote(urlsplit(address).path)
    return (page.path.parent / path).resolve() if path else page.path, unquote(anchor)


def test_the_pages_are_the_notebooks_that_are_there(site, pages):
    notebooks = [path for path in all_notebooks() if not path.stem.endswith("_practice")]
    built = {path for path in pages if path.parent != site}
    assert built == {html(site, path) for path in notebooks} and len(built) >= 3


@per_page
def test_a_page_has_its_title_and_is_in_the_table(path, site, pages):
    def plain(text):  # typographic quotes and ellipses are set by Sphinx
        return re.sub(r"\W+", " ", text)

    title, _, minutes = book.head(path)
    page, front = pages[html(site, path)], pages[site / "index.html"]
    assert plain(title) in plain("".join(page.text)) and page.find("h1")
    assert plain(title) in plain("".join(front.text)) and minutes in "".join(front.text)
    assert html(site, path) in {target(front, link)[0] for link in front.links() if "://" not in link}


@per_page
def test_a_page_opens_and_saves_its_notebook(path, site, pages):
    page = pages[html(site, path)]
    badge = book.BADGE.search(nbformat.read(path, 4).cells[0].source)
    assert {badge["colab"], badge["solved"]} - {None} <= set(page.links())
    assert (badge["solved"] is not None) == has_solutions(path)
    saved = {}
    for attributes in page.find("a"):
        if "download" in attributes:
            file, _ = target(page, attributes["href"])
            saved[file.name] = file.read_bytes()
    for original in filter(None, (path, book.practice(path))):
        assert saved[original.name] == original.read_bytes()


def test_every_internal_link_leads_to_a_file_and_an_anchor(pages):
    broken = []
    for page in pages.values():
        for link in page.links() + page.loads():
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            file, anchor = target(page, link)
            # An empty anchor is the top of the page; other files than pages have none.
            if not file.is_file() or (anchor and anchor not in pages[file].ids):
                broken.append((page.path.name, link))
    assert not broken


def test_no_page_has_an_id_twice(pages):
    twice = {(page.path.name, name) for page in pages.values() for name, count in page.ids.items() if count > 1}
    assert not twice


def test_nothing_is_loaded_from_another_host(site, pages):
    for page in pages.values():
        assert not [address for address in page.loads() if urlsplit(address).netloc], page.path
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)
        assert not [address for address in addresses if re.match(r"(https?:)?//", address)], sheet
        inside = [address for address in addresses if not address.startswith(("data:", "#", "url("))]
        assert all((sheet.parent / re.sub(r"[?#].*", "", address)).is_file() for address in inside), sheet


def test_every_figure_of_the_notebooks_is_there_with_its_alt_text(site, pages):
    for path in PAGES:
        texts = []
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                texts += re.findall(r"!\[([^]]+)\]\(figures/", cell.source)
            outputs = [out for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
            texts += [out.metadata["image/png"]["alt"] for out in outputs]
        shown = [image.get("alt", "") for image in pages[html(site, path)].find("img")]
        assert [" ".join(alt.split()) for alt in shown] == [" ".join(alt.split()) for alt in texts], path
    images = [image for page in pages.values() for image in page.find("img")]
    assert len(images) > 10 and all(image.get("alt", "").strip() for image in images)


@per_page
def test_figures_are_numbered_in_order_and_captioned(path, site):
    text = html(site, path).read_text(encoding="utf-8")
    numbers = re.findall(r"<figcaption>.*?<strong>Figure ([\d.]+)</strong>", text, flags=re.DOTALL)
    images = [image for image in re.findall(r'<img [^>]*src="([^"]+)"', text) if "stage_" not in image]
    assert len(numbers) == len(images) == text.count("<figcaption>")
    last = [int(number.split(".")[-1]) for number in numbers]
    assert last == list(range(last[0], last[0] + len(last))) if last else not images


def test_no_figure_number_is_given_twice_in_a_chapter(site):
    texts = [html(site, path).read_text(encoding="utf-8") for path in PAGES]
    numbers = Counter(re.findall(r"<strong>Figure (\d+\.\d+)</strong>", "".join(texts)))
    assert len(numbers) > 10 and set(numbers.values()) == {1}


def test_readers_see_no_directives_and_can_pass_over_plumbing(pages):
    for path in pages:
        assert not re.findall(r"<pre>(?:(?!</pre>).)*?#\|", path.read_text(encoding="utf-8"), flags=re.DOTALL), path
    cell = nbformat.v4.new_code_cell("#| export\nimport math\n\nset_style()")
    cells.fold(cell)
    assert cell.source == "import math\n\nset_style()" and "hide-input" in cell.metadata["tags"]
    plot = nbformat.v4.new_output("display_data", {"image/png": "aGk="})
    printed = nbformat.v4.new_output("stream", text="0.5")
    for source, outputs, folded in (
        ("show(fig, alt='a line')", [plot], True),
        ("show(fig, alt='a line')", [plot, printed], False),
        ("import math\nprint(math.pi)", [printed], False),
        ("#| export\ndef f(): ...", [], False),
    ):
        cell = nbformat.v4.new_code_cell(source, outputs=outputs)
        cells.fold(cell)
        assert ("hide-input" in cell.metadata.get("tags", [])) == folded, source


def test_every_page_has_a_language_a_title_a_description_and_an_icon(site, pages):
    told = Counter()
    for path, page in pages.items():
        assert page.find("html")[0]["lang"] == "en" and page.find("title") and page.find("h1"), path
        meta = {attributes.get("name"): attributes.get("content") for attributes in page.find("meta")}
        assert meta["viewport"] and len(meta["description"]) > 20, path
        told[meta["description"]] += 1
        assert [link for link in page.find("link") if "icon" in link.get("rel", "")], path
    assert max(told.values()) == 1


def test_what_accessibility_tools_object_to_is_repaired(site):
    text = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    for old, new in repairs.REPAIRS.items():
        assert old not in text and new in text, f"{old}: the theme no longer writes it?"


def test_practice_is_linked_from_its_page(site, pages):
    for path in filter(book.practice, PAGES):
        links = pages[html(site, path)].links()
        assert any("colab" in link and link.endswith(book.practice(path).name) for link in links)


def test_formulas_are_markup_and_not_source(site, pages):
    page = pages[site / "ch06" / "ch06.html"]
    assert len(page.find("math")) > 10
    assert not re.search(r"\\[a-z]+|\$", "".join(page.prose))


@per_page
def test_fractions_have_braces(path):
    r"""What turns formulas into markup reads \frac12 = x as 12 over the equals sign."""
    sources = "".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert not re.findall(r"\\[dt]?frac(?!\{).{6}", sources)


def test_the_site_is_small_and_says_nothing_of_the_machine_that_made_it(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30_000_000
    assert not [path for path in site.rglob("*.html") if str(ROOT) in path.read_text(encoding="utf-8")]


def test_a_cell_with_two_figures_keeps_both_alt_texts():
    outputs = [
        nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata={"image/png": {"alt": alt}})
        for alt in ("first", "second")
    ]
    cell = nbformat.v4.new_code_cell("draw()", outputs=[*outputs, nbformat.v4.new_output("stream", text="end")])
    first, second = cells.one_figure_each(cell, "7", cells.Figures())
    assert [part.metadata["mystnb"]["image"]["alt"] for part in (first, second)] == ["first", "second"]
    captions = [part.metadata["mystnb"]["figure"]["caption"] for part in (first, second)]
    assert captions == ["**Figure 7.1** first.", "**Figure 7.2** second."]
    assert (
        cells.Figures().caption("dpo", "Two\npanels. Left: it falls. Right: no.")
        == "**Figure 1** Two panels. Left: it falls."
    )
    assert first.outputs == outputs[:1] and second.outputs[0] == outputs[1] and len(second.outputs) == 2


@needs_chromium
def test_pages_work_in_a_browser_from_the_disk(site, tmp_path):
    for path in [site / "index.html", *(html(site, path) for path in PAGES)]:
        text, console = in_chromium(path.as_uri(), tmp_path)
        assert "</html>" in text and not console, console
        assert 'class="copybtn' in text, "each page has code to copy"


@needs_chromium
def test_search_finds_headings_before_prose_before_code(site, tmp_path):
    def results(query):
        text, console = in_chromium(f"{(site / 'search.html').as_uri()}?q={query}", tmp_path)
        assert not console, console
        return text

    text = results("entropy")
    found = re.findall(r'<li data-kind="(\w+)">', text)
    assert set(found) >= {"heading", "prose"} and found == sorted(found, key=["heading", "prose", "code"].index)
    text = results("taster")
    assert "ch06/ch06.html#" in text and "<mark>" in text
    text = results("nowhere_at_all")
    assert "No sections" in text and "<li data-kind" not in text


SCROLLS = """<script>addEventListener("load", () => setTimeout(() => {
    document.documentElement.style.scrollBehavior = "auto";
    document.getElementById("what-might-hold-it").scrollIntoView();
    for (let i = 0; i < 10; i++) setTimeout(() => dispatchEvent(new Event("scroll")), 200 * i);
    setTimeout(look, 3000);
}, 500));
function look() {
    const end = document.documentElement.clientWidth;  // without the scroll bar
    const code = [...document.querySelectorAll(".cell_input pre")];
    const wide = code.filter(pre => pre.scrollWidth > pre.clientWidth);
    const list = document.querySelector(".toc-drawer").getBoundingClientRect();
    document.body.dataset.seen = JSON.stringify({
        wide: wide.length, reached: wide.filter(pre => pre.tabIndex == 0).length,
        list: list.left < end && list.width > 0, current: document.querySelectorAll(".scroll-current").length,
        page: document.documentElement.scrollWidth <= end});
}</script></body>"""


@needs_chromium
@pytest.mark.parametrize("width", (1200, 1000, 500))
def test_code_fits_and_sections_are_listed(width, site, tmp_path):
    """88 columns of code beside both lists at 1200 pixels; below, what scrolls can be reached with the keyboard."""
    path = site / "ch07" / "with_script.html"
    text = (site / "ch07" / "off_policy.html").read_text(encoding="utf-8").replace("</body>", SCROLLS)
    # Frames come when they like while Chromium's clock is a virtual one.
    text = text.replace("<head>", "<head><script>requestAnimationFrame = call => setTimeout(call, 0)</script>")
    path.write_text(text.replace("<pre><span></span>", "<pre><span></span>" + "x" * 88 + "\n", 3), encoding="utf-8")
    shown, _ = in_chromium(path.as_uri(), tmp_path, width)
    path.unlink()
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', shown)[1]))
    assert seen["page"] and seen["reached"] == seen["wide"]
    assert (seen["wide"] == 0) == seen["list"] == (width >= 1000) and seen["current"] >= 1
