"""What a reader types and what comes back: one sentence for what cannot be done, and nothing left behind."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import make_tokenizer, tokenizer_file

from rfs_utils import ch07
from rfs_utils.cli import COMMANDS, main, make_parser
from rfs_utils.exercises import pretrain
from rfs_utils.files import read_fields
from rfs_utils.models import WEIGHTS_DIR, load_model_and_tokenizer
from rfs_utils.plots import METRICS, read_metrics
from rfs_utils.runs.folder import BEFORE, cut_log
from rfs_utils.runs.samples import read_samples


def error_of(capsys, *command):
    """The one line that a command writes to stderr when it refuses."""
    assert main([str(word) for word in command]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rfs_utils", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("rfs ")


def importing(*command):
    """The command as a process that writes a line to stderr for every module it has imported."""
    command = [sys.executable, "-X", "importtime", "-m", "rfs_utils", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("module", ["importlib.metadata", "torch._utils", "matplotlib"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C in another way")
def test_ctrl_c_while_modules_are_imported(module):
    with importing("train", "--help") as process:
        assert any(line.split("|")[-1].strip() == module for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    assert err.splitlines()[-1] == "rfs: interrupted"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_needs_no_torch_does_not_wait_for_it(option):
    with importing(option) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "rfs" in out
    assert "rfs_utils.cli" in err and "torch" not in err


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("train", "eval", "compare", "samples", "download", "export"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_has_examples_that_are_understood(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("  rfs ")]
    assert examples
    for words in examples:
        assert make_parser(words).parse_args(words).command == command


def test_a_mistyped_value_does_not_bring_the_list_of_all_settings(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--steps", "many"])
    _, line = capsys.readouterr().err.splitlines()
    assert line == "rfs train: error: argument --steps: invalid int value: 'many'"


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "null", '{"step": 1'])
def test_damaged_samples(content, folder, capsys):
    (folder / "samples.jsonl").write_text(content + "\n")
    with pytest.raises(ValueError, match="samples.jsonl is damaged"):
        read_samples(folder)
    assert "samples.jsonl is damaged" in error_of(capsys, "samples", folder)


def test_a_limit_of_samples_below_one(folder, capsys):
    line = error_of(capsys, "samples", folder, "--limit", 0)
    assert "limit must be a whole number from 1 to 1,000,000; got 0" in line


def test_damaged_logs_and_results_are_named(folder):
    for name, content in (("metrics.csv", "a,b\n1,2\n"), ("metrics.csv", "step\nzz\n"), ("samples.jsonl", "{x}\n")):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name} is damaged; move it away"):
            cut_log(folder / name, 5)
        assert (folder / name).read_text() == content
    (folder / "before.json").write_text("[]")
    with pytest.raises(ValueError, match="before.json must hold a JSON object"):
        read_fields(folder / "before.json", BEFORE)
    (folder / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="metrics.csv, line 1"):
        read_metrics(folder / "metrics.csv")


def test_a_picture_needs_a_name_that_says_its_format(folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.csv").write_text("step,reward_avg,avg_response_len,eval_accuracy\n1,0.5,3,0.5\n")
    line = error_of(capsys, "plot", "run", "--out", "curves")
    assert "cannot draw curves: its name must end in one of" in line and ".png" in line
    line = error_of(capsys, "plot", "run", "--out", "no/such/curves.png")
    assert "no/such/curves.png" in line and "part" not in line and "Errno" not in line
    assert [p.name for p in folder.iterdir()] == ["run"]


def test_panels_without_values_are_left_out(folder):
    (folder / "run").mkdir()
    log = folder / "run" / "metrics.csv"
    log.write_text("step,reward_avg,avg_response_len,eval_accuracy\n1,0.5,3,\n2,0.6,4,\n")
    assert main(["plot", "run", "--out", "curves.png"]) == 0 and (folder / "curves.png").stat().st_size > 1000
    titles = [ax.get_title(loc="left") for ax in ch07.plot_grpo_metrics(log).axes]
    assert titles == [METRICS[name][0] for name in ("reward_avg", "avg_response_len")]


def test_nothing_to_draw(folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "metrics.csv").write_text("step,loss\n1,0.5\n")
    assert "nothing to draw: expected values of reward_avg" in error_of(capsys, "plot", "run", "--out", "curves.png")
    assert not (folder / "curves.png").exists()


def test_training_on_a_file_asks_for_held_out_problems(folder, capsys):
    (folder / "mine.jsonl").write_text(json.dumps({"problem": "1 + 1?", "answer": "2"}) + "\n")
    assert "give a file of them with --eval-data" in error_of(capsys, "train", "--data", "mine.jsonl", "--steps", 1)
    assert [p.name for p in folder.iterdir()] == ["mine.jsonl"]


def test_answers_longer_than_the_model_can_hold(folder, capsys):
    line = error_of(capsys, "train", "--steps", 1, "--max-new-tokens", 600)
    assert "--max-new-tokens must be below the 512 tokens that the model can hold, got 600" in line
    assert not list(folder.iterdir())


def test_a_run_folder_is_a_model_and_gives_its_answers_their_name(folder, capsys):
    shutil.copytree(WEIGHTS_DIR / "tiny-base", folder / "mine" / "model")
    options = ["--data", "tiny", "--limit", "1", "--max-new-tokens", "4"]
    for model in ("mine", "mine/model"):
        assert main(["eval", "--model", model, *options]) == 0
    assert main(["eval", "--model", "tiny-base", "--checkpoint", "mine/model/model.safetensors", *options]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["eval-mine-tiny.jsonl", "mine"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("interrupted", "name"), [("fit", "tiny-base"), ("finish", "tiny-reasoning")])
def test_an_interrupted_pretraining_keeps_the_model(number, interrupted, name, folder, monkeypatch, capsys):
    """`fit` is interrupted the first time, `finish` the second."""

    def train_tokenizer(path):
        shutil.copy(tokenizer_file(), path)
        return make_tokenizer()

    calls = []

    def interrupt(*arguments, **options):
        calls.append(arguments)
        if len(calls) == (1 if interrupted == "fit" else 2):
            signal.raise_signal(number)

    monkeypatch.setattr(pretrain, "train_tokenizer", train_tokenizer)
    monkeypatch.setattr(pretrain, interrupted, interrupt)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["pretrain", "--out", "out", "--steps", "1"]) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    place = Path("out") / f"{name}-unfinished"
    assert capsys.readouterr().err.splitlines()[-1] == f"rfs: interrupted; {name} as it was then is in {place}"
    assert [p.name for p in (folder / "out").iterdir()] == [place.name]
    assert load_model_and_tokenizer(place, "cpu")[1].apply_chat_template == (name == "tiny-reasoning")
    assert "interrupted" in (place / "README.md").read_text()
