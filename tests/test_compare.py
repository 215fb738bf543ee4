"""Methods side by side: the runs, the file, and the arithmetic of the table."""

import pytest
from small import make_directory

from rfs_utils.cli import main
from rfs_utils.data import generated
from rfs_utils.evaluate import Evaluation
from rfs_utils.runs import compare
from rfs_utils.runs.compare import short_run
from rfs_utils.runs.comparison import MEASURED, at_seconds, best_settings, paired_difference, summarise

FAST = {"steps": 2, "prompts_per_step": 2, "num_rollouts": 2, "max_new_tokens": 12, "eval_every": 1}


def test_a_short_run_returns_the_columns_of_a_log():
    run = short_run(num_problems=5, **FAST)
    assert run["step"] == [0, 1, 2] and run["seconds"][0] == 0 < run["seconds"][1] < run["seconds"][2]
    assert run["reward_avg"][0] is None and all(v is not None for v in run["eval_accuracy"])


def test_the_seed_decides_what_a_reward_draws():
    settings = {"steps": 1, "prompts_per_step": 2, "num_rollouts": 2, "max_new_tokens": 4, "num_problems": 2}
    logs = [short_run(rewards="drawing:drawn", seed=seed, **settings) for seed in (3, 3, 4)]
    assert logs[0]["reward_avg"] == logs[1]["reward_avg"] != logs[2]["reward_avg"]


def test_a_comparison_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, "short_run", lambda **settings: calls.append(settings) or {
        "step": [0, 2], "seconds": [0.0, 3.0], "eval_accuracy": [0.1, 0.5], "eval_tokens": [7.0, 9.0],
        "reward_avg": [None, 0.4], "samples": [None, 128],
    })  # fmt: skip
    path = str(tmp_path / "c.csv")
    command = ["compare", "--methods", "grpo,rloo", "--seeds", "2", "--steps", "2", "--csv", path]
    assert main(command) == 0 and len(calls) == 4
    assert [(c["method"], c["seed"]) for c in calls] == [("grpo", 0), ("rloo", 0), ("grpo", 1), ("rloo", 1)]
    assert main(["compare", "--methods", "grpo,rloo", "--seeds", "3", "--steps", "2", "--csv", path]) == 0
    assert len(calls) == 6, "only the third seed is new"
    out = capsys.readouterr().out
    assert "50.0% ±  0.0" in out and f"seed 0  is in {path} already" in out
    assert main(["compare", "--methods", "rloo, rloo", "--seeds", "1", "--steps", "2", "--csv", path]) == 0
    table = capsys.readouterr().out.splitlines()[-1]
    assert len(calls) == 6 and table.startswith("rloo") and table.endswith(" 3"), "it alone"
    assert main(["compare", "--methods", "rloo", "--steps", "3", "--csv", path]) == 2
    assert "was made with steps = 2, not 3; choose another --csv" in capsys.readouterr().err and len(calls) == 6
    (tmp_path / "c.toml").unlink()
    assert main([*command]) == 2 and "has no c.toml with its settings" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_found_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "short_run", lambda **settings: pytest.fail("nothing may run"))
    (tmp_path / "file").write_text("")
    assert main(["compare", "--methods", "grpo", "--csv", str(tmp_path / "file" / "c.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--method", "--seed", "--out", "--eval-data", "--eval-problems"])
def test_settings_that_a_comparison_decides_are_no_flags(flag, capsys):
    with pytest.raises(SystemExit):
        main(["compare", flag, "1"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_bad_comparisons_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for arguments, message in (
        (["--methods", "grpo,pppo"], "method must be one of grpo, grpo_mean"),
        (["--csv", "other.csv"], "other.csv is not the CSV of a comparison"),
        (["--seeds", "0"], "seeds must be a whole number from 1 to 10,000; got 0"),
        (["--grid", "lr"], "--grid must be like lr=1e-4,3e-4, a setting and its values; got 'lr'"),
        (["--grid", "method=grpo"], "--grid must be like lr=1e-4,3e-4, a setting and its values; got 'method=grpo'"),
        (["--grid", "lr=1e-4,x"], "--grid lr must have values of type float; got '1e-4,x'"),
        (["--grid", "lr=-1"], "lr must be a number from 1e-12 to 100; got -1.0"),
        (["--best-of", "other.csv"], "other.csv is not the CSV of a comparison"),
        (["--best-of", "other.csv", "--tune"], "expected no --grid and no --tune beside it"),
    ):
        assert main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.strip().splitlines()) == 1


def test_equal_seconds_are_interpolated(tmp_path):
    rows = [{"seconds": s, "accuracy": a} for s, a in (("0", "0.0"), ("10", "0.5"), ("20", "0.7"))]
    assert at_seconds(rows, 5) == pytest.approx(0.25) and at_seconds(rows, 15) == pytest.approx(0.6)
    assert at_seconds(rows, 20) == pytest.approx(0.7)
    lines = [",".join(("method", *MEASURED))]
    for method, seconds in (("quick", 10), ("slow", 20)):
        lines += [f"{method},0,0,0,0,0.0,7,", f"{method},0,5,99,{seconds},0.8,30,0.5"]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    table = summarise(tmp_path / "c.csv")
    assert "equal seconds (10)" in table
    slow = next(line for line in table.splitlines() if line.startswith("slow"))
    assert "80.0%" in slow and "40.0%" in slow


@pytest.mark.parametrize("data", ["stories-1", "tiny"])
def test_accuracy_is_that_of_the_kind_of_problems_that_were_trained(data, monkeypatch, tmp_path):
    asked = []

    def evaluate(model, tokenizer, problems, *rest):
        asked.extend(problem["problem"] for problem in problems)
        return Evaluation([{"correct": 0, "tokens": 1}])

    monkeypatch.setattr(compare, "evaluate_model", evaluate)
    model = str(make_directory(tmp_path / "m"))
    short_run(5, model=model, data=data, steps=1, prompts_per_step=1, num_rollouts=2, max_new_tokens=4)
    assert asked == 2 * [problem["problem"] for problem in generated(data, 5, "test")]


def test_a_grid_is_tuned_apart_and_its_best_settings_are_compared(tmp_path, monkeypatch, capsys):
    calls = []

    def run(**settings):
        calls.append(settings)
        accuracy = 0.5 + 100 * settings["lr"] * (1 if settings["method"] == "grpo" else -1)
        columns = {"step": [0, 2], "seconds": [0.0, 3.0], "eval_tokens": [7.0, 9.0], "reward_avg": [None, 0.4]}
        return {**columns, "eval_accuracy": [0.1, accuracy], "samples": [None, 64]}

    monkeypatch.setattr(compare, "short_run", run)
    tuned, best = str(tmp_path / "tuned.csv"), str(tmp_path / "best.csv")
    grid = ["--grid", "lr=1e-4,3e-4", "--grid", "updates_per_step=1,4"]
    assert main(["compare", "--methods", "grpo,rloo", *grid, "--tune", "--seeds", "2", "--csv", tuned]) == 0
    assert len(calls) == 16 and {(c["seed"], c["held_out_seed"]) for c in calls} == {(1000, 1), (1001, 1)}
    grid = [*grid[2:], *grid[:2]]
    assert main(["compare", "--methods", "grpo,rloo", *grid, "--tune", "--seeds", "2", "--csv", tuned]) == 0
    assert len(calls) == 16, "all of it is there, in whatever order the settings are named"
    assert [(s["method"], s["lr"], s["updates_per_step"]) for s in best_settings(tuned)] == [
        ("grpo", 3e-4, 1), ("grpo", 3e-4, 4), ("rloo", 1e-4, 1), ("rloo", 1e-4, 4),
    ]  # fmt: skip
    calls.clear()
    assert main(["compare", "--methods", "rloo", "--best-of", tuned, "--seeds", "3", "--csv", best]) == 0
    assert len(calls) == 6 and {(c["method"], c["lr"], c["held_out_seed"]) for c in calls} == {("rloo", 1e-4, 0)}
    assert "rloo 4 0.0001" in capsys.readouterr().out
    assert main(["compare", "--methods", "rloo", "--seeds", "1", "--csv", best]) == 2
    assert "compares methods over updates_per_step, lr, not alone; choose another --csv" in capsys.readouterr().err


def test_differences_are_paired_by_seed():
    mean, half = paired_difference({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.6, 3: 0.0})
    assert mean == pytest.approx(0.1) and half == pytest.approx(0.0, abs=1e-9)
