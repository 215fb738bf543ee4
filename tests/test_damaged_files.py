"""Damaged files of runs and models: every field of every file, set to nonsense, ends in one sentence."""

import itertools
import json
import random
import re
import shutil
import struct

import pytest
from conftest import NIGHTLY
from small import make_directory

from rfs_utils.cli import main
from rfs_utils.data import generate_tiny_problems
from rfs_utils.engine.config import TrainConfig
from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.runs import run as trainer
from rfs_utils.runs.answers import RECORD, resume_answers

DEEP = "[" * 10_000 + "]" * 10_000
HUGE = "1" + "0" * 30
VALUES = ("null", "[]", "{}", "NaN", "Infinity", '"text"', '"\\ud800"', "-1", "1e300", HUGE, "true", "[[1]]", DEEP)
pytestmark = pytest.mark.usefixtures("few_problems")
FILES = ("samples.jsonl", "before.json", "result.json", "state.json", "config.toml", "metrics.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_problems):
    """A run that is finished."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    data = folder.with_name("problems.json")  # read in a moment, while those of the run's own take a tenth of a second
    data.write_text(json.dumps(generate_tiny_problems(6, "train", seed=1)))
    config = TrainConfig(
        steps=2, prompts_per_step=2, num_rollouts=2, max_new_tokens=6, eval_every=1, out=str(folder), seed=1,
        data=str(data), eval_data="tiny",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        rewards = itertools.cycle([1.0, 0.0])  # every group has a signal, and the optimizer states
        patch.setattr("rfs_utils.engine.rewards.reward_rlvr", lambda text, answer: next(rewards))
        trainer.train(config, report=lambda text: None)
    return folder


def places(content, path=()):
    """Where a JSON value can be damaged: every field, and the first item of every list."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list) and content:
        yield from places(content[0], (*path, 0))


def damaged_json(text: str, path: tuple, value: str) -> str:
    """A JSON text with something else at a place."""
    content = json.loads(text)
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = "@here@"
    return json.dumps(content).replace('"@here@"', value)


def damages(name: str, text: str):
    """The text of a file with one thing damaged, many times, each with words about it."""
    if name == "config.toml":
        for line in text.splitlines():
            for value in (*VALUES, "nan", "-inf", '""'):
                yield f"{line} as {value[:10]}", text.replace(line, f"{line.split(' = ')[0]} = {value}")
    elif name == "metrics.csv":
        header, first, *rest = text.splitlines()
        for column, cell in enumerate(header.split(",")):
            for value in ("", "text", "nan", "inf", "-1", "1e300", "1,2", '"', "\0", "x" * 200_000):
                cells = first.split(",")
                cells[column] = value
                yield f"{cell} as {value[:10]!r}", "\n".join([header, ",".join(cells), *rest, ""])
    else:
        first, _, rest = text.partition("\n") if name == "samples.jsonl" else (text, "", "")
        end = f"\n{rest}" if name == "samples.jsonl" else ""
        for value in VALUES:
            yield f"all as {value[:10]}", value + end
        for path in places(json.loads(first)):
            if path[:2] in (("random", "numpy"), ("settings",)) and len(path) > 2 or path[:1] == ("optimizer",):
                if path != ("optimizer",) and not str(path[-1]).startswith("0."):
                    continue  # there are many of a kind
            for value in VALUES:
                yield f"{path} as {value[:10]}", damaged_json(first, path, value) + end


def commands(name: str) -> list[list[str]]:
    """The commands that read a file of a run."""
    resumed, text, page = ["train", "--resume", "run", "--steps", "3"], ["samples", "run"], ["samples", "run", "--html"]
    return [resumed, *{"samples.jsonl": [text, page], "state.json": [], "config.toml": []}.get(name, [page])]


@pytest.mark.parametrize("name", FILES)
def test_no_damaged_field_of_a_run_ends_in_a_traceback(name, finished, tmp_path, monkeypatch, capsys):
    """Steps are left out: what must be found is found before the first one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer.Run, "go", lambda self: {})
    monkeypatch.setattr(trainer.HeldOut, "summary", lambda self, learner: json.loads(before))
    before = (finished / "before.json").read_text()
    shutil.copytree(finished, "run")
    place = tmp_path / "run" / ("checkpoints/step-00002/state.json" if name == "state.json" else name)
    whole, config = place.read_bytes(), (finished / "config.toml").read_bytes()
    refused, wrong = 0, []
    cases = list(damages(name, whole.decode()))
    for words, text in cases if NIGHTLY else random.Random(0).sample(cases, min(len(cases), 150)):
        for command in commands(name):
            (tmp_path / "run" / "config.toml").write_bytes(config)
            for log in ("metrics.csv", "samples.jsonl", "before.json"):
                shutil.copy(finished / log, tmp_path / "run")
            place.write_text(text, encoding="utf-8")
            try:
                code = main(command)
            except BaseException as error:
                wrong.append((words, command[0], f"{type(error).__name__}: {str(error)[:100]}"))
                continue
            err = capsys.readouterr().err
            lines = [line for line in err.splitlines() if line.startswith("rfs: error: ")]
            if code not in (0, 2) or code == 2 and not (len(lines) == 1 and len(lines[0]) < 500):
                wrong.append((words, command[0], code, err[-200:]))
            refused += code == 2
            if code == 2 and name != "config.toml":
                assert place.read_text(encoding="utf-8") == text, "nothing is lost"
    assert not wrong, f"{len(wrong)}: {wrong[:12]}"
    assert refused > 20
    with capsys.disabled():
        print(f"\n{name}: {refused} refused", end="")


def test_damaged_tensors_of_a_checkpoint(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    directory = tmp_path / "run" / "checkpoints" / "step-00002"
    files = {name: (directory / name).read_bytes() for name in ("optimizer.safetensors", "random.safetensors")}
    for name, content in files.items():
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        first = sorted(header)[0]
        for change in (
            {first: None}, {first: {"dtype": "F4"}}, {"renamed": header[first]}, {"0.mean": header[first]},
            {first: header[first] | {"shape": [header[first]["data_offsets"][1] + 1]}},
        ):  # fmt: skip
            changed = {k: v for k, v in (header | change).items() if v is not None and (k != first or first in change)}
            text = json.dumps(changed).encode()
            (directory / name).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
            assert main(["train", "--resume", "run", "--steps", "3"]) == 2, (name, change)
            err = capsys.readouterr().err
            assert "Traceback" not in err and "step-00002 is damaged" in err.splitlines()[-1]
        (directory / name).write_bytes(content)


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_directory(tmp_path_factory.mktemp("models") / "small")


def refusals(directory, texts) -> int:
    """How many of the texts, each with a file's name, make the directory refused; none may do anything else."""
    refused, wrong = 0, []
    for name, words, text in texts:
        place = directory / name
        whole = place.read_bytes() if place.exists() else None
        place.write_text(text, encoding="utf-8")
        try:
            load_model_and_tokenizer(directory, "cpu")
        except ValueError as error:
            refused += 1
            if len(str(error)) > 600 or "\n" in str(error).strip():
                wrong.append((name, words, str(error)[:200]))
        except BaseException as error:
            wrong.append((name, words, f"{type(error).__name__}: {str(error)[:100]}"))
        finally:
            place.unlink() if whole is None else place.write_bytes(whole)
    assert not wrong, f"{len(wrong)}: {wrong[:12]}"
    return refused


def test_no_value_in_a_models_config_ends_in_a_traceback(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    content = json.loads((directory / "config.json").read_text())
    content |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "torch_dtype": "x"}
    content |= {"rope_scaling": None, "use_sliding_window": False}
    keys = [(key,) for key in content] + [("rope_parameters", "rope_type"), ("rope_parameters", "rope_theta")]
    text = json.dumps(content)
    texts = [("config.json", f"{key} {v[:9]}", damaged_json(text, key, v)) for key in keys for v in VALUES]
    texts += [("config.json", "all", value) for value in VALUES]
    assert refusals(tmp_path / "m", texts) > len(texts) // 2


def test_no_id_of_a_tokenizer_or_of_generation_ends_in_a_traceback(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    text = (directory / "tokenizer.json").read_text()
    vocabulary = json.loads(text)["model"]["vocab"]
    token = next(iter(vocabulary))
    values = (*VALUES, "1000000", "511", "1.5", str(2**32), str(2**64))
    paths = [("model", "vocab", token), ("model", "vocab"), ("model", "merges"), ("added_tokens", 0, "id"),
             ("added_tokens", 0), ("added_tokens",), ("model",), ("decoder",), ("pre_tokenizer",)]  # fmt: skip
    texts = [("tokenizer.json", f"{path} {v[:9]}", damaged_json(text, path, v)) for path in paths for v in values]
    assert refusals(tmp_path / "m", texts) > 60
    ids = (*values, '["2"]', "[1, null]")
    texts = [("generation_config.json", v[:9], f'{{"eos_token_id": {v}}}') for v in ids]
    texts += [("generation_config.json", v[:9], v) for v in VALUES]
    texts += [("tokenizer_config.json", v[:9], v) for v in VALUES]
    assert refusals(tmp_path / "m", texts) > 20


def test_no_damaged_index_ends_in_a_traceback(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    name = "model.safetensors.index.json"
    forms = ("%s", '{"weight_map": %s}', '{"weight_map": {"a": %s}}')
    texts = [(name, v[:9], form % v) for v in VALUES for form in forms]
    texts.append((name, "no model", '{"weight_map": {"model.layers.3": "model.safetensors"}}'))
    assert refusals(tmp_path / "m", texts) == len(texts)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "I32", "U32", "BOOL", "C64", "X9", "", None, 5])
def test_types_of_weights_that_are_no_floats(dtype, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "m")
    content = (directory / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = "model.embed_tokens.weight"
    header[name]["dtype"] = dtype
    rows, columns = header[name]["shape"]
    bits = {"F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "BOOL": 8, "C64": 64}.get(dtype, 32)
    header[name]["shape"] = [rows, columns * 32 // bits]
    text = json.dumps(header).encode()
    (tmp_path / "m" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(ValueError, match="model.safetensors") as caught:
        load_model_and_tokenizer(tmp_path / "m", "cpu")
    assert re.search("damaged|of type|does not fit", str(caught.value)) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- other files


def test_no_damaged_line_of_answers_ends_in_a_traceback(tmp_path):
    line = {"key": "1", "unique_id": "1", "sample": 0, "level": "Level 1", "type": "t", "answer": "1", "response": "1",
            "tokens": 1, "correct": 1, "truncated": False}  # fmt: skip
    assert RECORD.fits(line)
    path = tmp_path / "answers.jsonl"
    for name in ("key", "sample", "answer", "response", "tokens", "correct", "truncated", "level", "type"):
        for value in ("[]", "{}", DEEP, '"\\ud800"' if name in ("key", "answer", "response") else "[[1]]"):
            path.write_text('{"settings": {"a": 1}}\n' + damaged_json(json.dumps(line), (name,), value) + "\n")
            with pytest.raises(ValueError, match="line 2: not a record of an answer"):
                resume_answers(path, {"a": 1})
    path.write_text(f'{{"settings": {{"a": {DEEP}}}}}\n')
    with pytest.raises(ValueError, match="is not a file of answers"):
        resume_answers(path, {"a": 1})


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl"])
def test_problems_nested_too_deep(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    problem = f'{{"problem": "1?", "answer": "1", "more": {DEEP}}}'
    (tmp_path / name).write_text(f"[{problem}]" if name == "list.json" else problem)
    assert main(["eval", "--data", name]) == 2
    assert "nested too deep" in capsys.readouterr().err
