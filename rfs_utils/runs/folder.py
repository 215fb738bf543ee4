"""The folder of a training run: metrics, samples and checkpoints, written so that no accident loses more than the
steps since the last checkpoint.

    config.toml  metrics.csv  samples.jsonl  before.json  result.json  curves.png  report.html  model/
    checkpoints/step-00050/   a Hugging Face model directory, with optimizer and random states, and state.json;
                              and sampler.safetensors, the weights of a stale sampler
"""

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..engine import parallel, sharding
from ..engine.lora import adapted, get_adapter, set_adapter
from ..engine.samplers import Sampler
from ..files import check_fields, parse_json, read_fields, write_json, write_text
from ..files.folders import others, replace_folder, restore
from ..files.kinds import ANY_NUMBER, OBJECT, TEXT, Kind, list_of, number, optional, record, table_of, whole
from ..hub.adapters import ADAPTER_FILES, read_adapter, write_adapter
from ..hub.weights import load_weights
from ..memory_errors import is_out_of_memory
from ..models import LICENCES, OWN_FILES, prompt_file, write_config_files, write_model_files
from ..plots import read_metrics
from ..qwen3 import Qwen3Model
from ..tokenizer import ModelTokenizer
from .watch import WATCHED

CHECKPOINT_FILES = (
    *OWN_FILES, *LICENCES, *ADAPTER_FILES, "optimizer.safetensors", "random.safetensors", "sampler.safetensors",
    "state.json",
)  # fmt: skip


# What must be in the files of a run: it is checked before anything is done with them.
_ACCURACY_AND_TOKENS = list_of(number(0), 2)
BEFORE = {
    "all": _ACCURACY_AND_TOKENS,
    "levels": table_of(_ACCURACY_AND_TOKENS),
    "harder": optional(table_of(_ACCURACY_AND_TOKENS)),
    "harder_accuracy": optional(number(0, 1)),
    "responses": list_of(TEXT),
}
RESULT = {  # of result.json, what pages and the doctor need
    "accuracy_before": number(0, 1), "accuracy_after": number(0, 1), "tokens_before": number(0),
    "tokens_after": number(0), "harder_accuracy_before": optional(number(0, 1)),
    "harder_accuracy_after": optional(number(0, 1)), "steps": whole(), "seconds": number(0),
    "seed": whole(), "method": TEXT, "model": TEXT, "ended_early": optional(TEXT),
}  # fmt: skip
_STEP = optional(whole())
_BEST = Kind(
    "an accuracy and its step, or -1 and null",
    lambda best: isinstance(best, list) and len(best) == 2 and number(-1, 1).fits(best[0]) and _STEP.fits(best[1]),
)
_WATCHED = {name: optional(ANY_NUMBER) if name in ("reward_avg", "accuracy") else ANY_NUMBER for name in WATCHED}
STATE = {"step": whole(), "cursor": whole(), "optimizer": table_of(number()), "random": OBJECT}
LATER_STATE = {  # which checkpoints of former times do not all have
    "seconds": number(0),
    "best": _BEST,
    "skipped": whole(),
    "watch": record(
        recent=list_of(record(**_WATCHED)), best_reward=optional(ANY_NUMBER), warned=list_of(TEXT)
    ),
    "ended_early": optional(TEXT),
    "settings": OBJECT,
}  # fmt: skip


def make_run_folder(out: str | None, name: str, config: str) -> Path:
    """A new folder with the text `config` as its config.toml: `out`, or the next free name under runs/.

    Never one that holds something, nor one that another run takes at the same moment. ValueError when `out` is such
    a one, or cannot be made.
    """
    folder, number = Path(out or f"runs/{name}"), 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            break
        except FileExistsError as error:
            if out is not None or Path("runs").exists() and not Path("runs").is_dir():
                raise _not_made(folder, error) from None
            number += 1
            folder = Path(f"runs/{name}-{number}")
        except OSError as error:
            raise _not_made(folder, error) from None
    taken = f"{folder} exists already and is not empty; choose another --out, or --resume {folder}"
    claim = folder / ".config.toml.tmp"  # of two runs only one can make it
    try:
        with claim.open("x", encoding="utf-8") as file:
            file.write(config)
        if os.listdir(folder) != [claim.name]:
            claim.unlink()
            raise ValueError(taken)
        os.replace(claim, folder / "config.toml")
    except FileExistsError:
        raise ValueError(taken) from None
    except OSError as error:
        claim.unlink(missing_ok=True)
        raise _not_made(folder, error) from None
    return folder


def _not_made(folder: Path, error: OSError) -> ValueError:
    if isinstance(error, FileExistsError):
        return ValueError(f"cannot create the output folder {folder}: a file is in its place")
    return ValueError(f"cannot create the output folder {folder}: {error.strerror}")


def remove_unfinished(folder: Path) -> None:
    """Delete the files and folders under temporary names that a killed run has left in its folder."""
    for path in folder.iterdir():
        if re.fullmatch(r"\.((config\.toml|\w+\.(csv|jsonl|json|html))\.\d+\.tmp|curves\.\d+\.part\.png)", path.name):
            path.unlink()
        elif re.fullmatch(r"\.model-\w{8}", path.name):
            shutil.rmtree(path, ignore_errors=True)
    model = folder / "model"  # without its configuration save_model takes it for somebody else's folder
    if model.is_dir() and not (model / "config.json").is_file() and not others(model, OWN_FILES):
        shutil.rmtree(model)


def read_run(folder: Path, required: Sequence[str] = ("step",)) -> dict[str, list[float | None]]:
    """The columns of a run's metrics.csv, and above them, as step 0, what was measured before training.

    Raises ValueError when metrics.csv lacks one of the `required` columns or is damaged.
    """
    metrics = read_metrics(folder / "metrics.csv", required)
    if not (folder / "before.json").is_file():
        return metrics
    accuracy, tokens = read_fields(folder / "before.json", BEFORE)["all"]
    first = {"step": 0, "eval_accuracy": accuracy, "eval_tokens": tokens}
    return {name: [first.get(name), *values] for name, values in metrics.items()}


# ------------------------------------------------------------------ logs


def cut_log(path: Path, last_step: int) -> None:
    """Drop what a CSV or JSON-lines log holds after a step, and a line that was cut short."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line + "\n" for line in text.split("\n")[:-1]]  # splitlines() would split at more than line ends
    try:
        if path.suffix == ".csv":
            column = next(csv.reader(lines), ["step"]).index("step")
            kept = lines[:1] + [line for line in lines[1:] if int(next(csv.reader([line]))[column]) <= last_step]
        else:
            kept = [line for line in lines if parse_json(line)["step"] <= last_step]
    except (ValueError, LookupError, TypeError, csv.Error):
        raise ValueError(f"{path} is damaged; move it away to go on without it") from None
    if kept[1:] or path.suffix != ".csv":
        write_text(path, "".join(kept))
    else:
        path.unlink()  # a log of nothing but a header, or half of one, begins anew


def append_lines(path: Path, records: list[dict]) -> None:
    """Append records to a JSON-lines file."""
    text = io.StringIO()
    for line in records:
        text.write(json.dumps(line, ensure_ascii=False) + "\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())


# ------------------------------------------------------------------ checkpoints


def save_run_checkpoint(
    folder: Path,
    step: int,
    model: Qwen3Model,
    tokenizer: ModelTokenizer,
    optimizer: torch.optim.Optimizer,
    state: dict,
    sampler: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write checkpoints/step-NNNNN: model or adapter, optimiser, random states, and `state`, which JSON can hold.

    `sampler` are the weights of a sampler that keeps some. All processes call it; process 0 writes, unless the model is
    in parts. The directory gets its name when all of it is on the disk. Raises OSError, on all processes, when it
    cannot be written; older checkpoints are as they were.
    """
    final = folder / "checkpoints" / checkpoint_name(step)
    temporary = final.with_name(f".{final.name}.tmp")
    tensors, numbers = pack_optimizer(optimizer)
    random_tensors, random_numbers = random_states()
    content = {"step": step, "optimizer": numbers, "random": random_numbers, **state}
    try:
        if sharding.is_sharded(model):
            parallel.on_main(prepare_checkpoint, temporary, partial(write_config_files, model, tokenizer))
            sharding.save_parts(temporary, model, tensors, parallel.rank() == 0)
        else:
            adapter = get_adapter(model, state["settings"]["model"])
            write = partial(write_model_files, model, tokenizer)
            if adapter:
                write = partial(write_adapter, adapter, more=prompt_file(tokenizer))
            parallel.on_main(prepare_checkpoint, temporary, write)
            parallel.on_main(write_tensors, temporary / "optimizer.safetensors", tensors)
        parallel.on_main(write_tensors, temporary / "random.safetensors", random_tensors)
        if sampler:
            parallel.on_main(write_tensors, temporary / "sampler.safetensors", sampler)
        parallel.on_main(finish_checkpoint, temporary, final, content)
    finally:
        if parallel.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def prepare_checkpoint(directory: Path, write: Callable[[Path], object]) -> None:
    """Begin a directory anew with what `write` puts there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write(directory)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file; OSError when that fails."""
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {path}: {error}") from None


def finish_checkpoint(temporary: Path, final: Path, content: dict) -> None:
    """Add state.json, wait until everything is on the disk, and give the directory its name.

    There may be an older one of that name, if the run came this far before and was resumed from an earlier step.
    """
    write_json(temporary / "state.json", content)
    replace_folder(temporary, final, CHECKPOINT_FILES)


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's directory: step-00050."""
    return f"step-{step:05d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints of a run, in order. Other names, as step-00050-backup, are somebody else's."""
    names = [path.parent.name for path in (folder / "checkpoints").glob("step-*/state.json")]
    steps = [int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-[0-9]{5,12}", name)]
    return sorted(step for step in steps if checkpoint_name(step) in names)


def prune_checkpoints(folder: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the last `keep` and the best, and what an interrupted write has left.

    One in which somebody keeps other files stays.
    """
    remove_leftovers(folder / "checkpoints")
    steps = checkpoint_steps(folder)
    for step in set(steps[:-keep]) - {best}:
        path = folder / "checkpoints" / checkpoint_name(step)
        if not others(path, CHECKPOINT_FILES):
            path.rename(path.with_name(f".{path.name}.old"))  # so that half a checkpoint never has a whole one's name
    remove_leftovers(folder / "checkpoints")


def remove_leftovers(checkpoints: Path) -> None:
    """Delete what interrupted writing and deleting have left, and nothing else whose name begins with a dot."""
    for waiting in checkpoints.glob(".step-*.replaced"):
        restore(waiting.with_name(waiting.name.removeprefix(".").removesuffix(".replaced")))
    for pattern in (".step-*.tmp", ".step-*.old"):
        for leftover in checkpoints.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def read_state(directory: Path) -> dict:
    """What state.json of a checkpoint holds; ValueError when it is damaged."""
    state = read_fields(directory / "state.json", STATE)
    later = {name: kind for name, kind in LATER_STATE.items() if name in state}
    check_fields(state, later, directory / "state.json")
    if checkpoint_name(state["step"]) != directory.name:
        raise ValueError(f"{directory / 'state.json'} is damaged: it is of step {state['step']}")
    return state


def load_run_checkpoint(
    directory: Path, model: Qwen3Model, optimizer: torch.optim.Optimizer, sampler: Sampler | None = None
) -> dict:
    """Fill model, optimiser, random states and a stale sampler from a checkpoint; returns its state.

    ValueError when it is damaged.
    """
    state = read_state(directory)
    try:
        if sharding.is_sharded(model):
            tensors = sharding.load_parts(directory, model, optimizer.param_groups[0]["params"])
        else:
            if any(adapted(model)):
                set_adapter(model, read_adapter(directory))
            else:
                load_weights(model, directory / "model.safetensors")
            tensors = load_file(directory / "optimizer.safetensors")
        unpack_optimizer(optimizer, tensors, state["optimizer"])
        if sampler is not None and sampler.period is not None:
            sampler.restore(load_file(directory / "sampler.safetensors"), model)
        restore_random_states(load_file(directory / "random.safetensors"), state["random"])
    except Exception as error:  # the libraries that read tensors and random states raise many types
        if is_out_of_memory(error):
            raise
        reason = str(error).encode(errors="backslashreplace").decode()  # which quotes what it has found
        raise ValueError(f"the checkpoint {directory} is damaged or belongs to another run: {reason}") from None
    return state


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """An optimiser's state as named tensors and named numbers; "3.exp_avg" belongs to parameter 3.

    A tensor without dimensions is a number, since torch writes those of a model in parts as zero.
    """
    tensors, numbers = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                tensors[f"{index}.{key}"] = value.detach()
            else:
                numbers[f"{index}.{key}"] = value.item() if isinstance(value, torch.Tensor) else value
    return tensors, numbers


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict, numbers: dict) -> None:
    """Put back what `pack_optimizer` took."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict] = {}
    for name, value in (tensors | numbers).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    for index, found in state.items():
        # LowMemoryAdamW has its states from the beginning; torch's AdamW gets them in the first step.
        shapes = {key: getattr(value, "shape", ()) for key, value in optimizer.state[params[index]].items()}
        shapes = shapes or {"step": (), "exp_avg": params[index].shape, "exp_avg_sq": params[index].shape}
        if {key: getattr(value, "shape", ()) for key, value in found.items()} != shapes:
            raise ValueError(f"the states of weight {index} are none of this optimizer")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def seed_everything(seed: int) -> None:
    """Set Python's, numpy's and torch's random numbers, which a reward function may use."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> tuple[dict[str, torch.Tensor], dict]:
    """The states of all random number generators in use, as tensors and as what JSON can hold."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    state = np.random.get_state()
    assert isinstance(state, tuple)  # of numpy's global generator, unless asked for otherwise
    name, keys, *rest = state
    return tensors, {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}


def restore_random_states(tensors: dict[str, torch.Tensor], numbers: dict) -> None:
    """Put back what `random_states` took."""
    torch.set_rng_state(tensors["cpu"])
    cuda = [tensors[name] for name in sorted(tensors) if name.startswith("cuda")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    version, internal, gauss = numbers["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in numbers:  # not in each checkpoint of former times
        np.random.set_state(tuple(numbers["numpy"]))


# ------------------------------------------------------------------ signals


class StopRequest:
    """Whether the user or the system has asked the run to stop; `number` is the signal's."""

    number: int | None = None


@contextmanager
def stop_on_signals(at_once: bool = False):
    """Turn Ctrl-C and SIGTERM into a request that the run answers after its current step; a second one is at once.

    `at_once`, the first one is a KeyboardInterrupt already, and the request tells which signal it was.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return

    def handle(number, frame):
        second = request.number is not None
        if at_once or not second:
            request.number = number
        if at_once or second:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
