"""The tiny world: right answers, no leak between its sides, readable errors for problem files."""

import json
import re

import pytest

from rfs_utils.data import FIELDS, HARDER_LEVELS, Story, generate_tiny_problems, load_problems, render_prompt


def solve_from_words(text: str) -> list[int]:
    """All totals of a problem, computed from its English sentences alone."""
    total = int(re.match(r"\w+ has (\d+)", text)[1])
    totals = []
    for sentence in re.findall(r"In \w+ ([^.]*)\.", text):
        n = re.search(r"\d+", sentence)
        if "doubles" in sentence:
            total *= 2
        elif "more" in sentence:
            total += int(n[0])
        elif re.search(r"loses|sells|gives away", sentence):
            total -= int(n[0])
        else:
            raise AssertionError(f"unknown sentence: {sentence}")
        totals.append(total)
    return totals


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_are_right_by_an_independent_reading(split):
    for problem in generate_tiny_problems(400, split, levels=(1, 2, 3, 4, 5, *HARDER_LEVELS), seed=3):
        assert tuple(problem) == FIELDS
        totals = solve_from_words(problem["problem"])
        level = int(problem["level"].removeprefix("Level "))
        assert len(totals) == level + 1
        assert all(0 <= total <= 99 for total in totals)
        assert problem["answer"] == str(totals[-1])
        assert problem["solution"].endswith(f"\\boxed{{{totals[-1]}}}")
        assert [int(r) for r in re.findall(r"=(\d+)", problem["solution"])] == totals


def numbers(problem: dict) -> str:
    """What decides a story: the solution without the months."""
    return re.sub(r"[A-Z]\w+:", "", problem["solution"])


def test_the_two_sides_never_share_a_story_whatever_the_seed():
    train = {numbers(p) for seed in range(3) for p in generate_tiny_problems(2000, "train", seed=seed)}
    test = {numbers(p) for seed in range(3) for p in generate_tiny_problems(1000, "test", seed=seed + 7)}
    assert len(train) > 3000 and len(test) > 1500
    assert not train & test


def test_a_set_is_reproducible_balanced_and_without_repetition():
    once, again = generate_tiny_problems(500, "test", seed=5), generate_tiny_problems(500, "test", seed=5)
    assert once == again
    assert once != generate_tiny_problems(500, "test", seed=6)
    assert len({numbers(p) for p in once}) == 500
    levels = [p["level"] for p in once]
    assert {levels.count(level) for level in set(levels)} == {100}


def test_story_writes_out_its_steps():
    story = Story(7, ("+5", "-3", "*2"), first_month=11)
    assert story.steps() == "December:7+5=12\nJanuary:12-3=9\nFebruary:9+9=18"
    assert story.answer() == "18"


def test_prompt_ends_where_the_answer_begins():
    prompt = render_prompt("How many?")
    assert "How many?" in prompt and "\\boxed{" in prompt and prompt.endswith("Answer:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_problems": 0}, "num_problems must be at least 1, got 0"),
        ({"num_problems": 5, "split": "dev"}, "unknown split 'dev'; known splits are 'train' and 'test'"),
        ({"num_problems": 5, "levels": (0, 1)}, "levels must be whole numbers from 1 to 11"),
        ({"num_problems": 5, "levels": ()}, "levels must be whole numbers from 1 to 11"),
        ({"num_problems": 100_000, "split": "test", "levels": (1,)}, "level 1 has too few different test stories"),
    ],
)
def test_impossible_wishes_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate_tiny_problems(**arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no problems"),
        ("[]", "holds no problems"),
        ('[{"problem": "p", "answer": "1"}, {"problem": "p"}]', "problem with index 1: the field 'answer'"),
        ('[{"problem": "p", "answer": 5}]', "problem with index 0: the field 'answer' must be a non-empty text"),
        ('[{"problem": "p",\n "answer": }]', "line 2: not valid JSON"),
        ('{"problem": "p", "answer": "1"}\n{"problem": "p"\n', "line 2: not valid JSON"),
        ('{"problem": "p", "answer": "1"}\n\n["p"]\n', "line 3: the field 'problem'"),
        (b"\xff\xfe\x00", "cannot read the problem file"),
    ],
)
def test_malformed_files_are_named_with_line_or_index(tmp_path, content, message):
    path = tmp_path / "problems.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_problems(path)
    assert str(path) in str(error.value)


def test_lists_and_lines_are_both_read(tmp_path):
    problems = generate_tiny_problems(3)
    (tmp_path / "list.json").write_text(json.dumps(problems))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, problems)))
    assert load_problems(tmp_path / "list.json") == load_problems(tmp_path / "lines.jsonl") == problems
    with pytest.raises(ValueError, match="cannot read the problem file"):
        load_problems(tmp_path / "nowhere.json")
