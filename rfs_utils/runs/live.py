"""The page of a run while the run goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from .page import write_page

WATCHED = ("metrics.csv", "samples.jsonl", "result.json")


def follow(folder: str | Path, seconds: int = 5, report: Callable[[str], None] = print) -> Path:
    """Write report.html again whenever the run has logged something, until it has its result; returns its path.

    A browser in which it is open reads it again by itself. ValueError when the folder has no log of a run.
    """
    folder, seen = Path(folder), None
    while True:
        state = [(folder / name).stat().st_mtime_ns for name in WATCHED if (folder / name).is_file()]
        finished = (folder / "result.json").is_file()
        if state != seen:
            path = write_page(folder, refresh=0 if finished else seconds)
            if seen is None and not finished:
                report(f"{path} follows the run: open it in a browser; Ctrl-C ends this, and not the run")
            seen = state
        if finished:
            return path
        time.sleep(seconds)
