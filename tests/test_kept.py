"""The bytes that autograd keeps, counted where they can be counted by hand."""

import torch

from rfs_utils.kept import KeptForBackward


def test_inputs_and_results_count_and_weights_do_not():
    layer = torch.nn.Linear(100, 10)
    with KeptForBackward(layer) as kept:
        loss = layer(torch.randn(50, 100)).exp().sum()
    assert kept.now == kept.peak == 4 * (50 * 100 + 50 * 10)  # the layer's input, and the result of exp
    loss.backward()
    assert kept.now == 0 and kept.peak == 4 * 5500


def test_memory_that_is_kept_twice_counts_once():
    x = torch.randn(1000, requires_grad=True)
    with KeptForBackward(torch.nn.Identity()) as kept:
        loss = (x[:500] * x[500:]).sum() + x.sin().sum()
    assert kept.peak == 4 * 1000
    loss.backward()
    torch.testing.assert_close(x.grad, x.detach().roll(500) + x.detach().cos())  # the same gradient as without


def test_the_peak_is_that_of_the_largest_part():
    weight = torch.randn(10, requires_grad=True)
    with KeptForBackward(torch.nn.Identity()) as kept:
        for size in (100, 300, 200):
            torch.outer(torch.ones(size), weight).exp().sum().backward()
    assert kept.now == 0 and 4 * 300 * 10 <= kept.peak < 2 * 4 * 300 * 10
