"""The way of a prompt to a gradient: the modules that one step of training enters, in the order of first calls.

    python tools/way.py

A function counts once, when it is first called; a module entered again after another one is a return.
"""

import sys
from pathlib import Path


def first_calls(run) -> list[tuple[str, str]]:
    """Module and function of the package's functions that `run()` calls, in the order of their first calls."""
    calls: dict[tuple[str, str], None] = {}

    def note(frame, event, argument):
        code = frame.f_code
        name = code.co_filename.replace("\\", "/")  # on Windows
        if event == "call" and "/rfs_utils/" in name and not code.co_name.startswith("<"):
            module = name.rpartition("/rfs_utils/")[2].removesuffix(".py")
            calls.setdefault((module, code.co_qualname if hasattr(code, "co_qualname") else code.co_name), None)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(calls)


def first_calls_of_a_step() -> list[tuple[str, str]]:
    """The calls of one step of GRPO with a KL term, on the tiny model."""
    from rfs_utils.engine.config import TrainConfig
    from rfs_utils.engine.learner import Learner, training_problems
    from rfs_utils.models import load_model_and_tokenizer

    config = TrainConfig(prompts_per_step=2, num_rollouts=4, kl_coef=0.01)
    learner = Learner(config, *load_model_and_tokenizer("tiny-base", "cpu"), training_problems(config))
    return first_calls(learner.step)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    way: list[list] = []
    for module, function in first_calls_of_a_step():
        if not way or way[-1][0] != module:
            way.append([module, []])
        way[-1][1].append(function)
    for module, functions in way:
        print(f"{module:22} {', '.join(functions)}")
    modules = {module for module, _ in way}
    print(f"\n{len(modules)} modules, {len(way) - len(modules)} returns to one that was left before")


if __name__ == "__main__":
    main()
