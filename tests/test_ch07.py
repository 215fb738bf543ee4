"""Chapter 7's functions: against enumeration, against REINFORCE, and every method on a problem with a known answer."""

from dataclasses import replace

import pytest
import torch

from rfs_utils import ch07
from rfs_utils.ch06 import group_advantages, policy_gradient_loss
from rfs_utils.ch07 import KL_KINDS, METHODS, Method, compute_advantages, loss_total, policy_loss

LENGTHS = torch.tensor([6, 3, 1, 4])
MASK = (torch.arange(6) < LENGTHS[:, None]).float()
ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1])


def random_logps(seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -scale * torch.rand(4, 6, generator=generator, dtype=torch.float64)


def gradient(logps, old, ref, advantages, mask, method, **options) -> torch.Tensor:
    logps = logps.clone().requires_grad_()
    return torch.autograd.grad(policy_loss(logps, old, ref, advantages, mask, method, **options), logps)[0]


def reinforce_gradient(advantages, mask, aggregate: str) -> torch.Tensor:
    """-A times what one token weighs, written out for each rule of adding up."""
    lengths = mask.sum(dim=1, keepdim=True)
    weight = {
        "sequence_sum": mask / len(mask),
        "sequence_mean": mask / lengths / len(mask),
        "token_mean": mask / mask.sum(),
        "constant": mask / (len(mask) * mask.shape[1]),
    }[aggregate]
    return (-advantages[:, None] * weight).double()


@pytest.mark.parametrize("name", METHODS)
def test_on_fresh_rollouts_every_loss_has_the_reinforce_gradient(name):
    method, logps = METHODS[name], random_logps(0)
    advantages = (ADVANTAGES > 0).float() if method.positives_only else ADVANTAGES
    for old in (None, logps):
        found = gradient(logps, old, None, advantages, MASK, method)
        counted = MASK * (advantages > 0)[:, None] if method.positives_only else MASK
        if method.positives_only:
            expected = -(counted / counted.sum()).double()
        else:
            product = method.ratio == "sequence_sum"  # the gradient of a product is a sum, whatever is then averaged
            expected = reinforce_gradient(advantages, MASK, "sequence_sum" if product else method.aggregate)
        torch.testing.assert_close(found, expected)


def test_the_default_is_chapter_6():
    logps = random_logps(0).float().requires_grad_()
    ours = torch.autograd.grad(policy_loss(logps, None, None, ADVANTAGES, MASK, METHODS["grpo"]), logps)
    torch.testing.assert_close(ours, torch.autograd.grad(policy_gradient_loss(logps, ADVANTAGES, MASK), logps))


@pytest.mark.parametrize("kl", [None, *KL_KINDS])
@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_step_add_up_to_the_whole(name, kl):
    method = METHODS[name].changed(kl=kl, kl_coef=0.3 if kl else None)
    logps, old, ref = (random_logps(seed) for seed in range(3))
    advantages = (ADVANTAGES > 0).float() if method.positives_only else ADVANTAGES
    total = loss_total(MASK, advantages, method)
    whole = gradient(logps, old, ref, advantages, MASK, method)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    found = [gradient(logps[p], old[p], ref[p], advantages[p], MASK[p], method, total=total) for p in parts]
    torch.testing.assert_close(torch.cat(found), whole)
    assert whole.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_padding_has_no_influence(name):
    method = METHODS[name].changed(kl_coef=0.1)
    logps, old, ref = (random_logps(seed) for seed in range(3))
    whole = gradient(logps, old, ref, ADVANTAGES, MASK, method, total=7.0)
    other = [x.where(MASK.bool(), torch.full_like(x, -50.0)) for x in (logps, old, ref)]
    other[0] = other[0].where(MASK.bool(), torch.full_like(logps, -3.0))
    torch.testing.assert_close(gradient(*other, ADVANTAGES, MASK, method, total=7.0), whole)
    assert (whole[MASK == 0] == 0).all()


@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28), (0.0, 0.5)])
def test_clipping_removes_the_gradient_where_the_gain_would_be_and_nowhere_else(low, high):
    ratio = torch.linspace(0.05, 3.05, 61, dtype=torch.float64)
    ratio = ratio[((ratio - 1 + low).abs() > 1e-6) & ((ratio - 1 - high).abs() > 1e-6)]
    for advantage in (-2.0, -0.5, 0.5, 2.0):
        r = ratio.clone().requires_grad_()
        a = torch.full_like(ratio, advantage)
        (slope,) = torch.autograd.grad(ch07.clipped_objective(r, a, low, high).sum(), r)
        for x, s in zip(ratio.tolist(), slope.tolist(), strict=True):
            clipped = x > 1 + high if advantage > 0 else x < 1 - low
            assert s == (0.0 if clipped else advantage), (x, advantage)
        assert torch.equal(ch07.is_clipped(ratio, a, low, high), slope == 0)


def test_the_two_cases_that_the_wrong_side_gets_wrong():
    ratio = torch.tensor([0.3, 3.0], requires_grad=True)
    ch07.clipped_objective(ratio, torch.tensor([-1.0, -1.0])).sum().backward()
    assert ratio.grad.tolist() == [0.0, -1.0]


def test_gspo_clips_whole_sequences_by_their_mean_ratio():
    method = METHODS["gspo"]
    old = random_logps(0)
    logps = old + torch.tensor([[0.01], [-0.01], [0.0001], [0.01]])  # mean log-ratios; advantages + - + -
    found = gradient(logps, old, None, ADVANTAGES, MASK, method)
    assert (found[0] == 0).all() and (found[1] == 0).all(), "beyond the range on the side of the gain"
    assert (found[2, :1] != 0).all() and (found[3, :4] != 0).all()


def test_cispo_never_loses_a_gradient_and_caps_the_weight():
    method = METHODS["cispo"]
    old = random_logps(0)
    logps = old + torch.tensor([[3.0], [0.5], [-2.0], [0.0]])
    found = gradient(logps, old, None, ADVANTAGES, MASK, method)
    weight = torch.tensor([3.0, 0.5, -2.0, 0.0]).exp().clamp(max=5.0)[:, None]
    torch.testing.assert_close(found, (-weight * ADVANTAGES[:, None] * MASK / MASK.sum()).double())


def test_truncated_importance_sampling_weighs_tokens_by_the_capped_ratio():
    method = METHODS["tis"]
    logps, sampler = random_logps(0), random_logps(1, scale=3.0)
    found = gradient(logps, logps, None, ADVANTAGES, MASK, method, sampler_logps=sampler)
    weight = (logps - sampler).exp().clamp(max=2.0)
    torch.testing.assert_close(found, weight * reinforce_gradient(ADVANTAGES, MASK, "sequence_sum"))


def test_masked_importance_sampling_counts_nothing_outside_of_its_range():
    method = METHODS["icepop"]
    logps, sampler = random_logps(0), random_logps(1, scale=3.0)
    found = gradient(logps, logps, None, ADVANTAGES, MASK, method, sampler_logps=sampler)
    ratio = (logps - sampler).exp()
    inside = (ratio >= 0.5) & (ratio <= 5.0)
    assert inside[MASK > 0].any() and not inside[MASK > 0].all()
    torch.testing.assert_close(found, ratio * inside * reinforce_gradient(ADVANTAGES, MASK, "sequence_sum"))


def test_rloo_clips_the_probability_of_the_whole_answer():
    """As TRL's RLOOTrainer does: one ratio of each answer, and one term in the mean."""
    old = random_logps(0)
    logps = (old + 0.04 * torch.tensor([[1.0], [1], [-1], [-1]])).requires_grad_()
    (found,) = torch.autograd.grad(policy_loss(logps, old, None, ADVANTAGES, MASK, METHODS["rloo"]), logps)
    ratio = ((logps - old) * MASK).sum(dim=1).exp()
    objective = torch.min(ratio * ADVANTAGES, ratio.clamp(0.8, 1.2) * ADVANTAGES)
    torch.testing.assert_close(found, torch.autograd.grad(-objective.mean(), logps)[0])
    assert (found[0] == 0).all(), "a good answer of 6 tokens, by exp(0.24) likelier: clipped"
    assert (found[1:, 0] != 0).all()


def test_gmpo_clips_each_token_and_averages_the_logarithms():
    method = METHODS["gmpo"]
    old = random_logps(0)
    logps = (old + torch.tensor([[0.5], [0.5], [-0.5], [-0.5]]) * (torch.arange(6) < 2)).requires_grad_()
    (found,) = torch.autograd.grad(policy_loss(logps, old, None, ADVANTAGES, MASK, method), logps)
    assert (found[0, :2] == 0).all() and (found[0, 2:] != 0).all(), "good, and 0.5 > log 1.49"
    assert (found[3, :2] == 0).all() and (found[3, 2:4] != 0).all(), "bad, and -0.5 < log 0.67"
    weight = torch.tensor([2 * torch.tensor(1.49).log() / 6, 2 * 0.5 / 3, -0.5, 2 * torch.tensor(0.67).log() / 4]).exp()
    expected = -(weight * ADVANTAGES / LENGTHS / 4)[:, None] * MASK
    expected[0, :2] = expected[3, :2] = 0.0
    torch.testing.assert_close(found, expected.double())


def test_the_gradient_that_sapo_leaves_fades_on_both_sides():
    """The slope of the gate over the ratio is 4 s (1 - s), s = sigmoid(tau (r - 1)): 1 at r = 1."""
    ratio = torch.tensor([0.2, 0.6, 1.0, 1.4, 3.0], dtype=torch.float64, requires_grad=True)
    for advantage, tau in ((1.0, 1.0), (-1.0, 1.05)):
        (slope,) = torch.autograd.grad(ch07.soft_gate(ratio, torch.full_like(ratio, advantage)).sum(), ratio)
        s = torch.sigmoid(tau * (ratio.detach() - 1))
        torch.testing.assert_close(slope, 4 * s * (1 - s))
        assert slope[2].item() == pytest.approx(1) and slope.argmax() == 2


def test_advantages_may_differ_by_token():
    logps = random_logps(0)
    whole = ADVANTAGES[:, None].expand_as(MASK)
    for name in ("grpo", "cispo", "sapo", "gspo"):
        args = random_logps(1), None
        expected = gradient(logps, *args, ADVANTAGES, MASK, METHODS[name])
        torch.testing.assert_close(gradient(logps, *args, whole, MASK, METHODS[name]), expected)
    some = whole * (torch.arange(6) % 2)
    found = gradient(logps, None, None, some, MASK, METHODS["grpo"])
    torch.testing.assert_close(found, reinforce_gradient(ADVANTAGES, MASK, "sequence_sum") * (torch.arange(6) % 2))


def test_the_off_policy_mask_drops_bad_rollouts_that_have_drifted():
    old = random_logps(0)
    logps = old - torch.tensor([[0.2], [0.2], [0.2], [0.05]])  # less likely by 0.2 a token, the last by 0.05
    wide = replace(METHODS["off_policy_mask"], clip_low=10.0)
    found = gradient(logps, old, None, ADVANTAGES, MASK, wide)
    assert [bool(row.any()) for row in found] == [True, False, True, True], "the second: bad, and 0.2 away"


# ---------------------------------------------------------------- advantages

REWARDS = torch.tensor([[1.0, 0, 0, 0, 0.5], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
GREEDY = torch.tensor([0.0, 1.0, 0.0, 1.0])


def advantages_of(name: str, rewards=REWARDS, **options) -> torch.Tensor:
    return compute_advantages(rewards, METHODS[name], greedy_rewards=GREEDY, **options)


def test_grpo_advantages_are_chapter_6s():
    assert torch.equal(advantages_of("grpo"), group_advantages(REWARDS))


def test_rloo_is_dr_grpo_times_g_over_g_minus_1():
    torch.testing.assert_close(advantages_of("rloo"), 5 / 4 * advantages_of("dr_grpo"))
    by_hand = REWARDS[0, 0] - REWARDS[0, 1:].mean()
    torch.testing.assert_close(advantages_of("rloo")[0, 0], by_hand)


def test_remax_gives_nothing_to_a_sample_as_good_as_the_greedy_one():
    found = advantages_of("remax")
    assert found[0].tolist() == [1, 0, 0, 0, 0.5] and found[1].tolist() == [0, 0, 0, -1, -1]
    assert (found[2:] == 0).all()


def test_reinforce_pp_whitens_the_whole_batch():
    found = advantages_of("reinforce_pp")
    torch.testing.assert_close(found, (REWARDS - REWARDS.mean()) / (REWARDS.std() + 1e-4))
    centred = REWARDS - REWARDS.mean(dim=1, keepdim=True)
    torch.testing.assert_close(advantages_of("reinforce_pp_baseline"), centred / (centred.std() + 1e-4))


def test_reinforce_pp_counts_an_answer_as_often_as_it_has_tokens():
    lengths = torch.tensor([[3, 1, 2, 5, 4]] * 4)
    found = advantages_of("reinforce_pp", lengths=lengths)
    tokens = REWARDS.flatten().repeat_interleave(lengths.flatten())
    torch.testing.assert_close(found, (REWARDS - tokens.mean()) / (tokens.std() + 1e-4))
    spread = found.flatten().repeat_interleave(lengths.flatten())
    assert abs(spread.mean()) < 1e-6 and abs(spread.std() - 1) < 1e-3


def test_maxrl_pays_a_rare_success_more():
    """(r - mean) / mean: arXiv 2602.02710. One right of four gets 3, three of four a third each."""
    found = compute_advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]), METHODS["maxrl"])
    expected = torch.tensor([[3.0, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0]])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_raft_keeps_what_was_rewarded():
    assert torch.equal(advantages_of("raft"), (REWARDS > 0).float())


def test_gdpo_standardises_each_reward_by_itself():
    """A rare reward of small size counts as much as a common one of large size, which their sum would hide."""
    big, small = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[0.0, 0.01, 0, 0.01]])
    both = torch.stack([big, small], dim=2)
    summed = compute_advantages(both, METHODS["grpo"])
    apart = compute_advantages(both, METHODS["gdpo"])
    assert summed[0, 3] < -0.5 and abs(apart[0, 3]) < 0.05 and abs(apart[0, 0]) < 0.05
    torch.testing.assert_close(apart[0, 1], -apart[0, 2])


def test_negative_weight_touches_negative_advantages_only():
    plain, ours = advantages_of("grpo"), advantages_of("asymmetric")
    torch.testing.assert_close(ours, torch.where(plain < 0, 0.25 * plain, plain))


@pytest.mark.parametrize("name", METHODS)
def test_permuting_a_group_permutes_its_advantages(name):
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(advantages_of(name, REWARDS[:, order]), advantages_of(name)[:, order])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp_baseline"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.3])
def test_a_group_of_equal_rewards_has_no_signal(name, value):
    rewards = torch.tensor([[value] * 7, [0.0] * 3 + [1.0] * 4])
    found = compute_advantages(rewards, METHODS[name])
    assert (found[0] == 0).all() and (found[1] != 0).all()
    logps = random_logps(0)
    assert (gradient(logps, None, None, found[0, :4], MASK, METHODS[name]) == 0).all()


@pytest.mark.parametrize("name", ["gdpo", "reinforce_pp"])
@pytest.mark.parametrize("value", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("size", [6, 7, 8])
def test_equal_rewards_get_no_signal_from_rounding(name, value, size):
    assert (compute_advantages(torch.full((8, size, 2), value), METHODS[name], torch.ones(2)) == 0).all()


def test_a_kl_term_holds_all_rollouts_even_those_that_raft_rejects():
    logps, reference = random_logps(0), random_logps(1)
    method = METHODS["raft"].changed(kl_coef=1.0)
    none = torch.zeros(len(logps))
    loss = policy_loss(logps, None, reference, none, MASK, method)
    torch.testing.assert_close(loss, (ch07.kl_estimate(logps, reference, method.kl) * MASK).sum() / MASK.sum())


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("functions", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_answers_that_were_not_judged_count_nowhere(name, functions, kl):
    """Loss and gradient of a batch in which some answers were not judged are those of the batch without them."""
    method = METHODS[name].changed(kl_coef=kl, sampler_cap=2.0)
    groups, size, length = 3, 5, 4
    generator = torch.Generator().manual_seed(len(name))

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def check(removed):
        kept = torch.stack([torch.randperm(size, generator=generator) >= removed for _ in range(groups)])
        rewards, greedy = draw(groups, size, functions).round(decimals=1), draw(groups)
        weights = torch.tensor([1.0, 0.5, 0.0][:functions] + [0.0], dtype=torch.float64)
        rewards = torch.cat([rewards, torch.full((groups, size, 1), torch.nan)], dim=2)  # logged only
        logps, old, ref, sampler = -draw(4, groups * size, length)
        mask = (draw(groups * size, length) < 0.8).double()

        def loss_of(rewards, rows, judged):
            advantages = compute_advantages(rewards, method, weights, greedy).flatten()
            assert (advantages[~judged] == 0).all()
            chosen = logps[rows].clone().requires_grad_()
            loss = policy_loss(
                chosen, old[rows], ref[rows], advantages, mask[rows] * judged[:, None], method, sampler[rows]
            )
            return loss, torch.autograd.grad(loss, chosen)[0]

        rows = kept.flatten()
        expected = loss_of(rewards[kept].view(groups, size - removed, -1), rows, torch.ones(int(rows.sum())).bool())
        missing = rewards.clone()  # one function that is missing is enough
        missing[:, :, functions - 1] = missing[:, :, functions - 1].masked_fill(~kept, torch.nan)
        loss, found = loss_of(missing, torch.ones_like(rows), rows)
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(found[rows], expected[1])
        assert (found[~rows] == 0).all() and (removed == 3 or name == "raft" or found.any())

    for removed in (1, 2, 3):
        check(removed)


@pytest.mark.parametrize("name", METHODS)
def test_one_judged_answer_alone_in_its_group_is_no_signal(name):
    missing = torch.nan
    rewards = torch.tensor([[1.0, missing, missing], [missing] * 3, [0.0, 1.0, missing]])
    found = compute_advantages(rewards, METHODS[name], greedy_rewards=torch.tensor([0.0, 0.0, 0.5]))
    assert (found[:2] == 0).all() and found[2, 2] == 0 and found[2].any() and found.isfinite().all()
    nothing = compute_advantages(torch.full((2, 3), missing), METHODS[name], greedy_rewards=torch.zeros(2))
    assert (nothing == 0).all()
    unknown = compute_advantages(REWARDS, METHODS["remax"], greedy_rewards=torch.tensor([0.0, missing, 0.0, 1.0]))
    assert (unknown[1] == 0).all() and unknown[0].any()


def test_a_reward_that_leaves_a_whole_group_to_others_takes_no_part_in_it():
    """Two functions, each for one kind of problem."""
    missing = torch.nan
    parts = torch.tensor([[[1.0, missing], [0.0, missing]], [[missing, 3.0], [missing, 1.0]]])
    assert ch07.combine_rewards(parts, torch.tensor([1.0, 2.0])).tolist() == [[1.0, 0.0], [6.0, 2.0]]
    assert ch07.combine_rewards(parts, torch.tensor([0.0, 0.0])).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_gdpo_of_a_single_reward_is_centred():
    found = advantages_of("gdpo")
    torch.testing.assert_close(found, advantages_of("gdpo", REWARDS[:, :, None]))
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(4))
    assert (found[2:] == 0).all()


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (REWARDS[0], {}, r"expected rewards of shape \(B, G\).*got \(5,\)"),
        (REWARDS[:, :, None, None], {}, "expected rewards of shape"),
        (REWARDS, {"weights": torch.ones(5)}, "expected rewards of shape"),
        (torch.stack([REWARDS, REWARDS], 2), {"weights": torch.ones(1)}, r"expected 2 weights.*got \(1,\)"),
        (torch.stack([REWARDS, REWARDS], 2), {"weights": torch.ones(4, 5, 2)}, "expected 2 weights"),
        (REWARDS, {"greedy_rewards": None}, "needs 4 greedy_rewards"),
        (REWARDS, {"greedy_rewards": torch.ones(1)}, "needs 4 greedy_rewards"),
        (REWARDS, {"greedy_rewards": torch.ones(4, 1)}, "needs 4 greedy_rewards"),
    ],
)
def test_advantages_of_wrong_shapes_are_refused(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        compute_advantages(rewards, METHODS["remax"], **{"greedy_rewards": GREEDY} | options)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_of_wrong_shapes_is_refused(name):
    logps, method = random_logps(0), METHODS[name].changed(kl_coef=0.1)
    arguments = {"old_logps": logps, "ref_logps": logps, "advantages": ADVANTAGES, "mask": MASK, "sampler_logps": logps}
    assert policy_loss(logps, **arguments, method=method).isfinite()
    for argument, value in arguments.items():
        for other in (value[:1], value[:, None] if value.dim() == 1 else value[:, :1], value[None]):
            with pytest.raises(ValueError, match="expected advantages of shape"):
                policy_loss(logps, **arguments | {argument: other}, method=method)
    with pytest.raises(ValueError, match="needs the reference's log-probabilities"):
        policy_loss(logps, **arguments | {"ref_logps": None}, method=method)


def test_weights_of_several_rewards():
    parts = torch.stack([REWARDS, REWARDS.flip(1)], dim=2)
    weights = torch.tensor([2.0, 0.0])
    torch.testing.assert_close(
        compute_advantages(parts, METHODS["dr_grpo"], weights), compute_advantages(2 * REWARDS, METHODS["dr_grpo"])
    )


# ---------------------------------------------------------------- KL

THETA = torch.tensor([0.9, 0.1, -0.7], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([-0.4, 0.6, 0.1], dtype=torch.float64), dim=0)


def kl_gradients(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected value of an estimate and expected gradient of it as a loss, enumerated over a three-token policy."""
    theta = THETA.clone().requires_grad_()
    logps = torch.log_softmax(theta, dim=0)
    estimate = ch07.kl_estimate(logps, REFERENCE, kind)
    probas = logps.exp().detach()
    return (probas * estimate).sum().detach(), torch.autograd.grad((probas * estimate).sum(), theta)[0]


def exact_kl(forward: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    theta = THETA.clone().requires_grad_()
    logps = torch.log_softmax(theta, dim=0)
    kl = (REFERENCE.exp() * (REFERENCE - logps)).sum() if forward else (logps.exp() * (logps - REFERENCE)).sum()
    return kl.detach(), torch.autograd.grad(kl, theta)[0]


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    exact = exact_kl()[0]
    for kind in ("k1", "k3", "ratio_k3"):
        torch.testing.assert_close(kl_gradients(kind)[0], exact)
    assert abs(kl_gradients("k2")[0] - exact) > 0.01


def test_gradients_of_kl_losses_are_those_that_the_chapter_says():
    torch.testing.assert_close(kl_gradients("k1")[1], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(kl_gradients("k2")[1], exact_kl()[1])
    torch.testing.assert_close(kl_gradients("ratio_k3")[1], exact_kl()[1])
    torch.testing.assert_close(kl_gradients("k3")[1], exact_kl(forward=True)[1])


def test_the_kl_term_enters_the_loss_with_its_strength():
    logps, ref = random_logps(0), random_logps(1)
    zero = torch.zeros(4)
    for kind in KL_KINDS:
        method = Method(kl_coef=0.3, kl=kind)
        found = policy_loss(logps, None, ref, zero, MASK, method)
        if kind == "reward":
            assert found == 0, "that one is in the rewards"
            continue
        torch.testing.assert_close(found, 0.3 * (ch07.kl_estimate(logps, ref, kind) * MASK).sum() / 4)
    with pytest.raises(ValueError, match="unknown KL estimate 'k4': known are k1, k2, k3"):
        ch07.kl_estimate(logps, ref, "k4")


# ---------------------------------------------------------------- a bandit


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_solves_a_bandit(name, updates):
    """Two answers of one token, the second one right; the policy starts with a preference for the wrong one."""
    method = METHODS[name]
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor([0.5, -0.5], requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    mask = torch.ones(32, 1)
    for _ in range(150):
        logp = torch.log_softmax(theta.detach(), 0)
        arms = torch.multinomial(logp.exp(), 32, replacement=True, generator=generator)
        rewards = (arms == 1).float().view(4, 8)
        greedy = torch.full((4,), float(logp.argmax()))
        if method.separate_rewards:
            rewards = torch.stack([rewards, torch.zeros_like(rewards)], dim=2)
        advantages = compute_advantages(rewards, method, greedy_rewards=greedy).flatten()
        old = logp[arms][:, None]
        for _ in range(updates if advantages.any() else 0):
            logps = torch.log_softmax(theta, 0)[arms][:, None]
            loss = policy_loss(logps, old, None, advantages, mask, method, sampler_logps=old)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.softmax(theta, 0)[1] > 0.95


# ---------------------------------------------------------------- the rest


def test_moving_average_and_its_bad_input():
    assert ch07.moving_average([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert ch07.moving_average([1, 2, 3], 1) == [1, 2, 3]
    assert ch07.moving_average([1, 3], 10) == [1, 2]
    with pytest.raises(ValueError, match="window must be at least 1"):
        ch07.moving_average([1], 0)


def test_entropy_and_log_prob_of_a_sequence(model):
    ids = torch.randint(0, 512, (9,), generator=torch.Generator().manual_seed(0))
    logp, entropy = ch07.sequence_logprob_and_entropy(model, ids, 4)
    with torch.no_grad():
        logps = model(ids[None])[0].log_softmax(-1)
    torch.testing.assert_close(logp, sum(logps[t - 1, ids[t]] for t in range(4, 9)))
    expected = torch.distributions.Categorical(logits=logps[3:8]).entropy().mean()
    torch.testing.assert_close(entropy, expected)


def impossible_logits() -> torch.Tensor:
    """A token that cannot come, as a mask over the vocabulary leaves it."""
    return torch.tensor([[0.3, -torch.inf, -0.4, 1.0], [-torch.inf, 2.0, -torch.inf, 0.0]], dtype=torch.float64)


def test_entropy_is_finite_where_a_token_is_impossible_and_so_is_its_gradient():
    logits = impossible_logits().requires_grad_()
    entropy = ch07.entropy_of(torch.log_softmax(logits, dim=-1))
    expected = torch.distributions.Categorical(logits=impossible_logits().clamp(min=-1e9)).entropy()
    torch.testing.assert_close(entropy, expected)
    (slope,) = torch.autograd.grad(entropy.sum(), logits)
    finite = logits.detach()[:, [0, 2, 3]][:1].requires_grad_()
    (same,) = torch.autograd.grad(ch07.entropy_of(torch.log_softmax(finite, dim=-1)).sum(), finite)
    torch.testing.assert_close(slope[0, [0, 2, 3]], same[0])
    assert slope.isfinite().all() and (slope[logits.detach() == -torch.inf] == 0).all()
    certain = torch.log_softmax(torch.tensor([0.0, -torch.inf]), dim=-1)
    assert ch07.entropy_of(certain) == 0

    class Model:
        def __call__(self, ids):
            return impossible_logits()[None, [0, 0, 1]]

    logp, mean = ch07.sequence_logprob_and_entropy(Model(), torch.tensor([0, 2, 3]), 1)
    assert logp.isfinite() and mean == pytest.approx(expected[0].item())


@pytest.mark.parametrize("kind", KL_KINDS)
def test_the_exact_kl_is_finite_where_a_token_is_impossible_for_both(kind):
    logits = impossible_logits().requires_grad_()
    logps = torch.log_softmax(logits, dim=-1)
    reference = torch.log_softmax(impossible_logits() + torch.tensor([0.5, 0.0, 0.0, 0.0]), dim=-1)
    value = (logps.exp() * ch07.kl_estimate(logps, reference, kind)).sum()
    assert value.isfinite() and torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_does_not_look_at_padding_whatever_stands_there(name):
    method = METHODS[name].changed(kl_coef=0.1, sampler_cap=2.0)
    whole = [random_logps(seed) for seed in range(4)]
    values = (-torch.inf, -torch.inf, torch.nan, 9.0)
    holes = [x.masked_fill(MASK == 0, value) for x, value in zip(whole, values, strict=True)]
    expected = gradient(*whole[:3], ADVANTAGES, MASK, method, sampler_logps=whole[3])
    found = gradient(*holes[:3], ADVANTAGES, MASK, method, sampler_logps=holes[3])
    torch.testing.assert_close(found, expected)
    logps = holes[0].clone().requires_grad_()
    loss = policy_gradient_loss(logps, ADVANTAGES, MASK)
    assert loss.isfinite() and torch.autograd.grad(loss, logps)[0].isfinite().all()


def test_advantage_stats():
    stats = ch07.compute_advantage_stats(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    assert stats["zero_signal_groups"] == 0.5 and stats["adv_max"] == 1 and stats["adv_avg"] == 0


@pytest.mark.parametrize(
    "text, reward",
    [
        (r"<think>7+5=12</think> \boxed{12}", 1.0),
        ("<think>\n7+5=12\n</think>\n\n\\boxed{12}<|endoftext|>", 1.0),
        (r"  <think></think>12", 1.0),
        (r"\boxed{12}", 0.0),
        (r"<think>7+5=12 \boxed{12}", 0.0),
        (r"7+5=12</think> \boxed{12}", 0.0),
        (r"</think>a<think>\boxed{12}", 0.0),
        (r"<think>a</think>b</think>\boxed{12}", 0.0),
        (r"<think>a</think><think>b</think>\boxed{12}", 0.0),
        (r"well <think>a</think>\boxed{12}", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think>  <|im_end|>", 0.0),
        ("", 0.0),
    ],
)
def test_reward_format(text, reward):
    assert ch07.reward_format(text) == reward


def test_reward_format_of_hostile_text_takes_no_time():
    import time

    started = time.perf_counter()
    for text in ("<think>" * 100_000, "<think>" + "<" * 500_000 + "</think>", "<think>" + "a</think>" * 50_000):
        assert ch07.reward_format(text) == 0.0
    assert time.perf_counter() - started < 2


def test_soft_overlong_penalty():
    lengths = torch.tensor([1, 80, 84, 88, 96])
    assert ch07.soft_overlong_penalty(lengths, 96, 16).tolist() == [0, 0, -0.25, -0.5, -1]


def test_a_table_of_differences_names_every_method_apart():
    rows = [tuple(sorted(method.differences().items())) for method in METHODS.values()]
    assert len(set(rows)) == len(rows) and METHODS["grpo"].differences() == {}


def test_curves_of_runs_become_panels_with_bands(tmp_path):
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.csv")
        rows = [f"{step},{step / 10 + seed},{5 * step},{'' if step % 2 else 0.5}" for step in range(1, 9)]
        paths[-1].write_text("step,reward_avg,avg_response_len,eval_accuracy\n" + "\n".join(rows) + "\n")
    fig = ch07.plot_grpo_metrics({"two seeds": paths, "one": paths[0]}, window=1)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "Mean reward", "Response length (tokens)", "Held-out accuracy",
    ]  # fmt: skip
    assert len(fig.axes[0].lines) == 2 and len(fig.axes[0].collections) == 1
    assert fig.axes[0].lines[0].get_ydata()[0] == pytest.approx(0.6)
    assert list(fig.axes[2].lines[0].get_xdata()) == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="has no column entropy"):
        ch07.plot_grpo_metrics(paths[0], ["entropy"])


def test_curves_differ_in_more_than_colour_and_a_share_of_zero_lies_at_the_bottom():
    runs = {name: {"step": [1, 2], "clip_fraction": [0, 0], "kl": [-0.1, 0.4]} for name in "abcde"}
    fig = ch07.plot_grpo_metrics(runs, ["clip_fraction", "kl"])
    assert len({line.get_linestyle() for line in fig.axes[0].lines[:4]}) == 4
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["a", "d", "b", "e", "c"]  # by columns
    (low, high), (below, _) = (ax.get_ylim() for ax in fig.axes)
    assert -0.05 * high < low < 0 and below < -0.1


def test_evaluations_are_drawn_as_they_are():
    table = {"step": list(range(9)), "eval_accuracy": [0.0, *[None] * 3, 0.5, *[None] * 3, 1.0]}
    assert ch07.steps_and_values(table, "eval_accuracy", 5) == {0: 0.0, 4: 0.5, 8: 1.0}
