"""Blocks left out, outputs collected, residuals added between blocks: no span stands in for what is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tenuto
from tenuto.errors import AttachError
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.usefixtures("one_thread")
CREEP = [500.0 - 1e-4 * step for step in range(8)]  # the same input again, as good as equal


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        given = hidden_states if extra is None else hidden_states + 0.5 * extra
        return hidden_states + torch.tanh(self.linear(given))


class Free(nn.Module):
    """Four blocks, called as ``plan`` says: ``(blocks, x) -> output``."""

    def __init__(self, plan: Callable[..., Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.plan = plan

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **given: Any) -> Any:
        return self.plan(self.blocks, hidden_states * 1, **given)


def collects(blocks: Any, x: torch.Tensor) -> Any:
    outputs = []
    for block in blocks:
        x = block(x)
        outputs.append(x)
    return [2 * output for output in outputs]


def hands_out(blocks: Any, x: torch.Tensor) -> Any:
    outputs = []
    for block in blocks:
        x = block(x)
        outputs.append(x)
    return {"sample": x, "hidden_states": tuple(outputs)}


def adds(blocks: Any, x: torch.Tensor, control: float = 1.0) -> Any:
    for block in blocks:
        x = block(x) + control
    return x


def writes(blocks: Any, x: torch.Tensor) -> Any:
    for block in blocks:
        x = block(x)
        x += 1
    return x


def looks(blocks: Any, x: torch.Tensor) -> Any:
    scale = 1.0
    for block in blocks:
        x = block(x)
        scale += float(x.mean())
    return x * scale


def joins(blocks: Any, x: torch.Tensor) -> Any:
    """A long skip connection, as in U-ViT and HunyuanDiT."""
    first = blocks[0](x)
    second = blocks[1](first)
    return blocks[3](blocks[2](second), extra=first)


def beside(blocks: Any, x: torch.Tensor) -> Any:
    """All blocks see the same input."""
    return torch.stack([block(x) for block in blocks]).mean(0)


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in flat(item)]


@pytest.mark.parametrize("plan", [collects, hands_out, adds, writes, looks, joins, beside])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("shadow", [False, True])
def test_what_is_used_is_right(plan: Callable[..., Any], mode: Any, shadow: bool) -> None:
    model, x = Free(plan), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    with mode():
        right = flat(model(x, torch.tensor(1.0)))
        with tenuto.attach(model, tenuto.EveryN(n=2), shadow=shadow) as run:
            found = [flat(model(x, torch.tensor(time))) for time in CREEP]
    for step in found:
        for got, expected in zip(step, right, strict=True):
            assert type(got) is torch.Tensor
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert run.telemetry.reuse_ratio > 0, "what can be skipped is"
    assert run.summary()["cached"]["Free"]["spans"] == (2 if plan is joins and not shadow else 4) or plan is joins


def test_a_control_that_changes_is_added_as_it_is() -> None:
    model, x = Free(adds), torch.zeros(1, 3, 8)
    plain = [model(x, torch.tensor(1.0), control=control) for control in (1.0, 0.0)]
    with torch.no_grad(), tenuto.attach(model, tenuto.EveryN(n=3)):
        for time in CREEP[:5]:
            model(x, torch.tensor(time))
        gone = model(x, torch.tensor(CREEP[5]), control=0.0)
    assert float((gone - plain[1]).norm()) < float((plain[0] - plain[1]).norm())


def skips(*left_out: int) -> Callable[..., Any]:
    def plan(blocks: Any, x: torch.Tensor, skip: bool = True) -> Any:
        for index, block in enumerate(blocks):
            if not (skip and index in left_out):
                x = block(x)
        return x

    return plan


@pytest.mark.parametrize("left_out", [(0,), (1,), (3,), (0, 1), (2, 3), (0, 3)])
@pytest.mark.parametrize("policy", [tenuto.EveryN(n=2), tenuto.FirstBlock(threshold=9.0)], ids=repr)
def test_blocks_left_out_now_and_then(left_out: tuple[int, ...], policy: Any) -> None:
    model, x = Free(skips(*left_out)), torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))
    right = {skip: model(x, torch.tensor(1.0), skip=skip) for skip in (True, False)}
    with tenuto.attach(model, policy) as run:
        for step, time in enumerate(CREEP):
            skip = 3 <= step < 7
            torch.testing.assert_close(model(x, torch.tensor(time), skip=skip), right[skip], rtol=1e-5, atol=1e-5)
    assert {event.generation for event in run.telemetry.events} == {0}
    assert run.telemetry.reuse_ratio > 0


@pytest.mark.parametrize("left_out", [(0,), (3,)])
def test_blocks_always_left_out_in_one_branch(left_out: tuple[int, ...]) -> None:
    model, x = Free(skips(*left_out)), torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))
    right = {skip: model(x, torch.tensor(1.0), skip=skip) for skip in (True, False)}
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        for time in CREEP:
            for skip in (False, True):
                torch.testing.assert_close(model(x, torch.tensor(time), skip=skip), right[skip], rtol=1e-5, atol=1e-5)
    assert {event.branch for event in run.telemetry.events if event.decision == "reuse"} == {"call0", "call1"}


def test_blocks_out_of_order_or_none_at_all() -> None:
    x, time = torch.zeros(1, 3, 8), torch.tensor(1.0)
    for plan, said in (
        (lambda blocks, x: blocks[0](blocks[1](x)), "Block 0 ran after block 1"),
        (lambda blocks, x: blocks[0](blocks[0](x)), "Block 0 ran after block 0"),
        (lambda blocks, x: x, "ran through none of its 4 blocks"),
    ):
        with pytest.raises(AttachError, match=said), tenuto.attach(Free(plan), tenuto.EveryN(n=2)) as run:
            _ = run, [model(x, time) for model in (run.denoisers[0].layout.root,)]


def test_a_calibrated_policy_is_refused_where_its_spans_do_not_fit() -> None:
    model = TinyDiT()
    profile = tenuto.calibrate(
        model, tenuto.FastCache(), lambda seed: denoise(model, seed), seeds=range(6), settings={}
    )
    kept: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, given, output: kept.append(output + 0))
    with pytest.raises(AttachError, match=r"uses what blocks\.1 returned besides.*needs no profile"):
        with tenuto.attach(model, tenuto.FastCache(rtol=9.0), profile=profile):
            denoise(model)


def test_a_stand_in_kept_for_later_says_what_it_is() -> None:
    model, kept = TinyDiT(), []
    model.blocks[1].register_forward_hook(lambda module, given, output: kept.append(output))
    with tenuto.attach(model, tenuto.EveryN(n=2)):
        denoise(model, steps=2)
    assert kept[0].isfinite().all()
    with pytest.raises(AttachError, match="stand-in for that of a skipped block"):
        kept[1].isfinite()


def test_gradient_checkpoints_compute_again_what_was_computed() -> None:
    from torch.utils.checkpoint import checkpoint

    def through(blocks: Any, x: torch.Tensor) -> Any:
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    model = Free(through)
    forward = type(model).forward.__wrapped__  # with gradients
    grads = []
    for attached in (False, True):
        model.zero_grad()
        x = torch.ones(1, 3, 8, requires_grad=True)
        if attached:
            with tenuto.attach(model, tenuto.EveryN(n=1)):
                with torch.enable_grad():
                    model.plan(model.blocks, x).sum().backward()
        else:
            forward(model, x, torch.tensor(1.0)).sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *grads))
