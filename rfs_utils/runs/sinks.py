"""Where a run's metrics go besides metrics.csv: TensorBoard's files, Trackio, or Weights & Biases."""

import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ..engine.config import TrainConfig
from ..files import write_text


class Sink(NamedTuple):
    """A place for metrics: `log` takes those of a step, by name, and the step; `close` makes sure that all are kept.

    Either may raise whatever its library raises, and may print, which goes to standard error.
    """

    name: str
    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[], None]


def open_sinks(config: TrainConfig, folder: Path) -> list[Sink]:
    """The places that a run's settings ask for; ValueError when one of them cannot be opened."""
    sinks = []
    if config.tensorboard:
        sinks.append(open_tensorboard(folder))
    if config.track is not None:
        sinks.append(open_tracker(config.track, folder, config))
    return sinks


def open_tensorboard(folder: Path) -> Sink:
    """TensorBoard's files in RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard")

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Sink("--tensorboard", log, writer.close)


def open_tracker(name: str, folder: Path, config: TrainConfig) -> Sink:
    """Trackio or Weights & Biases, by the functions that both have; a resumed run goes on under its name.

    Their own settings apply, such as WANDB_MODE=offline.
    """
    library, run = import_module(name), tracked_name(folder)
    own = {"id": run, "dir": str(folder)} if name == "wandb" else {}
    try:
        with redirect_stdout(sys.stderr):
            library.init(project="rfs", name=run, config=vars(config), resume="allow", **own)
    except Exception as error:  # of many types: no account, no connection, a damaged database
        raise ValueError(f"--track {name} cannot begin: {first_line(error)}") from None
    return Sink(f"--track {name}", lambda metrics, step: library.log(dict(metrics), step=step), library.finish)


def tracked_name(folder: Path) -> str:
    """The name of a run where runs of many folders are kept, the same when it is resumed."""
    path = folder / "tracked.txt"
    if not path.is_file():
        write_text(path, f"{folder.resolve().name}-{secrets.token_hex(3)}\n")
    return path.read_text(encoding="utf-8").strip()


def log_to(sinks: list[Sink], metrics: Mapping[str, float | None], step: int, report: Callable[[str], None]) -> None:
    """Give all sinks a step's metrics, without those that have no value.

    One that fails is reported and gets nothing from then on: the run is worth more.
    """
    found = {name: value for name, value in metrics.items() if value is not None}
    for sink in list(sinks):
        try:
            with redirect_stdout(sys.stderr):
                sink.log(found, step)
        except Exception as error:  # whatever their libraries raise
            report(f"{sink.name} has failed at step {step}, and gets no more: {first_line(error)}")
            sinks.remove(sink)


def close_all(sinks: list[Sink], report: Callable[[str], None]) -> None:
    """Close all sinks; a failure is reported."""
    while sinks:
        sink = sinks.pop()
        try:
            with redirect_stdout(sys.stderr):
                sink.close()
        except Exception as error:
            report(f"{sink.name} may lack the last steps: {first_line(error)}")


def first_line(error: Exception) -> str:
    """What an error of another library says, in a line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
