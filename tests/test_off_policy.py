"""Samples from another model, what ratios compare with, and rules for which tokens learn."""

import pytest
import torch
from small import make_model
from test_trainer import give_rewards, small_learner

from rfs_utils.ch07 import METHODS, entropy_of, policy_loss, sequence_logprob_and_entropy
from rfs_utils.engine.config import TrainConfig
from rfs_utils.engine.samplers import Sampler, rounded
from rfs_utils.off_policy import (
    clip_cov,
    entropy_bonus,
    kl_cov,
    response_entropies,
    round_rows,
    token_covariances,
    top_entropy,
    top_share,
)

REWARDS = 1.0, 0.0, 0.0, 1.0, 0.0, 1.0


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_rows_lie_on_a_grid_of_their_own(bits):
    weight = torch.randn(5, 300) * torch.tensor([[1.0], [10.0], [0.1], [1.0], [0.0]])
    found = round_rows(weight, bits)
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - weight).abs() <= step / 2 * 1.001).all() and not found.equal(weight)
    assert all(1 <= len(row.unique()) <= 2**bits - 1 for row in found) and not found[4].any()


def test_a_sampler_is_the_model_or_a_copy_that_stays_as_it_was():
    model = make_model()
    assert Sampler("same").at(1, model) is model
    assert {p.dtype for p in Sampler("bfloat16").at(1, model).parameters()} == {torch.bfloat16}
    assert model.tok_emb.weight.dtype == torch.float32
    int8 = Sampler("int8").at(1, model)
    assert 0 < (int8.tok_emb.weight - model.tok_emb.weight).abs().max() < 0.05
    assert int8.final_norm.scale.equal(model.final_norm.scale), "only matrices are rounded"
    stale, seen = Sampler("stale:3"), []
    for step in range(1, 8):
        with torch.no_grad():
            model.tok_emb.weight.fill_(float(step))
        seen.append(stale.at(step, model).tok_emb.weight[0, 0].item())
    assert seen == [1, 1, 1, 4, 4, 4, 7]


def test_samples_and_their_log_probs_are_the_samplers(tokenizer):
    learner = small_learner(tokenizer, sampler="int4")
    other = rounded(learner.model, "int4")
    learner.done = 1
    rollouts = learner.collect().rollouts
    torch.testing.assert_close(rollouts.logps, learner.updater.score(other, rollouts), atol=1e-4, rtol=1e-4)
    assert (rollouts.logps - learner.updater.score(learner.model, rollouts)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"updates_per_step": 2}, "sampler"),
        ({"updates_per_step": 2, "ratio_to": "trainer"}, "sampler"),  # which is the trainer
        ({"sampler": "int4"}, "sampler"),
        ({"sampler": "int4", "ratio_to": "trainer"}, None),
        ({"sampler": "int4", "minibatches": 2, "ratio_to": "trainer"}, "trainer"),
        ({"sampler": "int4", "updates_per_step": 2}, "sampler"),
        ({"sampler": "int4", "method": "cispo"}, "sampler"),
        ({"sampler": "int4", "method": "tis"}, "trainer"),
        ({"sampler": "int4", "method": "icepop", "ratio_to": "trainer"}, "trainer"),
    ],
)
def test_what_ratios_compare_with(settings, expected, tokenizer):
    learner = small_learner(tokenizer, **settings)
    learner.done = 1
    rollouts = learner.collect().rollouts
    old = learner.updater.old_logps(rollouts)
    known = {"sampler": rollouts.logps, "trainer": learner.updater.score(learner.model, rollouts)}
    assert old is None if expected is None else old.equal(known[expected])


def test_a_stale_sampler_is_clipped_only_where_ratios_compare_with_it(tokenizer):
    for ratio_to, clipped in (("sampler", True), ("trainer", False)):
        learner = small_learner(tokenizer, sampler="stale:2", ratio_to=ratio_to)
        fractions = []
        for _ in range(2):
            give_rewards(learner, *REWARDS)
            fractions.append(learner.step()["clip_fraction"])
        assert fractions[0] == 0 and (fractions[1] > 0) == clipped, ratio_to


def test_the_largest_share_is_taken_from_the_mask_alone():
    values = torch.tensor([[5.0, 1.0, 9.0], [3.0, 4.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    assert top_share(values, mask, 0.5).tolist() == [[True, False, False], [False, True, False]]
    assert not top_share(values, mask, 0.0).any()
    assert top_share(values, mask, 1.0).equal(mask.bool())


def test_parts_of_the_covariance_add_up_to_it_and_rules_choose_the_largest():
    torch.manual_seed(0)
    logps, advantages = -torch.rand(3, 4), torch.tensor([[1.0], [-0.5], [0.3]]).expand(3, 4)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    parts = token_covariances(advantages, logps, mask)
    pair = torch.stack([advantages[mask.bool()], logps[mask.bool()]])
    torch.testing.assert_close(parts.sum() / mask.sum(), torch.cov(pair, correction=0)[0, 1])
    left, _ = clip_cov(2 / 9, advantages, logps, mask, None)
    same, held = kl_cov(2 / 9, advantages, logps, mask, None)
    chosen = parts >= parts[mask.bool()].topk(2).values[-1]
    assert left.equal(advantages.masked_fill(chosen, 0.0)) and held.bool().equal(chosen) and same is advantages


def test_the_bonus_has_the_gradient_of_the_entropy():
    logits = torch.randn(7, requires_grad=True)
    logp, ones = torch.log_softmax(logits, 0)[:, None], torch.ones(7, 1)
    bonus, _ = entropy_bonus(0.5, torch.zeros(7, 1), logp.detach(), ones, None)
    loss = policy_loss(logp, None, None, bonus * logp.detach().exp(), ones, METHODS["grpo"], total=1)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(-0.5 * entropy_of(logp[:, 0]), logits)[0])


def test_entropies_of_padded_answers_are_those_of_each_alone(tokenizer):
    learner = small_learner(tokenizer)
    learner.done = 1
    rollouts = learner.collect().rollouts
    found = response_entropies(learner.model, rollouts)
    for row, length in enumerate(rollouts.lengths.tolist()):
        pad = 0 if rollouts.num_pad is None else int(rollouts.num_pad[row])
        ids = torch.cat([rollouts.prompt_ids[row, pad:], rollouts.tokens[row, :length]])
        mean = sequence_logprob_and_entropy(learner.model, ids, len(ids) - length)[1]
        torch.testing.assert_close(found[row].sum() / length, mean, atol=1e-4, rtol=1e-4)
    advantages = torch.ones_like(found)
    learns = top_entropy(0.2, advantages, rollouts.logps, rollouts.mask, lambda: found)[0].bool()
    assert learns.sum() == round(0.2 * rollouts.mask.sum().item())
    assert found[learns].min() >= found[~learns].max()


def weights_after(tokenizer, *rewards, **settings):
    learner = small_learner(tokenizer, **settings)
    give_rewards(learner, *rewards)
    learner.step()
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def test_rules_decide_which_tokens_move_the_weights(tokenizer):
    start = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    plain = weights_after(tokenizer, *REWARDS)
    assert weights_after(tokenizer, *REWARDS, token_rule="clip_cov=1").equal(start), "all tokens are left out"
    assert weights_after(tokenizer, *REWARDS, token_rule="top_entropy=1").equal(plain), "all tokens learn"
    assert not weights_after(tokenizer, *REWARDS, token_rule="top_entropy=0.2").equal(plain)
    assert not weights_after(tokenizer, *[1.0] * 6, token_rule="entropy_bonus=0.1").equal(start), "without any signal"


def test_what_is_held_matters_from_the_second_update_on(tokenizer):
    for updates, same in ((1, True), (2, False)):
        settings = {"updates_per_step": updates}
        held = weights_after(tokenizer, *REWARDS, token_rule="kl_cov=0.5", **settings)
        assert held.equal(weights_after(tokenizer, *REWARDS, **settings)) == same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "int2"}, "sampler must be same, bfloat16, int8, int4, or stale:K; got 'int2'"),
        ({"sampler": "stale:0"}, "sampler must be .*; got 'stale:0'"),
        ({"token_rule": "top_entropy"}, "token_rule must be all, or one of entropy_bonus=N.*; got 'top_entropy'"),
        ({"token_rule": "clip_cov=2"}, "with a number from 0 to 1; got 'clip_cov=2'"),
        ({"token_rule": "best=0.2"}, "token_rule must be .*; got 'best=0.2'"),
        ({"token_rule": "clip_cov=nan"}, "token_rule must be .*; got 'clip_cov=nan'"),
        ({"ratio_to": "reference"}, "ratio_to must be one of sampler, trainer; got 'reference'"),
        ({"sampler": "int8", "lora_rank": 4}, "with shard or lora_rank, sampler must be same, got int8"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings).check()
