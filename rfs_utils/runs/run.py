"""The training engine behind `rfs train`: a run from start to end, in a folder, that loses no work.

A run is a `Learner`, which knows how to do a step, with evaluation, logs, checkpoints and guards around it.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from ..ch06 import append_csv_metrics
from ..engine import parallel
from ..engine.config import MAY_CHANGE, TrainConfig, check_unchanged, format_config, read_config
from ..engine.learner import Learner, training_problems
from ..engine.lora import without_adapters
from ..engine.sharding import gathered
from ..evaluate import check_room, level_name
from ..files import read_fields, write_json, write_text
from ..memory_errors import is_out_of_memory
from ..models import get_device, load_model_and_tokenizer, save_model
from ..plots import plot_training, save_figure
from ..terminal import bar, is_quiet, is_watched, wrapped
from .doctor import remark
from .folder import (
    BEFORE,
    RESULT,
    append_lines,
    checkpoint_name,
    checkpoint_steps,
    cut_log,
    load_run_checkpoint,
    make_run_folder,
    prune_checkpoints,
    read_run,
    read_state,
    remove_unfinished,
    save_run_checkpoint,
    seed_everything,
    stop_on_signals,
)
from .held_out import HeldOut
from .page import write_page
from .samples import read_samples
from .sinks import Sink, close_all, log_to, open_sinks
from .watch import MAX_SKIPPED, Watch, collapsed


def train(config: TrainConfig, report: Callable[[str], None] = print) -> dict:
    """A run from start to end; returns what result.json holds, and `folder`, where it is.

    The run folder holds config.toml, metrics.csv, samples.jsonl, checkpoints, result.json, curves.png, report.html,
    examples.json and the trained model as a Hugging Face directory in `model`. Raises ValueError for bad settings,
    before anything is written.
    """
    config.check()
    learner, held_out = prepare(config)
    name = f"{Path(config.model).name}-{config.method}-seed{config.seed}"
    folder = parallel.on_main(make_run_folder, config.out, name, format_config(config))
    with closing(Run(learner, held_out, folder, report)) as run:
        run.introduce()
        run.evaluate_before()
        return run.go()


def resume(folder: str | Path, report: Callable[[str], None] = print, changes: dict | None = None) -> dict:
    """Go on with a run that stopped, from its last checkpoint, as if it never had.

    `changes` are settings that differ from the run's own from now on. More steps may need more generated problems,
    which then come in another order. ValueError when there is nothing to resume.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} is not the folder of a run; expected config.toml in it")
    config = TrainConfig(**{**read_config(folder / "config.toml"), **(changes or {})})
    config.check()
    steps = checkpoint_steps(folder)
    if not steps and (folder / "result.json").is_file():
        raise ValueError(f"the run in {folder} is finished, and none of its checkpoints is there to go on from")
    state: dict = {"step": 0, "cursor": 0}
    newest = folder / "checkpoints" / checkpoint_name(steps[-1]) if steps else None
    older = f"; remove {newest} to go on from step {steps[-2]}" if len(steps) > 1 else ""
    if newest:  # what cannot go on is found before the model is loaded
        with adding(older):
            state = read_state(newest)
        check_unchanged(config, state.get("settings", {}), folder / "config.toml")
        if state["step"] >= config.steps and is_finished(folder, state["step"]):
            raise ValueError(f"the run in {folder} has done {state['step']} steps; raise --steps to go on")
    read_samples(folder)  # ValueError when it is damaged
    learner, held_out = prepare(config)
    with closing(Run(learner, held_out, folder, report)) as run:
        run.introduce(state["step"])
        if not run.before_fits():
            run.evaluate_before()
        if newest:
            with adding(older):
                load_run_checkpoint(newest, learner.model, learner.optimizer, learner.sampler)
        parallel.on_main(run.restore_logs, state["step"])
        parallel.on_main(write_text, folder / "config.toml", format_config(config))  # for the next time
        run.restore(state)
        return run.go()


@contextmanager
def adding(text: str):
    """Add something to the sentence of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}{text}") from None


# What a finished run leaves; result.json is the last to be written.
RESULT_FILES = (
    "examples.json", "curves.png", "report.html", "model/config.json", "model/model.safetensors", "result.json",
)  # fmt: skip


def is_finished(folder: Path, step: int) -> bool:
    """Whether all results are there, and are those of a step."""
    if not all((folder / name).is_file() for name in RESULT_FILES):
        return False
    return read_fields(folder / "result.json", RESULT)["steps"] == step


def prepare(config: TrainConfig) -> tuple[Learner, HeldOut]:
    """The learner and the held-out problems that a config asks for."""
    device = torch.device("cpu") if config.model.startswith("tiny") else get_device()
    model, tokenizer = load_model_and_tokenizer(config.model, device)
    held_out = HeldOut(config)
    learner = Learner(config, model, tokenizer, training_problems(config), device)
    config.prompt, config.stop = tokenizer.prompt, tokenizer.stop  # which may be the model's own
    for problems in (learner.problems.problems, held_out.problems):
        check_room(model, tokenizer, problems, config.max_new_tokens)
    return learner, held_out


class RunStopped(Exception):
    """The run was asked to stop by a signal, has saved a checkpoint, and can be resumed."""

    def __init__(self, folder: Path, step: int, number: int):
        super().__init__(f"stopped after step {step}; go on with: rfs train --resume {folder}")
        self.number = number


class RunFailed(Exception):
    """The run could not go on; the message says why, and what is left."""


class Run:
    """A run in its folder: steps, evaluations, logs, checkpoints."""

    def __init__(self, learner: Learner, held_out: HeldOut, folder: Path, report: Callable[[str], None]):
        self.learner, self.held_out, self.folder = learner, held_out, folder
        self.config = learner.config
        seed_everything(self.config.seed)  # whatever was drawn before, by an evaluation or by a reward's module
        self.is_main = parallel.rank() == 0
        self.report = report if self.is_main else lambda text: None
        self.watch = Watch(learner.model.cfg["vocab_size"])
        self.seconds, self.skipped = 0.0, 0
        self.best: list = [-1.0, None]  # held-out accuracy and step
        self.saved: int | None = None  # step of the last checkpoint
        self.ended_early: str | None = None  # the warning that has ended the run
        self.sinks: list[Sink] = []  # of process 0
        parallel.on_main(self.open_sinks)

    def open_sinks(self) -> None:
        """Open the places besides the folder that get the metrics."""
        self.sinks = open_sinks(self.config, self.folder)

    def close(self) -> None:
        """Close them."""
        close_all(self.sinks, self.report)

    def note(self, text: str) -> None:
        """Report something on the way, which `--quiet` leaves out."""
        if not is_quiet():
            self.report(text)

    def introduce(self, done: int = 0) -> None:
        """Say what this run is, before anything takes long."""
        config, device, threads = self.config, self.learner.device, torch.get_num_threads()
        where = str(device) if device.type != "cpu" else f"cpu, {threads} thread{'s' if threads > 1 else ''}"
        steps = f"{config.steps} steps" if not done else f"steps {done + 1} to {config.steps}"
        self.note(
            wrapped(f"{config.model}, method {config.method}, data {config.data}, {steps} ({where}), in {self.folder}")
        )

    def evaluate_before(self) -> None:
        """Keep what the model can do before the first step, and how that was measured."""
        with self.memory():
            before = {**self.held_out.summary(self.learner), "measured": self.measured()}
        with self.writing():
            parallel.on_main(write_json, self.folder / "before.json", before)
        seed_everything(self.config.seed)  # as if nothing had been drawn

    def measured(self) -> dict:
        """What decides the figures of the model before the first step."""
        named = set(MAY_CHANGE) - {"eval_data", "eval_problems"}
        return {name: value for name, value in asdict(self.config).items() if name not in named}

    def before_fits(self) -> bool:
        """Whether what the model could do before the first step was measured, with the same settings and problems."""
        if not (self.folder / "before.json").is_file():
            return False
        before, held_out = read_fields(self.folder / "before.json", BEFORE), self.held_out
        return (
            before.get("measured", self.measured()) == self.measured()
            and len(before["responses"]) == len(held_out.example_indices())
            and before["levels"].keys() == {str(level_name(p.get("level", ""))) for p in held_out.problems}
            and set(before["harder"] or ()) == {str(level_name(p.get("level", ""))) for p in held_out.harder}
        )

    def restore_logs(self, step: int) -> None:
        """Cut off what the logs say of later steps; ValueError for a damaged one."""
        remove_unfinished(self.folder)
        for name in ("metrics.csv", "samples.jsonl"):
            cut_log(self.folder / name, step)
        if (self.folder / "metrics.csv").is_file():
            read_run(self.folder)

    def restore(self, state: dict) -> None:
        """Go on from the state of a checkpoint."""
        self.learner.restore(state)
        self.seconds = state.get("seconds", 0.0)
        made_with = state.get("settings", {})
        now = asdict(self.config)
        if all(made_with.get(name, now[name]) == now[name] for name in ("eval_data", "eval_problems")):
            self.best = state.get("best", self.best)  # else it was measured with other problems
        if self.config.stop_on_collapse and not is_finished(self.folder, state["step"]):
            self.ended_early = state.get("ended_early")
        self.saved = state["step"] or None
        self.skipped = state.get("skipped", 0)
        if "watch" in state:
            self.watch.restore(state["watch"])

    def go(self, stop_after: int | None = None) -> dict:
        """Do the remaining steps and write the results; `stop_after` stops there, as a signal would."""
        learner, config = self.learner, self.config
        steps = range(learner.done, learner.done if self.ended_early else config.steps)
        progress = bar(steps, desc="training", initial=learner.done, total=config.steps, shown=self.is_main)
        try:
            with stop_on_signals() as request:
                for _ in progress:
                    started = time.perf_counter()
                    with self.memory():
                        metrics = learner.step()
                    self.seconds += time.perf_counter() - started
                    # Before anything is saved, so that a checkpoint knows of its step.
                    warning = self.watch.check(metrics)
                    self.skipped = self.skipped + 1 if metrics["skipped_updates"] else 0
                    if warning and config.stop_on_collapse and collapsed(warning):
                        self.ended_early = warning
                    self.log(metrics, progress)
                    if warning:
                        progress.clear()
                        self.report(wrapped(f"step {learner.done}: {warning}"))
                    if self.ended_early:
                        break
                    self.check_skipped()
                    number = 2 if learner.done == stop_after else request.number
                    number = next((n for n in parallel.gather(number) if n is not None), None)
                    if number is not None:
                        with self.writing():
                            self.checkpoint(must=True)
                        if self.is_main and (text := remark(self.folder)):
                            progress.clear()
                            self.report(text)
                        raise RunStopped(self.folder, learner.done, number)
                    if config.checkpoint_every and learner.done % config.checkpoint_every == 0:
                        self.checkpoint()
            self.checkpoint()
            with stop_on_signals(at_once=True) as request:
                try:
                    return self.finish()
                except KeyboardInterrupt:
                    raise RunStopped(self.folder, learner.done, request.number or signal.SIGINT) from None
        finally:
            progress.close()

    @contextmanager
    def writing(self):
        """End the run with one sentence when its folder cannot be written."""
        try:
            yield
        except OSError as error:
            left = f"the checkpoint of step {self.saved} is whole" if self.saved else "there is no checkpoint yet"
            raise RunFailed(
                f"cannot write to {self.folder}: {error.strerror or error}; {left}; "
                f"make room and go on with: rfs train --resume {self.folder}"
            ) from None

    @contextmanager
    def memory(self):
        """End the run with one sentence when the device's memory is too small."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            left = f"; the checkpoint of step {self.saved} is whole" if self.saved else ""
            raise RunFailed(
                f"the memory of {self.learner.device} is too small for step {self.learner.done}: --memory low, fewer "
                f"rollouts, shorter answers or a smaller --micro-batch need less{left}"
            ) from None

    def check_skipped(self) -> None:
        """Stop when gradients keep being infinite or not a number."""
        if self.skipped >= MAX_SKIPPED:
            self.checkpoint()
            raise RunFailed(
                f"the gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {self.learner.done}; their "
                f"updates were skipped; lower the learning rate, {self.config.lr}, or use --dtype float32"
            )

    def log(self, metrics: dict, progress) -> None:
        """Evaluate if it is time, write the step's metrics and samples, and show progress."""
        learner, config, step = self.learner, self.config, self.learner.done
        due = config.eval_every and step % config.eval_every == 0
        result = None
        if due:
            with self.memory():
                result = self.held_out.evaluate(learner, self.held_out.problems[: config.eval_problems])
        metrics |= {
            "eval_accuracy": result and result.accuracy,
            "eval_tokens": result and result.mean_tokens,
            "seconds": self.seconds,
        }
        with self.writing():
            parallel.on_main(self.write_step, metrics, due or step == 1)
        shown = format_step(metrics)
        progress.set_postfix_str(shown)
        if due and not is_watched():
            self.note(f"step {step}/{config.steps}: {shown}, held-out {metrics['eval_accuracy']:.0%}")
        if result is not None and result.accuracy > self.best[0]:
            self.best = [result.accuracy, step]
            self.checkpoint()

    def write_step(self, metrics: dict, with_samples: bool) -> None:
        """Add a step to the logs."""
        step = self.learner.done
        append_csv_metrics(self.folder / "metrics.csv", step, self.config.steps, **metrics)
        if with_samples:
            append_lines(self.folder / "samples.jsonl", sample_records(self.learner))
        log_to(self.sinks, metrics, step, self.report)

    def checkpoint(self, must: bool = False) -> None:
        """Save everything, once a step; a failure is reported and the run goes on, unless it `must` be saved."""
        learner, step = self.learner, self.learner.done
        if self.saved == step:
            return
        state = {**learner.state(), "seconds": self.seconds, "best": self.best, "skipped": self.skipped}
        state |= {"watch": self.watch.state(), "ended_early": self.ended_early, "settings": asdict(self.config)}
        try:
            parts = learner.model, learner.tokenizer, learner.optimizer, state, learner.sampler.tensors()
            save_run_checkpoint(self.folder, step, *parts)
            self.saved = step
            parallel.on_main(prune_checkpoints, self.folder, self.config.keep_checkpoints, self.best[1])
        except OSError as error:
            if must:
                raise
            kept = f"the one of step {self.saved} stays" if self.saved else "there is none yet"
            self.report(f"could not save the checkpoint of step {step}: {error}; {kept}")

    def finish(self) -> dict:
        """Evaluate the trained model and write the results. It can be done again, when something came between."""
        learner = self.learner
        with self.memory():
            after = self.held_out.summary(learner)
        with gathered(learner.model):
            return self.write_results(after) if self.is_main else {}

    def write_results(self, after: dict) -> dict:
        """Write RESULT_FILES, what a finished run leaves."""
        learner, config, folder = self.learner, self.config, self.folder
        before = read_fields(folder / "before.json", BEFORE)
        result = {
            "accuracy_before": before["all"][0],
            "accuracy_after": after["all"][0],
            "tokens_before": before["all"][1],
            "tokens_after": after["all"][1],
            "harder_accuracy_before": before["harder_accuracy"],
            "harder_accuracy_after": after["harder_accuracy"],
            "steps": learner.done,
            "seconds": round(self.seconds, 2),
            "seed": config.seed,
            "method": config.method,
            "model": config.model,
            "best_accuracy": self.best[0] if self.best[1] is not None else None,
            "best_step": self.best[1],
            "ended_early": self.ended_early,
        }
        problems = [self.held_out.problems[i] for i in self.held_out.example_indices()]
        examples = [
            {"problem": p["problem"], "answer": p["answer"], "before": b, "after": a}
            for p, b, a in zip(problems, before["responses"], after["responses"], strict=True)
        ]
        with self.writing():
            write_json(folder / "examples.json", examples)
            save_figure(plot_training(read_run(folder)), folder / "curves.png")
            save_model(without_adapters(learner.model, merged=True), learner.tokenizer, folder / "model")
            write_page(folder, result)
            write_json(folder / "result.json", result)
        self.report(format_report(before, after, len(self.held_out.problems), examples))
        steps = "1 step" if learner.done == 1 else f"{learner.done} steps"
        self.report(
            f"\n{steps} took {self.seconds:.1f} s. Written to {folder}: report.html (open it in a browser),\n"
            "curves.png, metrics.csv, result.json, and the trained model in model/."
        )
        if text := remark(folder):
            self.report(f"\n{text}")
        return {**result, "folder": str(folder)}


def sample_records(learner: Learner, groups: int = 2) -> list[dict]:
    """The last step's first groups, token by token, for `rfs samples` and the page of the run."""
    batch, advantages, records = learner.experience, learner.advantages, []
    assert batch is not None and batch.rollouts.logps is not None and advantages is not None  # after a step
    size = batch.rewards.shape[1]
    for row in range(min(groups, len(batch.examples)) * size):
        example = batch.examples[row // size]
        tokens = batch.rollouts.tokens[row, : batch.rollouts.lengths[row]].tolist()
        reward = batch.rewards[row // size, row % size].item()
        records.append({
            "step": learner.done,
            "problem": example["problem"],
            "answer": example["answer"],
            "reward": None if math.isnan(reward) else round(reward, 4),  # None: not judged
            "advantage": round(advantages[row // size, row % size].item(), 4),
            **reward_parts(learner.rewards, batch.parts[row // size, row % size].tolist()),
            "tokens": [learner.tokenizer.decode([token]) for token in tokens],
            "logps": [round(x, 3) for x in batch.rollouts.logps[row, : len(tokens)].tolist()],
        })  # fmt: skip
    return records


def reward_parts(names: Iterable[str], values: list[float]) -> dict:
    """What each of several reward functions gave, None where it did not judge; nothing where there is only one."""
    parts = {name: None if math.isnan(x) else round(x, 4) for name, x in zip(names, values, strict=True)}
    return {"parts": parts} if len(parts) > 1 else {}


def format_step(metrics: dict) -> str:
    """A step's metrics in a few words."""
    reward, right = metrics["reward_avg"], metrics["accuracy"]
    words = ["no reward" if reward is None else f"reward {reward:.2f}", "" if right is None else f"right {right:.0%}"]
    return ", ".join(filter(None, [*words, f"{metrics['avg_response_len']:.0f} tokens"]))


def format_report(before: dict, after: dict, num_problems: int, examples: list[dict]) -> str:
    """The table by level and the example answers, as text."""
    lines = [f"{'':22}{'accuracy':>18}{'mean tokens':>20}", f"{'':22}" + f"{'before':>9}{'after':>9}{'':2}" * 2]
    rows = [(level, before["levels"][level], after["levels"][level]) for level in before["levels"] if level]
    rows.append((f"all {num_problems} held-out", before["all"], after["all"]))
    if before["harder"]:
        rows += [(f"{level} (not in RL)", b, after["harder"][level]) for level, b in before["harder"].items()]
    lines += [f"{name:22}{b[0]:9.1%}{a[0]:9.1%}  {b[1]:9.1f}{a[1]:9.1f}" for name, b, a in rows]
    for example in examples:
        lines += [
            "\n" + wrapped(f"{example['problem']}  (answer: {example['answer']})"),
            wrapped(example["before"], "  before: "),
            wrapped(example["after"], "  after:  "),
        ]
    return "\n".join(lines)
