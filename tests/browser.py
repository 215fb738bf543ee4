"""Chromium without a window, where there is one: what a page is after its scripts have run."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def in_chromium(address: str, profile: Path, width: int = 1100) -> tuple[str, str]:
    """A page as it is after its scripts have run, and what they wrote to the console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]
    options += [f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom", address]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
