"""The book as a static site that needs no network: `python docs/book.py [FOLDER]`, build/book by default.

Pages show the notebooks' stored outputs; nothing is executed. This script puts what the site is made of into a
temporary folder, and Sphinx (docs/conf.py) turns it into pages. Warnings are errors.
"""

import glob
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx_build

from rfs_utils.files.folders import new_folder, others

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT / "tools"), str(DOCS)]
from cells import Figures, captioned, fold, one_figure_each, tag  # noqa: E402
from notebooks import all_notebooks  # noqa: E402

MADE = ".files-of-the-book"  # in the site: what it consists of
BADGE = re.compile(
    r"\[!\[Run in Colab\]\([^)]*\)\]\((?P<colab>[^)]*)\)\n(?:· \[with solutions\]\((?P<solved>[^)]*)\)\n)?"
    r"· (?P<needs>.*)"
)
MINUTES = re.compile(r"CPU cores: about (\d+ minutes?)")
CHAPTER = re.compile(r"^# (?:Exercises for chapter )?(\d+)")
PRACTICE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)\s]+_practice\.ipynb)\)")
LOCAL_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)\)")
CONTENTS = """:::{{container}} contents-table
| notebook | what it is about | two CPU cores |
|---|---|---|
{rows}
:::

{toctrees}
"""
TOCTREE = """```{{toctree}}
:hidden:
:caption: {caption}

{names}
```"""


def pages() -> list[Path]:
    """The notebooks that become pages, in the README's order; those for practice are downloads."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    own = [path for path in all_notebooks() if not path.stem.endswith("_practice")]
    return sorted(own, key=lambda path: readme.index(f"({path.relative_to(ROOT).as_posix()})"))


def practice(path: Path) -> Path | None:
    """The notebook in which a page's exercises are left to the reader, if there is one."""
    other = path.with_name(f"{path.stem}_practice.ipynb")
    return other if other.exists() else None


def head(path: Path) -> tuple[str, str, str]:
    """A notebook's title, what it is about, and how long it takes."""
    text = nbformat.read(path, 4).cells[0].source
    title, scope, *_ = text.split("\n\n")
    return title.removeprefix("# "), " ".join(scope.split()), MINUTES.search(text)[1]


def page(path: Path, figures: Figures) -> nbformat.NotebookNode:
    """A notebook as its page shows it: links in place of the badge, some code folded, figures with captions."""
    notebook = nbformat.read(path, 4)
    first = notebook.cells[0]
    match = badge(path, first)
    links = [f"[Run in Colab]({match['colab']})", download("Download notebook", path)]
    if match["solved"]:
        links[0] = f"[Practise in Colab]({match['colab']})"
        links.insert(1, f"[Run in Colab, with solutions]({match['solved']})")
    other = practice(path)
    if other:
        links.append(download("Download for practice, without solutions", other))
    # The badge's picture is on another host; a container gives its place to links that look like buttons.
    needs = match["needs"].replace(" · ", "\N{NO-BREAK SPACE}· ")  # a line does not begin with a dot
    launch = ":::{container} launch\n" + "\n".join(links) + f"\n:::\n\n{needs[0].upper()}{needs[1:]}"
    number = CHAPTER.search(first.source.split("\n", 1)[0])
    chapter = number[1] if number else path.stem
    first.source = first.source.replace(match[0], launch)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tag(code[0], "hide-input", code_prompt_show="Show the set-up for Colab")
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = captioned(practice_as_download(cell.source, path.parent), chapter, figures)
        elif cell.source.startswith("#| default_exp"):
            continue
        else:
            if cell is not code[0]:
                fold(cell)
            cell.outputs = [out for out in cell.outputs if out.output_type != "stream" or out.text.strip()]
            cell.outputs.sort(key=lambda out: out.get("name") != "stderr")  # a progress bar above what came after it
        parts += one_figure_each(cell, chapter, figures)
    notebook.cells = parts
    return notebook


def badge(path: Path, cell: nbformat.NotebookNode) -> re.Match:
    """The badge in a notebook's first cell."""
    match = BADGE.search(cell.source)
    if match is None:
        raise ValueError(f"{path}: the first cell has no badge that opens Colab, followed by what the notebook needs.")
    return match


def download(text: str, path: Path) -> str:
    """A link that saves the file as it is in the repository."""
    return f"{{download}}`{text} </notebooks/{path.relative_to(ROOT).as_posix()}>`"


def practice_as_download(text: str, folder: Path) -> str:
    """Markdown from a folder, in which links to notebooks for practice, which have no page, save them."""
    return PRACTICE_LINK.sub(lambda match: download(match[1].strip("`"), (folder / match[2]).resolve()), text)


def contents() -> str:
    """The table of notebooks, and the order of pages."""
    rows, groups = [], {}
    for path in pages():
        name = path.relative_to(ROOT).as_posix()
        title, scope, minutes = head(path)
        other = f"; {download('for practice', practice(path))}" if practice(path) else ""
        rows.append(f"| [{title}]({name}){other} | {scope} | {minutes} |")
        groups.setdefault("Exercises" if path.parent.name == "exercises" else "Chapters", []).append(name)
    toctrees = [TOCTREE.format(caption=caption, names="\n".join(names)) for caption, names in groups.items()]
    toctrees.append(TOCTREE.format(caption="More", names="start\nresults\nfurther"))
    return CONTENTS.format(rows="\n".join(rows), toctrees="\n\n".join(toctrees))


def gather(source: Path) -> None:
    """Write the site's sources to a folder, laid out as the repository, so that relative links stay right."""
    for path in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = practice_as_download(path.read_text(encoding="utf-8"), path.parent)
        (source / path.name).write_text(text, encoding="utf-8")
    (source / "contents.md").write_text(contents(), encoding="utf-8")
    figures = Figures()
    for path in pages():
        place = source / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page(path, figures), place)
    for path in filter(None, [*pages(), *map(practice, pages())]):  # to download: as they are
        place = source / "notebooks" / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for path in [ROOT / "README.md", *pages()]:  # pictures and tables that they link to
        for link in LOCAL_LINK.findall(path.read_text(encoding="utf-8")):
            target = (path.parent / link).resolve()
            place = source / target.relative_to(ROOT)
            if target.suffix not in (".ipynb", ".md") and target.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, place)


def build(out: Path) -> int:
    """Make the site in the folder `out`; 0 when there was no warning.

    An older site there is replaced, other files stay. ValueError when `out` holds something and no site of ours.
    """
    listed = out / MADE
    if out.exists() and not listed.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that is not this book; choose another folder, or empty it")
    own = [MADE, *map(glob.escape, listed.read_text(encoding="utf-8").splitlines())] if listed.is_file() else []
    with tempfile.TemporaryDirectory() as folder, new_folder(out, own) as site:
        source, cache = Path(folder) / "source", Path(folder) / "doctrees"
        source.mkdir()
        gather(source)
        code = sphinx_build(["-q", "-W", "--keep-going", "-c", str(DOCS), "-d", str(cache), str(source), str(site)])
        (site / MADE).write_text("".join(f"{path}\n" for path in others(site, ())), encoding="utf-8")
    return code


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "book").resolve()
    try:
        code = build(folder)
    except ValueError as error:
        sys.exit(f"book: {error}")
    if code == 0:
        print(f"The book's front page is {folder / 'index.html'}")
    sys.exit(code)
