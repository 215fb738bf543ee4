"""The page of a run and the rollouts on the terminal: what a model wrote must stay text."""

import json
import shutil
from html.parser import HTMLParser

import pytest
from broken_runs import FIXTURES
from browser import in_chromium, needs_chromium

from rfs_utils.cli import main
from rfs_utils.files import read_fields
from rfs_utils.plots import plot_training
from rfs_utils.runs import live
from rfs_utils.runs.folder import read_run
from rfs_utils.runs.page import curve, with_result, write_page
from rfs_utils.runs.samples import best_samples, format_samples_text

ATTACK = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"


def record(step=1, advantage=1.0, tokens=("a", "b"), **changes) -> dict:
    return {
        "step": step, "problem": "1 < 2?", "answer": "3", "reward": 1.0, "advantage": advantage,
        "tokens": list(tokens), "logps": [-0.1] * len(tokens), **changes,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rows = [f"{step},{step / 10},{'' if step % 2 else 0.5},{100 * step}" for step in range(1, 6)]
    (tmp_path / "metrics.csv").write_text("step,reward_avg,eval_accuracy,tokens_per_second\n" + "\n".join(rows) + "\n")
    records = [record(), record(5, -0.5, [ATTACK, "'\"&"], problem=ATTACK, answer=ATTACK)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]


def test_the_page_is_one_file_and_shows_model_output_as_text(folder):
    html = write_page(folder).read_text()
    page = Tags()
    page.feed(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not [a for a in page.attributes if a[1] in ("src", "href") or a[1].startswith("on")]
    assert "http" not in html.replace("http-equiv", ""), "nothing from outside"
    assert html.count("&lt;script&gt;alert(1)") == 3
    assert page.tags.count("figure") == 3 and page.tags.count("article") == page.tags.count("section") == 2
    assert "This run is not finished" in html


def test_answers_stand_by_problem_with_result_parts_and_advantage(folder):
    boxed = [list("\\boxed{3}"), list("\\boxed{4}"), list("none")]
    parts = {"accuracy": 1.0, "m:f": None}
    group = [record(2, a, tokens, parts=parts) for a, tokens in zip((1, -0.5, 0), boxed, strict=True)]
    other = record(2, 0.0, ["x"], problem="2 < 3?", reward=0.0)
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*group, other]))
    html = write_page(folder).read_text()
    assert html.count("<section") == 2 and html.count("1 &lt; 2?") == 1, "a problem is told once"
    assert "1 of 3 right · mean reward 1<" in html and "0 of 1 right · mean reward 0<" in html
    for words in ("✓ 3</b>", "✗ 4</b>", "no result</b>", "accuracy 1 · m:f not judged · advantage +1.00"):
        assert words in html
    kinds = [value for tag, name, value in tags_of(html).attributes if (tag, name) == ("article", "data-kind")]
    assert kinds == ["right good", "wrong bad", "unboxed even", "unboxed even"]


def test_settings_command_warnings_and_the_final_evaluation(tmp_path):
    shutil.copytree(FIXTURES / "rate-too-high", tmp_path / "run")
    html = write_page(tmp_path / "run").read_text()
    assert "<td>lr</td><td>0.03</td>" in html and "<td>seed</td>" not in html, "what differs from the usual"
    assert f"rfs train --config {tmp_path}/run/config.toml --out {tmp_path}/run-again" in html
    assert "<h2>Warnings</h2>" in html and "The run has collapsed" in html and "Try: --lr 0.0003" in html
    shutil.copytree(FIXTURES / "healthy", tmp_path / "well")
    html, result = write_page(tmp_path / "well").read_text(), read_fields(tmp_path / "well" / "result.json", {})
    assert "<h2>Warnings</h2>" not in html
    metrics = with_result(read_run(tmp_path / "well"), result)
    assert metrics["eval_accuracy"][-1] == result["accuracy_after"]
    assert with_result({"step": [1]}, result) == {"step": [1]}, "of another step"


def test_a_curve_holds_its_values(folder):
    lines = json.loads(attribute(curve({"step": [1, 2, 3], "kl": [0.5, None, 0.25]}, "kl"), "data-lines"))
    assert lines == {"each": [[1.0, 3.0], [0.5, 0.25]]}
    assert "&lt;b&gt;" in curve({"step": [1], "reward_<b>": [1.0]}, "reward_<b>")


def attribute(html: str, name: str) -> str:
    return next(value for _, found, value in tags_of(html).attributes if found == name)


def tags_of(html: str) -> Tags:
    page = Tags()
    page.feed(html)
    return page


SCRIPT = """
<script>
const said = [], cards = () => [...document.querySelectorAll(".rollout")];
const see = () => cards().filter(card => !card.hidden && !card.parentElement.hidden);
const set = (id, value) => { field(id).value = value; field(id).dispatchEvent(new Event("input")); };
const texts = () => see().map(card => card.querySelector("b").textContent).join();
said.push(texts());
set("kind", "right"); said.push(texts()); set("kind", "all");
set("search", "2 3?"); said.push(texts()); set("search", "");
set("step", "3"); said.push(texts()); set("step", "all");
set("order", "length"); said.push(texts());
const svg = document.querySelector("svg[data-lines]");
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
said.push(svg.parentElement.querySelector("output").textContent);
document.body.dataset.said = JSON.stringify(said);
</script>
"""


@needs_chromium
def test_the_page_in_a_browser(folder, tmp_path):
    answers = [(2, "\\boxed{3}" + 9 * " ", "1 < 2?"), (2, "\\boxed{4}", "1 < 2?"), (3, "none", "2 < 3?")]
    rows = [record(step, 1.0 - n, list(text), problem=problem) for n, (step, text, problem) in enumerate(answers)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = write_page(folder)
    path.write_text(path.read_text().replace("</body>", SCRIPT + "</body>"))
    shown, console = in_chromium(path.as_uri(), tmp_path / "profile")
    said = json.loads(attribute(shown, "data-said"))
    assert not console
    assert said[:5] == ["✓ 3,✗ 4,no result", "✓ 3", "no result", "no result", "✗ 4,✓ 3,no result"]
    assert said[5].startswith("step 4: each 0.4")


# ---------------------------------------------------------------- a run that goes on


def test_a_run_is_followed_until_it_has_its_result(tmp_path, monkeypatch):
    run, pages, said = tmp_path / "run", [], []
    shutil.copytree(FIXTURES / "healthy", run)
    result, lines = (run / "result.json").read_bytes(), (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "result.json").unlink()
    (run / "metrics.csv").write_text("".join(lines[:10]))

    def sleep(seconds):
        pages.append((run / "report.html").read_text())
        if len(pages) == 1:
            (run / "metrics.csv").write_text("".join(lines))
        if len(pages) == 3:
            (run / "result.json").write_bytes(result)

    monkeypatch.setattr(live.time, "sleep", sleep)
    path = live.follow(run, 7, said.append)
    assert len(pages) == 3 and all("data-refresh='7'" in page and "not finished" in page for page in pages)
    assert len(said) == 1 and "report.html follows the run" in said[0]
    final = path.read_text()
    assert "data-refresh='0'" in final and "not finished" not in final and pages[0] != pages[1] == pages[2]


def test_a_run_that_is_finished_needs_no_watching(tmp_path, capsys):
    shutil.copytree(FIXTURES / "healthy", tmp_path / "run")
    assert main(["watch", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'run' / 'report.html'}\n"
    assert main(["watch", str(tmp_path / "nothing")]) == 2


def test_a_curve_copes_with_gaps_and_constants():
    assert curve({"step": [1, 2], "kl": [None, None]}, "kl") == "" == curve({"step": [1, 2]}, "kl")
    assert "<circle" in curve({"step": [1], "kl": [0.0]}, "kl")
    assert "nan" not in curve({"step": [1, 2, 3], "kl": [0.5, float("nan"), 0.5]}, "kl")


def test_a_curve_has_the_lines_that_the_panel_of_plot_training_has():
    metrics = {"step": list(range(40)), "avg_response_len": [1.0] * 40, "eval_tokens": [None, 2.0] * 20}
    panel = plot_training(metrics).axes[0]
    html = curve(metrics, "avg_response_len")
    assert len(panel.lines) == html.count("<polyline") == 3 and html.count("<circle") == 20
    assert panel.get_title("left") in html


def test_samples_on_the_terminal(folder, capsys):
    assert main(["samples", str(folder), "--step", "1"]) == 0
    assert "advantage +1.00" in capsys.readouterr().out
    assert main(["samples", str(folder), "--html"]) == 0
    assert "report.html" in capsys.readouterr().out


def test_samples_with_words(folder, capsys):
    keep = [record(3, 1.0, ["Four"]), record(3, -1.0, ["five"], problem="2 < 3?"), record(3, 0.5, ["four", " 2"])]
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in keep))
    for words, number in (("FOUR", 2), ("2 four", 2), ("2 3?", 1), ("four 4", 0)):
        assert main(["samples", str(folder), "--search", words]) == (0 if number else 2)
        said = capsys.readouterr()
        assert said.out.count("advantage") == number
        assert ("no rollout of step 3 has the words 'four 4'" in said.err) == (not number)
    with pytest.raises(SystemExit):
        main(["samples", str(folder), "--prompt", "four"])
    assert "did you mean --search?" in capsys.readouterr().err


def test_samples_come_best_first_and_bad_steps_are_named():
    records = [record(2, -1.0), record(2, 2.0), record(1)]
    text = format_samples_text(best_samples(records))
    assert text.index("+2.00") < text.index("-1.00") and "step 1" not in text
    with pytest.raises(ValueError, match="no rollouts were kept at step 7: there are those of 1, 2"):
        best_samples(records, 7)
    with pytest.raises(ValueError, match="kept no rollouts"):
        best_samples([])


NAN = float("nan")
WRONG = (None, True, -1, [1], {}, "text", "nan", NAN, float("inf"), 10**400, [[]], [None], ["a"], [NAN])


@pytest.mark.parametrize("name", record())
def test_a_damaged_record_is_one_sentence_or_can_be_shown(name, folder, capsys):
    """Each field left out, or with a value of another kind."""
    whole = record()
    changed = [whole | {name: value} for value in WRONG] + [{k: v for k, v in whole.items() if k != name}]
    shown = 0
    for one in changed:
        (folder / "samples.jsonl").write_text(json.dumps(whole) + "\n" + json.dumps(one) + "\n")
        codes = {main(["samples", str(folder), *more]) for more in ([], ["--html"])}
        err = capsys.readouterr().err.strip().splitlines()
        assert codes in ({0}, {2}) and len(err) == (2 if codes == {2} else 0)
        assert all("samples.jsonl is damaged: line 2 has" in line and name in line for line in err)
        shown += codes == {0}
    assert shown < len(WRONG) / 2


@pytest.mark.parametrize("line", ["[" * 100_000, "3", "null", "[]", "{", "\ufeff{}", "1e999", '"text"'])
def test_a_line_that_is_no_record_is_one_sentence(line, folder, capsys):
    (folder / "samples.jsonl").write_text(line + "\n")
    assert main(["samples", str(folder)]) == 2
    assert "samples.jsonl is damaged: line 1" in capsys.readouterr().err


def test_an_answer_that_was_not_judged_is_shown_as_such(folder, capsys):
    (folder / "samples.jsonl").write_text(json.dumps(record(reward=None)) + "\n")
    assert main(["samples", str(folder)]) == 0 and "not judged" in capsys.readouterr().out
    assert main(["samples", str(folder), "--html"]) == 0
    page = (folder / "report.html").read_text()
    assert "not judged" in page and "data-reward='-Infinity'" in page and "None" not in page


@pytest.mark.parametrize("command", [["samples", "nowhere"], ["samples", "nowhere", "--html"], ["plot", "nowhere"]])
def test_a_folder_that_is_no_run_is_one_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "nowhere" in err and len(err.strip().splitlines()) == 1
