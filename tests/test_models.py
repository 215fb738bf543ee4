"""Loading, saving and exporting: equal logits here and in `transformers`, from every kind of file; clear refusals."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import ids_of, make_directory, make_model, make_tokenizer

from rfs_utils import models
from rfs_utils.cli import main
from rfs_utils.data import render_prompt
from rfs_utils.evaluate import evaluate_model
from rfs_utils.hub.weights import from_hf_names, to_hf_names
from rfs_utils.models import (
    load_model,
    load_model_and_tokenizer,
    load_tokenizer,
    load_weights,
    model_directory,
    native_dtype,
    read_model_config,
    save_model,
)
from rfs_utils.runs.export import export_model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_of(model))


def same_logits(a, b) -> bool:
    return torch.equal(logits(a), logits(b))


def peer_logits(directory: Path, model) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return peer(ids_of(model)).logits


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def with_own_head(model) -> dict:
    """A state dict in the book's names whose head was trained away from the embedding."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["out_head.weight"] = state["tok_emb.weight"] + 0.05 * torch.randn_like(state["tok_emb.weight"])
    return state


# ------------------------------------------------------------------ directories


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_with_equal_logits_here_and_in_transformers(tmp_path, tied):
    model = make_model(tied=tied)
    directory = save_model(model, make_tokenizer(), tmp_path / "model")
    loaded, tokenizer = load_model_and_tokenizer(directory, "cpu")
    assert same_logits(loaded, model) and not loaded.training
    assert loaded.cfg == model.cfg | {"tied": tied, "qk_norm": True, "qkv_bias": False, "rope_scaling": None}
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    assert tokenizer.encode("Tom has 7 coins.") == make_tokenizer().encode("Tom has 7 coins.")
    torch.testing.assert_close(peer_logits(directory, model), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_directory_written_by_transformers_loads(tmp_path, tied, shard_size):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=tied, eos_token_id=1,
    )  # fmt: skip
    peer = transformers.Qwen3ForCausalLM(config).eval()
    peer.save_pretrained(tmp_path, max_shard_size=shard_size)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_size == "40KB")
    model = load_model(tmp_path)
    with torch.no_grad():
        expected = peer(ids_of(model)).logits
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_kept_on_disk_and_in_memory_and_dtype_overrides_it(tmp_path):
    directory = make_directory(tmp_path / "model", dtype=torch.bfloat16)
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(directory).tok_emb.weight.dtype == torch.bfloat16
    model = load_model(directory, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.cfg["dtype"] == torch.float32


def test_config_states_the_type_of_the_weights_not_of_the_config_they_came_from(tmp_path):
    model = make_model(dtype=torch.bfloat16).float()
    assert same_logits(load_model(save_model(model, make_tokenizer(), tmp_path / "model")), model)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's peak memory")
def test_loading_holds_one_copy_of_the_weights(tmp_path):
    directory = make_directory(tmp_path / "model", emb_dim=512, n_layers=8, hidden_dim=2048)
    size = (directory / "model.safetensors").stat().st_size
    assert size > 100e6

    def memory(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        pytest.skip("this kernel does not reset the peak")
    before = memory("VmRSS")
    model = load_model(directory)
    assert model.cfg["emb_dim"] == 512
    assert memory("VmHWM") - before < 1.25 * size


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mistral"}, "supported are qwen3, qwen2, llama"),
        ({"model_type": "llama"}, "does not fit"),
        ({"hidden_size": ...}, "lacks hidden_size"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_scaling"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"hidden_size": 64}, "does not fit"),
        ({"tie_word_embeddings": False}, "no output head"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, changes, words):
    directory = make_directory(tmp_path / "model")
    edit_json(directory / "config.json", **changes)
    with pytest.raises(ValueError, match=words):
        load_model(directory)


def test_rope_parameters_of_newer_transformers_are_read(tmp_path):
    directory = make_directory(tmp_path / "model")
    parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    edit_json(directory / "config.json", rope_theta=..., rope_parameters=parameters)
    assert read_model_config(directory / "config.json")["rope_base"] == 10_000.0


def test_tokenizer_with_more_tokens_than_embedding_rows_is_refused(tmp_path):
    directory = make_directory(tmp_path / "model", vocab_size=64)
    with pytest.raises(ValueError, match="do not belong together"):
        load_model_and_tokenizer(directory, "cpu")


# ------------------------------------------------------------------ shards


@pytest.fixture
def sharded(tmp_path):
    """A model directory whose weights are in two files."""
    directory = make_directory(tmp_path / "model")
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_shards_load_as_one(sharded):
    assert same_logits(load_model(sharded), make_model())


def test_missing_shard_is_refused(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="1 weight files are missing"):
        load_model(sharded)


def test_shard_cut_short_is_refused(sharded):
    shard = sharded / "model-00002-of-00002.safetensors"
    os.truncate(shard, int(shard.stat().st_size * 0.4))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_model(sharded)


def test_index_that_does_not_match_its_shards_is_refused(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="do not match"):
        load_model(sharded)
    index.write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        load_model(sharded)


def test_directory_without_weights_is_refused(tmp_path):
    directory = make_directory(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        load_model(directory)


# ------------------------------------------------------------------ checkpoints


def test_state_dict_of_the_book_with_an_equal_head_is_shared(tmp_path):
    trained = make_model(seed=1)
    state = trained.state_dict()
    torch.save(state | {"out_head.weight": state["tok_emb.weight"].clone()}, tmp_path / "book.pth")
    model = make_model(seed=2)
    load_weights(model, tmp_path / "book.pth")
    assert same_logits(model, trained)
    assert "out_head.weight" not in model.state_dict()


@pytest.mark.parametrize("kind", ["book.pth", "book.safetensors", "hub.safetensors"])
def test_head_that_differs_from_the_embedding_is_kept(tmp_path, kind):
    state = with_own_head(make_model(seed=1))
    expected = make_model(tied=False)
    expected.load_state_dict(state)
    state = to_hf_names(state) if kind.startswith("hub") else state
    (torch.save if kind.endswith(".pth") else save_file)(state, tmp_path / kind)
    model = make_model(seed=2)
    load_weights(model, tmp_path / kind)
    assert same_logits(model, expected)
    assert model.cfg["tied"] is False

    directory = save_model(model, make_tokenizer(), tmp_path / "model")
    assert same_logits(load_model(directory), expected)
    torch.testing.assert_close(peer_logits(directory, model), logits(expected), rtol=1e-5, atol=1e-5)

    shared = make_model(seed=3)
    save_file(shared.state_dict(), tmp_path / "shared.safetensors")
    load_weights(model, tmp_path / "shared.safetensors")  # the same model again, back to a shared head
    assert same_logits(model, shared)


def test_file_with_its_own_head_wins_over_the_config_as_in_transformers(tmp_path):
    directory = make_directory(tmp_path / "model")
    state = with_own_head(make_model())
    save_file(to_hf_names(state), directory / "model.safetensors", metadata={"format": "pt"})
    model = load_model(directory)
    assert torch.equal(model.out_head.weight, state["out_head.weight"])
    torch.testing.assert_close(peer_logits(directory, model), logits(model), rtol=1e-5, atol=1e-5)


def test_names_of_the_hub_and_of_the_book_translate_both_ways():
    state = make_model(tied=False).state_dict()
    assert from_hf_names(to_hf_names(state)).keys() == state.keys()
    assert "model.layers.1.self_attn.q_norm.weight" in to_hf_names(state)


class Malicious:
    """Unpickled without `weights_only`, this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def broken_checkpoints(folder: Path) -> dict[str, str]:
    """Files that are no weights of the model, and words of what must be said about each."""
    state = make_model(seed=1).state_dict()
    for name, save in (("cut.safetensors", save_file), ("cut.pth", torch.save)):
        save(state, folder / name)
        os.truncate(folder / name, int((folder / name).stat().st_size * 0.4))
    (folder / "page.safetensors").write_text("<html>Not found</html>")
    (folder / "empty.pth").touch()
    torch.save({"model": state, "step": 3}, folder / "nested.pth")
    torch.save(Malicious(folder / "attacked"), folder / "malicious.pth")
    torch.save({k: v for k, v in state.items() if k != "final_norm.scale"}, folder / "less.pth")
    save_file(make_model(emb_dim=64).state_dict(), folder / "wider.safetensors")
    return {
        "none.pth": "there is no checkpoint", "cut.safetensors": "damaged or incomplete", "cut.pth": "cannot be read",
        "page.safetensors": "damaged or incomplete", "empty.pth": "cannot be read", "nested.pth": "no state dict",
        "malicious.pth": "cannot be read", "less.pth": "1 weights differ.*final_norm", "wider.safetensors": "not fit",
    }  # fmt: skip


def test_broken_checkpoints_are_refused_and_leave_the_model_as_it_was(tmp_path):
    model, untouched = make_model(), make_model()
    for name, words in broken_checkpoints(tmp_path).items():
        with pytest.raises(ValueError, match=words) as caught:
            load_weights(model, tmp_path / name)
        assert "\n" not in str(caught.value), name
        assert same_logits(model, untouched), name
    assert not (tmp_path / "attacked").exists()


# ------------------------------------------------------------------ names, devices, formats


def test_names_of_the_registry_and_of_the_book(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(models, "download_model", lambda repo, folder: asked.append((repo, folder)) or tmp_path)
    for name in ("base", "qwen3-0.6b-base", "reasoning", "qwen3-0.6b"):
        assert model_directory(name) == tmp_path
    assert [repo for repo, _ in asked] == ["Qwen/Qwen3-0.6B-Base"] * 2 + ["Qwen/Qwen3-0.6B"] * 2
    model_directory("base", local_dir=tmp_path / "downloads")
    assert asked[-1] == ("Qwen/Qwen3-0.6B-Base", tmp_path / "downloads")
    assert model_directory("tiny-base") == models.WEIGHTS_DIR / "tiny-base"
    with pytest.raises(ValueError, match="tiny-base, tiny-reasoning, qwen3-0.6b-base, qwen3-0.6b, .*, or the path"):
        model_directory("qwen4")


def test_local_dir_that_holds_a_model_is_read_without_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "download_model", lambda *args: pytest.fail("the hub was asked"))
    directory = make_directory(tmp_path / "model", chat=True)
    model, tokenizer = load_model_and_tokenizer("base", "cpu", local_dir=directory)
    assert same_logits(model, make_model())
    assert tokenizer.eos_token == "<|endoftext|>"  # the name says base


@pytest.mark.parametrize(
    "kind, capability, expected",
    [("cuda", (7, 5), torch.float32), ("cuda", (8, 0), torch.bfloat16), ("cuda", (9, 0), torch.bfloat16)],
)
def test_bfloat16_only_where_the_gpu_calculates_in_it(monkeypatch, kind, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)  # what a T4 answers
    assert native_dtype(torch.bfloat16, kind) == expected
    assert native_dtype(torch.float16, kind) == torch.float16


def test_bfloat16_on_cpu_and_on_apple_silicon(monkeypatch):
    assert native_dtype(torch.bfloat16, "cpu") == torch.bfloat16
    for newer, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version, newer=newer: newer)
        assert native_dtype(torch.bfloat16, "mps") == expected


def test_the_stop_token_decides_about_the_chat_format_not_the_template(tmp_path):
    tokenizer = make_tokenizer()
    end_of_text, end_of_turn = (tokenizer.backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    base = make_directory(tmp_path / "base")
    edit_json(base / "tokenizer_config.json", chat_template="{{ messages }}")  # as Qwen/Qwen3-0.6B-Base has one
    assert load_tokenizer(base).eos_token == "<|endoftext|>"
    assert load_tokenizer(base).encode("Hi") == load_tokenizer(base).encode("Hi", chat_wrapped=False)

    chat = make_directory(tmp_path / "chat", chat=True)
    assert load_tokenizer(chat).eos_token_id == end_of_turn
    edit_json(chat / "config.json", eos_token_id=end_of_text)
    assert load_tokenizer(chat).eos_token_id == end_of_text
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [end_of_turn, end_of_text]}))
    assert load_tokenizer(chat).eos_token_id == end_of_turn  # as Qwen/Qwen3-0.6B has it
    assert load_tokenizer(chat, chat=False).eos_token_id == end_of_text


# ------------------------------------------------------------------ export


def test_export_of_a_run_folder_opens_in_transformers_with_equal_logits(tmp_path, capsys):
    make_directory(tmp_path / "run" / "model", seed=4, chat=True)
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    model = make_model(seed=4)
    torch.testing.assert_close(peer_logits(tmp_path / "out", model), logits(model), rtol=1e-5, atol=1e-5)


def test_export_of_a_checkpoint_keeps_the_tokenizer_files_of_its_model(tmp_path):
    base = make_directory(tmp_path / "base")
    edit_json(base / "tokenizer_config.json", chat_template="{{ 'kept' }}")
    (base / "generation_config.json").write_text('{"eos_token_id": 3}')
    state = with_own_head(make_model(seed=5))
    torch.save(state, tmp_path / "step.pth")
    export_model(tmp_path / "step.pth", tmp_path / "out", base)
    expected = make_model(tied=False)
    expected.load_state_dict(state)
    torch.testing.assert_close(peer_logits(tmp_path / "out", expected), logits(expected), rtol=1e-5, atol=1e-5)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("name", models.SHIPPED)
def test_the_program_in_the_card_of_an_exported_model_prints_its_greedy_answer(name, tmp_path):
    pytest.importorskip("transformers")
    card = (export_model(models.WEIGHTS_DIR / name, tmp_path / "mine") / "README.md").read_text(encoding="utf-8")
    model, tokenizer = load_model_and_tokenizer(name, "cpu")
    assert "# mine" in card and f"from `{name}`" in card
    assert render_prompt("PROBLEM") in card and f"ends with `{tokenizer.eos_token}`" in card
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "mine", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    problem = re.search(r'problem = "(.*)"', program)[1]
    (record,) = evaluate_model(model, tokenizer, [{"problem": problem, "answer": "9"}], max_new_tokens=256).records
    assert done.stdout == record["response"] + tokenizer.eos_token + "\n"


def test_export_refuses_what_it_cannot_do_and_overwrites_nothing(tmp_path, capsys):
    base = make_directory(tmp_path / "base")
    other = make_directory(tmp_path / "other", seed=9)
    before = (other / "model.safetensors").read_bytes()
    torch.save(make_model().state_dict(), tmp_path / "step.pth")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([base, "--to", other], "exists already and is not empty"),
        ([tmp_path / "step.pth", "--to", tmp_path / "new"], "say with --model"),
        ([tmp_path / "empty", "--to", tmp_path / "new"], "neither a run folder"),
        ([tmp_path / "nowhere", "--to", tmp_path / "new"], "neither a run folder"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.startswith("rfs: error: ") and error.count("\n") == 1
    assert (other / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_save_model_overwrites_only_models(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a model directory"):
        save_model(make_model(), make_tokenizer(), tmp_path / "notes")
    assert [p.name for p in tmp_path.rglob("*")] == ["notes", "text.txt"]
    make_directory(tmp_path / "model", seed=1)
    make_directory(tmp_path / "model", seed=2)
    assert same_logits(load_model(tmp_path / "model"), make_model(seed=2))
