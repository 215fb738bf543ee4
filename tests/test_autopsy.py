"""The old DPO run of exercises/autopsy.ipynb: what each mend repairs, and that the stored runs are complete."""

import math
from dataclasses import fields

import pytest
import torch

from rfs_utils.exercises.addition import EOS, CharacterLevelTokenizer, addition_problems, load_addition_base
from rfs_utils.exercises.addition_dpo import compute_loss_dpo
from rfs_utils.exercises.autopsy import (
    BATCH,
    MENDS,
    Mends,
    SinusoidalEncoder,
    autopsy_run,
    old_distance,
    old_loss,
    old_pairs,
    old_scores,
    read_autopsy,
)

TOKENIZER = CharacterLevelTokenizer()


@pytest.fixture(scope="module")
def base():
    return load_addition_base()[0]


def pairs_of(base, mends, count=2 * BATCH):
    torch.manual_seed(0)
    return old_pairs(base, addition_problems(count, seed=1), mends)


def test_mended_pairs_hold_the_better_answer_first_and_no_ties(base):
    def distances(mends):
        found = []
        for prompt, *sides in pairs_of(base, mends):
            answer = str(sum(map(int, prompt[:-1].split("+"))))
            found.append([old_distance(TOKENIZER.decode(side.tolist()), answer) for side in sides])
        return found

    mended, old = distances(Mends(own_answer=True, no_ties=True)), distances(Mends())
    assert mended and all(winner < loser for winner, loser in mended)
    assert any(winner > loser for winner, loser in old) and any(winner == loser for winner, loser in old)


def test_all_mended_is_the_lab_s_dpo(base):
    policy, _ = load_addition_base()
    with torch.no_grad():
        policy.tok_emb.weight.mul_(1.1)
    some = pairs_of(base, MENDS["all"])[:BATCH]
    prompts, winners, losers = zip(*some, strict=True)
    ids = torch.tensor([TOKENIZER.encode(prompt) for prompt in prompts])
    with torch.no_grad():
        sides = [torch.stack(side) for side in (winners, losers)]
        sums = [old_scores(model, ids, side, MENDS["all"]) for model in (policy, base) for side in sides]
        ours = old_loss(policy, base, some, MENDS["all"])
        torch.testing.assert_close(ours, compute_loss_dpo(*sums, beta=1.0))
        assert abs(old_loss(base, base, some, MENDS["all"]).item() - math.log(2)) < 1e-6
        assert abs(ours.item() - math.log(2)) > 1e-3


def test_what_comes_after_the_end_counts_only_unmasked(base):
    ids = torch.tensor([TOKENIZER.encode("123+321=")])
    answers = torch.tensor([TOKENIZER.encode(text) for text in (f"444{EOS}[PAD]", f"444{EOS}7")])
    with torch.no_grad():
        for masked in (False, True):
            mends = Mends(gathered=True, summed=True, masked=masked)
            first, second = old_scores(base, ids.repeat(2, 1), answers, mends).tolist()
            assert (abs(first - second) < 1e-6) == masked


def test_the_old_encoder_looks_at_nothing_to_come():
    torch.manual_seed(0)
    model = SinusoidalEncoder().eval()
    ids = torch.randint(14, (2, 13))
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 14
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_run_says_how_it_ends():
    found = autopsy_run(Mends(), steps=1, num_problems=20)
    assert found["first_loss"] > 1 and 0 <= found["accuracy"] <= 1 and 0 <= found["endless"] <= 1


def test_the_stored_runs_are_complete():
    runs = [(row["mend"], row["seed"]) for row in read_autopsy() if row["steps"] == 40]
    assert sorted(runs) == sorted((name, seed) for name in MENDS for seed in range(3))
    assert len(MENDS) == len(fields(Mends)) + 2
