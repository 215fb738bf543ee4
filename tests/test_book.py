"""The book as a site: it builds without a warning, its links lead somewhere, and it needs no other host."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
from browser import in_chromium, needs_chromium
from notebooks import ROOT, all_notebooks, has_solutions

sys.path.insert(0, str(ROOT / "docs"))
import book

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


def test_formulas_are_markup_and_not_source(site, pages):
    page = pages[site / "ch06" / "ch06.html"]
    assert len(page.find("math")) > 10
    assert not re.search(r"\\[a-z]+|\$", "".join(page.prose))


@per_page
def test_fractions_have_braces(path):
    r"""What turns formulas into markup reads \frac12 = x as 12 over the equals sign."""
    sources = "".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert not re.findall(r"\\[dt]?frac(?!\{).{6}", sources)


def test_search_finds_words_of_chapter_6(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    chapter = index["docnames"].index("ch06/ch06")
    for word in ("taster", "rollout", "advantag"):  # as the index keeps them: by their stems
        found = index["terms"].get(word, [])  # words of headings stand apart
        found = [*(found if isinstance(found, list) else [found]), *index["titleterms"].get(word, [])]
        assert chapter in found, word


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
    first, second = book.one_figure_each(cell)
    assert [part.metadata["mystnb"]["image"]["alt"] for part in (first, second)] == ["first", "second"]
    assert first.outputs == outputs[:1] and second.outputs[0] == outputs[1] and len(second.outputs) == 2


@needs_chromium
def test_pages_work_in_a_browser_from_the_disk(site, tmp_path):
    for path in [site / "index.html", *(html(site, path) for path in PAGES)]:
        text, console = in_chromium(path.as_uri(), tmp_path)
        assert "</html>" in text and not console, console
        assert 'class="copybtn' in text, "each page has code to copy"
    text, console = in_chromium(f"{(site / 'search.html').as_uri()}?q=taster", tmp_path)
    results = re.search(r'<ul [^>]*class="search".*?</ul>', text, flags=re.DOTALL)
    assert results and "ch06/ch06.html" in results[0] and not console, console
