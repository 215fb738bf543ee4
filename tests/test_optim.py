"""The low-memory optimisers: what rounding loses, what the remedies keep, and what a state costs."""

import io

import pytest
import torch

from rfs_utils.engine.optim import (
    BLOCK,
    LowMemoryAdamW,
    Noise,
    load_state,
    make_optimizer,
    round_stochastically,
    store_state,
)


def adam_pair(make, dtype, steps=3, n=8192, lr=1e-2, weight_decay=0.1):
    """Weights after some steps of torch's AdamW in float32 and of `make`'s optimiser, from equal gradients."""
    torch.manual_seed(0)
    start = torch.randn(n).to(dtype).float()
    grads = [torch.randn(n) * 10 ** torch.linspace(-3, 0, n) for _ in range(steps)]

    def run(weights, build):
        p = torch.nn.Parameter(weights)
        optimizer = build([p])
        for grad in grads:
            p.grad = grad.to(p.dtype)
            optimizer.step()
        return p.detach().float()

    exact = run(start.clone(), lambda ps: torch.optim.AdamW(ps, lr=lr, weight_decay=weight_decay))
    return start, exact, run(start.to(dtype).clone(), lambda ps: make(ps, lr, weight_decay))


def plain_adamw(ps, lr, wd):
    return torch.optim.AdamW(ps, lr=lr, weight_decay=wd)


def low_memory(rounding="stochastic", byte_states=False):
    return lambda ps, lr, wd: LowMemoryAdamW(ps, lr, weight_decay=wd, rounding=rounding, byte_states=byte_states)


# --- rounding -------------------------------------------------------------------------------------


def test_stochastic_rounding_takes_the_two_neighbours_and_is_exact_on_average():
    x = torch.tensor([1.0 + 2**-9, -3.001, 1e-20, 0.0, 700.3])
    bits = torch.arange(2**16, dtype=torch.int32)  # every possible draw once
    rounded = torch.stack([round_stochastically(torch.full((2**16,), float(v)), bits) for v in x])
    assert torch.equal(rounded, rounded.bfloat16().float())
    for v, row in zip(x, rounded, strict=True):
        assert len(row.unique()) <= 2
        assert row.double().mean().item() == pytest.approx(v.item(), rel=1e-6)


def test_numbers_that_fit_are_never_moved():
    x = torch.randn(1000).bfloat16().float()
    assert torch.equal(round_stochastically(x.clone(), torch.full((1000,), 2**16 - 1, dtype=torch.int32)), x)


def moved_by_one_step(make, lr=1e-5):
    torch.manual_seed(0)
    p = torch.nn.Parameter((0.02 * torch.randn(2**18)).bfloat16())  # the size of Qwen3-0.6B's weights
    before = p.detach().clone()
    p.grad = torch.randn(2**18).bfloat16()
    make([p], lr, 0.0).step()
    change = (p.detach().float() - before.float()).double()
    return (change != 0).double().mean().item(), -(change * p.grad.sign().double()).mean().item() / lr


def test_plain_adamw_moves_few_bfloat16_weights_and_the_remedies_move_all_on_average():
    plain, _ = moved_by_one_step(plain_adamw)
    assert 0.02 < plain < 0.35  # the others would never move, however often the step is repeated
    for byte_states in (False, True):
        _, mean_step = moved_by_one_step(low_memory("stochastic", byte_states))
        assert mean_step == pytest.approx(1.0, abs=0.05)  # Adam's first step is lr for every weight


def test_kahan_keeps_what_rounding_cuts_off():
    torch.manual_seed(0)
    p = torch.nn.Parameter((0.02 * torch.randn(2**14)).bfloat16())
    before = p.detach().double().clone()
    optimizer = LowMemoryAdamW([p], 1e-5, rounding="kahan")
    for _ in range(10):
        p.grad = torch.ones_like(p)
        optimizer.step()
    stored = p.detach().double() + optimizer.state[p]["lost"].double()
    torch.testing.assert_close(before - stored, torch.full_like(before, 1e-4), rtol=0.02, atol=2e-6)


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key, code_type, top", [("mean", torch.int8, 127), ("root", torch.uint8, 255)])
def test_byte_states_are_close_and_keep_blocks_apart(key, code_type, top):
    torch.manual_seed(0)
    x = torch.randn(4 * BLOCK) * torch.tensor([1e-8, 1.0, 1e4, 0.0]).repeat_interleave(BLOCK)
    x = x.abs() if key == "root" else x
    state = {key: torch.zeros(4 * BLOCK, dtype=code_type), key + "_scale": torch.zeros(4)}
    part, noise = slice(0, 4 * BLOCK), Noise(torch.device("cpu"), 4 * BLOCK)
    found = []
    for _ in range(200):
        store_state(state, key, part, x, noise)
        found.append(load_state(state, key, part))
    found = torch.stack(found).view(200, 4, BLOCK)
    x = x.view(4, BLOCK)
    largest = x.abs().amax(dim=1, keepdim=True)
    # One code more or less: the distance of neighbouring squares.
    step = (2 * (x.abs() / largest.clamp(min=1e-30)).sqrt() * top + 1) / top**2 * largest
    assert ((found - x).abs() <= 1.01 * step + 1e-30).all()
    assert ((found.mean(dim=0) - x).abs() <= 0.2 * step + 0.3 * largest / top**2 + 1e-30).all()


def test_a_root_is_never_stored_as_zero_beside_larger_ones():
    x = torch.zeros(BLOCK)
    x[0] = 1.0
    state = {"root": torch.zeros(BLOCK, dtype=torch.uint8), "root_scale": torch.zeros(1)}
    store_state(state, "root", slice(0, BLOCK), x, Noise(torch.device("cpu"), 4 * BLOCK))
    assert (load_state(state, "root", slice(0, BLOCK)) > 0).all()


def test_slow_averages_follow_although_each_change_is_less_than_one_code():
    """The mean square changes by a thousandth a step; rounding to the nearest code would freeze it."""
    torch.manual_seed(0)
    for byte_states in (False, True):
        p = torch.nn.Parameter(torch.zeros(2**13))
        optimizer = LowMemoryAdamW([p], 0.0, byte_states=byte_states)
        for size, steps in ((1.0, 100), (0.1, 400)):
            for _ in range(steps):
                p.grad = torch.full_like(p, size)
                optimizer.step()
        exact = (1 - 0.999**100) * 0.999**400 + 0.01 * (1 - 0.999**400)
        found = load_state(optimizer.state[p], "root", slice(0, 2**13)).mean().item()
        assert found == pytest.approx(exact**0.5, rel=0.03)


@pytest.mark.parametrize("name, bytes_each", [("kahan", 6), ("stochastic", 4), ("8bit", 2)])
def test_states_take_the_bytes_they_promise_and_exist_before_the_first_step(name, bytes_each):
    p = torch.nn.Parameter(torch.zeros(1024, 1024, dtype=torch.bfloat16))
    state = make_optimizer(name, [p], 1e-3).state[p]
    size = sum(t.numel() * t.element_size() for t in state.values() if torch.is_tensor(t))
    assert size / p.numel() == pytest.approx(bytes_each, rel=0.02)


def test_saving_and_loading_continues_bit_for_bit():
    def parameter():
        torch.manual_seed(0)
        return torch.nn.Parameter(torch.randn(8192).bfloat16())

    def go_on(p, optimizer, steps):
        for _ in range(steps):
            p.grad = torch.randn(8192).bfloat16()
            optimizer.step()

    for name in ("kahan", "stochastic", "8bit"):
        p, q = parameter(), parameter()
        optimizer = make_optimizer(name, [p], 1e-2)
        go_on(p, optimizer, 3)
        file = io.BytesIO()
        torch.save({"weights": p.detach(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, file)
        go_on(p, optimizer, 3)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh = make_optimizer(name, [q], 1e-2)
        fresh.load_state_dict(saved["optimizer"])
        q.data.copy_(saved["weights"])
        torch.set_rng_state(saved["random"])
        go_on(q, fresh, 3)
        assert torch.equal(p, q)
        assert {k: t.dtype for k, t in fresh.state[q].items() if torch.is_tensor(t)} == {
            k: t.dtype for k, t in optimizer.state[p].items() if torch.is_tensor(t)
        }


# --- against AdamW --------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_states, tolerance", [(False, 0.02), (True, 0.08)])
def test_steps_on_float32_weights_are_adamws(byte_states, tolerance):
    start, exact, found = adam_pair(low_memory(byte_states=byte_states), torch.float32)
    assert ((found - exact).norm() / (exact - start).norm()).item() < tolerance


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_steps_on_bfloat16_weights_differ_from_adamws_by_no_more_than_rounding(rounding):
    start, exact, found = adam_pair(low_memory(rounding), torch.bfloat16, steps=1)
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((found - exact).abs() <= 1.01 * spacing + 2e-4).all()


def regression_loss(make, dtype, steps=300, lr=1e-2):
    """Mean squared error of a fitted linear map of 4,096 weights, after `steps` at a small learning rate."""
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    target = x @ (0.3 * torch.randn(64, 64))
    p = torch.nn.Parameter((0.3 * torch.randn(64, 64)).to(dtype))
    optimizer = make([p], lr, 0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = (x @ p.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_regression_converges_with_every_remedy_and_worse_without():
    exact = regression_loss(plain_adamw, torch.float32)
    assert regression_loss(plain_adamw, torch.bfloat16) > 1.5 * exact
    for rounding, byte_states in (("stochastic", False), ("stochastic", True), ("kahan", False)):
        assert regression_loss(low_memory(rounding, byte_states), torch.bfloat16) < 1.05 * exact


# --- errors ---------------------------------------------------------------------------------------


def test_weights_without_gradient_stay():
    p, q = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(10))
    optimizer = LowMemoryAdamW([p, q], 0.1, weight_decay=0.5)
    p.grad = torch.ones(10)
    optimizer.step()
    assert (p < 1).all() and (q == 1).all()


def test_names_and_types_that_do_not_exist_are_refused():
    p = torch.nn.Parameter(torch.ones(3))
    assert type(make_optimizer("adamw", [p], 0.1)) is torch.optim.AdamW
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        make_optimizer("sgd", [p], 0.1)
    with pytest.raises(ValueError, match="rounding must be"):
        LowMemoryAdamW([p], 0.1, rounding="up")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        LowMemoryAdamW([torch.nn.Parameter(torch.ones(3).half())], 0.1)
