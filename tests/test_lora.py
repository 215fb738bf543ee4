"""Adapters: their gradient, what stays frozen, what is stored, and that a run with them is a run like any other."""

import csv
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import ids_of, make_directory, make_model

from rfs_utils.cli import main
from rfs_utils.data import generate_tiny_problems
from rfs_utils.decode import StackedDecoder
from rfs_utils.engine.config import FULL_LR, LORA_LR, TrainConfig
from rfs_utils.engine.learner import Learner
from rfs_utils.engine.lora import adapted, add_adapters, get_adapter, without_adapters
from rfs_utils.hub.adapters import merge, merge_adapter, write_adapter
from rfs_utils.models import load_model, load_model_and_tokenizer
from rfs_utils.qwen3 import KVCache
from rfs_utils.runs.export import export_model

LAYERS = "W_query W_key W_value out_proj fc1 fc2 fc3".split()
THEIRS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
FAST = ["--prompts-per-step", "2", "--num-rollouts", "4", "--max-new-tokens", "24", "--eval-every", "1"]
FAST += ["--lora-rank", "2", "--rewards", "small_run:every_second", "--checkpoint-every", "2"]
pytestmark = pytest.mark.usefixtures("few_problems")


def adapted_model(rank: int = 3, size: float = 0.1, dtype: torch.dtype = torch.float32, seed: int = 5):
    """A small model whose adapters are not zero."""
    model = make_model(dtype=dtype)
    add_adapters(model, rank, alpha=6.0)
    torch.manual_seed(seed)
    for _, layer in adapted(model):
        torch.nn.init.normal_(layer.B, std=size)
    return model


def bits(model) -> dict[str, torch.Tensor]:
    """The weights that must not move, under the names that they have without adapters."""
    frozen = {name: p for name, p in model.named_parameters() if name[-2:] not in (".A", ".B")}
    return {name.replace(".base", ""): p.detach().clone() for name, p in frozen.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_explicit_weights(checkpointing):
    model = adapted_model()
    plain, ids = without_adapters(model), ids_of(model)
    model.gradient_checkpointing = checkpointing
    pairs = {name: (x.A.detach().requires_grad_(), x.B.detach().requires_grad_()) for name, x in adapted(model)}
    explicit = {f"{name}.weight": plain.get_submodule(name).weight + 6 / 3 * b @ a for name, (a, b) in pairs.items()}
    torch.func.functional_call(plain, explicit, (ids,)).logsumexp(-1).square().mean().backward()
    model(ids).logsumexp(-1).square().mean().backward()
    for name, layer in adapted(model):
        for found, expected in zip((layer.A, layer.B), pairs[name], strict=True):
            assert expected.grad.abs().max() > 1e-4
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.grad is not None} == {"A", "B"}


def test_every_linear_layer_of_the_blocks_has_an_adapter_and_the_first_step_sees_the_model_as_it_was():
    model = make_model()
    ids, weights = ids_of(model), bits(model)
    before = model(ids)
    add_adapters(model, 1, alpha=32)
    names = {name for name, _ in adapted(model)}
    assert names == {f"trf_blocks.{i}.{'ff' if x[0] == 'f' else 'att'}.{x}" for i in range(2) for x in LAYERS}
    assert torch.equal(model(ids), before)
    assert all(layer.scale == 32 and layer.A.std() > 0.3 / 48**0.5 for _, layer in adapted(model))
    assert all(torch.equal(p, weights[name]) for name, p in bits(model).items())
    other = make_model()
    add_adapters(other, 1, alpha=32, seed=1)
    assert not torch.equal(dict(adapted(model))["trf_blocks.0.ff.fc1"].A, dict(adapted(other))["trf_blocks.0.ff.fc1"].A)


def test_merged_adapters_give_the_same_logits_and_the_model_stays_adapted():
    model = adapted_model()
    ids, weights = ids_of(model), bits(model)
    expected, merged = model(ids).detach(), without_adapters(model, merged=True)
    assert (expected - without_adapters(model)(ids)).abs().max() > 0.1
    torch.testing.assert_close(merged(ids), expected, rtol=1e-5, atol=1e-5)
    assert merged.tok_emb.weight is model.tok_emb.weight  # what has no adapter is there once
    assert not any(p.requires_grad for p in merged.parameters()) and not list(adapted(merged))
    assert torch.equal(model(ids), expected)
    assert all(torch.equal(p, weights[name]) for name, p in bits(model).items())


def test_the_fast_decoder_sees_the_adapters():
    model = adapted_model()
    ids, cache, other = ids_of(model), KVCache(2), KVCache(2)
    with torch.no_grad():
        model(ids, cache=cache), model(ids, cache=other)
        fast, expected = StackedDecoder(model)(ids[:, :1], cache), model(ids[:, :1], cache=other)
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


def test_a_change_below_the_grid_of_bfloat16_is_merged_on_average():
    weight = torch.full((256, 512), 1.0, dtype=torch.bfloat16)  # the next number is 1.0078
    a, b = torch.full((1, 512), 1.0), torch.full((256, 1), 1e-3)
    merged = merge(weight, a, b, 1.0)
    assert torch.equal(merged, merge(weight, a, b, 1.0)) and merged.dtype == torch.bfloat16
    assert set(merged.unique().tolist()) == {1.0, 1.0078125}
    assert merged.double().mean().item() == pytest.approx(1.001, abs=1e-4)
    assert torch.equal(merge(weight, a, b * 0, 1.0), weight)


def test_a_reference_is_the_model_without_adapters_and_no_second_copy(tokenizer):
    learner = make_learner(tokenizer, kl_coef=0.1, lr=1e-2)
    weights = bits(learner.model)
    learner.step()
    assert learner.step()["kl"] > 0
    shared = {p.data_ptr() for p in learner.model.parameters()}
    assert all(p.data_ptr() in shared for p in learner.reference.parameters())
    ids = ids_of(learner.model)
    assert torch.equal(learner.reference(ids), make_model()(ids))
    assert all(torch.equal(p, weights[name]) for name, p in bits(learner.model).items())


def make_learner(tokenizer, model=None, **settings) -> Learner:
    config = TrainConfig(**{"prompts_per_step": 2, "num_rollouts": 4, "max_new_tokens": 12, "lora_rank": 2,
                            "rewards": "small_run:every_second", **settings})  # fmt: skip
    return Learner(config, model or make_model(), tokenizer, generate_tiny_problems(20, "train"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_learn_and_frozen_weights_keep_every_bit(dtype, tokenizer):
    learner = make_learner(tokenizer, dtype=dtype)
    weights = bits(learner.model)
    before = {name: (x.A.detach().clone(), x.B.detach().clone()) for name, x in adapted(learner.model)}
    for _ in range(2):
        assert learner.step()["grad_norm"] > 0
    assert {p.dtype for p in weights.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(p, weights[name]) for name, p in bits(learner.model).items())
    for name, layer in adapted(learner.model):
        assert layer.A.dtype == layer.B.dtype == torch.float32
        assert not torch.equal(layer.A, before[name][0]) and not torch.equal(layer.B, before[name][1])
    trained = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert len(trained) == 2 * len(before) and all(p.requires_grad for p in trained)
    assert learner.optimizer.state.keys() == set(trained)
    assert all(p.grad is None for p in learner.model.parameters() if not p.requires_grad)


def test_micro_batches_add_up(tokenizer):
    grads = []
    for micro_batch in (0, 5):
        model = make_model()
        learner = make_learner(tokenizer, model, micro_batch=micro_batch)
        learner.step()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for whole, parts in zip(*grads, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- on disk


def stored_adapter(folder):
    """A model with adapters that change it, its base's directory, and its adapter's."""
    base, adapter = make_directory(folder / "base"), folder / "adapter"
    model = load_model(base)
    add_adapters(model, 3, alpha=6)
    for _, layer in adapted(model):
        torch.nn.init.normal_(layer.B, std=0.1)
    adapter.mkdir()
    write_adapter(get_adapter(model, str(base)), adapter)
    return model, base, adapter


def test_a_stored_adapter_has_pefts_names_and_comes_back(tmp_path):
    model, base, adapter = stored_adapter(tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 6, "none")
    assert config["base_model_name_or_path"] == str(base) and config["target_modules"] == sorted(THEIRS)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert len(stored) == 2 * 7 * 2
    assert stored["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (3, 48)
    assert stored["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"].shape == (32, 3)
    merged, _ = load_model_and_tokenizer(adapter, "cpu")
    ids = ids_of(model)
    torch.testing.assert_close(merged(ids), model(ids), rtol=1e-5, atol=1e-5)
    assert (merged(ids) - load_model(base)(ids)).abs().max() > 0.1


@pytest.mark.nightly
def test_peft_opens_a_stored_adapter(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    model, base, adapter = stored_adapter(tmp_path)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), adapter)
    ids = ids_of(model)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
        assert (theirs(ids).logits - load_model(base)(ids)).abs().max() > 0.1
    theirs.save_pretrained(tmp_path / "again")  # and what it writes opens here
    again = load_model(base)
    merge_adapter(again, tmp_path / "again")
    torch.testing.assert_close(again(ids), model(ids).detach(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def stored(tmp_path):
    """A model directory and an adapter of it, to be damaged."""
    model = adapted_model()
    (tmp_path / "adapter").mkdir()
    write_adapter(get_adapter(model, str(make_directory(tmp_path / "base"))), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be one of LORA; got 'IA3'"),
        ({"use_dora": True}, "use_dora must be absent, since only plain LoRA is supported; got True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern must be absent"),
        ({"r": 0}, "r must be a whole number from 1"),
        ({"r": 4}, "has no A and B of rank 4"),
        ({"lora_alpha": "6"}, "lora_alpha must be a number"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must be a text"),
        ({"base_model_name_or_path": "nowhere"}, "unknown model 'nowhere'"),
        ({"base_model_name_or_path": "adapter"}, "names itself as its model"),
        ({"base_model_name_or_path": "tiny-base"}, "does not fit the model tiny-base"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_sentence(changes, message, stored, monkeypatch, capsys):
    monkeypatch.chdir(stored.parent)
    path = stored / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert main(["export", "adapter", "--to", "out"]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not (stored.parent / "out").exists()


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "file", "truncated"])
def test_an_adapter_with_a_part_missing_is_named(part, stored, capsys):
    path = stored / "adapter_model.safetensors"
    if part == "file":
        path.unlink()
    elif part == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        tensors = load_file(path)
        save_file({name: x for name, x in tensors.items() if f"layers.0.mlp.up_proj.{part}" not in name}, path)
    assert main(["eval", "--model", str(stored), "--limit", "1"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and str(path) in err


# ---------------------------------------------------------------- runs


def test_a_run_with_adapters_resumes_exports_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *FAST, "--kl-coef", "0.05", "--steps", "4", "--out", "whole"]) == 0
    assert main(["train", *FAST, "--kl-coef", "0.05", "--steps", "2", "--out", "parts"]) == 0
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-00002"
    assert {path.name for path in checkpoint.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json",
    }  # fmt: skip
    assert checkpoint.joinpath("optimizer.safetensors").stat().st_size < 200_000  # of 0.6 M weights it would be 5 MB
    assert main(["train", "--resume", "parts", "--steps", "4"]) == 0
    for name in ("checkpoints/step-00004/adapter_model", "checkpoints/step-00004/optimizer", "model/model"):
        found, expected = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("parts", "whole"))
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    rows = [list(csv.DictReader((tmp_path / run / "metrics.csv").open())) for run in ("parts", "whole")]
    assert [[row["loss"] for row in some] for some in rows][0] == [row["loss"] for row in rows[1]]
    # The run's model is the merged one, and an export of its last checkpoint the same.
    with safe_open(tmp_path / "whole" / "model" / "model.safetensors", framework="pt") as file:
        assert not any("lora" in name for name in file.keys())
    export_model(tmp_path / "whole" / "checkpoints" / "step-00004", tmp_path / "exported")
    export_model(tmp_path / "whole", tmp_path / "too")
    models = [load_model(folder) for folder in (tmp_path / "exported", tmp_path / "too")]
    ids = ids_of(models[0])
    torch.testing.assert_close(models[0](ids), models[1](ids), rtol=1e-5, atol=1e-5)
    start, _ = load_model_and_tokenizer("tiny-base", "cpu")
    assert (start(ids) - models[0](ids)).abs().max() > 0.01
    for words in (["eval", "--model", "whole", "--limit", "3"], ["samples", "whole"]):
        assert main(words) == 0
    assert main(["eval", "--model", "whole/checkpoints/step-00004", "--limit", "3"]) == 0
    # It asks as it was trained.
    words = ["--prompt", "few-shot", "--stop", "\n", "--steps", "2", "--out", "asked"]
    assert main(["train", *FAST, *words]) == 0
    for folder in ("asked", "asked/checkpoints/step-00002"):
        _, asked = load_model_and_tokenizer(folder, "cpu")
        assert asked.stop == "\n" and "{problem}" in asked.prompt
    # A run on top of an adapter, whose checkpoint goes back through both to the model.
    assert main(["train", *FAST, "--model", "whole/checkpoints/step-00004", "--steps", "2", "--out", "more"]) == 0
    assert main(["export", "more/checkpoints/step-00002", "--to", "end"]) == 0
    torch.testing.assert_close(load_model("end")(ids), load_model("more/model")(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-rank", "0"], "--lora-rank must be a whole number from 1"),
        (["--lora-rank", "-3"], "--lora-rank must be a whole number from 1"),
        (["--lora-rank", "65"], "--lora-rank must be from 1 to 64, the width of the narrowest layer; got 65"),
        (["--lora-rank", "2", "--lora-alpha", "0"], "--lora-alpha must be a number from 1e-06"),
        (["--lora-rank", "2", "--lora-alpha", "-1"], "--lora-alpha must be a number from 1e-06"),
        (["--lora-rank", "2", "--shard"], "expected only one of the two"),
    ],
)
def test_settings_that_make_no_sense(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_adapters_have_a_learning_rate_of_their_own():
    assert TrainConfig().lr == FULL_LR and TrainConfig(lora_rank=1).lr == LORA_LR > FULL_LR
    assert TrainConfig(lora_rank=1, lr=1e-5).lr == 1e-5


def test_a_damaged_checkpoint_of_adapters_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *FAST, "--steps", "2", "--out", "run"]) == 0
    path = tmp_path / "run" / "checkpoints" / "step-00002" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: x for name, x in tensors.items() if "layers.2" not in name}, path)
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--steps", "3"]) == 2
    assert "the adapter is one of other layers" in capsys.readouterr().err
