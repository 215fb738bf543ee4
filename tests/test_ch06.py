"""Chapter 6's functions: against hand calculation, against each other, and against exact enumeration."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from small import make_model

from rfs_utils import ch06
from rfs_utils.ch06 import Rollouts
from rfs_utils.data import generate_tiny_problems
from rfs_utils.qwen3 import KVCache
from rfs_utils.sampling import top_p_filter

PROMPTS = ["How many?", "Tom has 12 coins. How many coins does Tom have now?"]


def draw(model, tokenizer, prompts=PROMPTS, **settings) -> Rollouts:
    torch.manual_seed(0)
    settings = {"num_rollouts": 3, "max_new_tokens": 20, "temperature": 1.0, "top_p": 1.0} | settings
    return ch06.sample_batch(model, tokenizer, prompts, "cpu", **settings)


@pytest.fixture
def stopping_model(tokenizer):
    """A random model that likes to end, so that the rows of a batch end at different times."""
    model = make_model(vocab_size=tokenizer.vocab_size, tied=False)
    with torch.no_grad():
        model.out_head.weight *= 0.2
        model.out_head.weight[tokenizer.eos_token_id] += model.final_norm.scale * 0.05
    return model


# ---------------------------------------------------------------- sampling


def test_greedy_batch_equals_the_single_runs(stopping_model, tokenizer):
    together = draw(stopping_model, tokenizer, num_rollouts=2, temperature=0.0)
    for index, prompt in enumerate(PROMPTS):
        alone = draw(stopping_model, tokenizer, [prompt], num_rollouts=1, temperature=0.0)
        for row in (2 * index, 2 * index + 1):
            assert together.texts[row] == alone.texts[0]
            assert together.lengths[row] == alone.lengths[0]


def test_rows_end_with_their_end_token_and_the_mask_includes_it(stopping_model, tokenizer):
    rollouts = draw(stopping_model, tokenizer, num_rollouts=40)
    eos, lengths = tokenizer.eos_token_id, rollouts.lengths
    assert len(lengths.unique()) > 3, "the example must have rows of many lengths"
    for tokens, length, mask, text in zip(rollouts.tokens, lengths, rollouts.mask, rollouts.texts, strict=True):
        ended = tokens[length - 1] == eos
        assert ended or length == 20
        assert (tokens[: length - 1] != eos).all() and (tokens[length:] == 0).all()
        assert mask.tolist() == [1.0] * int(length) + [0.0] * (len(mask) - int(length))
        assert text == tokenizer.decode(tokens[: length - int(ended)].tolist())


def test_without_an_end_token_every_row_runs_to_the_limit(model):
    cache = KVCache(model.cfg["n_layers"])
    logits = model(torch.randint(0, 512, (3, 4)), cache=cache)[:, -1]
    tokens, logps, lengths = ch06.sample_tokens(model, logits, cache, max_new_tokens=7, eos_token_id=None)
    assert tokens.shape == logps.shape == (3, 7) and lengths.tolist() == [7, 7, 7]


def test_sampling_follows_the_model(model, tokenizer):
    """First-token frequencies of a large group against the model's own probabilities."""
    prompt = [PROMPTS[0]]
    rollouts = draw(model, tokenizer, prompt, num_rollouts=20_000, max_new_tokens=1, temperature=0.8, top_p=0.9)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(prompt[0])]))[0, -1]
    expected = top_p_filter(torch.softmax(logits / 0.8, dim=-1), 0.9)
    frequency = torch.bincount(rollouts.tokens[:, 0], minlength=len(expected)) / 20_000
    assert (frequency[expected == 0] == 0).all()
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)


def test_sample_response_returns_the_triple(stopping_model, tokenizer):
    ids, prompt_len, text = ch06.sample_response(stopping_model, tokenizer, PROMPTS[1], "cpu", max_new_tokens=9)
    prompt_ids = tokenizer.encode(PROMPTS[1])
    assert ids.dim() == 1 and prompt_len == len(prompt_ids)
    assert ids[:prompt_len].tolist() == prompt_ids
    assert tokenizer.decode(ids[prompt_len:].tolist()).removesuffix("<|endoftext|>") == text
    assert 1 <= len(ids) - prompt_len <= 9


# ---------------------------------------------------------------- log-probabilities


def test_three_ways_to_score_agree(model, tokenizer):
    rollouts = draw(model, tokenizer)
    logps = ch06.response_logprobs(model, rollouts)
    for row in range(len(logps)):
        pad = int(rollouts.num_pad[row])
        ids = torch.cat([rollouts.prompt_ids[row, pad:], rollouts.tokens[row, : rollouts.lengths[row]]])
        prompt_len = rollouts.prompt_ids.shape[1] - pad
        one = ch06.sequence_logprob(model, ids, prompt_len)
        torch.testing.assert_close(one, (logps[row] * rollouts.mask[row]).sum(), atol=1e-4, rtol=1e-5)
        full = model(ids[None])[0].log_softmax(-1)
        by_hand = sum(full[t - 1, ids[t]] for t in range(prompt_len, len(ids)))
        torch.testing.assert_close(one, by_hand, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("temperature, top_p", [(1.0, None), (0.8, None), (0.8, 0.9), (1.3, 0.5)])
def test_scores_are_those_of_the_distribution_that_was_sampled(temperature, top_p):
    logits = torch.randn(4, 7, 11)
    probas = top_p_filter(torch.softmax(logits / temperature, dim=-1), top_p)
    tokens = torch.distributions.Categorical(probas).sample()
    expected = probas.gather(-1, tokens[..., None]).squeeze(-1).log()
    torch.testing.assert_close(ch06.token_logprobs(logits, tokens, temperature, top_p), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature, top_p", [(1.0, None), (0.8, 0.9)])
def test_the_sampler_notes_the_log_probs_that_one_full_pass_finds(model, tokenizer, temperature, top_p):
    """Decoding with a cache, from which rows leave, against all tokens at once."""
    rollouts = draw(model, tokenizer, num_rollouts=4, temperature=temperature, top_p=top_p)
    assert rollouts.logps.shape == rollouts.tokens.shape and (rollouts.logps * (1 - rollouts.mask) == 0).all()
    with torch.no_grad():
        scored = ch06.response_logprobs(model, rollouts, temperature, top_p)
    torch.testing.assert_close(rollouts.logps, scored * rollouts.mask, atol=1e-5, rtol=1e-5)


def test_given_numbers_decide_each_rollout_whatever_stands_beside_it(stopping_model, tokenizer):
    uniform = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    together = draw(stopping_model, tokenizer, num_rollouts=2, uniform=uniform)
    assert len(set(together.texts)) > 3
    for index, prompt in enumerate(PROMPTS):
        own = uniform[2 * index : 2 * index + 2]
        alone = draw(stopping_model, tokenizer, [prompt], num_rollouts=2, uniform=own)
        assert alone.texts == together.texts[2 * index : 2 * index + 2]


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_micro_batches_and_pieces_of_the_head_change_nothing(model, tokenizer, top_p, monkeypatch):
    monkeypatch.setattr(ch06, "HEAD_POSITIONS", 3)
    rollouts = draw(model, tokenizer, top_p=top_p or 1.0)
    assert rollouts.tokens.shape[1] > 6, "the example must have several pieces"
    found = []
    for micro_batch in (None, 1, 4):
        logps = ch06.response_logprobs(model, rollouts, 0.7, top_p, micro_batch)
        loss = ch06.policy_gradient_loss(logps, torch.randn(6, generator=torch.manual_seed(1)), rollouts.mask)
        found.append([logps, *torch.autograd.grad(loss, list(model.parameters()))])
    for parts in found[1:]:
        for expected, part in zip(found[0], parts, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-4)


def test_padding_to_a_greater_length_changes_nothing(model, tokenizer):
    rollouts = draw(model, tokenizer)
    wider = Rollouts(
        prompt_ids=torch.nn.functional.pad(rollouts.prompt_ids, (4, 0), value=9),
        num_pad=rollouts.num_pad + 4,
        tokens=torch.nn.functional.pad(rollouts.tokens, (0, 6)),
        lengths=rollouts.lengths,
        texts=rollouts.texts,
    )
    narrow, wide = (ch06.response_logprobs(model, r) * r.mask for r in (rollouts, wider))
    torch.testing.assert_close(wide[:, : narrow.shape[1]], narrow, atol=1e-5, rtol=1e-5)
    assert (wide[:, narrow.shape[1] :] == 0).all()


# ---------------------------------------------------------------- rewards, advantages, loss


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (r"\boxed{83}", 1.0),
        (r"The correct answer is \boxed{83}", 1.0),
        ("The final answer is 83", 0.0),
        (r"We get \boxed{38}", 0.0),
        (r"\boxed{83} or rather \boxed{38}", 0.0),
        (r"\boxed{38}, no, \boxed{83}<|endoftext|>", 1.0),
        ("", 0.0),
    ],
)
def test_reward(text, reward):
    assert ch06.reward_rlvr(text, "83") == reward


def test_equations_of_an_answer():
    assert ch06.equations(" May:7+5=12\nJune:12-13=-1\n\\boxed{-1}") == ["7+5=12", "12-13=-1"]
    assert ch06.equations(r" \boxed{18}") == []


def test_advantages_by_hand():
    four = ch06.group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(four, torch.tensor([0.8659, 0.8659, -0.8659, -0.8659]), atol=1e-4, rtol=0)
    eight = ch06.group_advantages(torch.tensor([1.0] + [0.0] * 7))
    torch.testing.assert_close(eight, torch.tensor([2.4742] + [-0.3535] * 7), atol=1e-3, rtol=0)
    for gap in (0.1, 1.0, 7.0):  # with two rollouts the size of the gap disappears
        two = ch06.group_advantages(torch.tensor([0.0, gap]))
        torch.testing.assert_close(two, torch.tensor([-0.7071, 0.7071]), atol=2e-3, rtol=0)
    assert (ch06.group_advantages(torch.ones(5)) == 0).all()


def test_advantages_are_taken_group_by_group_and_follow_a_permutation():
    rewards = torch.rand(3, 6)
    order = torch.randperm(6)
    advantages = ch06.group_advantages(rewards)
    torch.testing.assert_close(ch06.group_advantages(rewards[:, order]), advantages[:, order])
    for row in range(3):
        torch.testing.assert_close(ch06.group_advantages(rewards[row]), advantages[row])


@pytest.mark.parametrize("unjudged", [[], [0], [2, 5], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_an_answer_that_was_not_judged_counts_nowhere(unjudged):
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.0, 1.0, 0.5], dtype=torch.float64)
    kept = torch.tensor([i not in unjudged for i in range(6)])
    advantages = ch06.group_advantages(rewards.masked_fill(~kept, torch.nan))
    expected = ch06.group_advantages(rewards[kept]) if kept.sum() > 1 else torch.zeros(int(kept.sum())).double()
    assert (advantages[~kept] == 0).all()
    torch.testing.assert_close(advantages[kept], expected)
    logps, mask = -torch.rand(6, 3, dtype=torch.float64), torch.ones(6, 3)
    loss = ch06.policy_gradient_loss(logps, advantages, mask * kept[:, None])
    expected = ch06.policy_gradient_loss(logps[kept], advantages[kept], mask[kept]) if kept.any() else 0.0 * loss
    torch.testing.assert_close(loss, expected)


def test_a_loss_of_wrong_shapes_is_refused():
    with pytest.raises(ValueError, match=r"expected advantages of shape \(N,\).*got advantages \(4, 1\), logps"):
        ch06.policy_gradient_loss(torch.zeros(4, 3), torch.ones(4, 1), torch.ones(4, 3))


def test_loss_gradient_is_the_policy_gradient_by_exact_enumeration():
    """All responses of up to three tokens from three symbols, one of which ends the response.

    Weighted with its exact probability, -(R - b) * log p must have the gradient of -E[R], for any baseline b:
    the end token counts, and padding does not.
    """
    torch.manual_seed(0)
    table = torch.randn(1 + 3 + 9, 3, dtype=torch.float64, requires_grad=True)  # logits after each prefix
    prefixes = [(), *itertools.product(range(3), repeat=1), *itertools.product(range(3), repeat=2)]
    logp = torch.log_softmax(table, dim=-1)
    responses = [(2,)] + [(a, 2) for a in range(2)]
    responses += [(a, b, c) for a, b, c in itertools.product(range(2), range(2), range(3))]

    tokens = torch.tensor([r + (0,) * (3 - len(r)) for r in responses])
    lengths = torch.tensor([len(r) for r in responses])
    mask = Rollouts(tokens, None, tokens, lengths, []).mask.double()
    rows = []
    for response, padded in zip(responses, tokens.tolist(), strict=True):
        known = [logp[prefixes.index(tuple(response[:t])), response[t]] for t in range(len(response))]
        rows.append(torch.stack(known + [logp[0, t] for t in padded[len(response) :]]))  # nonsense at padding
    logps = torch.stack(rows)
    probability = (logps * mask).sum(dim=1).exp()
    assert abs(probability.sum().item() - 1) < 1e-12, "the list of responses must be complete"

    rewards = torch.rand(len(responses), dtype=torch.float64)
    (expected,) = torch.autograd.grad(-(probability * rewards).sum(), table, retain_graph=True)
    for baseline in (0.0, 0.4):
        weights = probability.detach() * (rewards - baseline) * len(responses)  # the loss takes the mean
        (found,) = torch.autograd.grad(ch06.policy_gradient_loss(logps, weights, mask), table, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_compute_grpo_loss_returns_the_documented_dictionary(stopping_model, tokenizer, monkeypatch):
    rewards = iter([1.0, 0.0, 0.0, 1.0])
    monkeypatch.setattr(ch06, "reward_rlvr", lambda text, truth: next(rewards))
    example = generate_tiny_problems(1)[0]
    torch.manual_seed(0)
    stats = ch06.compute_grpo_loss(stopping_model, tokenizer, example, "cpu", num_rollouts=4, max_new_tokens=10)
    assert set(stats) == {"loss", "pg_loss", "rewards", "advantages", "samples", "loss_tensor"}
    assert stats["rewards"] == [1.0, 0.0, 0.0, 1.0]
    assert stats["advantages"] == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-3)
    assert stats["loss"] == stats["pg_loss"] == stats["loss_tensor"].item()
    assert [set(sample) for sample in stats["samples"]] == [{"text", "reward", "gen_len"}] * 4
    assert all(1 <= sample["gen_len"] <= 10 for sample in stats["samples"])
    stats["loss_tensor"].backward()
    assert any(p.grad.abs().sum() > 0 for p in stopping_model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rollouts": 1}, "num_rollouts must be at least 2"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"top_p": 0.0}, "top_p must be greater than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_impossible_settings_are_named(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        ch06.compute_grpo_loss(model, tokenizer, generate_tiny_problems(1)[0], "cpu", **settings)


# ---------------------------------------------------------------- training


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_a_step_without_signal_leaves_the_weights_alone(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()  # now the optimizer has momentum that would move the weights
    before = weights(model)
    loss = sum((p * 0).sum() for p in model.parameters())
    assert not ch06.update_weights(model, optimizer, {"rewards": [1.0, 1.0], "loss_tensor": loss})
    assert weights(model).equal(before)
    assert ch06.update_weights(model, optimizer, {"rewards": [1.0, 0.0], "loss_tensor": loss})
    assert not weights(model).equal(before)


class Result:
    accuracy, mean_tokens = 0.25, 7.5


def train(model, tokenizer, folder, **settings):
    settings = {"steps": 4, "max_new_tokens": 6, "checkpoint_every": 2, "checkpoint_dir": folder} | settings
    problems = generate_tiny_problems(3)
    return ch06.train_rlvr_grpo(model, tokenizer, problems, "cpu", csv_log_path=folder / "log.csv", **settings)


@pytest.fixture
def alternating_reward(monkeypatch):
    rewards = itertools.cycle([1.0, 0.0, 0.0])
    monkeypatch.setattr(ch06, "reward_rlvr", lambda text, truth: next(rewards))


def test_training_logs_evaluates_and_saves(model, tokenizer, tmp_path, alternating_reward, capsys):
    before = weights(model)
    assert train(model, tokenizer, tmp_path, evaluate=lambda m: Result(), evaluate_every=2) is model
    assert not weights(model).equal(before)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,total_steps,loss,reward_avg,avg_response_len,eval_accuracy,eval_tokens"
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4"]
    assert [row.split(",")[-2:] for row in rows] == [["", ""], ["0.250000", "7.500000"]] * 2
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "rlvr-grpo-step00002.safetensors",
        "rlvr-grpo-step00004.safetensors",
    ]
    saved = load_file(tmp_path / "rlvr-grpo-step00004.safetensors")
    assert all(saved[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert "[Step 4/4]" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*")), "no temporary file may stay"


def test_training_prints_as_the_printed_book_does(model, tokenizer, tmp_path, alternating_reward, capsys):
    train(model, tokenizer, tmp_path, steps=20, checkpoint_every=20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines if "loss=" in line] == [f"[Step {k}/20" for k in range(1, 21)]
    samples = [i for i, line in enumerate(lines) if "sample outputs" in line]
    assert [lines[i] for i in samples] == ["[Step 10] sample outputs", "[Step 20] sample outputs"]
    assert lines[samples[0] + 1].startswith("  1) reward=") and " len=" in lines[samples[0] + 1]
    assert lines[-1] == f"Saved {tmp_path / 'rlvr-grpo-step00020.safetensors'}"
    train(model, tokenizer, tmp_path, steps=40, start_step=20, print_every=10, checkpoint_every=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines if "loss=" in line] == ["[Step 30/40", "[Step 40/40"]


def test_an_interrupt_saves_and_training_goes_on_from_there(model, tokenizer, tmp_path, alternating_reward, capsys):
    def interrupt(model):
        raise KeyboardInterrupt

    assert train(model, tokenizer, tmp_path, evaluate=interrupt, evaluate_every=3) is model
    assert "Interrupted. Saved" in capsys.readouterr().out
    assert (tmp_path / "rlvr-grpo-step00003-interrupt.safetensors").is_file()
    train(model, tokenizer, tmp_path, evaluate=lambda m: Result(), evaluate_every=2, start_step=2)
    steps = [row.split(",")[0] for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert steps == ["1", "2", "3", "4"]


def test_training_goes_on_where_nothing_was_judged(model, tokenizer, tmp_path, monkeypatch, capsys):
    rewards = itertools.chain([None, None], itertools.cycle([1.0, None, 0.0, 1]))
    monkeypatch.setattr(ch06, "reward_rlvr", lambda text, truth: next(rewards))
    train(model, tokenizer, tmp_path, steps=3, num_rollouts=2, evaluate=lambda m: Result(), evaluate_every=1)
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [row[3] for row in rows] == ["", "1.000000", "0.500000"]
    assert [float(row[2]) for row in rows[:2]] == [0.0, 0.0] and float(rows[2][2]) != 0.0
    assert "reward_avg=none" in capsys.readouterr().out


def test_training_refuses_impossible_steps(model, tokenizer, tmp_path):
    for settings in ({"steps": 0}, {"steps": 4, "start_step": 4}):
        with pytest.raises(ValueError, match="steps must be positive"):
            train(model, tokenizer, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_the_csv_has_the_printed_books_columns(tmp_path):
    for step in (1, 2):
        ch06.append_csv_metrics(tmp_path / "log.csv", step, 2, -0.5, 0.25, 12.5)
    assert (tmp_path / "log.csv").read_text() == (
        "step,total_steps,loss,reward_avg,avg_response_len\n"
        "1,2,-0.500000,0.250000,12.500000\n2,2,-0.500000,0.250000,12.500000\n"
    )
    small = [1e-6, 6e-7, -2.4e-7, 0.0]
    assert [float(ch06.format_cell(value)) for value in small] == small, "learning rates of large models are no zeros"
