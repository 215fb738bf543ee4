"""The addition lab: tokenizer, problems, rewards at their edges, the methods' steps, DPO, and the exercises' checks."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from rfs_utils.ch06 import group_advantages, policy_gradient_loss, response_logprobs, sample_batch
from rfs_utils.ch07 import METHODS, compute_advantages, policy_loss
from rfs_utils.exercises import addition, addition_rl
from rfs_utils.exercises.addition import (
    EOS,
    MAX_NEW_TOKENS,
    CharacterLevelTokenizer,
    accuracy_reward,
    addition_problems,
    compute_rewards,
    count_carries,
    digit_accuracy_reward,
    distance_accuracy_reward,
    evaluate,
    is_test_problem,
    load_addition_base,
    read_answer,
    reward_format,
)
from rfs_utils.exercises.addition_dpo import (
    choose_pairs,
    compute_loss_dpo,
    compute_loss_ipo,
    iterate_dpo,
    sample_pairs,
    sequence_logps,
    train_dpo,
)
from rfs_utils.exercises.addition_rl import RECIPES, policy_step, train_recipe
from rfs_utils.exercises.pretrain import next_token_loss
from rfs_utils.models import load_model
from rfs_utils.runs.compare import run_missing
from rfs_utils.runs.comparison import read_comparison


@pytest.fixture
def base():
    return load_addition_base()[0]


def state(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- tokenizer and problems -----------------------------------------------------------------------


def test_the_tokenizer_goes_round():
    tokenizer = CharacterLevelTokenizer()
    for text in ("012+345=", "357[EOS][PAD][PAD]", "[PAD][PAD]1+2=", "", "=+9876543210"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" 1 +\t2 =") == tokenizer.encode("1+2=")
    assert sorted(tokenizer.token_to_id.values()) == list(range(tokenizer.vocab_size))


@pytest.mark.parametrize("text", ["21-3=", "1.5+2=", "[pad]", "twelve", "[EOS"])
def test_unknown_characters_are_an_error(text):
    with pytest.raises(ValueError, match="vocabulary"):
        CharacterLevelTokenizer().encode(text)


def test_the_saved_tokenizer_gives_the_same_ids():
    tokenizer = CharacterLevelTokenizer()
    for text in ("012+345=", "357[EOS][PAD]"):
        assert tokenizer.backend.encode(text).ids == tokenizer.encode(text)
        assert tokenizer.backend.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_problems_are_deterministic_right_and_of_their_side():
    problems = addition_problems(300, "train", seed=5)
    assert problems == addition_problems(300, "train", seed=5) != addition_problems(300, "train", seed=6)
    assert addition_problems(2, "test", seed=0) == [("275+950=", "1225"), ("320+976=", "1296")]
    for split in ("train", "test"):
        for prompt, answer in addition_problems(300, split):
            a, b = map(int, prompt[:-1].split("+"))
            assert len(prompt) == 8 and int(answer) == a + b and answer == str(a + b)
            assert is_test_problem(a, b) == is_test_problem(b, a) == (split == "test")
    with pytest.raises(ValueError, match="split"):
        addition_problems(1, "validation")


def test_train_and_test_are_disjoint_even_with_the_numbers_exchanged():
    def pairs(split):
        return {frozenset(prompt[:-1].split("+")) for prompt, _ in addition_problems(20_000, split)}

    assert not pairs("train") & pairs("test")
    share = sum(is_test_problem(a, b) for a in range(300) for b in range(a, 300)) / (300 * 301 / 2)
    assert 0.08 < share < 0.12


# --- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output, answer",
    [
        ("123[EOS]", "123"), ("123[EOS][PAD]", "123"), ("0[EOS][PAD][PAD]", "0"),
        ("123", ""), ("123[PAD][PAD]", ""), ("12[EOS]3", ""), ("12[EOS][EOS]", ""), ("12[EOS]\n", ""),
        ("", ""), ("[EOS]", ""), ("[PAD]", ""), ("[EOS]123", ""), ("12[PAD]3", ""), ("[PAD]12[EOS]", ""),
        ("1+2[EOS]", ""), ("=", ""), ("12=[EOS]", ""), ("٣[EOS]", ""),
    ],
)  # fmt: skip
def test_what_the_answer_of_a_text_is(output, answer):
    assert read_answer(output) == answer


def test_rewards_are_one_for_the_answer_only_and_bounded():
    outputs = ["7[EOS]", "0[EOS]", "", "[EOS]", "1+[EOS]", "7[PAD]7", "77777", "07[EOS]", "70[EOS]", "1998[EOS]"]
    for reward in (accuracy_reward, digit_accuracy_reward, distance_accuracy_reward):
        for answer in ("0", "7", "1998"):
            for output in outputs:
                value = reward(output, answer)
                assert 0.0 <= value <= 1.0, (reward.__name__, output, answer)
                assert (value == 1.0) == (output == answer + EOS), (reward.__name__, output, answer)


def test_rewards_by_hand():
    texts = "960[EOS]", "95[EOS]", "9577[EOS]"
    assert [digit_accuracy_reward(text, "957") for text in texts] == [1 / 3, 2 / 3, 3 / 4]
    assert distance_accuracy_reward("960[EOS]", "957") == pytest.approx(1 - 3 / 960)
    assert distance_accuracy_reward("0[EOS]", "0") == 1.0 and distance_accuracy_reward("5[EOS]", "0") == 0.0
    forms = {"123[EOS]": 1, "123[EOS][PAD]": 1, "123": 0, "[EOS]": 0, "1[PAD][EOS]": 0, "1[EOS]2": 0, "1[EOS][EOS]": 0}
    assert {text: reward_format(text) for text in forms} == forms


def test_one_definition_of_an_answer_for_rewards_and_evaluation(base, monkeypatch):
    texts = ["957[PAD][PAD]", "957", "957[EOS]7", "957[EOS][PAD]", "958[EOS]"]
    rewards = [accuracy_reward(text, "957") for text in texts]
    assert rewards == [0, 0, 0, 1, 0]
    assert [digit_accuracy_reward(text, "957") == 1 for text in texts] == rewards
    assert [distance_accuracy_reward(text, "957") == 1 for text in texts] == rewards
    monkeypatch.setattr(addition, "greedy_answers", lambda model, prompts: texts)
    assert evaluate(base, [("000+957=", "957")] * len(texts)) == sum(rewards) / len(texts)


def test_rewards_come_in_groups_with_weights():
    texts = ["957[EOS]", "960[EOS]", "24[EOS]", ""]
    found = compute_rewards(texts, ["957", "24"], digit_accuracy_reward, format_weight=0.25)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="3 texts"):
        compute_rewards(texts[:3], ["957", "24"])


def test_carries():
    def slowly(a, b):
        return sum((a % 10**k) + (b % 10**k) >= 10**k for k in range(1, 6))

    for a, b in [(0, 0), (999, 1), (555, 455), (123, 321), (95, 7)]:
        assert count_carries(a, b) == slowly(a, b)


# --- the base model -------------------------------------------------------------------------------


def test_the_base_model_is_right_about_two_times_in_five(base):
    assert 0.3 < evaluate(base, addition_problems(1000, "test", seed=1)) < 0.5


def test_the_shipped_base_has_the_lab_s_architecture(base):
    assert {k: base.cfg[k] for k in addition.ADDITION_CONFIG} == addition.ADDITION_CONFIG


def test_pretraining_lowers_the_loss_and_is_repeatable(tmp_path):
    runs = []
    for _ in range(2):
        model = addition.new_addition_model(seed=1)
        before = next_token_loss(model, *addition.training_batch(addition_problems(64))).mean().item()
        with pytest.raises(RuntimeError, match="20 steps"):
            addition.pretrain_addition(model, max_steps=20, batch_size=32, check_every=10)
        after = next_token_loss(model, *addition.training_batch(addition_problems(64))).mean().item()
        runs.append(state(model))
    assert before == pytest.approx(math.log(14), abs=0.3) and after < before - 0.2
    assert torch.equal(*runs)


def test_the_base_model_is_made_by_one_call(tmp_path, monkeypatch):
    monkeypatch.setattr(addition, "pretrain_addition", lambda model, seed: [(25, 1.0, 0.4)])
    made = load_model(addition.make_addition_base(tmp_path / "made", seed=3))
    assert torch.equal(state(made), state(addition.new_addition_model(3)))
    card = (tmp_path / "made" / "README.md").read_text()
    assert "seed 3: 25 steps" in card and "0.0%" in card


def test_a_batch_marks_the_answers_and_their_end():
    ids, mask = addition.training_batch([("616+989=", "1605"), ("004+020=", "24")])
    tokenizer = CharacterLevelTokenizer()
    assert [tokenizer.decode(row) for row in ids.tolist()] == ["616+989=1605[EOS]", "004+020=24[EOS][PAD][PAD]"]
    assert [tokenizer.decode(row[m].tolist()) for row, m in zip(ids, mask, strict=True)] == ["1605[EOS]", "24[EOS]"]


# --- the methods ----------------------------------------------------------------------------------


def small(recipe, **changes):
    return replace(recipe, steps=1, prompts_per_step=16, num_rollouts=4, **changes)


def ignored(method):
    """Settings that the lab's step has nothing for."""
    return method.differences().keys() - addition_rl.IMPLEMENTED


@pytest.mark.parametrize("name", [*RECIPES, *(name for name in METHODS if name not in RECIPES)])
def test_one_step_of_every_method_has_finite_gradients_and_moves_the_weights(name, base):
    recipe = small(RECIPES.get(name) or replace(RECIPES["grpo"], method=METHODS[name]))
    before = state(base)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-4)
    torch.manual_seed(0)
    if ignored(recipe.method):
        with pytest.raises(ValueError, match=f"does not implement.*{min(ignored(recipe.method))}"):
            policy_step(base, optimizer, addition_problems(16), recipe)
        assert torch.equal(state(base), before)
        return
    metrics = policy_step(base, optimizer, addition_problems(16), recipe)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in base.parameters())
    assert state(base).isfinite().all() and not torch.equal(state(base), before)
    assert 0 <= metrics["reward"] <= 1 and 0 < metrics["signal"] <= 1 and 1 <= metrics["tokens"] <= MAX_NEW_TOKENS


def test_what_the_step_ignores_is_an_error_and_no_grpo():
    assert {name for name in ("dapo", "tis", "gdpo") if ignored(METHODS[name])} == {"dapo", "tis", "gdpo"}
    assert not any(ignored(recipe.method) for recipe in RECIPES.values())
    for setting in ({"kl_coef": 0.1}, {"sampler_cap": 2.0}, {"mask_truncated": True}):
        with pytest.raises(ValueError, match=f"does not implement the settings {min(setting)} "):
            addition_rl.check_method(METHODS["grpo"].changed(**setting))


@pytest.mark.parametrize(
    "name, advantage_fn, loss_fn",
    [
        ("grpo", addition_rl.grpo_advantages, addition_rl.ppo_loss),
        ("rloo", lambda r: r - addition_rl.leave_one_out_baseline(r), addition_rl.vanilla_loss),
        ("remax", addition_rl.remax_advantages, addition_rl.vanilla_loss),
        ("raft", lambda r: r, lambda x, old, a, mask: addition_rl.raft_loss(x, mask, a)),
        ("asymmetric", addition_rl.grpo_advantages, addition_rl.own_loss),
    ],
)
def test_a_reader_s_functions_make_the_step_of_the_book(name, advantage_fn, loss_fn, base):
    recipe, problems, steps = small(RECIPES[name]), addition_problems(16), []
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    for functions in ((None, None), (advantage_fn, None), (advantage_fn, loss_fn)):
        base.load_state_dict(weights)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        if functions[1] is None and functions[0] is not None and name == "asymmetric":
            continue  # the weight of wrong answers is in its loss
        metrics = policy_step(base, optimizer, problems, recipe, *functions)
        steps.append((state(base) - torch.cat([w.flatten() for w in map(weights.get, names(base))]), metrics))
    for moved, _ in steps[1:]:
        torch.testing.assert_close(moved, steps[0][0], atol=2e-6, rtol=1e-3)
    assert steps[0][0].abs().max() > 1e-3
    assert all(metrics["reward"] == steps[0][1]["reward"] for _, metrics in steps)


def names(model):
    return [name for name, _ in model.named_parameters()]


def test_functions_that_cannot_train_are_an_error(base):
    optimizer = torch.optim.SGD(base.parameters(), lr=0.0)
    recipe, problems = small(RECIPES["grpo"]), addition_problems(16)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"advantages of shape \(16, 1\) for rewards of \(16, 4\)"):
        policy_step(base, optimizer, problems, recipe, lambda rewards: rewards.mean(1, keepdim=True))
    for loss in (lambda x, *rest: x.detach().sum(), lambda x, *rest: x):
        with pytest.raises(ValueError, match="one number with a gradient"):
            policy_step(base, optimizer, problems, recipe, loss_fn=loss)


def test_a_run_that_ends_early_is_the_beginning_of_the_whole(base):
    recipe = replace(RECIPES["rloo"], steps=3, prompts_per_step=16)
    whole = train_recipe(recipe, num_problems=20, evaluate_every=1)
    part = train_recipe(recipe, num_problems=20, evaluate_every=1, last_step=2)
    without = [{key: value for key, value in row.items() if key != "seconds"} for row in whole]
    assert [{key: value for key, value in row.items() if key != "seconds"} for row in part] == without[:3]


def test_the_book_s_curves_end_where_they_should():
    curves = addition_rl.book_curves("rloo", 60)
    assert len(curves) == 5 and all([*curve] == [0, 20, 40, 60] for curve in curves.values())
    rows = [{"step": 0, "accuracy": 0.4}, {"step": 20, "accuracy": 0.5}]
    fig = addition_rl.plot_over_book({name: ("rloo", rows) for name in ("a", "b", "c", "d")})
    assert [ax.get_visible() for ax in fig.axes] == [True] * 4 + [False] * 2
    assert [len(ax.lines) for ax in fig.axes[:4]] == [6] * 4
    assert fig.axes[0].lines[-1].get_ydata() == pytest.approx([40, 50])


def test_the_step_has_the_gradient_of_vanilla_grpo(base):
    problems = addition_problems(16)
    torch.manual_seed(0)
    prompts, answers = zip(*problems, strict=True)
    rollouts = sample_batch(base, CharacterLevelTokenizer(), prompts, "cpu", 8, MAX_NEW_TOKENS, 1.0, None)
    rewards = compute_rewards(rollouts.texts, answers, format_weight=0.0)
    loss = policy_gradient_loss(response_logprobs(base, rollouts), group_advantages(rewards).flatten(), rollouts.mask)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
    expected = [p.grad.clone() for p in base.parameters()]
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(base.parameters(), lr=0.0)
    policy_step(base, optimizer, problems, addition_rl.Recipe(METHODS["grpo"], num_rollouts=8))
    for p, grad in zip(base.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, atol=1e-5, rtol=1e-3)


def test_a_step_without_signal_leaves_the_weights_alone(base):
    before = state(base)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-2)
    recipe = small(RECIPES["grpo"], reward_fun=lambda output, answer: 1.0)
    recipe = replace(recipe, method=METHODS["rloo"])
    assert policy_step(base, optimizer, addition_problems(8), recipe)["signal"] == 0.0
    assert torch.equal(state(base), before)


def test_runs_are_appended_once_and_can_be_taken_up_again(tmp_path):
    trained = []

    def run(name, seed):
        trained.append((name, seed))
        if name == "dpo":
            return iterate_dpo(seed, rounds=1, num_problems=20, problems_per_round=16)
        return train_recipe(small(RECIPES[name]), seed, num_problems=20)

    runs = {name: partial(run, name) for name in ("rloo", "dpo")}
    path = tmp_path / "results.csv"
    run_missing(path, {("rloo",): runs["rloo"]}, range(1), report=lambda line: None)
    run_missing(path, {(name,): run for name, run in runs.items()}, range(2), report=lambda line: None)
    assert trained == [("rloo", 0), ("dpo", 0), ("rloo", 1), ("dpo", 1)]
    rows = read_comparison(path)
    assert [(row["method"], int(row["seed"])) for row in rows[::2]] == trained and len(rows) == 2 * len(trained)
    assert {(row["step"], row["samples"]) for row in rows} == {("0", "0"), ("1", "64"), ("1", "128")}


def test_the_results_over_seeds_are_complete_and_good():
    last = {}
    for row in read_comparison(addition_rl.ADDITION_RESULTS):
        last[row["method"], int(row["seed"])] = row
    assert last.keys() == {(name, seed) for name in (*RECIPES, "dpo") for seed in range(5)}
    for name, recipe in RECIPES.items():
        each = recipe.prompts_per_step * (recipe.num_rollouts + (recipe.method.baseline == "greedy"))
        for seed in range(5):
            row = last[name, seed]
            assert (int(row["step"]), int(row["samples"])) == (recipe.steps, recipe.steps * each)
            assert float(row["accuracy"]) > 0.9


# --- DPO ------------------------------------------------------------------------------------------


def test_pairs_are_the_first_best_and_the_first_worst_of_groups_that_differ():
    rewards = torch.tensor([[0.2, 1.0, 1.0, 0.2], [1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 0.0, 0.2]])
    chosen, rejected = choose_pairs(rewards)
    assert chosen.tolist() == [1, 8] and rejected.tolist() == [0, 9]
    assert [len(rows) for rows in choose_pairs(torch.ones(3, 2))] == [0, 0]


def test_sampled_pairs_share_their_prompt_and_are_right_and_worse(base):
    torch.manual_seed(0)
    problems = addition_problems(40)
    answers = dict(problems)
    chosen, rejected = sample_pairs(base, problems, num_rollouts=4)
    assert torch.equal(chosen.prompt_ids, rejected.prompt_ids) and 0 < len(chosen.texts) <= 40
    for ids, good, bad in zip(chosen.prompt_ids.tolist(), chosen.texts, rejected.texts, strict=True):
        answer = answers[CharacterLevelTokenizer().decode(ids)]
        rewards = compute_rewards([good, bad], [answer])[0]
        assert rewards[0] > rewards[1]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_is_log_2_where_policy_and_reference_are_equal(beta):
    torch.manual_seed(0)
    chosen, rejected = -10 * torch.rand(2, 7, dtype=torch.float64)
    assert compute_loss_dpo(chosen, rejected, chosen, rejected, beta).item() == pytest.approx(math.log(2), abs=1e-12)


def test_dpo_on_the_base_model_begins_at_log_2(base):
    torch.manual_seed(0)
    metrics = train_dpo(base, sample_pairs(base, addition_problems(64)), lr=1e-6)
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(metrics[0]["margin"]) < 1e-3


def test_gradients_of_dpo_and_ipo_are_those_of_the_formulas():
    torch.manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    w, lo = chosen - ref_chosen, rejected - ref_rejected
    for beta in (0.1, 0.7):
        formula = -torch.log(1 / (1 + torch.exp(-(beta * w - beta * lo)))).sum() / 5
        ours = compute_loss_dpo(chosen, rejected, ref_chosen, ref_rejected, beta)
        arguments = (chosen, rejected)
        expected = torch.autograd.grad(formula, arguments, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours, arguments), expected)
        formula = sum((w[i] - lo[i] - 1 / (2 * beta)) ** 2 for i in range(5)) / 5
        ours = compute_loss_ipo(chosen, rejected, ref_chosen, ref_rejected, beta)
        expected = torch.autograd.grad(formula, arguments, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours, arguments), expected)


def test_ipo_is_zero_at_its_target_margin():
    zero = torch.zeros(1)
    assert compute_loss_ipo(torch.tensor([5.0]), zero, zero, zero, beta=0.1).item() == 0.0


def test_dpo_stays_finite_for_pairs_far_on_the_wrong_side():
    far, zero = torch.tensor([-1e4], requires_grad=True), torch.zeros(1)
    loss = compute_loss_dpo(far, zero, zero, zero, beta=1.0)
    assert loss.item() == pytest.approx(1e4) and torch.autograd.grad(loss, far)[0].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("loss_function", [compute_loss_dpo, compute_loss_ipo])
def test_training_on_pairs_widens_the_margin_and_leaves_the_reference_alone(base, loss_function):
    torch.manual_seed(0)
    pairs = sample_pairs(base, addition_problems(48))
    frozen = copy.deepcopy(base)
    metrics = train_dpo(base, pairs, epochs=8, lr=1e-3, loss_function=loss_function)
    assert metrics[-1]["margin"] > 0.5
    with torch.no_grad():
        gaps = [sequence_logps(base, side) - sequence_logps(frozen, side) for side in pairs]
    assert (gaps[0] - gaps[1]).mean() > 0.5


# --- the exercises' functions against chapter 7 ---------------------------------------------------


def some_update():
    torch.manual_seed(0)
    logps, mask = -torch.rand(4, 5), (torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]).float()
    return logps.requires_grad_(), (logps + 0.4 * torch.randn(4, 5)).detach(), torch.randn(4), mask


@pytest.mark.parametrize(
    "name, ours", [("reinforce", "vanilla_loss"), ("grpo", "ppo_loss"), ("asymmetric", "own_loss")]
)
def test_the_exercises_losses_are_rows_of_the_one_loss(name, ours):
    logps, old, advantages, mask = some_update()
    method = METHODS[name].changed(negative_weight=0.1 if name == "asymmetric" else None)
    if name != "grpo":
        old = logps.detach()  # one update: the ratio is 1, and its gradient that of the log-probability
    weighted = torch.where(advantages < 0, method.negative_weight * advantages, advantages)
    expected = torch.autograd.grad(policy_loss(logps, old, None, weighted, mask, method), logps)
    found = torch.autograd.grad(getattr(addition_rl, ours)(logps, old, advantages, mask), logps)
    torch.testing.assert_close(found, expected)


def test_the_exercises_advantages_are_rows_of_the_table():
    rewards, greedy = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5])
    for name, found in {
        "grpo": addition_rl.grpo_advantages(rewards),
        "rloo": rewards - addition_rl.leave_one_out_baseline(rewards),
        "remax": addition_rl.remax_advantages(rewards, greedy),
    }.items():
        torch.testing.assert_close(compute_advantages(rewards, METHODS[name], greedy_rewards=greedy), found)


def test_selected_logps_are_the_rollouts_own(base):
    torch.manual_seed(0)
    prompts = [prompt for prompt, _ in addition_problems(6)]
    rollouts = sample_batch(base, CharacterLevelTokenizer(), prompts, "cpu", 2, MAX_NEW_TOKENS, 1.0, None)
    seen = []
    addition_rl.plain_loss(base, rollouts, torch.ones(12), lambda logps, *rest: seen.append(logps) or logps.sum())
    torch.testing.assert_close(seen[0], rollouts.logps, atol=1e-5, rtol=1e-4)


def test_raft_s_loss_is_a_row_of_the_one_loss():
    torch.manual_seed(0)
    logps, mask = -torch.rand(4, 5), (torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]).float()
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(
        addition_rl.raft_loss(logps, mask, rewards), policy_loss(logps, None, None, rewards, mask, METHODS["raft"])
    )
