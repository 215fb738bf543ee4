"""Token choice, top-p, and the streaming functions of the earlier chapters."""

import pytest
import torch

from rfs_utils.sampling import (
    avg_logprob_answer,
    check_sampling,
    choose_token,
    generate_text_stream_concat_flex,
    generate_text_top_p_stream_cache,
    top_p_filter,
)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probas = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    expected = {0.3: [0, 1, 0, 0], 0.5: [0, 1, 0, 0], 0.51: [0, 0.625, 0, 0.375], 0.9: [0, 10, 3, 6]}
    for top_p, kept in expected.items():
        kept = torch.tensor([kept], dtype=torch.float32)
        torch.testing.assert_close(top_p_filter(probas, top_p), kept / kept.sum())
    for everything in (1.0, None):
        torch.testing.assert_close(top_p_filter(probas, everything), probas)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.7, 0.95])
def test_top_p_equals_transformers(top_p):
    from transformers import TopPLogitsWarper

    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.softmax(TopPLogitsWarper(top_p)(None, logits), dim=-1)
    torch.testing.assert_close(top_p_filter(torch.softmax(logits, dim=-1), top_p), expected)


def test_sampled_frequencies_follow_the_tempered_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = top_p_filter(torch.softmax(logits / 0.7, dim=-1), 0.97)
    torch.manual_seed(0)
    drawn, logps = choose_token(logits.repeat(40_000, 1), temperature=0.7, top_p=0.97)
    frequency = torch.bincount(drawn, minlength=4) / 40_000
    assert frequency[3] == 0  # outside the top 97 %
    torch.testing.assert_close(frequency, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(logps.exp(), expected[drawn])


def test_temperature_zero_is_greedy():
    logits = torch.randn(30, 9)
    tokens, logps = choose_token(logits, temperature=0)
    assert tokens.equal(logits.argmax(dim=1)) and logps.count_nonzero() == 0


def test_a_given_number_decides_the_draw_of_its_row():
    probas = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    tokens, _ = choose_token(probas.log().repeat(6, 1), uniform=uniform)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3], "a token of probability 0 is never drawn"


def test_stream_equals_repeated_full_forward_passes(model):
    ids = torch.randint(0, 512, (1, 6))
    streamed = [t.item() for t in generate_text_top_p_stream_cache(model, ids, max_new_tokens=12)]
    with torch.no_grad():
        for token in streamed:
            assert model(ids)[0, -1].argmax().item() == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(streamed) == 12


def test_stream_stops_before_the_end_token(model):
    ids = torch.randint(0, 512, (1, 6))
    streamed = [t.item() for t in generate_text_top_p_stream_cache(model, ids, max_new_tokens=12)]
    end = streamed[5]
    stopped = [t.item() for t in generate_text_top_p_stream_cache(model, ids, 12, eos_token_id=end)]
    assert stopped == streamed[: streamed.index(end)]


def test_text_function_joins_the_stream_and_prints_it(model, tokenizer, capsys):
    text = generate_text_stream_concat_flex(model, tokenizer, "How many", "cpu", max_new_tokens=8, verbose=True)
    ids = torch.tensor([tokenizer.encode("How many")])
    expected = [t.item() for t in generate_text_top_p_stream_cache(model, ids, 8, tokenizer.eos_token_id)]
    assert text == tokenizer.decode(expected)
    assert capsys.readouterr().out


def test_average_log_probability(model, tokenizer):
    prompt, answer = tokenizer.encode("How many?"), tokenizer.encode(" 12")
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
    by_hand = sum(logprobs[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer)) / len(answer)
    assert avg_logprob_answer(model, tokenizer, "How many?", " 12") == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        check_sampling(**settings)


def sorted_nucleus(probas, top_p):
    """Top-p by its definition, for one row: the likeliest until they hold `top_p`, largest first."""
    ranked = probas.double().sort(descending=True).values
    kept = ranked[ranked.cumsum(0) - ranked < top_p]
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0, 8.0])
def test_the_nucleus_of_a_large_vocabulary_without_sorting_all_of_it(scale, top_p):
    torch.manual_seed(0)
    logits = scale * torch.randn(2, 20_000)
    logits[:, ::3] = logits[:, :1]  # many equal numbers, of which any may stay
    probas = torch.softmax(logits, dim=-1)
    for row, before in zip(top_p_filter(probas, top_p), probas, strict=True):
        kept = row[row > 0].double().sort(descending=True).values
        torch.testing.assert_close(kept, sorted_nucleus(before, top_p), rtol=1e-5, atol=0)
        assert before[row > 0].min() >= before[row == 0].max() if (row == 0).any() else True


def test_the_nucleus_without_rounding_is_exact():
    probas = torch.zeros(2**14)
    probas[[5, 70, 900, 1000]] = torch.tensor([0.125, 0.5, 0.125, 0.25])  # sums of powers of two are exact
    for top_p, count in ((0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3)):
        kept = top_p_filter(probas[None], top_p)[0].nonzero().squeeze(1).tolist()
        assert len(kept) == count and kept[-1] in (70, 1000)
    assert torch.equal(top_p_filter(probas[None], 0.95)[0], probas)
    assert torch.equal(top_p_filter(0.5 * probas[None], 0.9)[0], probas)  # top_p is never reached: all stay
