"""Downloads that end in a whole file or in one clear sentence: problem sets, models and checkpoints.

Problem sets come through `requests`; models come through `huggingface_hub`, which keeps them in the cache that
all Hugging Face libraries share and honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE. The hub's library
compares sizes only, so the checksums are compared here.
"""

import errno
import hashlib
import math
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import requests
from urllib3.exceptions import NewConnectionError

from .checkpoints import shard_files, weights_file

T = TypeVar("T")

MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer*.json", "chat_template.*", "*.safetensors",
    "*.safetensors.index.json",
)  # fmt: skip
GRPO_REPO = "rasbt/qwen3-from-scratch-grpo-checkpoints"
GRPO_FOLDERS = {
    "no_kl": "grpo_original_no_kl",
    "tracking": "7_3_plus_tracking/checkpoints",
    "clip_ratio": "7_4_plus_clip_ratio/checkpoints",
    "kl": "7_5_plus_kl/checkpoints",
    "format_reward": "7_6_plus_format_reward/checkpoints",
}
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later
_CHUNK = 1 << 13  # bytes; when a connection breaks, the chunk on its way is lost
_LONGEST_WAIT = 30.0  # seconds, whatever a server asks for
_CONNECT = 5.0  # seconds for a server to accept a connection
_UNREACHED = 1  # retries where no server was reached: most often there is no network at all


def say(text: str) -> None:
    """One line on stderr, at once, so that a wait is never silent."""
    print(text, file=sys.stderr, flush=True)


def wait_to_retry(what: str, reason: str, seconds: float) -> None:
    """Say what failed and when it is tried again, and wait."""
    say(f"{what}: {reason}; trying again in {seconds:g} s")
    time.sleep(seconds)


# ------------------------------------------------------------------ plain files


class _Interrupted(Exception):
    """A download that is worth up to `retries` other tries, after `wait` seconds where the server said so."""

    def __init__(self, reason: str, wait: float = 0.0, retries: float = math.inf):
        super().__init__(reason)
        self.wait, self.retries = wait, retries


def download_first(
    urls: Sequence[str],
    check: Callable[[bytes], T],
    what: str,
    instead: str,
    timeout: float = 30.0,
    retries: int = 3,
    wait: float = 1.0,
) -> T:
    """What `check` makes of the first address whose content arrives whole and passes it.

    `check` raises ValueError for content that is not what it should be. When no address serves, the ValueError
    says why for each, and what to do `instead`.
    """
    reasons = []
    for number, url in enumerate(urls, start=1):
        try:
            return check(download_bytes(url, timeout, retries, wait))
        except ValueError as error:
            reasons.append(f"{url}: {error}")
            if number < len(urls):
                say(f"{reasons[-1]}; trying {urls[number]}")
    raise ValueError(f"could not download {what} ({'; '.join(reasons)}); without a connection, {instead}")


def download_bytes(url: str, timeout: float = 30.0, retries: int = 3, wait: float = 1.0) -> bytes:
    """The content behind an address, whole.

    Retries up to `retries` times, after `wait`, 2 `wait`, 4 `wait`, ... seconds, when the connection breaks, when
    `timeout` seconds pass without a byte, and when the server answers 408, 429 or 5xx, but only once when no server
    is reached; each retry is announced on stderr. Continues where it broke off if the server can tell that the
    content is still the same. Raises ValueError with the reason otherwise.
    """
    transfer = _Transfer(url, timeout)
    for attempt in range(retries + 1):
        try:
            transfer.receive()
            return bytes(transfer.content)
        except _Interrupted as error:
            interrupted = error
        except requests.RequestException as error:  # an address that is none, too many redirects, ...
            raise ValueError(_first_line(error)) from None
        if attempt >= min(retries, interrupted.retries):
            break
        wait_to_retry(url, str(interrupted), max(wait * 2**attempt, min(interrupted.wait, _LONGEST_WAIT)))
    raise ValueError(f"{interrupted}, {attempt + 1} times")


class _Transfer:
    """One file on its way: what has arrived, and the server's mark of the version it belongs to."""

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url, timeout
        self.content = bytearray()
        self.version = ""

    def receive(self) -> None:
        """Fetch what is still missing; raises _Interrupted when something is missing afterwards."""
        headers = {"Accept-Encoding": "identity"}  # lengths and ranges then count the file's own bytes
        if not self.version:
            self.content.clear()
        if self.content:
            headers |= {"Range": f"bytes={len(self.content)}-", "If-Range": self.version}
        try:
            timeout = (min(self.timeout, _CONNECT), self.timeout)
            with requests.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
                self._accept(response)
                for chunk in response.iter_content(_CHUNK):
                    self.content += chunk
        except requests.exceptions.ChunkedEncodingError:
            raise _Interrupted(f"the transfer broke off after {len(self.content)} bytes") from None
        except requests.ReadTimeout:
            raise _Interrupted("the server did not answer in time") from None
        except requests.ConnectionError as error:
            retries = _UNREACHED if _is_unreached(error) else math.inf
            raise _Interrupted("no connection to the server", retries=retries) from None
        if self.expected is not None and len(self.content) != self.expected:
            raise _Interrupted(f"{len(self.content)} bytes arrived where {self.expected} were announced")

    def _accept(self, response: requests.Response) -> None:
        """Look at status and headers before the content is read."""
        status, length = response.status_code, response.headers.get("Content-Length")
        if status in _PASSING:
            asked = response.headers.get("Retry-After", "")
            raise _Interrupted(f"the server answered {status}", float(asked) if asked.isdigit() else 0.0)
        if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {len(self.content)}-"):
            self.expected = int(length) + len(self.content) if length is not None else None
            return
        if status != 200:
            self.version = ""  # whatever arrived so far is of no use; the next attempt starts over
            if status in (206, 416):
                raise _Interrupted(f"the server answered {status} with another range")
            raise ValueError(f"the server answered {status}")
        self.content.clear()
        self.expected = int(length) if length is not None else None
        mark = response.headers.get("ETag", "")
        self.version = "" if mark.startswith("W/") else mark  # a weak mark does not promise the same bytes


def _is_unreached(error: requests.ConnectionError) -> bool:
    """Whether there never was a connection: an unknown name, a refusal, or no answer."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------ the Hugging Face hub


def download_model(repo_id: str, cache_dir: str | Path | None = None, retries: int = 2, wait: float = 1.0) -> Path:
    """The directory of a hub model's files, from the shared cache, or else downloaded into it with a progress bar.

    Every file is compared with its checksum each time (about a second for Qwen3-0.6B); one that differs is removed
    and fetched once more. Raises ValueError when the model cannot be had whole.
    """
    from huggingface_hub import snapshot_download  # not at the top: it takes a while, and tiny models need no hub

    def fetch(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repo_id, cache_dir=cache_dir, allow_patterns=list(MODEL_FILES), local_files_only=local_files_only
            )
        )

    instead = (
        "copy the model's files from another machine into a folder and give that folder's path as the model, "
        "or set HF_HUB_CACHE to a cache that has them"
    )
    try:
        folder = fetch(local_files_only=True)
        if is_complete(folder) and not remove_damaged(folder):
            return folder
    except OSError:  # not in the cache, or not all of it
        pass
    for _ in range(2):
        folder = from_hub(lambda: fetch(local_files_only=False), repo_id, instead, retries, wait)
        if not is_complete(folder):
            raise ValueError(f"could not download {repo_id} whole: files are missing in {folder}; try again later")
        damaged = remove_damaged(folder)
        if not damaged:
            return folder
    raise ValueError(
        f"{', '.join(damaged)} of {repo_id} arrived with a wrong checksum twice; "
        "the damaged files were removed, try again later"
    )


def from_hub(call: Callable[[], T], what: str, instead: str, retries: int = 2, wait: float = 1.0) -> T:
    """The result of a call to huggingface_hub, tried again after failures that pass; ValueError with one sentence."""
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as error:  # requests' or httpx's, depending on the library's version, among others
            reason, worth = _hub_reason(error)
            if attempt >= min(retries, worth):
                raise ValueError(f"could not download {what}: {reason}; without a connection, {instead}") from error
            wait_to_retry(what, reason, wait * 2**attempt)
    raise AssertionError("unreachable")


def _hub_reason(error: Exception) -> tuple[str, float]:
    """Why a call to the hub failed, in a few words, and how many retries it is worth."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if type(link).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set and the files are not in the cache", 0
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in (401, 403, 404):
            return f"the server answered {status}, so there is no such file, or it is not public", 0
        if status is not None:
            return f"the server answered {status}", math.inf if status in _PASSING else 0
    for link in chain:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{link.strerror} ({link.filename})", 0
    if any("Connect" in type(link).__name__ for link in chain):
        return "no connection to the server", _UNREACHED
    if any("Timeout" in type(link).__name__ for link in chain):
        return "the server did not answer in time", math.inf
    return _first_line(error), math.inf


def is_complete(folder: Path) -> bool:
    """Whether a model directory has its config, its tokenizer and all of its weights."""
    try:
        weights = weights_file(folder)
        if weights.suffix == ".json":
            shard_files(weights)
    except ValueError:
        return False
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def remove_damaged(folder: Path) -> list[str]:
    """Remove the files of a cached snapshot whose content does not match their checksum; returns their names.

    In the hub's cache each file is a link to one that is named by its checksum: SHA-256, or Git's own for small
    files. Where the file system has no links, nothing is known about a file and it stays.
    """
    damaged = []
    for file in sorted(path for path in folder.iterdir() if path.is_symlink()):
        stored = file.parent / os.readlink(file)
        if checksum(stored, stored.name) not in (stored.name, None):
            damaged.append(file.name)
            for path in {file, stored, stored.resolve()}:
                path.unlink(missing_ok=True)
    return damaged


def checksum(path: Path, like: str) -> str | None:
    """The checksum of a file in the form of `like`: 64 hex digits SHA-256, 40 Git's SHA-1 of a blob; else None."""
    if not set(like) <= set("0123456789abcdef") or len(like) not in (40, 64) or not path.is_file():
        return None
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def download_qwen3_grpo_checkpoints(
    grpo_type: str = "no_kl", step: str | int = "00050", out_dir: str | Path = ".", retries: int = 2, wait: float = 1.0
) -> Path:
    """One of the checkpoints that the printed book's author published; returns its path in `out_dir`.

    `grpo_type` is one of GRPO_FOLDERS: "no_kl" belongs to chapter 6, the others to sections of chapter 7; those of
    "format_reward" were trained from the reasoning model, the others from the base model. A file that is there
    already is kept. Raises ValueError for an unknown type, and when the download fails.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if grpo_type not in GRPO_FOLDERS:
        raise ValueError(f"unknown grpo_type {grpo_type!r}: known types are {', '.join(GRPO_FOLDERS)}")
    if not str(step).isdigit():
        raise ValueError(f"step must be a whole number such as 50 or '00050', got {step!r}")
    name = f"qwen3-0.6B-rlvr-grpo-step{int(step):05d}.pth"
    path, remote = Path(out_dir) / name, f"{GRPO_FOLDERS[grpo_type]}/{name}"
    if path.exists():
        if not zipfile.is_zipfile(path):  # a state dict is a zip file, whose table of contents stands at its end
            raise ValueError(f"{path} exists but is no whole checkpoint; move it away to download it again")
        print(f"{path} is already there")
        return path

    def fetch() -> None:
        expected = get_hf_file_metadata(hf_hub_url(GRPO_REPO, remote))
        file = Path(hf_hub_download(GRPO_REPO, remote, revision=expected.commit_hash, local_dir=temporary))
        if expected.etag and checksum(file, expected.etag) not in (expected.etag, None):
            file.unlink()  # or else the next attempt would find it
            raise OSError("the file arrived with a wrong checksum")
        os.replace(file, path)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as temporary:
        instead = f"put the file at {path} yourself, from {hf_hub_url(GRPO_REPO, remote)}"
        from_hub(fetch, name, instead, retries, wait)
    return path
