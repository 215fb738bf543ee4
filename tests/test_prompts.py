"""How a model is asked and where its answers end: prompts, stop texts, and the stories for a language model."""

import json
import re

import pytest
import torch
from small import make_directory, make_model, make_tokenizer

from rfs_utils import ch06
from rfs_utils.ch07 import METHODS
from rfs_utils.cli import main, unescaped
from rfs_utils.data import (
    MAX_PROMPT,
    PROMPTS,
    generate_stories,
    generate_tiny_problems,
    load_prompt,
    problem_set,
    render_prompt,
)
from rfs_utils.engine.config import TrainConfig, format_config, read_config
from rfs_utils.engine.experience import collect
from rfs_utils.engine.memory import plan_memory
from rfs_utils.engine.rollouts import sample_rollouts
from rfs_utils.evaluate import evaluate_model
from rfs_utils.exercises.addition import CharacterLevelTokenizer
from rfs_utils.models import load_model_and_tokenizer, load_tokenizer
from rfs_utils.sampling import generate_text_stream_concat_flex
from rfs_utils.tokenizer import set_prompt, stop_ids

PROBLEMS = generate_tiny_problems(6, "test")
LIMIT = 20
pytestmark = pytest.mark.usefixtures("few_problems")
SHORT = ["--steps", "1", "--eval-problems", "4", "--max-new-tokens", "8", "--prompts-per-step", "2"]

# ------------------------------------------------------------------ prompts


def test_the_default_prompt_is_the_one_that_the_tiny_models_know():
    expected = "Solve the problem. Write the final answer as \\boxed{ANSWER}.\n\nProblem: How many?\n\nAnswer:"
    assert render_prompt("How many?") == render_prompt("How many?", make_tokenizer()) == expected
    assert render_prompt("How many?", CharacterLevelTokenizer()) == expected


def test_braces_need_no_escape_and_a_problem_may_hold_the_mark_itself():
    tokenizer = make_tokenizer()
    set_prompt(tokenizer, r"{a} \boxed{3} {} {problem} {0!r} {problem}")
    assert render_prompt("x{problem}{y}", tokenizer) == r"{a} \boxed{3} {} x{problem}{y} {0!r} x{problem}{y}"


def test_a_prompt_is_a_name_a_file_or_a_text(tmp_path):
    assert {load_prompt(name) for name in PROMPTS} == set(PROMPTS.values())
    assert all("{problem}" in text and not text.endswith("\n") for text in PROMPTS.values())
    assert load_prompt("Q: {problem}\n") == "Q: {problem}\n"
    file = tmp_path / "mine.txt"
    for content, text in (
        (b"Q: {problem}\nA:\n", "Q: {problem}\nA:"),
        (b"Q: {problem}\nA:", "Q: {problem}\nA:"),
        (b"Q: {problem}\r\nA:\r\n\r\n", "Q: {problem}\nA:\n"),
        (b"\xef\xbb\xbfQ: {problem} \xe2\x86\x92", "Q: {problem} →"),
    ):
        file.write_bytes(content)
        assert load_prompt(str(file)) == TrainConfig(prompt=str(file)).prompt == text


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "known names are default, few-shot"), ("folder", "cannot read the prompt"), (b"", "must be a text with"),
        (b"Q: {question}", "must be a text with"), (b"Q: \xff {problem}", "not UTF-8"), (b"\0{problem}", "must be"),
        (b"{problem}" + b" " * MAX_PROMPT, "more than"), ("{problem}".encode("utf-16"), "not UTF-8"),
    ],
)  # fmt: skip
def test_another_file_is_refused_before_anything_is_written(content, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content == "folder":
        (tmp_path / "p.txt").mkdir()
    elif content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    (tmp_path / "c.toml").write_text('prompt = "p.txt"\n')
    before = sorted(tmp_path.iterdir())
    for command in (
        ["train", "--prompt", "p.txt", "--out", "run"], ["train", "--config", "c.toml", "--out", "run"],
        ["eval", "--prompt", "p.txt", "--out", "e.jsonl"], ["compare", "--prompt", "p.txt", "--csv", "c.csv"],
        ["export", "tiny-base", "--to", "x", "--prompt", "p.txt"],
    ):  # fmt: skip
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and reason in error and "p.txt" in error, error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", [5, "", "a\0{problem}", "\ud800{problem}", ["{problem}"], True])
def test_a_setting_that_is_no_prompt_is_named(value):
    with pytest.raises(ValueError, match="prompt"):
        TrainConfig(prompt=value).check()


def test_the_settings_of_a_run_hold_every_text(tmp_path):
    hostile = 'Q: {problem} "\\boxed{}" """ \t\x7f\x1f \u2028 é'
    config = TrainConfig(prompt=hostile, stop="\n\\n\x7f")
    (tmp_path / "c.toml").write_text(format_config(config), encoding="utf-8")
    assert TrainConfig(**read_config(tmp_path / "c.toml")) == config


# ------------------------------------------------------------------ stop texts


def sampled(tokenizer, uniform, sample=ch06.sample_batch, **options) -> ch06.Rollouts:
    prompts = [render_prompt(problem["problem"]) for problem in PROBLEMS]
    return sample(make_model(std=0.4), tokenizer, prompts, "cpu", 4, LIMIT, 1.0, 1.0, uniform=uniform, **options)


def cut(rollouts: ch06.Rollouts, tokenizer, stop: str) -> list[tuple[list[int], str, bool]]:
    """Tokens, text and whether it is whole, by definition: the first token at which the text has the stop text."""
    rows = []
    for row, n, text in zip(rollouts.tokens.tolist(), rollouts.lengths.tolist(), rollouts.texts, strict=True):
        first = next((t for t in range(1, n + 1) if stop in tokenizer.decode(row[:t])), None)
        ended = first is not None or row[n - 1] in stop_ids(tokenizer)
        text = tokenizer.decode(row[:first]).split(stop)[0] if first else text
        rows.append((row[: first or n], text, ended))
    return rows


def uniform_numbers() -> torch.Tensor:
    return torch.rand(4 * len(PROBLEMS), LIMIT, generator=torch.Generator().manual_seed(3))


def stop_texts() -> dict[str, str]:
    """Texts that come about in one token, in several, within one, and at the very end of an answer."""
    tokenizer = make_tokenizer()
    free = sampled(tokenizer, uniform_numbers())
    row = max(free.tokens.tolist(), key=lambda row: len(row))
    pieces = [tokenizer.decode([token]) for token in row]
    inner = next(piece[1:-1] for piece in pieces if len(piece) > 2 and piece.isascii())
    at = next(t for t in range(2, 9) if all(p.isascii() for p in pieces[t : t + 3]))
    return {
        "letter": "e", "within": inner, "one": pieces[at], "several": "".join(pieces[at : at + 3]),
        "across": pieces[at][-1] + pieces[at + 1][0], "end": "".join(pieces[-2:]), "break": "\n",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["letter", "within", "one", "several", "across", "end", "break"])
def test_an_answer_ends_with_the_first_token_at_which_its_text_has_the_stop_text(kind):
    stop, uniform = stop_texts()[kind], uniform_numbers()
    tokenizer = make_tokenizer()
    free = sampled(tokenizer, uniform)
    expected = cut(free, tokenizer, stop)
    assert kind == "break" or any(ids != row[:n] or stop in tokenizer.decode(ids) for (ids, _, _), row, n in
                                  zip(expected, free.tokens.tolist(), free.lengths.tolist(), strict=True))  # fmt: skip
    set_prompt(tokenizer, stop=stop)
    for sample, options in ((ch06.sample_batch, {}), (sample_rollouts, {"cache_bytes": 1})):
        found = sampled(tokenizer, uniform, sample, **options)
        rows = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
        assert [row[:n] for row, n in rows] == [ids for ids, _, _ in expected]
        assert found.texts == [text for _, text, _ in expected] and not any(stop in text for text in found.texts)
        width = found.tokens.shape[1]
        torch.testing.assert_close(found.logps, free.logps[:, :width] * found.mask, rtol=1e-3, atol=1e-4)
    plan, seen = plan_memory("auto", "cpu", 1), {}

    def reward(responses, examples, **info):
        seen.update(info, responses=responses)
        return [0.0] * len(responses)

    model, numbers = make_model(std=0.4), uniform.view(len(PROBLEMS), 4, LIMIT)
    batch = collect(model, tokenizer, PROBLEMS, numbers, {"mine": (reward, 1.0)}, METHODS["dapo"], plan, "cpu")
    assert seen["responses"] == found.texts and seen["lengths"] == found.lengths.tolist()
    assert seen["truncated"] == batch.truncated.flatten().tolist() == [not ended for _, _, ended in expected]


@pytest.mark.parametrize("kind", ["letter", "several"])
def test_evaluation_and_streams_end_there_too(kind):
    stop, tokenizer, model = stop_texts()[kind], make_tokenizer(), make_model(std=0.4)
    prompts = [render_prompt(problem["problem"]) for problem in PROBLEMS]
    free = ch06.sample_batch(model, tokenizer, prompts, "cpu", 1, LIMIT, temperature=0.0)
    texts = [tokenizer.decode(row[t : t + 3]) for row in free.tokens.tolist() for t in range(1, 9)]
    stop = stop if kind == "letter" else next(text for text in texts if text.isascii())
    expected = cut(free, tokenizer, stop)
    set_prompt(tokenizer, stop=stop)
    records = evaluate_model(model, tokenizer, PROBLEMS, max_new_tokens=LIMIT).records
    assert [(r["response"], r["tokens"], not r["truncated"]) for r in records] == [
        (text, len(ids), ended) for ids, text, ended in expected
    ]
    texts = [generate_text_stream_concat_flex(model, tokenizer, prompt, "cpu", LIMIT) for prompt in prompts]
    assert texts == [text for _, text, _ in expected]


def test_a_stop_text_made_of_parts_of_a_letter_is_found():
    tokenizer = make_tokenizer()
    set_prompt(tokenizer, stop="→")
    ids = tokenizer.encode("a→b")
    assert len(ids) > 3, "the arrow takes several tokens"
    ended = [ch06.stops(tokenizer).ends(ids[:n]) for n in range(1, len(ids))]
    assert ended.count(True) == 1 and ended[-1]


@pytest.mark.parametrize("stop", ["", "\ufffd", "e\u0301", "\u212b"])
def test_a_stop_text_that_no_answer_can_hold_is_refused(stop, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="stop text"):
        set_prompt(make_tokenizer(), stop=stop)
    for command in (["train", "--out", "run"], ["eval", "--out", "e.jsonl"], ["compare", "--csv", "c.csv"]):
        assert main([*command, "--stop", stop]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "stop" in error
        assert not (tmp_path / command[-1]).exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no 'x'"):
        set_prompt(CharacterLevelTokenizer(), stop="x")
    set_prompt(CharacterLevelTokenizer(), stop="=")


def test_the_command_line_spells_line_breaks():
    assert unescaped(r"\n\n") == "\n\n" and unescaped(r"a\tb\\n\b") == "a\tb\\n\\b"


# ------------------------------------------------------------------ from a run to its evaluation


def test_a_run_keeps_how_it_asked_and_hands_it_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_directory(tmp_path / "m")
    (tmp_path / "p.txt").write_text("Q: {problem}\nA:\n")
    asked = {"prompt": "Q: {problem}\nA:", "stop": "\n"}
    assert main(["train", "--model", "m", "--prompt", "p.txt", "--stop", r"\n", "--out", "run", *SHORT]) == 0
    (tmp_path / "p.txt").unlink()
    assert {k: read_config("run/config.toml")[k] for k in asked} == asked
    for folder in ("run/model", "run/checkpoints/step-00001"):
        assert json.loads((tmp_path / folder / "prompt.json").read_text()) == {**asked, "chat": None}
        tokenizer = load_tokenizer(tmp_path / folder)
        assert {"prompt": tokenizer.prompt, "stop": tokenizer.stop} == asked
    assert main(["train", "--resume", "run", "--steps", "2"]) == 0
    assert main(["train", "--resume", "run", "--steps", "3", "--stop", "x"]) == 2
    assert main(["export", "run", "--to", "x"]) == 0
    card = (tmp_path / "x/README.md").read_text()
    assert "Q: PROBLEM\nA:" in card and "stop_strings=['\\n']" in card
    assert main(["train", "--model", "x", "--out", "more", *SHORT]) == 0
    assert {k: read_config("more/config.toml")[k] for k in asked} == asked, "the model's own"
    weights = "run/model/model.safetensors"
    assert main(["export", weights, "--model", "m", "--to", "y"]) == 0
    assert json.loads((tmp_path / "y/prompt.json").read_text()) == asked, "those beside the weights"
    evaluate = ["eval", "--limit", "4", "--max-new-tokens", "8", "--out", "e.jsonl"]
    for model in (["x"], ["run"], ["m", "--checkpoint", weights], ["x", "--prompt", asked["prompt"], "--stop", r"\n"]):
        assert main([*evaluate, "--model", *model]) == 0
    settings = json.loads((tmp_path / "e.jsonl").read_text().partition("\n")[0])["settings"]
    assert {k: settings[k] for k in asked} == asked
    capsys.readouterr()
    for other, name in (
        (["--prompt", "default"], "prompt"),
        (["--stop", "x"], "stop"),
        (["--prompt", "few-shot"], "prompt"),
    ):
        assert main([*evaluate, "--model", "x", *other]) == 2
        assert re.search(f"was made with {name} = ", capsys.readouterr().err)
    assert main(["export", "x", "--to", "z", "--prompt", "default"]) == 0
    written = json.loads((tmp_path / "z/prompt.json").read_text())
    assert written == {"prompt": PROMPTS["default"], "stop": None, "chat": None}


def test_answers_to_the_default_prompt_say_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate = ["eval", "--limit", "2", "--max-new-tokens", "4", "--out", "e.jsonl"]
    assert (
        main(evaluate) == 0
        and not {"prompt", "stop"}
        & json.loads((tmp_path / "e.jsonl").read_text().partition("\n")[0])["settings"].keys()
    ), "as in files of former times"
    assert main([*evaluate, "--prompt", "default"]) == 0


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", '{"prompt": "x", "stop": null, "chat": null}', '{"prompt": null, "stop": "", "chat": null}',
        '{"prompt": 1, "stop": 2, "chat": null}', '{"prompt": null, "stop": null, "chat": 1}',
    ],  # fmt: skip
)
def test_a_damaged_prompt_of_a_model_is_named(content, tmp_path):
    folder = make_directory(tmp_path / "m")
    (folder / "prompt.json").write_text(content)
    with pytest.raises(ValueError, match=r"prompt\.json"):
        load_model_and_tokenizer(folder, "cpu")


# ------------------------------------------------------------------ stories


@pytest.mark.parametrize("events", [1, 2, 3])
def test_stories_are_right_differ_and_are_held_out(events):
    train, test = generate_stories(800, "train", events), generate_stories(200, "test", events, seed=1)
    assert len({p["problem"] for p in train + test}) == 1000 and len({p["unique_id"] for p in train + test}) == 1000
    assert not {p["solution"] for p in train} & {p["solution"] for p in test}, "no sums in common"
    for problem in train[:100] + test:
        start, *rest = re.findall(r"\d+", problem["problem"])
        signs = [-1 if verb in ("loses", "sells", "gives") else 1
                 for verb in re.findall(r"\. \w+ (\w+)", problem["problem"])]  # fmt: skip
        assert len(rest) == events
        total = int(start) + sum(sign * int(n) for sign, n in zip(signs, rest, strict=False))
        assert str(total) == problem["answer"] and ch06.reward_rlvr(problem["solution"], problem["answer"]) == 1.0


def test_stories_by_name_and_too_many():
    assert [p["level"] for p in problem_set("stories-2", "test", 600)] == ["Level 2"] * 600
    assert problem_set("stories-1")[0] == generate_stories(1)[0]
    with pytest.raises(ValueError, match="too few different test stories of 1"):
        generate_stories(50_000, "test", 1)
    for arguments in ((0,), (1, "dev"), (1, "test", 0), (1, "test", 99)):
        with pytest.raises(ValueError):
            generate_stories(*arguments)


def test_a_run_on_stories_asks_for_those_with_two_events_as_harder_ones(tmp_path):
    assert main(["train", "--data", "stories-1", "--out", str(tmp_path / "r"), *SHORT]) == 0
    before = json.loads((tmp_path / "r/before.json").read_text())
    assert set(before["levels"]) == {"Level 1"} and set(before["harder"]) == {"Level 2"}


def test_a_chat_model_can_be_asked_in_plain_text_from_run_to_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = make_directory(tmp_path / "base", chat=True)
    assert load_tokenizer(base).apply_chat_template
    assert main(["train", "--model", str(base), "--chat", "off", "--out", "run", *SHORT]) in (None, 0)
    asked = load_tokenizer(tmp_path / "run" / "model")
    assert not asked.apply_chat_template and (asked.prompt, asked.stop) == (None, None)
    assert main(["export", "run", "--to", "plain", "--stop", "."]) in (None, 0)
    assert main(["export", "run", "--to", "chat", "--chat", "on"]) in (None, 0)
    assert not load_tokenizer(tmp_path / "plain").apply_chat_template
    assert load_tokenizer(tmp_path / "chat").apply_chat_template
    capsys.readouterr()
    assert main(["eval", "--model", "run", "--chat", "maybe"]) == 2
    assert "chat must be one of auto, on, off; got 'maybe'" in capsys.readouterr().err


def test_a_model_without_a_chat_format_is_not_put_into_one():
    tokenizer = CharacterLevelTokenizer()
    with pytest.raises(ValueError, match="no chat format"):
        set_prompt(tokenizer, chat=True)
