"""What goes out with a model: everything that its directory had for chatting, and weights under their plain names."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small import ids_of, make_directory, make_model, make_tokenizer

from rfs_utils import ch06
from rfs_utils.cli import main
from rfs_utils.hub.weights import load_weights, plain_names, to_hf_names
from rfs_utils.models import load_model, load_model_and_tokenizer, load_tokenizer, read_model_config, save_model
from rfs_utils.runs.export import export_model

# As Qwen3's own template does, it drops the thoughts of earlier turns; and it knows a default system turn.
TEMPLATE = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- set text = m.content %}"
    "{%- if m.role == 'assistant' and not loop.last %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
CHAT = [
    {"role": "user", "content": "What is 7+5?"},
    {"role": "assistant", "content": "<think>\n7+5=12\n</think>\n\n\\boxed{12}"},
    {"role": "user", "content": "And 12-3?"},
    {"role": "assistant", "content": "<think>\n12-3=9\n</think>\n\n\\boxed{9}"},
    {"role": "user", "content": "And twice that, näturlich?"},
]


def chat_directory(folder: Path, place: str = "tokenizer_config.json") -> Path:
    """A model directory as a maker of chat models publishes it, its template in one of the usual places."""
    make_directory(folder, chat=True)
    ids = {name: make_tokenizer().backend.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "additional": "kept"}
    if place != "tokenizer_config.json":
        del settings["chat_template"]
        (folder / place).write_text(TEMPLATE if place.endswith("jinja") else json.dumps({"chat_template": TEMPLATE}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"eos_token_id": list(ids.values()), "temperature": 0.6, "top_k": 20, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "added_tokens.json").write_text("{}")
    (folder / "LICENSE").write_text("As you like it.")
    return folder


def kept_files(folder: Path) -> dict[str, bytes]:
    """All that is not configuration of the architecture, weights or card."""
    ours = ("config.json", "model.safetensors", "README.md")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ours}


def assert_same_chat(one: Path, other: Path) -> None:
    transformers = pytest.importorskip("transformers")
    first, second = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (one, other))
    for turns in (1, 3, 5):
        options = {"conversation": CHAT[:turns], "tokenize": False, "add_generation_prompt": True}
        texts = [tokenizer.apply_chat_template(**options) for tokenizer in (first, second)]
        assert texts[0] == texts[1] and "Be brief." in texts[0]
    assert "7+5=12" not in texts[1] and first.eos_token_id == second.eos_token_id
    configs = [transformers.GenerationConfig.from_pretrained(folder).to_dict() for folder in (one, other)]
    assert configs[0] == configs[1] and len(configs[0]["eos_token_id"]) == 2


@pytest.mark.usefixtures("few_problems")
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_run_goes_out_with_the_chat_of_the_directory_it_was_trained_from(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = chat_directory(tmp_path / "source", place)
    expected = kept_files(source)
    fast = "--steps 2 --prompts-per-step 1 --num-rollouts 2 --max-new-tokens 8 --eval-every 0 --checkpoint-every 1"
    assert main(["train", "--model", "source", "--out", "r", *fast.split()]) == 0
    assert main(["export", "r", "--to", "out"]) == 0
    for folder in ("r/model", "r/checkpoints/step-00001", "out"):
        found = kept_files(tmp_path / folder)
        assert {name: found.get(name) for name in expected} == expected
        assert_same_chat(source, tmp_path / folder)
        assert load_tokenizer(tmp_path / folder).eos_token_ids == load_tokenizer(source).eos_token_ids
    assert "`<|im_end|>` or `<|endoftext|>`" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", "r/checkpoints/step-00001", "--to", "one"]) == 0
    assert_same_chat(source, tmp_path / "one")


def test_a_file_of_weights_goes_out_with_the_chat_of_its_model(tmp_path):
    source = chat_directory(tmp_path / "source")
    torch.save(make_model(seed=3).state_dict(), tmp_path / "step.pth")
    assert_same_chat(source, export_model(tmp_path / "step.pth", tmp_path / "out", source))


def test_the_files_are_those_read_whatever_happens_to_their_directory(tmp_path):
    source = chat_directory(tmp_path / "source")
    expected = kept_files(source)
    model, tokenizer = load_model_and_tokenizer(source, "cpu")
    for path in source.iterdir():
        path.unlink()
    assert kept_files(save_model(model, tokenizer, tmp_path / "out")) == expected


def test_what_was_changed_after_loading_is_written_as_it_is_now(tmp_path):
    source = chat_directory(tmp_path / "source")
    model, tokenizer = load_model_and_tokenizer(source, "cpu")
    tokenizer.set_chat(False)
    tokenizer.more_eos_token_ids = ()
    out = save_model(model, tokenizer, tmp_path / "base")
    assert load_tokenizer(out).eos_token_ids == tokenizer.eos_token_ids and not load_tokenizer(out).apply_chat_template
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and settings["additional"] == "kept"
    assert json.loads((out / "generation_config.json").read_text())["top_k"] == 20

    tokenizer = load_tokenizer(make_directory(tmp_path / "plain"))
    tokenizer.backend.add_special_tokens(["<|mine|>"])
    tokenizer.set_chat(True)
    again = load_tokenizer(save_model(make_model(), tokenizer, tmp_path / "chat"))
    assert again.encode("<|mine|>") == tokenizer.encode("<|mine|>") and again.apply_chat_template
    assert "chat_template" in json.loads((tmp_path / "chat" / "tokenizer_config.json").read_text())


def test_a_tokenizer_without_a_directory_writes_its_stop_ids_where_both_libraries_find_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer(apply_chat_template=True)
    tokenizer.more_eos_token_ids = (tokenizer.pad_token_id,)
    out = save_model(make_model(), tokenizer, tmp_path / "out")
    assert load_tokenizer(out).eos_token_ids == tokenizer.eos_token_ids
    found = transformers.AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id
    assert tuple(found) == tokenizer.eos_token_ids


def test_damaged_settings_of_a_tokenizer_are_named_before_anything_is_trained(tmp_path):
    source = chat_directory(tmp_path / "source")
    (source / "tokenizer_config.json").write_text('{"cut')
    with pytest.raises(ValueError, match="tokenizer_config.json, line 1: not valid JSON"):
        load_model_and_tokenizer(source, "cpu")


# ------------------------------------------------------------------ wrapped models


class Wrapper(torch.nn.Module):
    """As DataParallel and its kin: the model under the name `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled_blocks(model):
    model.trf_blocks = torch.nn.ModuleList(torch.compile(block) for block in model.trf_blocks)
    return model


WRAPPINGS = {
    "compiled": torch.compile,
    "wrapped": Wrapper,
    "both": lambda model: Wrapper(torch.compile(model)),
    "blocks": compiled_blocks,
    "blocks and all": lambda model: torch.compile(Wrapper(compiled_blocks(model))),
}


def same(one, other) -> bool:
    with torch.no_grad():
        return torch.equal(one(ids_of(make_model())), other(ids_of(make_model())))


@pytest.mark.parametrize("kind", WRAPPINGS)
@pytest.mark.parametrize("tied", [True, False])
def test_wrapped_models_are_written_under_plain_names_and_read_back(kind, tied, tmp_path):
    model = make_model(seed=1, tied=tied)
    wrapped = WRAPPINGS[kind](copy.deepcopy(model))
    assert set(wrapped.state_dict()) != set(model.state_dict())
    path = ch06.save_checkpoint(wrapped, tmp_path, 1)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    out = save_model(wrapped, make_tokenizer(), tmp_path / "model")
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(to_hf_names(model.state_dict()))
    for stored in (path, out / "model.safetensors"):
        fresh = make_model(seed=2, tied=tied)
        load_weights(fresh, stored)
        assert same(fresh, model)
    assert same(load_model(out), model)

    old = tmp_path / "old.pth"  # as other programs write it, the book's own among them
    torch.save(wrapped.state_dict(), old)
    named = {f"_orig_mod.{name}": tensor for name, tensor in to_hf_names(model.state_dict()).items()}
    save_file(named, tmp_path / "hub.safetensors")
    for stored in (old, tmp_path / "hub.safetensors"):
        fresh = make_model(seed=2, tied=tied)
        load_weights(fresh, stored)
        assert same(fresh, model)
    other = WRAPPINGS[kind](make_model(seed=3, tied=tied))
    load_weights(other, path)
    for name, tensor in plain_names(other.state_dict()).items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_directory_with_prefixed_names_loads(tmp_path):
    out = save_model(make_model(seed=1), make_tokenizer(), tmp_path / "model")
    state = {f"module._orig_mod.{name}": t for name, t in to_hf_names(make_model(seed=1).state_dict()).items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    assert same(load_model(out), make_model(seed=1))


def test_two_weights_of_one_name_are_refused(tmp_path):
    state = make_model().state_dict()
    save_file(state | {"module.final_norm.scale": torch.ones(32)}, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match="final_norm.scale is there twice"):
        load_weights(make_model(), tmp_path / "twice.safetensors")


# ------------------------------------------------------------------ rotary embedding


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 10_000.0}, "rope_theta": None},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "rope_theta": None},
        {"rope_scaling": {}},
    ],
)
def test_the_default_rotary_embedding_may_be_named(changes, tmp_path):
    folder = make_directory(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert read_model_config(folder / "config.json")["rope_base"] == 10_000.0
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = peer(ids_of(make_model())).logits
        torch.testing.assert_close(load_model(folder)(ids_of(make_model())), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn", "factor": 4.0}, {"type": "linear", "factor": 2}, "other", [1]])
def test_other_rotary_embeddings_are_refused(rope, tmp_path):
    folder = make_directory(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_scaling", "rope_parameters"):
        (folder / "config.json").write_text(json.dumps(config | {key: rope}))
        with pytest.raises(ValueError, match="rope_scaling = .*; supported are the default and llama3"):
            read_model_config(folder / "config.json")
