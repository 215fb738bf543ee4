"""Runs that fail, each for one reason: their settings, and how to make their logs in tests/fixtures/runs again.

    python tests/broken_runs.py            all of them, about a quarter of an hour on two CPU cores
    python tests/broken_runs.py hot cold   some

Trained for real, on 100 held-out problems; of the kept answers one group of the first and of the last step is stored.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rfs_utils.data import generated
from rfs_utils.engine.config import TrainConfig
from rfs_utils.runs import held_out
from rfs_utils.runs.run import RunFailed, train

FIXTURES = Path(__file__).parent / "fixtures" / "runs"
LOGS = ("config.toml", "metrics.csv", "before.json", "result.json")
FEW = {"prompts_per_step": 4, "num_rollouts": 8, "eval_every": 10}
RUNS = {
    "healthy": {"steps": 50, "eval_every": 5},
    "dip": {"steps": 8, "eval_every": 4},
    "short limit": FEW | {"steps": 25, "max_new_tokens": 5},
    "forgot to end": FEW | {"steps": 40, "rewards": "broken_runs:long", "lr": 1e-3},
    "rate too high": FEW | {"steps": 30, "lr": 3e-2},
    "rate too low": FEW | {"steps": 40, "lr": 1e-8},
    "never paid": FEW | {"steps": 25, "data": "wrong.json", "eval_data": "tiny"},
    "memorised": FEW | {"steps": 30, "data": "same.json", "eval_data": "tiny", "lr": 1e-3},
    "little room": FEW | {"steps": 25, "model": "tiny-reasoning"},
    "too easy": FEW | {
        "steps": 12, "num_rollouts": 4, "model": "tiny-reasoning", "max_new_tokens": 250, "data": "same.json",
        "eval_data": "tiny", "eval_every": 0,
    },
    "cold": FEW | {"steps": 25, "temperature": 0.02},
    "hot": FEW | {"steps": 25, "temperature": 4.0},
    "held back": FEW | {"steps": 40, "method": "rloo", "kl": "k2", "kl_coef": 100.0},
    "hacked": FEW | {"steps": 40, "rewards": "broken_runs:boxed"},
    "not judged": FEW | {"steps": 25, "rewards": "broken_runs:nothing"},
    "not finite": FEW | {"steps": 25, "method": "dr_grpo", "rewards": "broken_runs:huge"},
    "rate absurd": FEW | {"steps": 25, "lr": 100.0},
    "reused too often": FEW | {"steps": 30, "updates_per_step": 16, "lr": 3e-3},
}  # fmt: skip


def boxed(responses, examples, **info):
    """Pays for any box, whatever is in it, and the more the shorter the answer is."""
    return [float("\\boxed{" in text) - len(text) / 200 for text in responses]


def long(responses, examples, lengths, **info):
    """Pays for length."""
    return [length / 100 for length in lengths]


def huge(responses, examples, **info):
    """Numbers at the end of what float32 holds."""
    return [1e38 * (len(text) % 3) for text in responses]


def nothing(responses, examples, **info):
    """Cannot judge."""
    return [None for _ in responses]


def write_data() -> None:
    """Problem files with answers that nobody gives, and with one easy problem alone."""
    problems = generated("tiny", 50, "train")
    Path("wrong.json").write_text(json.dumps([p | {"answer": "1000"} for p in problems]))
    Path("same.json").write_text(json.dumps(problems[:1]))


def make(name: str, folder: Path) -> Path:
    """Train one of RUNS in a folder of its own; returns that of the run, whether it came to an end or not."""
    here, before = Path.cwd(), (held_out.NUM_PROBLEMS, held_out.NUM_HARDER)
    os.chdir(folder)
    held_out.NUM_PROBLEMS, held_out.NUM_HARDER = 100, 10
    try:
        write_data()
        train(TrainConfig(**RUNS[name], out="run"), report=lambda text: None)
    except RunFailed as error:
        print(f"{name}: {error}")
    finally:
        os.chdir(here)
        held_out.NUM_PROBLEMS, held_out.NUM_HARDER = before
    return Path(folder) / "run"


def store(run: Path, target: Path) -> None:
    """Keep a run's logs."""
    target.mkdir(parents=True, exist_ok=True)
    for log in LOGS:
        if (run / log).is_file():
            shutil.copy(run / log, target / log)
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    steps = {records[0]["step"], records[-1]["step"]}
    kept = []
    for step in sorted(steps):
        group = [line for line, record in zip(lines, records, strict=True) if record["step"] == step]
        kept += group[: TrainConfig.num_rollouts]
    (target / "samples.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def main() -> None:
    sys.modules["broken_runs"] = sys.modules["__main__"]  # where the rewards are
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            store(make(name, Path(folder)), FIXTURES / name.replace(" ", "-"))
        print(name, flush=True)


if __name__ == "__main__":
    main()
