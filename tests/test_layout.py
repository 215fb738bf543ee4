"""The package's layout: which part may import which."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "rfs_utils"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES["__init__"] = PACKAGE / "__init__.py"


def imports(name: str, inside_functions: bool = True) -> set[str]:
    """The modules of the package that a module imports; those named in strings and by importlib are not seen."""
    path = MODULES[name]
    here = path.parent.relative_to(PACKAGE).parts
    found = set()
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    if not inside_functions:
        nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("rfs_utils.") for name in names if name.startswith("rfs_utils.")}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
        elif (node.module or "").split(".")[0] == "rfs_utils":
            base = node.module.split(".")[1:]
        else:
            continue
        base = ".".join(part for part in base if part)
        for alias in node.names:
            below = f"{base}.{alias.name}".strip(".")
            found.add(below if below in MODULES else base)
    return found - {""}


def part(module: str) -> str:
    """The folder that a module is in, "root" for the package itself."""
    folder = module.split(".")[0]
    return folder if (PACKAGE / folder).is_dir() else "root"


FORBIDDEN = {  # part: what it must not import
    "root": {"engine", "runs", "exercises"},
    "grading": {"root", "files", "hub", "engine", "runs", "exercises"},
    "files": {"root", "grading", "hub", "engine", "runs", "exercises"},
    "hub": {"engine", "runs", "exercises"},
    "engine": {"runs", "exercises"},
    "runs": {"exercises"},
    "exercises": set(),
}


@pytest.mark.parametrize("name", MODULES)
def test_each_part_imports_only_what_is_below_it(name):
    if name == "cli":  # it starts everything, and imports it when a command asks for it
        assert {part(module) for module in imports(name, inside_functions=False)} <= {"root", "files"}
        return
    wrong = {module for module in imports(name) if part(module) in FORBIDDEN[part(name)]}
    assert not wrong, f"rfs_utils/{name.replace('.', '/')}.py imports {', '.join(sorted(wrong))}"


def test_there_are_no_circles():
    waiting = {name: imports(name, inside_functions=False) - {name} for name in MODULES}
    waiting = {name: {module for module in found if module in MODULES} for name, found in waiting.items()}
    while True:
        free = {name for name, found in waiting.items() if not found & waiting.keys()}
        if not free:
            break
        waiting = {name: found for name, found in waiting.items() if name not in free}
    assert not waiting, f"these modules import each other in a circle: {', '.join(sorted(waiting))}"


def test_problems_need_neither_torch_nor_requests():
    heavy = ("torch", "requests", "huggingface_hub")
    code = f"import sys; import rfs_utils.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BOOK = {  # where readers of the printed book find its names
    "models": "get_device load_model_and_tokenizer download_qwen3_grpo_checkpoints",
    "data": "render_prompt load_math_train load_math500_test",
    "sampling": "top_p_filter generate_text_stream_concat_flex generate_text_top_p_stream_cache avg_logprob_answer",
    "qwen3": "KVCache Qwen3Model",
    "tokenizer": "Qwen3Tokenizer",
    "grading": "extract_final_candidate grade_answer",
    "ch06": "sample_response reward_rlvr sequence_logprob compute_grpo_loss train_rlvr_grpo save_checkpoint "
    "append_csv_metrics",
    "ch07": "moving_average plot_grpo_metrics compute_advantage_stats sequence_logprob_and_entropy reward_format",
    "exercises.ex06": "partial_reward_rlvr",
}


@pytest.mark.parametrize("module", BOOK)
def test_the_printed_books_names_are_importable(module):
    found = importlib.import_module(f"rfs_utils.{module}")
    assert all(callable(getattr(found, name)) for name in BOOK[module].split())
