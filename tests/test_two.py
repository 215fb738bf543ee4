"""Two runs on one page: what differs is shown, what both were asked stands together, and bad input writes nothing."""

import json
import shutil

import pytest
from broken_runs import FIXTURES
from browser import in_chromium, needs_chromium
from test_page import ATTACK, attribute, record, tags_of

from rfs_utils.cli import main
from rfs_utils.runs.two import overlaid, write_report


@pytest.fixture
def runs(tmp_path):
    for name in ("healthy", "rate-too-high"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    healthy, high = tmp_path / "healthy", tmp_path / "rate-too-high"
    keep(healthy, record(1, 1.0, ["\\boxed{3}"]), record(1, -1.0, ["x"]), record(2, problem="only A"))
    keep(high, record(1, 0.5, ["\\boxed{4}"]), record(5, problem="only B", answer=ATTACK))
    return healthy, high


def keep(run, *records) -> None:
    (run / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def test_both_tables_and_the_settings_that_differ(runs, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert main(["report", *map(str, runs), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": str(out)}
    html = out.read_text(encoding="utf-8")
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    cells = [f"<td>{result[f'accuracy_{when}']:.1%}</td>" for result in results for when in ("before", "after")]
    assert f"<td>held-out accuracy</td>{''.join(cells)}</tr>" in html
    assert "<td>lr</td><td>0.0003</td><td>0.03</td>" in html
    assert "<td>method</td>" not in html and "<td>out</td>" not in html, "the same, or of no interest"
    assert "Warnings, B" in html and "Warnings, A" not in html
    assert all(f"{letter}: {run}" in html for letter, run in zip("AB", runs, strict=True))
    page = tags_of(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags and "http" not in html
    assert not [a for a in page.attributes if a[1] in ("src", "href") or a[1].startswith("on")]


def test_a_problem_that_both_were_asked_stands_once(runs, tmp_path):
    html = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    assert html.count("<section") == 3 and html.count("1 &lt; 2?") == 1 and "share 1 of 3 problems" in html
    sides = [value for tag, name, value in tags_of(html).attributes if (tag, name) == ("div", "data-run")]
    assert sides == ["A shared", "B shared", "A", "B"]
    assert "A · step 1 · 1 of 2 right" in html and "B · step 1 · 0 of 1 right" in html
    other = {**record(), "answer": "4"}
    keep(runs[1], other)
    assert "share 0 of" in write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8"), "another answer"


def test_a_panel_has_the_lines_of_both_runs_told_apart_by_class():
    short, long = {"step": [1], "kl": [0.5]}, {"step": [*range(40)], "kl": [0.1] * 40, "eval_tokens": [1.0] * 40}
    html = overlaid([short, long], "kl")
    assert list(json.loads(attribute(html, "data-lines"))) == ["A each", "B each", "B mean"]
    assert html.count("run-a") == 2 and html.count("<circle") == 1, "a line of one point is a dot"
    assert overlaid([short, long], "avg_response_len").count("held run-b") == 1
    assert overlaid([short, short], "entropy") == ""


def test_runs_that_are_not_finished_or_tell_no_settings(runs, tmp_path):
    (runs[0] / "result.json").unlink()
    (runs[1] / "config.toml").unlink()
    html = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    assert html.count("This run is not finished.") == 1 and "<td>–</td><td>–</td>" in html
    assert "rate-too-high has no config.toml" in html
    for run in runs:
        keep(run)
    assert "<h2>Rollouts" not in write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "nowhere"], "nowhere is not the folder of a run; expected metrics.csv in it"),
        (["A", "A/../healthy"], "are the same run; expected two"),
        (["A", "B", "--out", "notes.md"], "the name of a page must end in .html"),
        (["A", "B", "--out", "A/report.html"], "is the page of one run; choose another name"),
        (["A", "B", "--out", "nowhere/both.html"], "cannot write nowhere/both.html: No such file"),
        (["A", "DAMAGED"], "samples.jsonl is damaged: line 1 is not JSON"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(words, said, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs[1], "damaged")
    (tmp_path / "damaged" / "samples.jsonl").write_text("{\n")
    for name in ("two-runs.html", "notes.md", "healthy/report.html"):
        (tmp_path / name).write_text("mine")
    places = {"A": "healthy", "B": "rate-too-high", "DAMAGED": "damaged"}
    head = [word.replace("A", "healthy", 1) if word.startswith("A/") else places.get(word, word) for word in words]
    assert main(["report", *head]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert all((tmp_path / name).read_text() == "mine" for name in ("two-runs.html", "notes.md", "healthy/report.html"))


SCRIPT = """
<script>
const said = [], set = (id, value) => { field(id).value = value; field(id).dispatchEvent(new Event("input")); };
const see = () => [...document.querySelectorAll(".side")].filter(side => !side.hidden && !side.closest("[hidden]"))
  .map(side => side.dataset.run[0] + side.dataset.step).join();
said.push(see());
set("run", "shared"); said.push(see());
set("run", "B"); said.push(see()); set("run", "all");
set("step", "1"); said.push(see()); set("step", "all");
set("kind", "right"); said.push(see());
const drawn = [...document.querySelectorAll(".legend polyline")].map(line => getComputedStyle(line));
said.push(drawn[0].stroke !== drawn[1].stroke && drawn[0].strokeDasharray !== drawn[1].strokeDasharray);
document.body.dataset.said = JSON.stringify(said);
</script>
"""


@needs_chromium
def test_the_page_in_a_browser(runs, tmp_path):
    path = write_report(runs, tmp_path / "both.html")
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", SCRIPT + "</body>"), encoding="utf-8")
    shown, console = in_chromium(path.as_uri(), tmp_path / "profile")
    assert not console
    assert json.loads(attribute(shown, "data-said")) == ["A1,B1,A2,B5", "A1,B1", "B1,B5", "A1,B1", "A1", True]
