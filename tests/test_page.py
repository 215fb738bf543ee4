"""The page of a run and the rollouts on the terminal: what a model wrote must stay text."""

import json
from html.parser import HTMLParser

import pytest

from rfs_utils.cli import main
from rfs_utils.plots import plot_training
from rfs_utils.runs.page import best_samples, curve, format_samples_text, write_page

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
    assert page.tags.count("figure") == 3 and page.tags.count("article") == 2
    assert "This run is not finished" in html


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
