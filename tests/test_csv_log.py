"""Logs in CSV: every line has as many cells as the header, whatever is appended, and nothing that is there is lost."""

import csv
import random
from types import SimpleNamespace

import pytest

from rfs_utils import ch06
from rfs_utils.data import generate_tiny_problems
from rfs_utils.files import append_rows, read_rows


def lines_of(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_other_columns_are_added_to_all_lines(tmp_path):
    path = tmp_path / "log.csv"
    append_rows(path, [{"step": "1", "loss": "0.5"}])
    append_rows(path, [{"step": "2", "loss": "0.4", "accuracy": "1"}, {"step": "3", "loss": "", "accuracy": "2"}])
    append_rows(path, [{"loss": "0.3", "step": "4"}])
    assert path.read_text() == "step,loss,accuracy\n1,0.5,\n2,0.4,1\n3,,2\n4,0.3,\n"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"], "no temporary file may stay"


def test_whatever_is_appended_no_line_is_ragged_and_nothing_is_lost(tmp_path):
    for seed in range(50):
        draw, path, expected = random.Random(seed), tmp_path / f"{seed}.csv", []
        for step in range(draw.randrange(1, 12)):
            names = draw.sample(["a", "b,c", 'd"e', "ä"], draw.randrange(5))
            names = draw.sample(["step", *names], len(names) + 1)
            row = {name: draw.choice(["", "1", "x,y", 'q"r', "é"]) for name in names} | {"step": str(step)}
            append_rows(path, [row])
            expected.append(row)
            if draw.random() < 0.2:
                path.write_bytes(path.read_bytes().rstrip(b"\n"))  # an editor that saves no last line end
        header, *lines = lines_of(path)
        assert {len(line) for line in lines} == {len(header)}
        found = [dict(zip(header, line, strict=True)) for line in lines]
        assert found == [dict.fromkeys(header, "") | row for row in expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("notes of mine", "is something else than a log"),
        ("a,b\n1,2\n", "is something else than a log"),
        ("step,a,step\n", "is something else than a log"),
        ("\n", "is something else than a log"),
        ("step,a\n1,2\n3\n", "line 3: expected 2 cells, found 1"),
        ("step,a\n1,2,3\n", "line 2: expected 2 cells, found 3"),
        ("step,a\n1,2\n3", "line 3: expected 2 cells, found 1"),
        (b"step,\xff\n1,2\n", "cannot read"),
    ],
)
def test_a_file_that_is_something_else_stays_as_it_is(content, message, tmp_path, model, tokenizer):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        append_rows(path, [{"step": "4", "b": "5"}])
    with pytest.raises(ValueError, match=message):  # before the first step
        ch06.train_rlvr_grpo(model, tokenizer, [], "cpu", steps=1, csv_log_path=path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_empty_file_gets_a_header(there, tmp_path):
    path = tmp_path / "log.csv"
    if there:
        path.touch()
    assert read_rows(path) == ([], [])
    append_rows(path, [{"step": "1"}])
    assert path.read_text() == "step\n1\n"


def test_training_that_goes_on_with_other_columns_leaves_no_ragged_file(model, tokenizer, tmp_path):
    """Seven cells under five headers, as it once was."""

    def train(start, steps, **settings):
        ch06.train_rlvr_grpo(
            model, tokenizer, generate_tiny_problems(2), "cpu", steps=steps, start_step=start, max_new_tokens=4,
            csv_log_path=tmp_path / "log.csv", checkpoint_every=None, **settings,
        )  # fmt: skip

    train(0, 2)
    train(2, 3, evaluate=lambda model: SimpleNamespace(accuracy=0.5, mean_tokens=3.0), evaluate_every=1)
    train(3, 4)
    header, *lines = lines_of(tmp_path / "log.csv")
    assert header == ["step", "total_steps", "loss", "reward_avg", "avg_response_len", "eval_accuracy", "eval_tokens"]
    assert [len(line) for line in lines] == [7] * 4 and [line[0] for line in lines] == ["1", "2", "3", "4"]
    assert [line[5] for line in lines] == ["", "", "0.500000", ""]
