"""Downloads that end in a whole file or in one clear sentence: problem sets, models and checkpoints.

Problem sets come through `requests`; models come through `huggingface_hub`, which keeps them in the cache that
all Hugging Face libraries share and honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE. Both libraries are
imported where they are used: nothing is fetched by those who only read local files.
"""

import errno
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MODEL_FILES = ("config.json", "generation_config.json", "tokenizer*.json", "*.safetensors", "*.safetensors.index.json")
GRPO_REPO = "rasbt/qwen3-from-scratch-grpo-checkpoints"
GRPO_FOLDERS = {
    "no_kl": "grpo_original_no_kl",
    "tracking": "7_3_plus_tracking/checkpoints",
    "clip_ratio": "7_4_plus_clip_ratio/checkpoints",
    "kl": "7_5_plus_kl/checkpoints",
    "format_reward": "7_6_plus_format_reward/checkpoints",
}
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later
_MANY = 9  # retries: as many as there are
_MEANINGS = (  # part of an error's name, in whichever library; what it means; the retries it is worth
    ("OfflineMode", "HF_HUB_OFFLINE is set and the files are not in the cache", 0),
    ("ReadTimeout", "the server did not answer in time", _MANY),
    ("ProtocolError", "the transfer broke off", _MANY),
    ("Connect", "no connection to the server", 1),  # most often there is no network at all
)
_LONGEST_WAIT = 30.0  # seconds, whatever a server asks for


def wait_to_retry(what: str, reason: str, seconds: float) -> None:
    """Say on stderr what failed and when it is tried again, and wait."""
    print(f"{what}: {reason}; trying again in {seconds:g} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def explain(error: BaseException) -> tuple[str, int]:
    """Why a download failed, in a few words, and how many retries that is worth."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in (401, 403, 404):
            return f"the server answered {status}, so there is no such file, or it is not public", 0
        if status is not None:
            return f"the server answered {status}", _MANY if status in _PASSING else 0
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{link.strerror} ({link.filename})", 0
    for part, meaning, retries in _MEANINGS:
        if any(part in type(link).__name__ for link in chain):
            return meaning, retries
    return (str(error).strip() or type(error).__name__).splitlines()[0], _MANY


# ------------------------------------------------------------------ plain files


def download_first(
    urls: Sequence[str], check: Callable[[bytes], T], what: str, instead: str, **download_options: Any
) -> T:
    """What `check` makes of the first address whose content arrives whole and passes it.

    `check` raises ValueError for content that is not what it should be. When no address serves, the ValueError
    says why for each, and what to do `instead`. `download_options` are those of `download_bytes`.
    """
    reasons = []
    for number, url in enumerate(urls, start=1):
        try:
            return check(download_bytes(url, **download_options))
        except ValueError as error:
            reasons.append(f"{url}: {error}")
            if number < len(urls):
                print(f"{reasons[-1]}; trying {urls[number]}", file=sys.stderr, flush=True)
    raise ValueError(f"could not download {what} ({'; '.join(reasons)}); without a connection, {instead}")


def download_bytes(url: str, timeout: float = 30.0, retries: int = 3, wait: float = 1.0) -> bytes:
    """The content behind an address, whole.

    Begins again up to `retries` times, after `wait`, 2 `wait`, 4 `wait`, ... seconds or when the server asks to, when
    the connection breaks, when `timeout` seconds pass without a byte, and when the server answers 408, 429 or 5xx,
    but only once when no server is reached; says so on stderr each time. Raises ValueError with the reason otherwise.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry
    from urllib3.exceptions import MaxRetryError

    tries = 1

    class Announced(Retry):
        """urllib3's retries, each with a line that says why and when."""

        def sleep(self, response=None) -> None:
            nonlocal tries
            seconds, tries = wait * 2 ** (tries - 1), tries + 1
            if response is not None and response.headers.get("Retry-After", "").isdigit():
                seconds = max(seconds, min(int(response.headers["Retry-After"]), _LONGEST_WAIT))
            last = self.history[-1]
            wait_to_retry(url, f"the server answered {last.status}" if last.status else explain(last.error)[0], seconds)

    retry = Announced(retries, connect=min(retries, 1), status_forcelist=_PASSING, raise_on_status=False)
    try:
        while True:
            with requests.Session() as session:
                for scheme in ("http://", "https://"):
                    session.mount(scheme, HTTPAdapter(max_retries=retry))
                response = session.get(url, stream=True, timeout=(min(timeout, 5.0), timeout))
                if response.status_code != 200:
                    reason = f"the server answered {response.status_code}"
                    break
                try:
                    return response.content
                except requests.RequestException as error:  # urllib3 leaves broken contents to its callers
                    retry = response.raw.retries.increment("GET", url, error=error.args[0])
                retry.sleep()
    except (requests.RequestException, MaxRetryError) as error:
        reason, _ = explain(error)
    raise ValueError(reason + (f", {tries} times" if tries > 1 else ""))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that the final name never stands for half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """`replace_file`, with one sentence as a ValueError when the file cannot be written."""
    try:
        replace_file(Path(path), content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


# ------------------------------------------------------------------ the Hugging Face hub


def download_model(repo_id: str, cache_dir: str | Path | None = None) -> Path:
    """The directory of a hub model's files, from the shared cache, or else downloaded into it with a progress bar.

    What was downloaded is compared with the hub's checksums, once; what differs is removed and fetched again.
    Raises ValueError when the model cannot be had whole.
    """
    from huggingface_hub import snapshot_download

    def look_up(**options: bool) -> Path:
        return Path(snapshot_download(repo_id, cache_dir=cache_dir, allow_patterns=list(MODEL_FILES), **options))

    def fetch() -> Path:
        folder = look_up()
        remove_damaged(repo_id, cache_dir=cache_dir)
        return folder

    try:
        folder = look_up(local_files_only=True)
        if is_complete(folder):
            return folder
    except OSError:  # not in the cache, or not all of it
        pass
    instead = "copy the model's files from another machine into a folder and give that folder's path as the model, "
    folder = from_hub(fetch, repo_id, instead + "or set HF_HUB_CACHE to a cache that has them")
    if not is_complete(folder):
        raise ValueError(f"could not download {repo_id} whole: files are missing in {folder}; try again later")
    return folder


def download_qwen3_grpo_checkpoints(
    grpo_type: str = "no_kl", step: str | int = "00050", out_dir: str | Path = "."
) -> Path:
    """One of the checkpoints that the printed book's author published; returns its path in `out_dir`.

    `grpo_type` is one of GRPO_FOLDERS: "no_kl" belongs to chapter 6, the others to sections of chapter 7; those of
    "format_reward" were trained from the reasoning model, the others from the base model. A file that is there
    already is kept. Raises ValueError for an unknown type, and when the download fails.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

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
        file = hf_hub_download(GRPO_REPO, remote, local_dir=temporary)
        remove_damaged(GRPO_REPO, local_dir=temporary)
        os.replace(file, path)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as temporary:
        from_hub(fetch, name, f"put the file at {path} yourself, from {hf_hub_url(GRPO_REPO, remote)}")
    return path


def is_complete(folder: Path) -> bool:
    """Whether a model directory has its config, its tokenizer and all of its weights."""
    from .checkpoints import shard_files, weights_file  # not at the top: problem sets need no torch

    try:
        weights = weights_file(folder)
        if weights.suffix == ".json":
            shard_files(weights)
    except ValueError:
        return False
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def remove_damaged(repo_id: str, **place: str | Path | None) -> None:
    """Remove the files in `cache_dir` or `local_dir` that differ from the hub's checksums; OSError names them.

    Before version 1.1 huggingface_hub cannot tell: it compares sizes only, as it downloads.
    """
    from huggingface_hub import HfApi

    verify = getattr(HfApi(), "verify_repo_checksums", None)
    found = verify(repo_id, **place) if verify else None
    names = [mismatch["path"] for mismatch in found.mismatches] if found else []
    for path in [found.verified_path / name for name in names]:
        for file in {path, path.resolve()}:  # in the cache a link, and what it stands for
            file.unlink(missing_ok=True)
    if names:
        raise OSError(f"{', '.join(names)} arrived with a wrong checksum")


def from_hub(call: Callable[[], T], what: str, instead: str, retries: int = 2) -> T:
    """The result of a call to huggingface_hub, tried again after failures that pass; ValueError with one sentence.

    The library itself continues transfers that break off; its questions about a repository are asked only once.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as error:  # requests' or httpx's, depending on the library's version, among others
            reason, worth = explain(error)
            if attempt >= min(retries, worth):
                raise ValueError(f"could not download {what}: {reason}; without a connection, {instead}") from error
            wait_to_retry(what, reason, 2.0**attempt)
    raise AssertionError("unreachable")
