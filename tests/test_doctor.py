"""`rfs doctor` on runs that really failed, whose logs broken_runs.py has made, and on changed ones of them."""

import json
import re
import shutil
import sys

import broken_runs
import pytest
from broken_runs import FIXTURES, RUNS

from rfs_utils.cli import main, make_parser
from rfs_utils.runs.doctor import CHECKS, Log, examine, format_findings, remark

EXPECTED = {  # what is found first in each run; the healthy one has nothing
    "healthy": None,
    "dip": "early dip",
    "short limit": "length limit",
    "little room": "length limit",
    "forgot to end": "forgot to end",
    "rate too high": "collapse",
    "rate absurd": "collapse",
    "reused too often": "collapse",
    "rate too low": "rate too low",
    "never paid": "never paid",
    "memorised": "memorised",
    "too easy": "too easy",
    "cold": "too cold",
    "hot": "too hot",
    "held back": "held back",
    "hacked": "reward without accuracy",
    "not judged": "not judged",
    "not finite": "not finite",
}


def folder_of(name: str):
    return FIXTURES / name.replace(" ", "-")


def first_name(folder) -> str | None:
    return next((finding.name for finding in examine(folder)), None)


@pytest.fixture
def copied(tmp_path):
    """A run's logs in a folder where they can be changed."""

    def copy(name: str):
        return shutil.copytree(folder_of(name), tmp_path / "run")

    return copy


def test_there_is_a_log_of_every_broken_run():
    assert EXPECTED.keys() == RUNS.keys()
    assert {folder.name for folder in FIXTURES.iterdir()} == {folder_of(name).name for name in RUNS}
    told = [name for name in EXPECTED.values() if name]
    assert len(set(told)) >= 8


@pytest.mark.parametrize("name", RUNS)
def test_the_reason_is_found(name):
    assert first_name(folder_of(name)) == EXPECTED[name]


@pytest.mark.nightly
@pytest.mark.parametrize("name", RUNS)
def test_the_reason_is_found_in_the_run_itself(name, tmp_path):
    sys.modules["broken_runs"] = broken_runs
    assert first_name(broken_runs.make(name, tmp_path)) == EXPECTED[name]


@pytest.mark.parametrize("name", RUNS)
def test_every_finding_has_evidence_and_advice_that_the_command_line_knows(name):
    options = make_parser(["train"]).options
    for finding in examine(folder_of(name)):
        assert re.search(r"\d", finding.evidence), "evidence has numbers"
        named = re.findall(r"--[a-z-]+", f"{finding.says} {finding.evidence} {finding.advice}")
        assert set(named) <= set(options), finding


@pytest.mark.parametrize("name", RUNS)
def test_the_text_fits_a_terminal(name, capsys):
    folder = folder_of(name)
    text = format_findings(folder, examine(folder))
    assert all(len(line) <= 79 or str(folder) in line for line in text.splitlines())
    assert ("seen:" in text and "try:" in text) == (EXPECTED[name] is not None)
    assert main(["doctor", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == text
    assert main(["doctor", str(folder), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [set(record) for record in records] == [{"name", "says", "evidence", "advice"}] * len(records)


def test_no_check_is_without_a_run():
    found = {finding.name for name in RUNS for check in CHECKS if (finding := check(Log(folder_of(name))))}
    assert len(found) >= len(CHECKS) - 1, "one more finds what the log cannot explain"


def test_a_healthy_run_at_any_length_is_not_called_broken(copied):
    """What is said of the first steps: nothing, or that the dip is early."""
    folder = copied("healthy")
    (folder / "result.json").unlink()
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    for steps in range(1, 51):
        (folder / "metrics.csv").write_text("".join(lines[: 1 + steps]))
        assert {finding.name for finding in examine(folder)} <= {"early dip", "unfinished"}, steps


def test_of_many_evaluations_a_few_are_told():
    log = Log(folder_of("healthy"))
    assert len(log.held_out) == 11
    assert re.fullmatch(r"39% before, 12% at step 5, 98% at step 25, 98% at step 50", log.accuracies())


def test_a_run_that_goes_on_is_called_unfinished(copied):
    folder = copied("healthy")
    (folder / "result.json").unlink()
    (finding,) = examine(folder)
    assert finding.name == "unfinished" and "--resume" in finding.advice
    assert remark(folder) == "", "what has just stopped knows it"


def test_answers_without_a_box_get_another_advice(copied):
    folder = copied("never paid")
    lines = (folder / "samples.jsonl").read_text().splitlines()
    assert "notation may be another" in " ".join(format_findings(folder, examine(folder)).split())
    unboxed = [json.dumps(json.loads(line) | {"tokens": ["5"], "logps": [0.0]}) for line in lines]
    (folder / "samples.jsonl").write_text("\n".join(unboxed) + "\n")
    assert "so that answers get a box" in " ".join(format_findings(folder, examine(folder)).split())


@pytest.mark.parametrize("missing", ["config.toml", "metrics.csv"])
def test_a_folder_that_is_no_run_is_one_sentence(missing, copied, capsys):
    folder = copied("healthy")
    (folder / missing).unlink()
    assert main(["doctor", str(folder)]) == 2
    err = capsys.readouterr().err
    assert f"is not the folder of a run; expected {missing} in it" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["step\n", "step,reward_avg\n", "step,reward_avg\nx,1\n", ""])
def test_a_log_without_steps_is_one_sentence(content, copied, capsys):
    folder = copied("healthy")
    (folder / "metrics.csv").write_text(content)
    assert main(["doctor", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "metrics.csv" in err and err.count("\n") == 1


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_a_log_may_lack_columns_and_files(columns, copied):
    """As that of another program, or of another version: what is not there says nothing."""
    folder = copied("rate too high")
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    names = ["step", "reward_avg", "accuracy", "entropy", "truncated"][: max(2, columns)]
    places = [lines[0].index(name) for name in names]
    (folder / "metrics.csv").write_text("".join(",".join(line[i] for i in places) + "\n" for line in lines))
    for name in ("before.json", "result.json", "samples.jsonl"):
        (folder / name).unlink()
    assert "unfinished" in [finding.name for finding in examine(folder)]
