"""The chunked scan against the recurrence, one token after another."""

from __future__ import annotations

import pytest
import torch

from tenuto.attention.scan import ema_mix, ema_scan

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, HEADS, HORIZONS, CHANNELS = 3, 2, 3, 5


def recurrence(x, horizon, real, start, seen):
    """``s_t = m_t (beta s + (1 - beta) x_t) + (1 - m_t) s`` and ``e_t = s_t / (1 - beta^n)``, state by state."""
    beta, s, count, out = torch.exp(-1 / horizon)[None, :, :, None], start, seen.clone(), []
    for t in range(x.shape[2]):
        m = real[:, t, None, None, None].to(x.dtype)
        s = m * (beta * s + (1 - beta) * x[:, :, None, t]) + (1 - m) * s
        count = count + real[:, t]
        out.append(s / (1 - beta ** count.clamp(min=1)[:, None, None, None]))
    return torch.stack(out, 3), s


def example(tokens: int, padding: list[int], carried: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    real = torch.arange(tokens) >= torch.tensor(padding)[:, None]
    x = (normal(BATCH, HEADS, tokens, CHANNELS) * real[:, None, :, None]).requires_grad_()
    log_horizon = (2 * normal(HEADS, HORIZONS) + 2).requires_grad_()  # 0.1 to 1,000 tokens and more
    start = (normal(BATCH, HEADS, HORIZONS, CHANNELS) * carried).requires_grad_()
    seen = torch.full((BATCH,), 9 * carried)
    number = seen[:, None] + torch.arange(tokens) - torch.tensor(padding)[:, None]
    weight = normal(BATCH, HEADS, tokens, 1 + HORIZONS).requires_grad_()
    return x, log_horizon, start, seen, real, number, weight


@pytest.mark.parametrize(
    "tokens, padding, carried",
    [
        (1, [0, 0, 0], True),
        (7, [0, 3, 6], False),
        (64, [0, 0, 0], True),
        (150, [0, 20, 77], False),
        (333, [0, 0, 0], True),
    ],
)
@pytest.mark.parametrize("chunk", [4, 32])  # 333 tokens in chunks of 4: five levels
def test_the_recurrence(tokens: int, padding: list[int], carried: bool, chunk: int) -> None:
    x, log_horizon, start, seen, real, number, weight = example(tokens, padding, carried)
    inputs = [x, log_horizon, start, weight]
    want, want_last = recurrence(x, log_horizon.exp(), real, start, seen)
    found, last = ema_scan(x, log_horizon.exp(), number, start, chunk)
    keep = real[:, None, None, :, None]
    assert torch.allclose(found * keep, want * keep, rtol=1e-9, atol=1e-11)
    assert torch.allclose(last, want_last, rtol=1e-9, atol=1e-11)

    want = weight[..., :1] * x + (weight[..., 1:].permute(0, 1, 3, 2)[..., None] * want).sum(2)
    mixed, last = ema_mix(x, log_horizon.exp(), number, weight, start, chunk)
    assert torch.allclose(mixed * keep[:, :, 0], want * keep[:, :, 0], rtol=1e-9, atol=1e-11)
    assert torch.allclose(last, want_last, rtol=1e-9, atol=1e-11)

    asked = torch.randn(want.shape, dtype=x.dtype) * keep[:, :, 0]
    losses = [(out * asked).sum() + state.square().sum() for out, state in ((want, want_last), (mixed, last))]
    grads = [torch.autograd.grad(loss, inputs) for loss in losses]
    for name, a, b in zip(("x", "log_horizon", "start", "weight"), *grads, strict=True):
        if name == "x":  # what padding would have changed is not asked for: it is given as zero
            a, b = a * real[:, None, :, None], b * real[:, None, :, None]
        if name == "start" and not carried:
            continue  # padding holds a state in the recurrence, and decays one of zero in the scan
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10), name


def test_a_constant_stays_itself_in_single_precision_and_at_long_horizons() -> None:
    x = torch.full((1, 1, 3000, 1), 7.0)
    horizon = torch.tensor([[2.0, 8192.0, 1e6]])
    found, _ = ema_scan(x, horizon, torch.arange(3000)[None])
    assert (found - 7).abs().max() <= 1e-4


def test_in_two_calls_as_in_one() -> None:
    x, log_horizon, _, _, _, number, weight = example(101, [0, 0, 0], False)
    whole, last = ema_mix(x, log_horizon.exp(), number, weight)
    a, state = ema_mix(x[:, :, :37], log_horizon.exp(), number[:, :37], weight[:, :, :37])
    b, state = ema_mix(x[:, :, 37:], log_horizon.exp(), number[:, 37:], weight[:, :, 37:], state)
    assert torch.allclose(torch.cat([a, b], 2), whole) and torch.allclose(state, last)
