"""Downloads that end in a whole file or in one clear sentence: problem sets, models and checkpoints.

Problem sets come through `requests`, with the retries of urllib3. Models come through `huggingface_hub`, which keeps
them in the cache that all Hugging Face libraries share, honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE, and
compares checksums when asked to.
"""

import errno
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

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
PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later
UNREACHED = "no connection to the server"  # most often there is no network at all: one retry is enough


def say(text: str) -> None:
    """One line on stderr, at once, so that a wait is never silent."""
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------ plain files


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

    Tries again up to `retries` times, each announced on stderr, when the connection breaks, when `timeout` seconds
    pass without a byte, and when the server answers 408, 429 or 5xx; once only when no server is reached. Waits as long
    as the server asks, or `wait`, 2 `wait`, ... seconds from the second retry on. ValueError with the reason otherwise.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    class Announced(Retry):
        def sleep(self, response=None):
            last = self.history[-1]
            cause = last.error or ConnectionError(UNREACHED)
            reason = f"the server answered {last.status}" if last.status else _reason(cause)
            seconds = (response is not None and self.get_retry_after(response)) or self.get_backoff_time()
            say(f"{url}: {reason}; trying again" + (f" in {seconds:g} s" if seconds else ""))
            super().sleep(response)

    retry = Announced(retries, connect=1, status_forcelist=PASSING, raise_on_status=False, backoff_factor=wait)
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        for left in range(retries, -1, -1):
            try:
                response = session.get(url, timeout=(min(timeout, 5.0), timeout))
                break
            except requests.exceptions.ChunkedEncodingError:  # within the content, where urllib3 does not try again
                if not left:
                    raise ValueError("the transfer broke off every time") from None
                say(f"{url}: the transfer broke off; trying again")
            except requests.RequestException as error:
                raise ValueError(_reason(error)) from None
    if response.status_code != 200:
        raise ValueError(f"the server answered {response.status_code}")
    return response.content


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it: requests and urllib3 hand the first cause on in several ways."""
    link: BaseException | None = error
    for _ in range(20):
        if link is None:
            return
        yield link
        inner = [x for x in (getattr(link, "reason", None), *link.args) if isinstance(x, BaseException)]
        link = next(iter(inner), link.__cause__ or link.__context__)


def _reason(error: BaseException) -> str:
    """Why there was no answer, in a few words."""
    names = {kind.__name__ for link in _causes(error) for kind in type(link).__mro__}
    if names & {"NewConnectionError", "ConnectTimeoutError", "ConnectError", "ConnectTimeout"}:
        return UNREACHED
    if names & {"ReadTimeoutError", "TimeoutException", "TimeoutError"}:
        return "the server did not answer in time"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ------------------------------------------------------------------ the Hugging Face hub


def download_model(repo_id: str, cache_dir: str | Path | None = None, retries: int = 2, wait: float = 1.0) -> Path:
    """The directory of a hub model's files, from the shared cache, or else downloaded into it with a progress bar.

    After a download every file is compared with the hub's checksum; one that differs is removed and fetched once more.
    Raises ValueError when the model cannot be had whole.
    """
    instead = (
        "copy the model's files from another machine into a folder and give that folder's path as the model, "
        "or set HF_HUB_CACHE to a cache that has them"
    )
    if cached := cached_model(repo_id, cache_dir):
        return cached
    for _ in range(2):
        folder = from_hub(lambda: snapshot(repo_id, cache_dir, False), repo_id, instead, retries, wait)
        if not is_complete(folder):
            raise ValueError(f"could not download {repo_id} whole: files are missing in {folder}; try again later")
        check = partial(remove_damaged, repo_id, revision=folder.name, cache_dir=cache_dir)
        damaged = from_hub(check, repo_id, instead, retries, wait)
        if not damaged:
            return folder
    raise ValueError(
        f"{', '.join(damaged)} of {repo_id} arrived with a wrong checksum twice; "
        "the damaged files were removed, try again later"
    )


def snapshot(repo_id: str, cache_dir: str | Path | None, only_cached: bool) -> Path:
    """The directory of a hub model's files, as far as the cache has them or they can be fetched; OSError otherwise."""
    from huggingface_hub import snapshot_download  # not at the top: it takes a while, and tiny models need no hub

    patterns = list(MODEL_FILES)
    found = snapshot_download(repo_id, cache_dir=cache_dir, allow_patterns=patterns, local_files_only=only_cached)
    return Path(str(found))


def cached_model(repo_id: str, cache_dir: str | Path | None = None) -> Path | None:
    """The directory of a hub model that is whole in the cache, or None."""
    try:
        folder = snapshot(repo_id, cache_dir, True)
    except OSError:  # not in the cache, or not all of it
        return None
    return folder if is_complete(folder) else None


def hub_cache() -> Path:
    """The folder for downloads that all Hugging Face libraries share."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def remove_damaged(repo_id: str, **where) -> list[str]:
    """Remove the downloaded files that differ from the hub's checksums; returns their names."""
    from huggingface_hub import HfApi

    found = HfApi().verify_repo_checksums(repo_id, **where)
    names = [wrong["path"] for wrong in found.mismatches]
    for name in names:
        file = found.verified_path / name
        for path in (file.resolve(), file):  # in the cache, a link to the content
            path.unlink(missing_ok=True)
    return names


def from_hub(call: Callable[[], T], what: str, instead: str, retries: int = 2, wait: float = 1.0) -> T:
    """The result of a call to huggingface_hub, tried again after failures that pass; ValueError with one sentence."""
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as error:  # the hub's, httpx's and the system's
            reason, passing = _hub_reason(error)
            if not passing or attempt >= (1 if reason == UNREACHED else retries):
                raise ValueError(f"could not download {what}: {reason}; without a connection, {instead}") from error
            say(f"{what}: {reason}; trying again in {wait * 2**attempt:g} s")
            time.sleep(wait * 2**attempt)
    raise AssertionError("unreachable")


def _hub_reason(error: BaseException) -> tuple[str, bool]:
    """Why a call to the hub failed, in a few words, and whether that may pass."""
    for link in _causes(error):
        if type(link).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set and the files are not in the cache", False
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in (401, 403, 404):
            return f"the server answered {status}, so there is no such file, or it is not public", False
        if status is not None:
            return f"the server answered {status}", status in PASSING
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{link.strerror} ({link.filename})", False
    return _reason(error), True


def is_complete(folder: Path) -> bool:
    """Whether a model directory has its config, its tokenizer and all of its weights."""
    from .weights import shard_files, weights_file  # and with it torch, which problem sets do without

    try:
        weights = weights_file(folder)
        if weights.suffix == ".json":
            shard_files(weights)
    except ValueError:
        return False
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def download_qwen3_grpo_checkpoints(
    grpo_type: str = "no_kl", step: str | int = "00050", out_dir: str | Path = ".", retries: int = 2, wait: float = 1.0
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
        file = Path(hf_hub_download(GRPO_REPO, remote, local_dir=temporary))
        if remove_damaged(GRPO_REPO, local_dir=temporary):
            raise OSError("the file arrived with a wrong checksum")
        os.replace(file, path)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as temporary:
        instead = f"put the file at {path} yourself, from {hf_hub_url(GRPO_REPO, remote)}"
        from_hub(fetch, name, instead, retries, wait)
    return path
