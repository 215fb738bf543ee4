"""Folders that are replaced: whole at every moment, and nothing that belongs to somebody else is lost."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from notebooks import ROOT
from small import make_directory, make_model, make_tokenizer

from rfs_utils.files import folders
from rfs_utils.files.folders import others
from rfs_utils.models import load_model_and_tokenizer, save_model
from rfs_utils.runs.folder import checkpoint_steps, finish_checkpoint, prune_checkpoints

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of its own process")


def content(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def killed_at(number: int, work) -> bool:
    """Do the work in a copy of this process that kills itself before its `number`-th operation on files.

    False when the work was finished before that.
    """
    child = os.fork()
    if child == 0:
        done = [0]

        def count(event, _):
            if event == "open" or event.startswith(("os.", "shutil.", "tempfile.")):
                done[0] += 1
                if done[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return os.WIFSIGNALED(status)


@needs_fork
@pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "by two renames"])
def test_a_model_is_the_old_or_the_new_one_wherever_its_replacement_is_killed(at_once, tmp_path, monkeypatch):
    if not at_once:  # as on Windows, and on file systems that cannot do it
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    new, tokenizer = make_model(seed=2), make_tokenizer()
    target = make_directory(tmp_path / "model", seed=1)
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("mine")
    old = content(target)
    expected = old | content(make_directory(tmp_path / "new", seed=2))
    assert old != expected
    seen, moment = [], 1
    while killed_at(moment, lambda: save_model(new, tokenizer, target)):
        model, _ = load_model_and_tokenizer(target, "cpu")
        place = folders.standing(target)
        assert content(place) in (old, expected), f"killed at operation {moment}"
        seed = 1 if content(place) == old else 2
        for name, weight in make_model(seed=seed).state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)
        seen.append(seed)
        moment += 1
    assert len(seen) >= 20 and set(seen) == {1, 2} and seen[0] == 1, "moments before and after the exchange"
    assert content(target) == expected
    save_model(new, tokenizer, target)
    assert content(target) == expected


def test_an_exchange_is_one_operation_here(tmp_path):
    if sys.platform not in ("linux", "darwin"):
        pytest.skip("only there")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folders.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists() and (tmp_path / "other" / "one").exists()
    assert not folders.exchange(tmp_path / "one", tmp_path / "none")


def test_what_is_not_the_models_stays_and_what_is_goes(tmp_path):
    target = make_directory(tmp_path / "model", seed=1)
    (target / "deep" / "er").mkdir(parents=True)
    (target / "empty").mkdir()
    mine = {"notes.txt": b"1", "deep/er/data.bin": b"2", ".hidden": b"3", "README.md": b"4", "LICENSE": b"5"}
    stale = ["generation_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "merges.txt"]
    for name, text in mine.items():
        (target / name).write_bytes(text)
    for name in stale:  # an older model's, in several files; left behind, they would be taken for the new one's
        (target / name).write_text("{}")
    (target / "link").symlink_to("deep/er")
    save_model(make_model(seed=2), make_tokenizer(), target)
    found = content(target)
    assert {name: found.get(name) for name in mine} == mine and (target / "empty").is_dir()
    assert (target / "link").is_symlink() and not any(name in found for name in stale)
    assert found["model.safetensors"] == content(make_directory(tmp_path / "new", seed=2))["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    pytest.importorskip("fcntl")
    target = make_directory(tmp_path / "model", seed=1)
    names = {name: tmp_path / f".model-{name}{folders.UNFINISHED}" for name in ("left", "busy", "young")}
    for path in [*names.values(), tmp_path / ".model-settings"]:
        path.mkdir()
        (path / "model.safetensors").touch()
        if path != names["young"]:
            os.utime(path, (0, 0))
    lock = folders.locked(names["busy"])
    save_model(make_model(seed=2), make_tokenizer(), target)
    os.close(lock)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"model", ".model-settings", names["busy"].name, names["young"].name}


def test_a_link_to_a_model_stays_a_link(tmp_path):
    target = make_directory(tmp_path / "model", seed=1)
    (tmp_path / "latest").symlink_to("model")
    assert save_model(make_model(seed=2), make_tokenizer(), tmp_path / "latest") == tmp_path / "latest"
    assert (tmp_path / "latest").is_symlink()
    assert content(target)["model.safetensors"] == content(make_directory(tmp_path / "n", seed=2))["model.safetensors"]


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    target = make_directory(tmp_path / "model", seed=1)
    before = content(target)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "link", full)
    monkeypatch.setattr(folders.shutil, "copy2", full)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(seed=2), make_tokenizer(), target)
    assert content(target) == before | {"notes.txt": b"mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# ------------------------------------------------------------------ checkpoints of runs


def checkpoint(folder: Path, step: int, text: str = "new") -> Path:
    final = folder / "checkpoints" / f"step-{step:05d}"
    temporary = final.with_name(f".{final.name}.tmp")
    temporary.mkdir(parents=True)
    (temporary / "model.safetensors").write_text(text)
    finish_checkpoint(temporary, final, {"step": step})
    return final


def test_pruning_leaves_checkpoints_with_other_files_and_hidden_folders_of_others(tmp_path):
    kept = checkpoint(tmp_path, 1)
    (kept / "answers.jsonl").write_text("mine")
    for step in (2, 3, 4):
        checkpoint(tmp_path, step)
    mine = tmp_path / "checkpoints" / ".git"
    for leftover in (mine, *(mine.with_name(f".step-0000{n}") for n in ("2.old", "9.tmp"))):
        leftover.mkdir()
        (leftover / "config").write_text("mine")
    prune_checkpoints(tmp_path, keep=1, best=3)
    assert checkpoint_steps(tmp_path) == [1, 3, 4]
    assert (kept / "answers.jsonl").read_text() == "mine" and (mine / "config").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob(".*")) == [".git"]


@needs_fork
@pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "by two renames"])
def test_a_checkpoint_written_again_is_whole_wherever_that_is_killed(at_once, tmp_path, monkeypatch):
    if not at_once:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    final = checkpoint(tmp_path, 3, "old")
    (final / "answers.jsonl").write_text("mine")
    moment = 1
    while killed_at(moment, lambda: checkpoint(tmp_path, 3, "new")):
        prune_checkpoints(tmp_path, keep=2, best=None)  # what a run does with the leftovers of the one before
        assert checkpoint_steps(tmp_path) == [3] and not list((tmp_path / "checkpoints").glob(".*"))
        assert (final / "model.safetensors").read_text() in ("old", "new")
        assert (final / "answers.jsonl").read_text() == "mine"
        moment += 1
    assert moment > 10 and (final / "model.safetensors").read_text() == "new"
    assert others(final, ["*.safetensors", "state.json"]) == ["answers.jsonl"]


# ------------------------------------------------------------------ the book's site


def test_the_books_site_replaces_only_itself(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "docs"))
    book = pytest.importorskip("book")
    number = [0]

    def sphinx(arguments):
        number[0] += 1
        Path(arguments[-1], f"page{number[0]}.html").write_text("page")
        return 0

    monkeypatch.setattr(book, "sphinx_build", sphinx)
    monkeypatch.setattr(book, "gather", lambda source: None)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that is not this book"):
        book.build(home)
    assert (home / "thesis.txt").read_text() == "mine"
    (tmp_path / "site-source").mkdir()
    (tmp_path / "site-source" / "thesis.txt").write_text("mine")
    assert book.build(tmp_path / "site") == 0
    (tmp_path / "site" / "notes.txt").write_text("mine")
    assert book.build(tmp_path / "site") == 0
    assert {p.name for p in (tmp_path / "site").glob("*.*")} - {book.MADE} == {"page2.html", "notes.txt"}
    assert (tmp_path / "site-source" / "thesis.txt").read_text() == "mine"
