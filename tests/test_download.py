"""Downloads from a server on 127.0.0.1 that fails in every way: they end whole, or in one sentence and with no file.

No test reaches another machine.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from small import ids_of, make_directory, make_model
from standin import StandIn, sha256

from rfs_utils import data, files, models
from rfs_utils.cli import main
from rfs_utils.data import load_math500_test, load_math_train, load_problems
from rfs_utils.hub import download
from rfs_utils.hub.download import download_bytes, download_model, download_qwen3_grpo_checkpoints
from rfs_utils.models import load_model_and_tokenizer

REPO = "Qwen/Qwen3-0.6B-Base"
WEIGHTS = f"/{REPO}/resolve/model.safetensors"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StandIn() as files:
        yield files


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """Any look-up of another machine's name fails, so that a mistake here cannot bother a real server."""

    def look_up(host, *arguments, **options):
        assert host == "127.0.0.1", f"a test asked for {host}"
        return look_up_any(host, *arguments, **options)

    look_up_any = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Nobody waits: the seconds that would have been waited are recorded instead."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ------------------------------------------------------------------ plain files


BODY = bytes(range(256)) * 400


def test_whole_file_arrives(server):
    server.content["/file"] = BODY
    assert download_bytes(f"{server.url}/file") == BODY
    assert len(server.log) == 1


def test_download_cut_at_40_percent_begins_again(server):
    server.content["/file"] = BODY
    server.faults["/file"] = ["cut", "cut"]
    assert download_bytes(f"{server.url}/file") == BODY
    assert len(server.log) == 3


def test_cut_forever_ends(server):
    server.content["/file"] = BODY
    server.faults["/file"] = ["cut", "forever"]
    with pytest.raises(ValueError, match="the transfer broke off every time"):
        download_bytes(f"{server.url}/file")
    assert len(server.log) == 4


def test_too_many_requests_is_waited_out(server, waits):
    server.content["/file"] = BODY
    server.faults["/file"] = [429, 429]
    assert download_bytes(f"{server.url}/file", wait=0.1) == BODY
    assert waits == [1.0, 1.0]  # as the server asked, which is longer than 0.1 and 0.2


def test_server_error_forever_ends(server, waits):
    server.everywhere = 500
    with pytest.raises(ValueError, match="the server answered 500"):
        download_bytes(f"{server.url}/file")
    assert (len(server.log), waits) == (4, [2.0, 4.0])  # urllib3's first retry comes at once


def test_not_found_is_not_asked_again(server, waits):
    with pytest.raises(ValueError, match="the server answered 404"):
        download_bytes(f"{server.url}/file")
    assert (len(server.log), waits) == (1, [])


def test_no_network_ends_soon(waits):
    with pytest.raises(ValueError, match="no connection to the server"):
        download_bytes(f"{nowhere()}/file")
    assert waits == []


def test_every_retry_is_announced(server, capsys):
    server.content["/file"] = BODY
    server.faults["/file"] = [500, 500, 429, "cut"]
    assert download_bytes(f"{server.url}/file") == BODY
    reasons = [f"the server answered {status}" for status in (500, 500, 429)] + ["the transfer broke off"]
    ends = ["", " in 2 s", " in 1 s", ""]
    lines = [f"{server.url}/file: {reason}; trying again{end}" for reason, end in zip(reasons, ends, strict=True)]
    assert capsys.readouterr().err.splitlines() == lines


def test_the_next_address_is_announced(server, capsys):
    server.content["/math"] = json.dumps(problems(500)).encode()
    assert load_math500_test(save_copy=False, urls=[f"{server.url}/gone", f"{server.url}/math"]) == problems(500)
    line = f"{server.url}/gone: the server answered 404; trying {server.url}/math\n"
    assert capsys.readouterr().err == line


def test_silent_server_ends():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(ValueError, match="did not answer in time"):
            download_bytes(url, timeout=0.05, retries=1)


@pytest.mark.parametrize("url", ["not an address", "http://", "ftp://127.0.0.1/file"])
def test_address_that_is_none(url):
    with pytest.raises(ValueError):
        download_bytes(url)


# ------------------------------------------------------------------ MATH


def problems(count: int) -> list[dict]:
    return [{"problem": f"What is {i} + 1?\u2028", "answer": str(i + 1), "unique_id": i} for i in range(count)]


def as_lines(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.parametrize("load, count", [(load_math_train, 12_000), (load_math500_test, 500)])
def test_math_is_downloaded_once_and_kept(server, tmp_path, load, count):
    server.content |= {"/math": as_lines(problems(count))}
    path = tmp_path / "math.json"
    assert load(path, urls=[f"{server.url}/math"]) == problems(count)
    assert load(path, urls=[]) == problems(count)
    assert json.loads(path.read_text(encoding="utf-8")) == problems(count)
    assert (len(server.log), files_in(tmp_path)) == (1, ["math.json"])


def test_math_without_a_copy(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.content["/math"] = json.dumps(problems(500)).encode()
    assert len(load_math500_test(save_copy=False, urls=[f"{server.url}/math"])) == 500
    assert files_in(tmp_path) == []


HALF = json.dumps(problems(500)).encode()[:9000]
WRONG = {
    "half a list": (HALF, "not JSON, or was cut short"),
    "fewer lines": (as_lines(problems(200)), "200 problems where 500"),
    "another set": (json.dumps(problems(501)).encode(), "501 problems where 500"),
    "a page": (b"<html>Sign in</html>", "not JSON"),
    "no answers": (json.dumps([{"problem": "1?"}] * 500).encode(), "index 0 lacks"),
    "no objects": (json.dumps([1] * 500).encode(), "index 0 lacks"),
    "nothing": (b"", "0 problems"),
    "other letters": (b"\xff\xfe[]", "not JSON"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_content_is_not_taken_and_the_backup_is(server, tmp_path, kind):
    body, words = WRONG[kind]
    server.content["/first"] = body
    urls = [f"{server.url}/first", f"{server.url}/backup"]
    with pytest.raises(ValueError, match=f"{words}.*/backup: the server answered 404.*without a connection, copy") as e:
        load_math500_test(tmp_path / "math.json", urls=urls)
    assert "\n" not in str(e.value)
    assert files_in(tmp_path) == []
    server.content["/backup"] = json.dumps(problems(500)).encode()
    assert len(load_math500_test(tmp_path / "math.json", urls=urls)) == 500


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_local_file_is_never_read_and_never_replaced(tmp_path, kind):
    body, words = WRONG[kind]
    path = tmp_path / "math.json"
    path.write_bytes(body)
    with pytest.raises(ValueError, match=f"{words}.*move it away"):
        load_math500_test(path, urls=[])
    assert path.read_bytes() == body


@pytest.mark.parametrize("failure", ["cut", 500, "no network"])
def test_failed_download_leaves_no_file(server, tmp_path, failure):
    server.content["/math"] = json.dumps(problems(500)).encode()
    server.faults["/math"] = [failure, "forever"]
    url = nowhere() if failure == "no network" else server.url
    with pytest.raises(ValueError, match="could not download MATH-500 .* copy http"):
        load_math500_test(tmp_path / "math.json", urls=[f"{url}/math"])
    assert files_in(tmp_path) == []


def test_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "math.json").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cannot write .*: No space left on device"):
        files.write_atomically(tmp_path / "math.json", b"after")
    assert files_in(tmp_path) == ["math.json"]
    assert (tmp_path / "math.json").read_text() == "before"


def test_lines_of_a_problem_file_end_only_at_line_feeds(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(as_lines(problems(3)))
    assert load_problems(tmp_path / "mine.jsonl") == problems(3)


# ------------------------------------------------------------------ models from the hub


def set_endpoint(monkeypatch, url: str) -> None:
    """What HF_ENDPOINT does when a process starts."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server as hub, with a small model in the place of the base model; its cache is in `tmp_path`."""
    directory = make_directory(tmp_path / "original")
    for file in directory.iterdir():
        server.content[f"/{REPO}/resolve/{file.name}"] = file.read_bytes()
    server.content[f"/{REPO}/resolve/pytorch_model.bin"] = b"never asked for"
    set_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # as the model is small, too
    return server


def loads(name: str = "qwen3-0.6b-base", **options) -> bool:
    """Whether the model arrives whole."""
    model, _ = load_model_and_tokenizer(name, "cpu", **options)
    ids = ids_of(model)
    with torch.no_grad():
        return torch.equal(model(ids), make_model()(ids))


def test_model_is_downloaded_once_into_the_shared_cache(hub, tmp_path, capfd):
    assert loads()
    assert not any(path.endswith("pytorch_model.bin") for _, path, _ in hub.log)
    asked = len(hub.log)
    assert loads("base")
    assert len(hub.log) == asked
    assert list((tmp_path / "cache").glob("models--Qwen--Qwen3-0.6B-Base/snapshots/*/model.safetensors"))


def test_model_in_the_cache_needs_no_network(hub, monkeypatch):
    assert loads()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    set_endpoint(monkeypatch, nowhere())
    assert loads()


def test_local_dir_is_another_place_for_downloads(hub, tmp_path):
    assert loads(local_dir=tmp_path / "mine")
    assert "model.safetensors" in {p.name for p in (tmp_path / "mine").rglob("*")}
    assert not (tmp_path / "cache").exists()


def test_model_cut_at_40_percent_is_continued(hub):
    size = len(hub.content[WEIGHTS])
    hub.faults[WEIGHTS] = ["cut"]
    assert loads()
    first, second = hub.gets(WEIGHTS)
    assert (first, second) == (None, f"bytes={int(size * 0.4) // 1024 * 1024}-")


def refused(words: str, **options) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        loads(**options)
    assert "\n" not in str(caught.value)


def no_weights_left(hub, folder: Path) -> bool:
    """Whether nothing has the name of the weights, or of their checksum, under which the cache would find them."""
    names = {path.name for path in folder.rglob("*")}
    return not names & {"model.safetensors", sha256(hub.content[WEIGHTS])}


def test_model_cut_forever_leaves_nothing_that_passes_for_whole(hub, tmp_path):
    hub.faults[WEIGHTS] = ["cut", "forever"]
    refused("could not download Qwen/Qwen3-0.6B-Base: .*; without a connection, copy the model's files")
    assert no_weights_left(hub, tmp_path / "cache")
    hub.faults.clear()
    assert loads()


def test_wrong_checksum_is_fetched_again(hub):
    hub.faults[WEIGHTS] = ["corrupt"]
    assert loads()
    assert len(hub.gets(WEIGHTS)) == 2


def test_wrong_checksum_twice_is_refused_and_removed(hub, tmp_path):
    hub.faults[WEIGHTS] = ["corrupt", "forever"]
    refused("model.safetensors of Qwen/Qwen3-0.6B-Base arrived with a wrong checksum twice")
    assert len(hub.gets(WEIGHTS)) == 2
    assert no_weights_left(hub, tmp_path / "cache")
    hub.faults.clear()
    assert loads()


def test_small_files_are_compared_too(hub):
    config = f"/{REPO}/resolve/config.json"
    hub.faults[config] = ["corrupt"]
    assert loads()
    assert len(hub.gets(config)) == 2


def test_model_that_is_not_there(hub, waits):
    hub.content.clear()
    refused("the server answered 404")
    assert waits == []


@pytest.mark.parametrize("status", [429, 500])
def test_passing_faults_of_the_hub_are_retried(hub, status):
    hub.faults[f"/api/models/{REPO}/revision/main"] = [status]
    hub.faults[WEIGHTS] = [status]
    assert loads()


def test_server_error_forever_of_the_hub_ends(hub, tmp_path):
    hub.everywhere = 500
    refused("the server answered 500; without a connection")
    assert no_weights_left(hub, tmp_path / "cache")


def test_no_network_for_the_hub_ends_soon(hub, monkeypatch, waits, capsys):
    set_endpoint(monkeypatch, nowhere())
    refused("no connection to the server; without a connection")
    assert waits == [1.0]
    assert capsys.readouterr().err == f"{REPO}: no connection to the server; trying again in 1 s\n"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set and the files are not in the cache")


def test_repository_without_weights_is_not_taken_for_a_model(hub):
    del hub.content[WEIGHTS]
    refused("whole: files are missing")


def test_sharded_model_lacks_no_shard(hub):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    hub.content[f"/{REPO}/resolve/model.safetensors.index.json"] = json.dumps(index).encode()
    del hub.content[WEIGHTS]
    refused("whole: files are missing")


def test_environment_variables_are_honoured(hub, tmp_path):
    """HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE, as a process finds them at its start."""
    code = (
        "from rfs_utils.hub.download import download_model; import huggingface_hub as h\n"
        f"print(download_model({REPO!r})); h.constants.HF_HUB_OFFLINE = True; print(download_model({REPO!r}))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "env"), "HF_HUB_OFFLINE": "0"}
    root = Path(download.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second and Path(first).is_relative_to(tmp_path / "env")


# ------------------------------------------------------------------ published checkpoints


PTH = "qwen3-0.6B-rlvr-grpo-step00050.pth"
REMOTE = f"/{download.GRPO_REPO}/resolve/grpo_original_no_kl/{PTH}"


@pytest.fixture
def checkpoint(hub, tmp_path):
    torch.save(make_model(seed=3).state_dict(), tmp_path / "trained.pth")
    hub.content[REMOTE] = (tmp_path / "trained.pth").read_bytes()
    return hub


def test_published_checkpoint_arrives_and_loads(checkpoint, tmp_path):
    checkpoint.faults[REMOTE] = ["cut"]
    path = download_qwen3_grpo_checkpoints("no_kl", step="00050", out_dir=tmp_path / "out")
    assert (path, files_in(tmp_path / "out")) == (tmp_path / "out" / PTH, [PTH])
    assert path.read_bytes() == checkpoint.content[REMOTE]
    model = make_model()
    models.load_weights(model, path)
    asked = len(checkpoint.log)
    assert download_qwen3_grpo_checkpoints("no_kl", step=50, out_dir=tmp_path / "out") == path
    assert len(checkpoint.log) == asked


@pytest.mark.parametrize(
    "fault, words",
    [(404, "answered 404"), (500, "answered 500"), ("cut", "put the file at"), ("corrupt", "wrong checksum")],
)
def test_published_checkpoint_that_does_not_arrive_leaves_no_file(checkpoint, tmp_path, fault, words):
    checkpoint.faults[REMOTE] = [fault, "forever"]
    with pytest.raises(ValueError, match=words) as caught:
        download_qwen3_grpo_checkpoints("no_kl", out_dir=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path / "out") == []


def test_published_checkpoint_with_a_wrong_checksum_once(checkpoint, tmp_path):
    checkpoint.faults[REMOTE] = ["corrupt"]
    path = download_qwen3_grpo_checkpoints("no_kl", out_dir=tmp_path / "out")
    assert path.read_bytes() == checkpoint.content[REMOTE]


def test_half_a_checkpoint_is_neither_taken_nor_overwritten(checkpoint, tmp_path):
    half = checkpoint.content[REMOTE][: len(checkpoint.content[REMOTE]) // 2]
    (tmp_path / PTH).write_bytes(half)
    assert not zipfile.is_zipfile(tmp_path / PTH)
    with pytest.raises(ValueError, match="no whole checkpoint; move it away"):
        download_qwen3_grpo_checkpoints("no_kl", out_dir=tmp_path)
    assert (tmp_path / PTH).read_bytes() == half


def test_unknown_types_and_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no_kl, tracking, clip_ratio, kl, format_reward"):
        download_qwen3_grpo_checkpoints("ppo", out_dir=tmp_path)
    with pytest.raises(ValueError, match="whole number"):
        download_qwen3_grpo_checkpoints("no_kl", step="last", out_dir=tmp_path)


# ------------------------------------------------------------------ command line


def test_rfs_download(checkpoint, tmp_path, monkeypatch, capsys):
    checkpoint.content["/math"] = json.dumps(problems(500)).encode()
    monkeypatch.setattr(data.load_math500_test, "__defaults__", ("math500_test.json", True, [f"{checkpoint.url}/math"]))
    for name, file in (("base", "model.safetensors"), ("math500", "math500_test.json"), ("grpo-no_kl", PTH)):
        assert main(["download", name, "--to", str(tmp_path / "to" / name)]) == 0
        where = re.search(r" is in (.*)", capsys.readouterr().out)[1]
        assert Path(where).exists()
        assert list((tmp_path / "to" / name).rglob(file))


def test_rfs_download_says_in_one_sentence_what_failed(hub, capsys):
    hub.everywhere = 404
    for name, words in (("nothing", "unknown name 'nothing': known names are qwen3-0.6b-base"), ("base", "404")):
        assert main(["download", name]) == 2
        error = capsys.readouterr().err
        assert error.count("rfs: error: ") == 1 and words in error and "Traceback" not in error


def test_every_name_of_the_registry_has_a_cache_directory_of_its_own(hub, tmp_path):
    for model in models.HUB_MODELS.values():
        for path in [p for p in hub.content if p.startswith(f"/{REPO}/")]:
            hub.content[path.replace(REPO, model.repo_id)] = hub.content[path]
    folders = {download_model(model.repo_id) for model in models.HUB_MODELS.values()}
    assert len(folders) == len(models.HUB_MODELS)
