"""The number of threads: from what others use, without a clock of its own; a user's choice wins."""

import os

import pytest
import torch

from rfs_utils import threads
from rfs_utils.runs.compare import short_run
from rfs_utils.terminal import set_quiet
from rfs_utils.threads import Threads, Usage, cores, others, threads_for, usage


class Machine:
    """Eight cores of which others use `busy`; time passes only when `wait` is called, or by sleeping."""

    def __init__(self, monkeypatch, most: int = 8):
        self.busy, self.now, self.everyone, self.own, self.count = 0.0, 0.0, 0.0, 0.0, most
        for name in threads.CHOICES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(threads, "usage", lambda: Usage(self.now, self.everyone, self.own))
        monkeypatch.setattr(threads, "cores", lambda: 8)
        monkeypatch.setattr(threads.time, "sleep", self.wait)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.count)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(self, "count", number))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.own += 3 * seconds
        self.everyone += (3 + self.busy) * seconds


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("most", "cores", "others", "expected"),
    [(2, 2, 0.0, 2), (2, 2, 0.4, 2), (2, 2, 0.6, 1), (2, 2, 4.0, 1), (4, 8, 3.0, 4), (4, 8, 5.2, 3), (8, 8, 2.0, 6)],
)
def test_as_many_threads_as_others_leave_cores(most, cores, others, expected):
    assert threads_for(most, cores, others) == expected


def test_what_we_use_ourselves_is_not_others():
    assert others(Usage(10, 100.0, 5), Usage(12, 106.0, 9)) == pytest.approx(1.0)
    assert others(Usage(10, 100.0, 5), Usage(12, 101.0, 9)) == 0, "clocks that disagree"


def test_a_quiet_machine_keeps_its_threads_and_says_nothing(machine, capsys):
    one = Threads()
    for _ in range(50):
        one.fit()
        machine.wait(0.5)
    assert machine.count == 8 and capsys.readouterr().err == ""


def test_a_busy_machine_gets_fewer_at_once_and_a_line(machine, capsys):
    machine.busy = 5.2
    Threads().fit()
    assert machine.count == 3
    said = capsys.readouterr().err
    assert said.startswith("other processes use 5.2 of 8 cores: computing with 3 threads") and said.count("\n") == 1


def test_it_looks_again_while_it_computes(machine, capsys):
    one = Threads()
    one.fit()
    machine.busy = 20.0
    machine.wait(0.3)
    one.fit()
    assert machine.count == 8, "too short to tell"
    machine.wait(1.0)
    one.fit()
    assert machine.count == 1 and "1 thread " in capsys.readouterr().err
    machine.busy = 0.0
    machine.wait(5)
    one.fit()
    assert machine.count == 1, "it may be a pause"
    machine.wait(16)
    one.fit()
    assert machine.count == 8 and "8 threads again" in capsys.readouterr().err
    for busy in (20.0, 0.0, 20.0, 0.0):
        machine.busy = busy
        machine.wait(30)
        one.fit()
        one.fit()
    assert machine.count == 8 and capsys.readouterr().err == "", "each kind of change is told once"


def test_after_a_long_pause_the_past_does_not_count(machine):
    one = Threads()
    one.fit()
    machine.wait(3600)
    machine.busy = 8.0
    one.fit()
    assert machine.count == 1


@pytest.mark.parametrize("name", threads.CHOICES)
def test_a_users_variable_wins(name, machine, monkeypatch):
    monkeypatch.setenv(name, "8")
    machine.busy = 20.0
    Threads().fit()
    assert machine.count == 8


def test_a_users_call_wins(machine):
    one = Threads()
    machine.count, machine.busy = 5, 20.0
    one.fit()
    assert machine.count == 5


def test_a_number_that_is_held_stays(machine):
    one = Threads()
    machine.busy = 20.0
    one.fit()
    assert machine.count == 1
    machine.busy = 0.0
    with one.hold(1):
        machine.wait(40)
        one.fit()
        assert machine.count == 1
    machine.wait(40)
    one.fit()
    assert machine.count == 8


def test_quiet_means_no_line(machine, capsys):
    set_quiet(True)
    try:
        machine.busy = 20.0
        Threads().fit()
    finally:
        set_quiet(False)
    assert machine.count == 1 and capsys.readouterr().err == ""


def test_training_looks_before_every_step(monkeypatch):
    looks = []
    monkeypatch.setattr("rfs_utils.models.fit", lambda: looks.append("model"))
    monkeypatch.setattr("rfs_utils.engine.learner.fit", lambda: looks.append("step"))
    monkeypatch.setattr("rfs_utils.evaluate.fit", lambda: looks.append("evaluation"))
    short_run(3, steps=2, prompts_per_step=1, num_rollouts=2, max_new_tokens=4, eval_every=0)
    assert looks == ["model", "evaluation", "step", "step", "evaluation"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no such clock")
def test_the_clock_of_linux(tmp_path):
    path = tmp_path / "stat"
    mine = sorted(os.sched_getaffinity(0))[0]
    line = "cpu{} 100 20 30 9999 7777 1 2 3 0 0\n"
    path.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n" + line.format(mine) + line.format(9999) + "intr 5\n")
    assert usage(path).everyone == pytest.approx(156 / os.sysconf("SC_CLK_TCK")), "no idle time, no cores but ours"
    assert usage().everyone > usage().own


def test_without_a_clock_the_load_counts(tmp_path, monkeypatch):
    found = usage(tmp_path / "none")
    assert found.everyone is None and found.own > 0
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0, 0), raising=False)
    assert others(Usage(0, None, 0), Usage(2, None, 2)) == pytest.approx(2.0)
    monkeypatch.delattr(os, "getloadavg")
    assert others(Usage(0, None, 0), Usage(2, None, 2)) == 0


def test_a_containers_limit_counts(tmp_path):
    path = tmp_path / "cpu.max"
    everything = cores(path)
    path.write_text("max 100000\n")
    assert cores(path) == everything
    path.write_text("50000 100000\n")
    assert cores(path) == 1
