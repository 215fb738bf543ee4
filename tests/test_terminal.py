"""What the command line shows on the way: bars for people, lines for pipes, JSON for programs; and what it suggests."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

from rfs_utils import terminal
from rfs_utils.cli import COMMANDS, main, make_parser
from rfs_utils.files.kinds import SettingError
from rfs_utils.terminal import WIDTH, bar, readable, say, set_quiet, wrapped

pytestmark = pytest.mark.usefixtures("few_problems")
FAST = ["--steps", "2", "--prompts-per-step", "2", "--num-rollouts", "2", "--max-new-tokens", "8", "--eval-every", "1"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(monkeypatch, columns: str = "80") -> Screen:
    """Standard error becomes a terminal; in the test itself, since pytest puts its own there before."""
    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", columns)
    return shown


# ---------------------------------------------------------------- bars


@pytest.mark.parametrize(("columns", "widest"), [("80", 79), ("200", 79), ("50", 50)])
def test_a_bar_is_no_wider_than_the_terminal(columns, widest, monkeypatch):
    written = screen(monkeypatch, columns)
    with bar(total=1_000_000, desc="training", mininterval=0) as shown:
        shown.set_postfix_str("reward 0.52, right 48%, 33 tokens")
        shown.update(999_999)
        shown.refresh()
    states = [state for state in re.split(r"[\r\n]", written.getvalue()) if state.strip()]
    assert max(map(len, states)) <= widest and any("33 tokens" in state for state in states) == (widest > 60)


def test_a_pipe_gets_no_bar(capsys):
    for _ in bar(range(3), desc="training"):
        pass
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_one(monkeypatch):
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", kernel)
    for _ in bar(range(3), desc="training"):
        pass
    assert "training 3/3" in kernel.getvalue()


def test_quiet_is_quiet(monkeypatch):
    written = screen(monkeypatch)
    set_quiet(True)
    try:
        say("a line")
        list(bar(range(3)))
    finally:
        set_quiet(False)
    assert written.getvalue() == ""


# ---------------------------------------------------------------- text


def test_text_is_wrapped_below_its_beginning():
    lines = wrapped("word " * 40 + "\nnext", "  before: ").split("\n")
    assert lines[0].startswith("  before: word") and all(line.startswith(" " * 10) for line in lines[1:])
    assert max(map(len, lines)) <= WIDTH and lines[-1].strip() == "next"
    assert wrapped("", "  after: ") == "  after:" and len(wrapped("x" * 300).split("\n")) == 4


def test_what_a_terminal_would_obey_is_spelt_out():
    assert readable("a\x1b[31mb\n\x00\u202ec é 中") == "a\\x1b[31mb\n\\x00\\u202ec é 中"


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, few_problems):
    """What the same run writes by default, with --quiet and with --json: standard output and error."""
    found = {}
    for options in ((), ("--quiet",), ("--json",)):
        folder = tmp_path_factory.mktemp("run") / "mine"
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert main(["train", *FAST, "--out", str(folder), *options]) == 0
        found["".join(options)] = (out.getvalue(), err.getvalue(), folder)
    return found


def test_a_run_says_first_what_it_is(outputs):
    out, err, folder = outputs[""]
    first = re.sub(r"\s+", " ", out)
    threads = "cpu, 1 thread" if os.environ.get("OMP_NUM_THREADS") == "1" else "cpu, "
    assert first.startswith(f"tiny-base, method grpo, data tiny, 2 steps ({threads}") and err == ""
    assert f"in {folder}" in first.partition("step 1/2")[0]


def test_in_a_pipe_an_evaluation_is_a_line(outputs):
    out, _, _ = outputs[""]
    form = r"step \d/2: reward [\d.]+, right \d+%, \d+ tokens, held-out \d+%"
    assert len([line for line in out.splitlines() if re.fullmatch(form, line)]) == 2 and "\r" not in out


def test_answers_are_text_of_at_most_80_columns(outputs):
    out, _, folder = outputs[""]
    lines = [line for line in out.splitlines() if str(folder) not in line]
    assert max(map(len, lines)) <= 80 and "before: '" not in out and out.count("  before: ") == 3


def test_quiet_leaves_the_results(outputs):
    out, err, _ = outputs["--quiet"]
    assert err == "" and out.lstrip().startswith("accuracy") and "Written to" in out


def test_json_is_all_there_is_on_standard_output(outputs):
    out, err, folder = outputs["--json"]
    result = json.loads(out)
    assert result == json.loads((folder / "result.json").read_text()) | {"folder": str(folder)}
    assert "Written to" in err


def test_every_command_can_be_quiet_and_write_json():
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            make_parser([command]).parse_args([command, "--quiet", "--json", "--help"])
        assert {"--quiet", "--json"} <= set(make_parser([command]).options)


@pytest.mark.parametrize("command", [["samples"], ["doctor"], ["plot", "--out", "p.png"], ["samples", "--html"]])
def test_json_of_what_looks_at_a_run(command, outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = outputs[""][2]
    assert main([command[0], str(folder), *command[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if "written" in found:
        assert os.path.isfile(found["written"])
    else:
        assert isinstance(found, list) and all(isinstance(record, dict) for record in found)


def test_quiet_does_not_last(outputs):
    assert not terminal.is_quiet()


# ---------------------------------------------------------------- mistyped


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "rfs: error: there is no command 'trian'; did you mean train?"),
        (["zzz"], "rfs: error: there is no command 'zzz'; there are train, pretrain"),
        (["train", "--rolouts-num", "4"], "unrecognized arguments: --rolouts-num 4; did you mean --num-rollouts?"),
        (["train", "--learning-rate", "1"], "unrecognized arguments: --learning-rate 1; did you mean --lr?"),
        (["compare", "--method", "grpo"], "unrecognized arguments: --method grpo; did you mean --methods?"),
        (["doctor", "run", "--zzzzz"], "unrecognized arguments: --zzzzz\n"),
    ],
)
def test_what_may_have_been_meant(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--prompts-per-step", "0"], "rfs: error: --prompts-per-step must be a whole number"),
        (["train", "--shard", "--lora-rank", "2"], "--shard divides the weights that learn, few with --lora-rank;"),
        (["train", "--dtype", "bfloat16", "--optimizer", "adamw"], "with --dtype bfloat16, --optimizer adamw would"),
        (["eval", "--batch-size", "0"], "--batch-size must be a whole number"),
        (["samples", ""], "RUN must be a text that is not empty"),
    ],
)
def test_options_are_named_as_they_are_typed(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2 and sentence in capsys.readouterr().err


def test_settings_of_a_file_are_named_as_they_stand_there(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("prompts_per_step = 0\n")
    assert main(["train", "--config", str(tmp_path / "mine.toml")]) == 2
    assert "mine.toml: prompts_per_step must be" in capsys.readouterr().err


def test_only_the_name_of_a_setting_is_spelt_otherwise():
    error = SettingError("top_p must be one of top_p_min; got 'top_p'", "top_p")
    assert error.spelt(lambda name: "--top-p") == "--top-p must be one of top_p_min; got 'top_p'"


# ---------------------------------------------------------------- a real terminal


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_nothing_is_wider_than_a_real_terminal(tmp_path):
    """The run of a process whose standard output and error are a terminal of 80 columns."""
    import pty

    script = f"import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r}); import small_run; small_run.main("
    script += f"{['train', *FAST, '--out', 'r']!r})"
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=follower, stderr=follower, cwd=tmp_path, env=environment) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 2**16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(leader)
    text = re.sub(r"\x1b\[\w", "", shown.decode())
    states = [state for state in re.split(r"[\r\n]+", text) if state.strip()]
    assert process.returncode == 0 and any(state.startswith("training 2/2") for state in states)
    assert max(map(len, states)) <= 80, max(states, key=len)
    assert states[0].startswith("tiny-base, method grpo")
