"""How many threads to compute with: no more than there are cores that nobody else needs.

Threads that share an operation meet at its end, hundreds of times in a step, and spin while they wait. Where another
process has one's core, all of them wait for its turn. `benchmarks/threads.py` measures it.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from .terminal import say

FIRST, WINDOW, STALE = 0.1, 1.0, 60.0  # seconds over which is looked: at first at least, later at least, at most
CALM = 20.0  # seconds without others before there are more threads again
CHOICES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what a user has set stays


class Usage(NamedTuple):
    """Seconds that have passed on some clock: by the wall, of all processes on the cores that are ours, and our own."""

    wall: float
    everyone: float | None  # None: the system does not tell
    own: float


def usage(stat: Path = Path("/proc/stat")) -> Usage:
    """What has been computed up to now."""
    wall, own = time.monotonic(), time.process_time()
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        # user, nice, system, idle, waiting for a disk, interrupts (two), taken by other virtual machines
        ticks = [list(map(int, fields)) for name, *fields in filter(None, lines) if name in ours]
        seconds = sum(sum(t[:3]) + sum(t[5:8]) for t in ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):  # AttributeError: a system without os.sched_getaffinity
        return Usage(wall, None, own)
    return Usage(wall, seconds, own)


def others(before: Usage, after: Usage) -> float:
    """How many cores other processes have used; where the system has no clock for that, its load, 0 on Windows."""
    passed = max(1e-9, after.wall - before.wall)
    own = (after.own - before.own) / passed
    if before.everyone is None or after.everyone is None:
        everyone = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    else:
        everyone = (after.everyone - before.everyone) / passed
    return max(0.0, everyone - own)


def cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use, a container's limit included."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, limit.read_text().split())
    except (OSError, ValueError):  # there is none, or it says max
        return number
    return max(1, min(number, math.ceil(quota / period)))


def threads_for(most: int, cores: int, others: float) -> int:
    """At least one thread, at most `most`, and as many as there are cores besides those that others use."""
    return max(1, min(most, cores - int(others + 0.5)))


class Threads:
    """The number of threads of this process; `fit` looks at the machine, and changes it where that helps."""

    def __init__(self) -> None:
        self.most = self.given = torch.get_num_threads()
        self.last = usage()
        self.calm_since, self.first, self.held, self.said = -math.inf, True, False, set[str]()

    def fit(self) -> None:
        """Compute with as many threads as have a core of their own; quick enough to be called before every step.

        The first call may take a tenth of a second. A number that the user has set, in the environment or by
        `torch.set_num_threads`, stays. The first change in each direction is told in a line.
        """
        chosen = self.held or torch.get_num_threads() != self.given or any(name in os.environ for name in CHOICES)
        if chosen or self.most == 1:
            return
        now = usage()
        if now.wall - self.last.wall > STALE:
            self.last, self.first = now, True
        missing = (FIRST if self.first else WINDOW) - (now.wall - self.last.wall)
        if missing > 0 and not self.first:
            return
        if missing > 0:
            time.sleep(missing)
            now = usage()
        used, available = others(self.last, now), cores()
        self.last, self.first = now, False
        wanted = threads_for(self.most, available, used)
        if wanted <= self.given:
            self.calm_since = now.wall
        if wanted < self.given or now.wall - self.calm_since >= CALM:
            self.change(wanted, f"other processes use {used:.1f} of {available} cores")

    def change(self, wanted: int, reason: str) -> None:
        """Another number of threads, and a line about the first of its kind."""
        kind = "fewer" if wanted < self.given else "more"
        torch.set_num_threads(wanted)
        self.given = wanted
        if kind not in self.said:
            self.said.add(kind)
            again = " again" if kind == "more" else ""
            number = "1 thread" if wanted == 1 else f"{wanted} threads"
            say(f"{reason}: computing with {number}{again} (OMP_NUM_THREADS sets another number)")

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Compute with this number of threads, whatever the machine does, and then with as many as before."""
        before, held = torch.get_num_threads(), self.held
        torch.set_num_threads(number)
        self.held = True
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self.held = held


_threads = Threads()
fit, hold = _threads.fit, _threads.hold
