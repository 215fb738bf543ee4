"""The diagrams, which are SVG files: they stand alone, have a light and a dark look, and no text collides.

Texts are measured in DejaVu Sans, which is wider than what most readers' machines put in its place.
"""

import importlib
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import nbformat
import pytest
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox
from notebooks import ROOT, all_notebooks
from way import first_calls_of_a_step

from rfs_utils import plots

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = sorted(ROOT.glob("*/figures/*.svg"))
WAY = ROOT / "docs" / "way.svg"  # shown in CONTRIBUTING.md, the others in notebooks
per_figure = pytest.mark.parametrize("path", [*FIGURES, WAY], ids=lambda path: path.stem)
KINDS = {
    "policy": plots.POLICY,
    "reward": plots.REWARD,
    "reference": plots.REFERENCE,
    "good": plots.GOOD,
    "bad": plots.BAD,
    "neutral": plots.NEUTRAL,
}


def root(path):
    return ElementTree.parse(path).getroot()


def style(path) -> str:
    return root(path).find(f"{SVG}style").text


def looks(path) -> dict[str, dict[str, str]]:
    """For "light" and "dark", the fill that each selector gives."""
    light, _, dark = style(path).partition("@media (prefers-color-scheme: dark)")
    found = {}
    for name, rules in (("light", light), ("dark", dark)):
        found[name] = {}
        for selectors, fill in re.findall(r"([\w., -]+) \{[^}]*\bfill: (#\w+)", rules):
            found[name] |= {selector.strip(): fill for selector in selectors.split(",")}
    return found


def texts(path) -> list[tuple[str, Bbox]]:
    """Every text with the place it covers."""
    found = []
    for element in root(path).iter(f"{SVG}text"):
        classes = element.get("class", "").split()
        mono, bold = "mono" in classes, "title" in classes or "term" in classes
        font = FontProperties(
            family="DejaVu Sans Mono" if mono else "DejaVu Sans",
            weight="bold" if bold else "normal",
            style="italic" if "aside" in classes else "normal",
            size=16 if "title" in classes else 14 if mono or "small" in classes else 15,
        )
        width, _, _ = text_to_path.get_text_width_height_descent(element.text, font, ismath=False)
        x, y, size = float(element.get("x")), float(element.get("y")), font.get_size()
        left = x if "start" in classes else x - width / 2
        found.append((element.text, Bbox([[left, y - 0.73 * size], [left + width, y + 0.22 * size]])))
    return found


def boxes(path) -> list[tuple[list[str], Bbox]]:
    """The rectangles that stand on the page, with their classes."""
    found = []
    for element in root(path).iter(f"{SVG}rect"):
        x, y, width, height = (float(element.get(name, 0)) for name in ("x", "y", "width", "height"))
        found.append((element.get("class").split(), Bbox.from_bounds(x, y, width, height)))
    return [(classes, box) for classes, box in found if "card" not in classes]


def lines(path) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The straight parts of arrows and brackets."""
    segments = []
    for element in root(path).iter(f"{SVG}path"):
        drawn = element.get("d")
        if element.get("class") not in ("line", "loop", "faint") or "Q" in drawn:
            continue
        points = []
        for letter, numbers in re.findall(r"([MLHV])([^MLHV]*)", drawn):
            values = [float(number) for number in numbers.split()]
            if letter == "H":
                values = [values[0], points[-1][1]]
            elif letter == "V":
                values = [points[-1][0], values[0]]
            points.append(tuple(values))
        segments += pairwise(points)
    return segments


def overlap(a, b, slack=1.0) -> bool:
    """Whether two places share more than `slack` pixels in both directions."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack


def within(a, b) -> bool:
    return a.x0 >= b.x0 and a.x1 <= b.x1 and a.y0 >= b.y0 and a.y1 <= b.y1


def test_there_are_diagrams_and_each_is_shown_once_with_an_alt_text():
    assert len(FIGURES) >= 6
    shown = []
    for path in all_notebooks():
        for cell in nbformat.read(path, 4).cells:
            pictures = re.findall(r"!\[([^]]*)\]\(figures/([^)]+)\)", cell.source)
            # On one line: what turns Markdown into pages drops line breaks, and with them the space between words.
            assert all(len(alt.split()) >= 8 and "\n" not in alt for alt, _ in pictures), path
            shown += [path.parent / "figures" / picture for _, picture in pictures]
    assert sorted(shown) == FIGURES


def test_the_map_is_shown_to_contributors_with_an_alt_text():
    assert sorted(ROOT.glob("docs/**/*.svg")) == [ROOT / "docs" / "favicon.svg", WAY]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ((alt, target),) = re.findall(r"(?<!`)!\[([^]]*)\]\(([^)]+)\)", text)
    assert ROOT / target == WAY and len(alt.split()) >= 8 and "\n" not in alt


def named(part: str) -> list[tuple[str, str]]:
    """Module and function in each box of a part of the map, from top to bottom."""
    folder = "" if part == "taught" else f"{'runs' if part == 'kept' else part}/"
    group = next(group for group in root(WAY).iter(f"{SVG}g") if group.get("id") == part)
    found = [element for element in group.iter(f"{SVG}text") if {"term", "mono"} & {*element.get("class", "").split()}]
    pairs = [(a.text, b.text) for a, b in pairwise(found) if "term" in a.get("class") and "mono" in b.get("class")]
    return [(folder + file.removesuffix(".py"), function) for file, function in pairs]


def test_the_map_tells_the_way_of_a_step():
    calls = first_calls_of_a_step()
    names = [(module, function.rpartition(".")[2]) for module, function in calls]  # Python 3.10 tells no classes
    own, called = named("engine"), named("taught")
    assert own[0] == ("engine/learner", "Learner.step") and names[0] == ("engine/learner", "step")
    assert len(own) == 6 and len(called) == 5
    for boxes_of_a_column in (own[1:], called):
        assert [name for name in names if name in boxes_of_a_column] == boxes_of_a_column
    for caller, callee in zip(own[1:], called, strict=True):
        assert names.index(caller) < names.index(callee)
    used = next(text for text, _ in texts(WAY) if "sampling" in text).removeprefix("with ").split(", ")
    assert {*used, "grading/extract"} <= {module for module, _ in names}
    for module, function in named("runs") + named("kept"):
        found = importlib.import_module(f"rfs_utils.{module.replace('/', '.')}")
        for name in function.split("."):
            found = getattr(found, name)
    assert all((ROOT / "rfs_utils" / "engine" / text).is_file() for text, _ in texts(WAY) if text == "optim.py")


@per_figure
def test_a_diagram_stands_alone_and_says_what_it_is(path):
    svg, source = root(path), path.read_text(encoding="utf-8")
    labels = [svg.find(f"{SVG}{name}") for name in ("title", "desc")]
    assert svg.get("role") == "img" and svg.get("aria-labelledby").split() == [label.get("id") for label in labels]
    assert all(label.text.strip() for label in labels) and len(labels[1].text) > len(labels[0].text)
    assert not list(svg.iter(f"{SVG}script")) and not list(svg.iter(f"{SVG}image"))
    assert not re.search(r"href=|src=|@import|@font-face|\son\w+=", source)
    assert source.count("://") == 1, "the name of the format is no address; anything else would be"
    ids = {element.get("id") for element in svg.iter()}
    assert all(target in ids for target in re.findall(r"url\(#([^)]+)\)", source))
    assert source.count("url(") == source.count("url(#")


@per_figure
def test_a_diagram_is_narrow_enough_for_a_phone(path):
    svg = root(path)
    width, height = int(svg.get("width")), int(svg.get("height"))
    assert svg.get("viewBox") == f"0 0 {width} {height}" and width <= 600
    sizes = [int(size) for size in re.findall(r"font(?:-size)?: (\d+)px", style(path))]
    assert min(sizes) * 360 / width >= 8  # pixels, on a phone 360 wide


@per_figure
def test_texts_stay_on_the_page_and_in_their_boxes(path):
    page = Bbox.from_bounds(0, 0, int(root(path).get("width")), int(root(path).get("height")))
    assert len(texts(path)) > (5 if path.stem.startswith("stage_") else 10)  # one text for each of six stages
    for text, place in texts(path):
        assert within(place, page), f"{text!r} leaves the page"
        for _, box in boxes(path):
            assert not overlap(place, box) or within(place, box), f"{text!r} crosses the edge of a box"
    for (text, place), (other, there) in combinations(texts(path), 2):
        assert not overlap(place, there), f"{text!r} on {other!r}"


@per_figure
def test_lines_do_not_cross_texts(path):
    assert lines(path)
    for start, end in lines(path):
        for i in range(51):
            x, y = (a + (b - a) * i / 50 for a, b in zip(start, end, strict=True))
            dot = Bbox([[x - 2, y - 2], [x + 2, y + 2]])
            for text, place in texts(path):
                assert not overlap(place, dot), f"a line crosses {text!r}"


@per_figure
def test_colours_are_the_palette_and_every_class_has_a_dark_look(path):
    assert style(path) == style(FIGURES[0]), "one style for all"
    light, dark = looks(path)["light"], looks(path)["dark"]
    assert light["text"] == plots.INK and light[".card"] == plots.PAPER
    for name, colour in KINDS.items():
        assert f".{name} {{ fill: {plots.tint(colour).upper()}; stroke: {colour};" in style(path)
    assert light.keys() == dark.keys()
    used = {name for element in root(path).iter() for name in element.get("class", "").split()}
    known = set(re.findall(r"\.([a-z][\w-]*)", style(path)))
    assert used <= known


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_stands_out_from_every_ground(look):
    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))

    fills = looks(FIGURES[0])[look]
    for ground in (".card", ".paper", ".band", *(f".{name}" for name in KINDS)):
        bright, dim = sorted((luminance(fills["text"]), luminance(fills[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 7, ground


def test_data_flow_shows_the_advantages_and_the_loss_of_its_rewards():
    rewards, logprobs = [1, 1, 0, 0], [-6.0, -8.0, -3.5, -4.5]
    mean = sum(rewards) / 4
    std = (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5  # n - 1, as torch.std
    advantages = [(r - mean) / std for r in rewards]
    loss = -sum(a * x for a, x in zip(advantages, logprobs, strict=True)) / 4
    shown = [text.replace("\N{MINUS SIGN}", "-") for text, _ in texts(ROOT / "ch06/figures/group_data_flow.svg")]
    assert [text for text in shown if text.endswith("0.87")] == [f"{a:+.2f}" for a in advantages]
    assert {"-6.0  -8.0", "-3.5  -4.5", f"scalar {loss:.2f}"} <= set(shown)
