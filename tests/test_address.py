"""The project's address: the same in all places, and set by one command; and where torch comes from."""

import re
import shutil
import subprocess
import sys
from urllib.error import URLError

import address
import nbformat
import pytest
import torch_index
from notebooks import ROOT, practice_path

WITH_ADDRESS = re.compile(rf"github(?:\.com)?/({address.ADDRESS})")


def addresses(path) -> set[str]:
    """The projects on GitHub that a badge, a setup cell or a field names."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return set(WITH_ADDRESS.findall(text))
    cells = nbformat.reads(text, 4).cells
    setup = next(cell for cell in cells if cell.cell_type == "code")
    found = [WITH_ADDRESS.findall(cell.source) for cell in (cells[0], setup)]
    assert all(found), path
    return {name.split("/blob")[0] for names in found for name in names}


def test_all_places_have_the_address():
    places = address.places()
    assert len(places) == 20
    assert {name for path in places for name in addresses(path)} == {address.known_address()}


def test_exercises_open_in_colab_without_solutions_first():
    for path in (ROOT / "exercises").glob("*.ipynb"):
        if not practice_path(path).exists() and not path.stem.endswith("_practice"):
            continue
        stem = path.stem.removesuffix("_practice")
        badge, solved = re.findall(r"\]\((https://colab\S+)\)", nbformat.read(path, 4).cells[0].source)
        assert badge.endswith(f"/exercises/{stem}_practice.ipynb") and solved.endswith(f"/exercises/{stem}.ipynb")


@pytest.fixture
def project(tmp_path):
    """Some of the places, in a repository of their own."""
    for name in ("pyproject.toml", "CITATION.cff", "README.md", "ch07/scaling.ipynb", "exercises/ex07_practice.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_one_command_moves_all_places_and_back(project):
    old = address.known_address()
    before = {path: path.read_bytes() for path in address.places(project)}
    assert len(before) == 5
    assert set(address.set_address("some-one/My.Book_2", project)) == before.keys()
    assert {name for path in before for name in addresses(path)} == {"some-one/My.Book_2"}
    assert address.set_address("some-one/My.Book_2", project) == []
    address.set_address(old, project)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["", "book", "a/b/c", "a b/c", "https://github.com/a/b", "/b", "a/"])
def test_what_is_no_address_is_refused_and_nothing_changes(name, project):
    before = {path: path.read_bytes() for path in address.places(project)}
    with pytest.raises(ValueError, match="an address is OWNER/NAME"):
        address.set_address(name, project)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("git@github.com:some-one/book.git", "some-one/book"), ("https://github.com/some-one/book", "some-one/book"),
        ("https://token@github.com/some-one/my.book.git", "some-one/my.book"),
        ("https://example.org/some-one/book", None), ("/srv/book", None), (None, None),
    ],
)  # fmt: skip
def test_the_remote_is_the_default(url, found, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if url:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", url], check=True)
    assert address.remote_address(tmp_path) == found


# ---------------------------------------------------------------- torch's index


@pytest.mark.parametrize(
    ("platform", "gpu", "own", "reached", "expected"),
    [
        ("linux", None, False, True, f"--extra-index-url {torch_index.INDEX}"), ("darwin", None, False, True, ""),
        ("linux", "/usr/bin/nvidia-smi", False, True, ""), ("linux", None, True, True, ""),
        ("linux", None, False, False, ""),
    ],
)  # fmt: skip
def test_the_cpu_build_comes_where_there_is_no_gpu(platform, gpu, own, reached, expected, monkeypatch, capsys):
    def urlopen(url, timeout):
        if not reached:
            raise URLError("no route")
        return open(__file__, "rb")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(torch_index.shutil, "which", lambda name: gpu)
    monkeypatch.setattr(torch_index, "has_own_index", lambda: own)
    monkeypatch.setattr(torch_index, "urlopen", urlopen)
    assert torch_index.option() == expected
    assert capsys.readouterr().err.count("cannot be reached") == (not reached)


def test_an_index_of_ones_own_is_found(monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    assert not torch_index.has_own_index()
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://example.org/simple")
    assert torch_index.has_own_index()
