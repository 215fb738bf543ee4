"""Losses and gradients equal those of TRL's GRPOTrainer and RLOOTrainer where both have a method.

Runs where trl is installed (`pip install "rfs-utils[bench]"`); the usual environment does without.
"""

import pytest
import torch

from rfs_utils.ch06 import Rollouts, response_logprobs
from rfs_utils.ch07 import METHODS, compute_advantages, policy_loss
from rfs_utils.models import WEIGHTS_DIR, load_model_and_tokenizer

pytestmark = pytest.mark.nightly
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

LIMIT = 12
OFF_POLICY = {"off_policy_mask_threshold": 0.1}
SAME = {  # a row of METHODS, changes to it, and the settings of GRPOConfig that mean the same
    "grpo": ("grpo_mean", {}, {"loss_type": "grpo"}),
    "token mean": ("grpo_mean", {"aggregate": "token_mean"}, {"loss_type": "bnpo"}),
    "dr_grpo": ("dr_grpo", {}, {"loss_type": "dr_grpo"}),
    "dapo": ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        "gspo", {"clip_low": 0.05, "clip_high": 0.1},  # a range that leaves some of these sequences a gradient
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.1},
    ),
    "cispo": ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "sapo": ("sapo", {}, {"loss_type": "sapo"}),
    "k3": (
        "grpo_mean", {"kl_coef": 0.3, "kl": "k3"},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    "ratio k3": (
        "grpo_mean", {"kl_coef": 0.3, "kl": "ratio_k3"},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "off-policy mask": ("off_policy_mask", {"aggregate": "sequence_mean"}, {"loss_type": "grpo"} | OFF_POLICY),
}  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> tuple[Rollouts, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six made-up rollouts of two prompts with log-probabilities of an older policy and a reference, and advantages."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 5, 1, 9, 12, 7])
    num_pad = torch.tensor([0, 0, 0, 3, 3, 3])
    prompts = torch.randint(5, 250, (2, 9), generator=generator).repeat_interleave(3, dim=0)
    tokens = torch.randint(5, 250, (6, 12), generator=generator)
    tokens[torch.arange(12) >= lengths[:, None]] = 0
    rollouts = Rollouts(prompts, num_pad, tokens, lengths, [""] * 6)
    model, _ = load_model_and_tokenizer("tiny-base", "cpu")
    with torch.no_grad():
        logps = response_logprobs(model, rollouts)
    old, ref = (logps + scale * torch.randn(logps.shape, generator=generator) for scale in (0.3, 0.5))
    advantages = compute_advantages(torch.rand(2, 3, generator=generator), METHODS["grpo"]).flatten()
    return rollouts, old * rollouts.mask, ref * rollouts.mask, advantages


@pytest.mark.parametrize("name", SAME)
def test_loss_and_gradient_equal_trl(name, batch, tmp_path):
    method, changes, settings = SAME[name]
    rollouts, old, ref, advantages = batch
    model, _ = load_model_and_tokenizer("tiny-base", "cpu")
    chosen = METHODS[method].changed(**changes)
    logps = response_logprobs(model, rollouts)
    total = 6.0 * LIMIT if chosen.aggregate == "constant" else None
    ours = policy_loss(logps, old, ref, advantages, rollouts.mask, chosen, total=total)
    ours.backward()

    compare_with(trl_loss(settings, batch, tmp_path), ours, model)


def test_truncated_importance_sampling_equals_trl(batch, tmp_path):
    """TRL computes these weights where it samples with vLLM; they are given to it here."""
    rollouts, old, _, advantages = batch
    sampler = (old + 0.7 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))) * rollouts.mask
    model, _ = load_model_and_tokenizer("tiny-base", "cpu")
    logps = response_logprobs(model, rollouts)
    chosen = METHODS["tis"].changed(aggregate="sequence_mean")
    ours = policy_loss(logps, old, None, advantages, rollouts.mask, chosen, sampler)
    ours.backward()
    weights = (old - sampler).exp().clamp(max=2.0)
    assert (weights == 2.0).any()
    compare_with(trl_loss({"loss_type": "grpo"}, batch, tmp_path, weights), ours, model)


def test_rloo_equals_trl(batch, tmp_path):
    rollouts, old, ref, advantages = batch
    model, _ = load_model_and_tokenizer("tiny-base", "cpu")
    logps = response_logprobs(model, rollouts)
    wide = METHODS["rloo"].changed(clip_low=0.9, clip_high=2.0)  # leaves some of these sequences a gradient
    ours = policy_loss(logps, old, None, advantages, rollouts.mask, wide)
    ours.backward()
    settings = {"epsilon": 0.9, "epsilon_high": 2.0}
    compare_with(trl_loss(settings, batch, tmp_path, trainers=(trl.RLOOConfig, trl.RLOOTrainer)), ours, model)


def compare_with(trl_found: tuple[float, dict[str, torch.Tensor]], ours: torch.Tensor, model) -> None:
    """TRL's loss and gradients beside our loss and the gradients of our model."""
    theirs, gradient = trl_found
    assert abs(theirs) > 1e-5
    assert ours.item() == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for mine, other in (
        (model.tok_emb.weight, "model.embed_tokens.weight"),
        (model.trf_blocks[1].att.W_query.weight, "model.layers.1.self_attn.q_proj.weight"),
    ):
        size = gradient[other].abs().max().item()
        assert size > 1e-4
        torch.testing.assert_close(mine.grad, gradient[other], rtol=1e-3, atol=1e-5 * size)


def trl_loss(
    settings: dict, batch, folder, weights=None, trainers=(trl.GRPOConfig, trl.GRPOTrainer)
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of TRL's trainer on the batch, and the gradients by name; `weights`, (N, T), correct for the sampler."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rollouts, old, ref, advantages = batch
    path = WEIGHTS_DIR / "tiny-base"
    config = trainers[0](
        output_dir=str(folder), per_device_train_batch_size=6, num_generations=3, max_completion_length=LIMIT,
        use_cpu=True, bf16=False, report_to=[], **settings,
    )  # fmt: skip
    trainer = trainers[1](
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(path),
        args=config,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * 6),
    )
    trainer.model.eval()
    if weights is not None:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    mask = rollouts.mask.long()
    loss = trainer._compute_loss(trainer.model, {
        "prompt_ids": rollouts.prompt_ids,
        "prompt_mask": (torch.arange(9) >= rollouts.num_pad[:, None]).long(),
        "completion_ids": rollouts.tokens,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "old_logps": old.sum(dim=1),
        "importance_sampling_ratio": weights,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    })  # fmt: skip
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}
