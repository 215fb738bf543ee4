"""What a page does to a notebook's cells: directives go, plumbing folds, figures get numbers and captions."""

import ast
import json
import re
from collections import Counter

import nbformat

DIRECTIVE = re.compile(r"^#\|.*\n*", re.MULTILINE)
IMAGE = re.compile(r"^!\[([^]]+)\]\((figures/[^)]+)\)$", re.MULTILINE)
SIGNPOST = re.compile(r"figures/stage_\d")  # says where a section stands, and shows nothing new
SHORT = 30  # characters in the first sentence of a caption


class Figures:
    """Numbers of figures: 6.1, 6.2 for all pages of chapter 6 together, 1, 2 on a page that belongs to none."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def caption(self, chapter: str, alt: str) -> str:
        """The next number, and the first sentence of the alternative text, or two if the first is very short."""
        self.count[chapter] += 1
        first, *others = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(alt.split()))
        sentence = " ".join([first, *others[:1]] if len(first) < SHORT else [first]).rstrip(".")
        prefix = f"{chapter}." if chapter.isdigit() else ""
        return f"**Figure {prefix}{self.count[chapter]}** {sentence}."


def tag(cell: nbformat.NotebookNode, name: str, **settings: str) -> None:
    """Tell myst-nb how to show a cell."""
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), name]
    cell.metadata["mystnb"] = settings


def only_imports(source: str) -> bool:
    """Whether the code imports names and sets the style of plots, and does nothing else."""
    body = ast.parse(source).body
    style = [node for node in body if ast.unparse(node) == "set_style()"]
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return bool(imports) and len(imports) + len(style) == len(body)


def only_plots(cell: nbformat.NotebookNode) -> bool:
    """Whether all that a cell shows is a figure, which its last statement draws."""
    figures = ["image/png" in output.get("data", {}) for output in cell.outputs]
    return bool(figures) and all(figures) and bool(re.search(r"^ *show\(", cell.source, re.MULTILINE))


def fold(cell: nbformat.NotebookNode) -> None:
    """Take out lines for nbdev, and fold what a reader of the text can pass over."""
    cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
    if "solution" in cell.metadata.get("tags", []):
        tag(cell, "hide-input", code_prompt_show="Show the solution")
    elif only_imports(cell.source):
        tag(cell, "hide-input", code_prompt_show="Show the imports")
    elif only_plots(cell):
        tag(cell, "hide-input", code_prompt_show="Show the code of the figure")


def captioned(text: str, chapter: str, figures: Figures) -> str:
    """Markdown with its diagrams as figures that have captions."""

    def figure(match: re.Match) -> str:
        if SIGNPOST.match(match[2]):
            return match[0]
        alt = json.dumps(" ".join(match[1].split()), ensure_ascii=False)
        return f":::{{figure}} {match[2]}\n:alt: {alt}\n\n{figures.caption(chapter, match[1])}\n:::"

    return IMAGE.sub(figure, text)


def one_figure_each(cell: nbformat.NotebookNode, chapter: str, figures: Figures) -> list[nbformat.NotebookNode]:
    """The cell in parts with one figure at most: notebooks keep alt texts with outputs, myst-nb takes one a cell."""
    parts = [cell]
    for number, output in enumerate(cell.get("outputs", [])):
        if "image/png" not in output.get("data", {}):
            continue
        if "image" in parts[-1].metadata.get("mystnb", {}):
            parts.append(nbformat.v4.new_code_cell(id=f"{cell.id}-{number}", metadata={"tags": ["remove-input"]}))
            parts[-1].outputs = parts[-2].outputs[parts[-2].outputs.index(output) :]
            parts[-2].outputs = parts[-2].outputs[: parts[-2].outputs.index(output)]
        alt = output.metadata.get("image/png", {}).get("alt", "")
        show = {"image": {"alt": alt}, "figure": {"caption": figures.caption(chapter, alt)}}
        parts[-1].metadata["mystnb"] = parts[-1].metadata.get("mystnb", {}) | show
    return parts
