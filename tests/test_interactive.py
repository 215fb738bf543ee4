"""The figures that readers change compute what the notebooks' functions compute; Chromium works their controls."""

import json
import re
from html import unescape

import pytest
import torch
from browser import in_chromium, needs_chromium

from rfs_utils.ch07 import METHODS, clipped_objective, compute_advantages, is_clipped
from rfs_utils.interactive import clip_figure, figure_html, group_figure

SET = """
const root = document.querySelector(".rfs-figure"), found = [];
const set = (control, value) => {
  control.value = value;
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
};
"""
REPORT = """
const pre = document.createElement("pre");
pre.textContent = JSON.stringify(found);
document.body.append(pre);
"""
GROUPS = [[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0.5, 0, 0, 0, 0.5, 1], [1] * 8, [0] * 8, [1, 1, 1, 1, 1, 1, 1, 0]]
SET_GROUPS = """
for (const method of [...root.querySelector("select").options].map(option => option.value)) {
  set(root.querySelector("select"), method);
  for (const rewards of %s) {
    [...root.querySelectorAll(".columns button")].forEach((button, i) => {
      while (Number(button.textContent) !== rewards[i]) button.click();
    });
    found.push([method, rewards, root.dataset.advantages.split(" ").map(Number)]);
  }
}
"""
SET_CLIPS = """
const limits = [[0.2, 0.2], [0.4, 1]];
for (const a of [1, -1]) for (const ratio of [0, 0.3, 0.8, 1, 1.2, 2.5]) for (const [low, high] of limits) {
  set(root.querySelector("select"), a);
  for (const [name, value] of Object.entries({ratio, low, high})) set(root.querySelector(`[name=${name}]`), value);
  found.push([a, ratio, low, high, root.dataset.value]);
}
"""


def found_in_chromium(name, script, folder):
    """What a script puts into the list `found` on a page that shows the figure; the console must stay empty."""
    page = folder / "page.html"
    script = f"<script>{{{SET}{script}{REPORT}}}</script>"
    text = f"<!doctype html><meta charset='utf-8'><body>{figure_html(name)}{script}"
    page.write_text(text, encoding="utf-8")
    shown, console = in_chromium(page.as_uri(), folder)
    assert not console, console
    return json.loads(unescape(re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)[1]))


@needs_chromium
def test_group_figure_has_the_advantages_of_chapter_7(tmp_path):
    found = found_in_chromium("group", SET_GROUPS % json.dumps(GROUPS), tmp_path)
    assert len({method for method, *_ in found}) == 6 and len(found) == 6 * len(GROUPS)
    for method, rewards, shown in found:
        expected = compute_advantages(torch.tensor([rewards], dtype=torch.float64), METHODS[method])[0]
        torch.testing.assert_close(torch.tensor(shown, dtype=torch.float64), expected.double(), atol=1e-4, rtol=0)


@needs_chromium
def test_clip_figure_has_the_objective_of_chapter_7(tmp_path):
    found = found_in_chromium("clip", SET_CLIPS, tmp_path)
    assert len(found) == 24
    for a, ratio, low, high, shown in found:
        r, advantage = torch.tensor([ratio], dtype=torch.float64), torch.tensor([float(a)], dtype=torch.float64)
        value, clipped = shown.split()
        assert float(value) == pytest.approx(clipped_objective(r, advantage, low, high).item(), abs=1e-4)
        if ratio not in (0.8, 1.2):  # on the limit itself either answer is right
            assert (clipped == "true") == is_clipped(r, advantage, low, high).item()


def test_other_methods_are_shown_only_when_asked_for():
    assert "<label hidden>Method" in group_figure().data
    assert "<label>Method" in group_figure(methods=True).data


@pytest.mark.parametrize("figure", [group_figure, clip_figure])
def test_figures_need_nothing_from_outside(figure):
    text = figure().data
    assert "<style>" in text and not re.search(r"https?:|//cdn|\bsrc=|@import|url\(", text)
