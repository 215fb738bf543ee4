"""Evaluation: batches give the answers of single runs, stopped runs go on as if they never had, figures are right."""

import json
import zlib
from itertools import product

import pytest
import torch
from small import make_directory, make_model, make_tokenizer

from rfs_utils import evaluate
from rfs_utils.cli import main
from rfs_utils.data import generate_tiny_problems
from rfs_utils.evaluate import Evaluation, answer_batches, evaluate_model, format_evaluation, majority_answer
from rfs_utils.runs.answers import evaluate_to_file, weights_fingerprint
from rfs_utils.statistics import wilson_interval

PROBLEMS = generate_tiny_problems(10, "test", levels=(1, 4, 8))


@pytest.fixture(scope="module")
def talker():
    """A model, and a tokenizer whose end of sequence is a token that the model's greedy answers often contain.

    So responses end, at different lengths, without any training.
    """
    model, tokenizer = make_model(std=0.4), make_tokenizer()
    tokenizer.eos_token_id = -1
    rows = [r["ids"] for r in greedy_alone(model, tokenizer, 24)]
    often = max({token for row in rows for token in row}, key=lambda token: sum(token in row for row in rows))
    assert 3 <= sum(often in row for row in rows)
    tokenizer.eos_token_id = often
    return model, tokenizer


def greedy_alone(model, tokenizer, max_new_tokens: int) -> list[dict]:
    """Each problem by itself, token by token, without cache, batch or padding."""
    answers = []
    for problem in PROBLEMS:
        ids = tokenizer.encode(evaluate.render_prompt(problem["problem"]))
        start = len(ids)
        while len(ids) - start < max_new_tokens and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                ids = [*ids, model(torch.tensor([ids]))[0, -1].argmax().item()]
        end = len(ids) - (ids[-1] == tokenizer.eos_token_id)  # the text comes without it
        answers.append({"ids": ids[start:], "response": tokenizer.decode(ids[start:end])})
    return answers


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_left_padded_batches_give_the_answers_of_single_runs(talker, batch_size):
    model, tokenizer = talker
    expected = greedy_alone(model, tokenizer, 12)
    records = evaluate_model(model, tokenizer, PROBLEMS, max_new_tokens=12, batch_size=batch_size).records
    assert [r["response"] for r in records] == [r["response"] for r in expected]
    assert [r["tokens"] for r in records] == [len(r["ids"]) for r in expected]
    assert [r["truncated"] for r in records] == [r["ids"][-1] != tokenizer.eos_token_id for r in expected]
    assert len({r["tokens"] for r in records}) > 1, "all responses have the same length: the test shows little"


def test_batches_hold_prompts_of_similar_length_in_tokens(talker, monkeypatch):
    model, tokenizer = talker
    widths = []

    def spy(model, tokenizer, prompts, *rest):
        widths.append([len(tokenizer.encode(prompt)) for prompt in prompts])
        return sample_batch(model, tokenizer, prompts, *rest)

    sample_batch = evaluate.sample_batch
    monkeypatch.setattr(evaluate, "sample_batch", spy)
    evaluate_model(model, tokenizer, PROBLEMS, max_new_tokens=2, batch_size=4)
    assert [len(batch) for batch in widths] == [4, 4, 2]
    flat = [width for batch in widths for width in batch]
    assert flat == sorted(flat) and flat[0] < flat[-1]


def test_a_truncated_answer_is_told_by_its_tokens_not_by_its_text(talker):
    model, _ = talker
    tokenizer = make_tokenizer()
    tokenizer.eos_token = ""  # every text ends with it
    tokenizer.eos_token_id = -1
    assert evaluate_model(model, tokenizer, PROBLEMS, max_new_tokens=3).truncated == 1.0


def test_levels_and_subjects_of_math_500_read_like_those_of_math(talker):
    model, tokenizer = talker
    problems = [PROBLEMS[0] | {"level": 3, "subject": "Algebra"}]
    problems[0].pop("type")
    problems.append({"problem": "1 + 1?", "answer": "2"})
    first, second = evaluate_model(model, tokenizer, problems, max_new_tokens=2).records
    assert (first["level"], first["type"]) == ("Level 3", "Algebra")
    assert (second["level"], second["type"], second["unique_id"]) == ("", "", 1)


def test_groups_are_in_natural_order():
    levels = ["Level 10", "Level 9", "Level 2", "", "Geometry"]
    assert [*Evaluation([{"level": level} for level in levels]).by("level")] == [
        "", "Geometry", "Level 2", "Level 9", "Level 10",
    ]  # fmt: skip


@pytest.mark.parametrize("num_samples, batch_size", [(4, 8), (4, 2), (3, 2), (5, 1)])
def test_samples_fill_batches_and_are_all_there(talker, monkeypatch, num_samples, batch_size):
    model, tokenizer = talker
    rows = []

    def spy(model, tokenizer, prompts, device, num_rollouts, *rest):
        rows.append(len(prompts) * num_rollouts)
        return sample_batch(model, tokenizer, prompts, device, num_rollouts, *rest)

    sample_batch = evaluate.sample_batch
    monkeypatch.setattr(evaluate, "sample_batch", spy)
    batches = answer_batches(
        model, tokenizer, PROBLEMS[:3], "cpu", 3, 1.0, 1.0, batch_size, num_samples=num_samples, seed=0
    )
    answers = [answer for batch in batches for answer in batch]
    assert sorted(answers) == list(product(range(3), range(num_samples)))
    assert max(rows) <= batch_size and sum(rows) == 3 * num_samples


# ------------------------------------------------------------------ files


SAMPLING = {"max_new_tokens": 6, "temperature": 1.0, "num_samples": 2, "seed": 3, "batch_size": 6, "progress": False}


def stop_after(monkeypatch, batches: int):
    """Ctrl-C during the batch that follows; returns the list of batches that were begun."""
    begun, sample_batch = [], evaluate.sample_batch

    def stopping(model, tokenizer, prompts, *rest):
        begun.append(prompts)
        if len(begun) > batches:
            raise KeyboardInterrupt
        return sample_batch(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(evaluate, "sample_batch", stopping)
    return begun


@pytest.mark.parametrize("torn", [b"", b'{"key": "test/0/9", "sam', b"\xff"])
@pytest.mark.parametrize("lost_lines", [0, 1])
def test_a_stopped_evaluation_goes_on_as_if_it_never_had(talker, tmp_path, monkeypatch, torn, lost_lines):
    model, tokenizer = talker
    whole = evaluate_to_file(model, tokenizer, PROBLEMS, tmp_path / "whole.jsonl", **SAMPLING)
    path = tmp_path / "stopped.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            evaluate_to_file(model, tokenizer, PROBLEMS, path, **SAMPLING)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 6
    path.write_bytes(b"".join(lines[: len(lines) - lost_lines]) + torn)
    with monkeypatch.context() as patch:
        begun = stop_after(patch, 100)
        resumed = evaluate_to_file(model, tokenizer, PROBLEMS, path, **SAMPLING)
        assert len(begun) == 2 + lost_lines
    assert resumed.records == whole.records
    assert sorted(path.read_bytes().splitlines()) == sorted((tmp_path / "whole.jsonl").read_bytes().splitlines())
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert evaluate_to_file(model, tokenizer, PROBLEMS, path, **SAMPLING).records == whole.records


def test_records_are_one_line_each_with_ids_and_counts(talker, tmp_path):
    model, tokenizer = talker
    result = evaluate_to_file(model, tokenizer, PROBLEMS, tmp_path / "a.jsonl", max_new_tokens=6, progress=False)
    head, *lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert head["settings"]["weights"] == weights_fingerprint(model)
    assert {line["key"] for line in lines} == {p["unique_id"] for p in PROBLEMS}
    assert result.mean_tokens == sum(line["tokens"] for line in lines) / len(lines)
    assert result.records == evaluate_model(model, tokenizer, PROBLEMS, max_new_tokens=6).records


def test_more_problems_can_be_asked_later(talker, tmp_path, monkeypatch):
    model, tokenizer = talker
    path = tmp_path / "a.jsonl"
    options = {"max_new_tokens": 4, "progress": False}
    evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=4, **options)
    begun = stop_after(monkeypatch, 100)
    assert len(evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=7, **options).records) == 7
    assert sum(len(prompts) for prompts in begun) == 3
    assert len(evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=2, **options).records) == 2


def test_other_settings_are_refused_and_the_file_stays(talker, tmp_path):
    model, tokenizer = talker
    path = tmp_path / "a.jsonl"
    options = {"max_new_tokens": 4, "temperature": 1.0, "progress": False}
    evaluate_to_file(model, tokenizer, PROBLEMS, path, **options)
    before = path.read_bytes()
    other = make_model(seed=8)
    for changed, words in (
        ({"max_new_tokens": 5}, "max_new_tokens = 4, not 5"),
        ({"temperature": 0.0}, "seed = 0, not None|samples = 1, not None|temperature"),
        ({"top_p": 0.9}, "top_p = 1.0, not 0.9"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"num_samples": 2}, "samples = 1, not 2"),
        ({"problems": PROBLEMS[::-1]}, "made with problems"),
        ({"model": other}, f"weights = '{weights_fingerprint(model)}', not '{weights_fingerprint(other)}'"),
    ):
        arguments = {"model": model, "problems": PROBLEMS} | options | changed
        with pytest.raises(ValueError, match=words):
            evaluate_to_file(arguments.pop("model"), tokenizer, arguments.pop("problems"), path, **arguments)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content, words",
    [
        (b"my notes", "not a file of answers"),
        (b"my notes\n", "not a file of answers"),
        (b'{"key": 1}\n', "not a file of answers"),
        (b"[1]\n", "not a file of answers"),
        (b"HEAD\n{}\n", "line 2: not a record"),
        (b"HEAD\n[]\n", "line 2: not a record"),
        (b'HEAD\n{"key": "a", "sample": 0}\nhalf\n{"key": "b", "sample": 0}\n', "line 2: not a record"),
    ],
)
def test_files_that_are_no_answers_are_refused_and_stay(talker, tmp_path, content, words):
    model, tokenizer = talker
    path = tmp_path / "a.jsonl"
    evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=1, max_new_tokens=2, progress=False)
    content = content.replace(b"HEAD", path.read_bytes().splitlines()[0])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=1, max_new_tokens=2, progress=False)
    assert path.read_bytes() == content


def test_a_torn_first_line_is_written_again(talker, tmp_path):
    model, tokenizer = talker
    path = tmp_path / "a.jsonl"
    evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=1, max_new_tokens=2, progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    evaluate_to_file(model, tokenizer, PROBLEMS, path, limit=1, max_new_tokens=2, progress=False)
    assert path.read_bytes() == whole


def test_problems_without_different_ids_are_told_apart(talker, tmp_path):
    model, tokenizer = talker
    problems = [problem | {"unique_id": 7} for problem in PROBLEMS]
    options = {"max_new_tokens": 2, "progress": False}
    first = evaluate_to_file(model, tokenizer, problems, tmp_path / "a.jsonl", **options)
    assert [r["answer"] for r in first.records] == [p["answer"] for p in problems]
    assert evaluate_to_file(model, tokenizer, problems, tmp_path / "a.jsonl", **options).records == first.records


def test_what_cannot_work_is_said_before_anything_is_written(talker, tmp_path):
    model, tokenizer = talker
    for options, words in (
        ({"max_new_tokens": 500}, "500 new tokens do not fit"),
        ({"num_samples": 4}, "just 1 at temperature 0"),
        ({"num_samples": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"problems": []}, "no problems"),
        ({"problems": [{"problem": "7 " * 600, "answer": "1"}]}, "more new tokens do not fit"),
    ):
        arguments = {"problems": PROBLEMS, "max_new_tokens": 2} | options
        if "fit" in words and "problems" in options:
            arguments["max_new_tokens"] = None
        with pytest.raises(ValueError, match=words):
            evaluate_to_file(model, tokenizer, arguments.pop("problems"), tmp_path / "a.jsonl", **arguments)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate_model(model, tokenizer, PROBLEMS, batch_size=0)
    assert not (tmp_path / "a.jsonl").exists()


def test_running_out_of_memory_keeps_what_is_there(talker, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(evaluate, "sample_batch", full)
    with pytest.raises(ValueError, match="choose a smaller batch size, the 0 answers"):
        evaluate_to_file(*talker, PROBLEMS, tmp_path / "a.jsonl", max_new_tokens=2, progress=False)


def test_fingerprint_sees_a_small_training_step(talker):
    model, _ = talker
    marks = {weights_fingerprint(model), weights_fingerprint(make_model(seed=1))}
    other = make_model(std=0.4)
    assert weights_fingerprint(other) in marks  # equal weights
    assert weights_fingerprint(make_model(std=0.4, dtype=torch.bfloat16)) not in marks
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5)
    other(torch.arange(5)[None]).logsumexp(-1).sum().backward()
    optimizer.step()
    assert weights_fingerprint(other) not in marks


# ------------------------------------------------------------------ figures


def boxed(*answers: str) -> list[str]:
    return [f"so it is \\boxed{{{answer}}}" if answer else "no idea" for answer in answers]


def test_majority_counts_equal_answers_together(monkeypatch):
    asked = []

    def equal(a, b):
        asked.append((a, b))
        return float(a) == float(b)

    monkeypatch.setattr(evaluate, "grade_answer", equal)
    assert majority_answer(boxed("3", "0.5", "3", "0.50", "00.5")) == "0.5"
    assert majority_answer(boxed("2", "1", "1", "2")) == "2"  # the first wins a tie
    assert majority_answer(boxed("", "", "4")) == "4"
    assert majority_answer(boxed("", "")) == ""
    asked.clear()
    majority_answer(boxed("1", "2") * 50)
    assert len(asked) == 1


def test_report():
    def record(problem, sample, answer, correct, level):
        return {
            "unique_id": problem, "sample": sample, "level": level, "type": "Algebra", "answer": "1",
            "response": boxed(answer)[0], "tokens": 10 + sample, "correct": correct, "truncated": sample == 3,
        }  # fmt: skip

    easy = [record(0, i, answer, answer == "1", "Level 1") for i, answer in enumerate("1112")]
    hard = [record(1, i, answer, answer == "1", "Level 2") for i, answer in enumerate("1222")]
    lines = format_evaluation(Evaluation(easy + hard)).splitlines()
    low, high = wilson_interval(1, 2)
    figures = {line.split()[0]: line.split()[1] for line in lines if line and not line.startswith("Level")}
    assert f"95 % interval {low:.1%} to {high:.1%}, 2 problems" in lines[0]
    assert figures == {
        "accuracy": "50.0%", "mean": "tokens", "truncated": "25.0%", "majority": "50.0%",
        "pass@1": "50.0%", "pass@2": f"{(1 + 0.5) / 2:.1%}", "pass@4": "100.0%",
    }  # fmt: skip
    assert "11.5" in lines[1]
    assert [line.split()[:5] for line in lines if line.startswith("Level")] == [
        ["Level", "1", "4", "answers", "75.0%"], ["Level", "2", "4", "answers", "25.0%"],
    ]  # fmt: skip


# ------------------------------------------------------------------ command line


def test_rfs_eval(tmp_path, capsys):
    model = make_directory(tmp_path / "model")
    trained = make_model(seed=2)
    torch.save(trained.state_dict(), tmp_path / "step.pth")
    (tmp_path / "mine.json").write_text(json.dumps(PROBLEMS))
    common = ["eval", "--model", str(model), "--data", str(tmp_path / "mine.json"), "--max-new-tokens", "3"]
    out = tmp_path / "out" / "a.jsonl"
    assert main([*common, "--checkpoint", str(tmp_path / "step.pth"), "--limit", "4", "--out", str(out)]) == 0
    report = capsys.readouterr().out
    assert "95 % interval" in report and "4 problems" in report and "Level 4" in report and str(out) in report
    assert json.loads(out.read_text().splitlines()[0])["settings"]["weights"] == weights_fingerprint(trained)

    before = zlib.crc32(out.read_bytes())
    assert main([*common, "--limit", "4", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rfs: error: ") and "made with weights" in error and error.count("\n") == 1
    assert zlib.crc32(out.read_bytes()) == before

    sampling = ["--samples", "4", "--temperature", "0.9", "--top-p", "0.9", "--seed", "1", "--batch-size", "2"]
    assert main([*common, *sampling, "--limit", "2", "--out", str(tmp_path / "b.jsonl")]) == 0
    report = capsys.readouterr().out
    assert "pass@4" in report and "majority" in report


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data", "gsm8k"], "known names are math500, math-train, tiny"),
        (["--limit", "0"], "limit must be a whole number from 1 to"),
        (["--limit", "100000"], "--limit must be at most 5,000 of the generated tiny; got 100,000"),
        (["--model", "gpt"], "unknown model 'gpt'"),
        (["--temperature", "-1"], "temperature must be"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be a whole number from 1 to"),
        (["--samples", "2"], "just 1 at temperature 0"),
        (["--checkpoint", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    ],
)
def test_rfs_eval_says_in_one_sentence_what_is_wrong(tmp_path, capsys, monkeypatch, arguments, words):
    model = make_directory(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--model", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rfs: error: ") and words in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
