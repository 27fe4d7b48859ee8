"""The token level: what is computed for the chosen tokens of an estimated span is what the block computes for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, Inputs, Outputs, generate, relative, same
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

import tenuto
from tenuto.diffusion.models import Block, find_denoisers, unpack
from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policy import Composition, Corrector, FeaturePolicy, Paper, Step, Streams
from tenuto.diffusion.tokens import Subset, _Narrow
from tenuto.diffusion.trajectory import change_of
from tenuto.errors import AttachError
from tenuto.telemetry import Telemetry
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = [name for name in ARCHITECTURES if name != "sana"]
STEPS = 4
architectures = pytest.mark.parametrize("name", NARROW)


def quarter(image: torch.Tensor, stride: int = 4) -> torch.Tensor:
    return (torch.arange(1, image.shape[1] + 1, stride) + torch.arange(len(image))[:, None]) % image.shape[1]


@dataclass(frozen=True, slots=True)
class Chosen(Corrector):
    """Computes every ``stride``-th token, from another one on in every sample."""

    stride: int

    def init(self) -> None:
        return None

    def select(self, state: None, step: Step) -> torch.Tensor | None:
        image = step.hidden[0]
        assert image is not None
        return quarter(image, self.stride)

    def correct(
        self, state: None, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        return estimate.scatter(1, tokens[..., None].expand_as(fresh), fresh)

    def observe(self, state: None, step: Step, residual: Streams) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partly(FeaturePolicy):
    """Every second step is estimated, but for some tokens."""

    stride: int = 4
    warmup: int = 1
    paper: ClassVar[Paper] = Paper("", "", 2030, "")

    def compose(self, profile: Any) -> Composition:
        return Composition(WholeStack(), Interval(2, self.warmup), StoredResidual(), Chosen(self.stride))


Call = tuple[tuple[Any, ...], dict[str, Any], Any]


def watched(kind: Architecture, model: nn.Module, **options: Any) -> tuple[dict[int, list[Call]], Outputs, Telemetry]:
    """Every call of every block (by number), as it went in and came out, while some tokens are computed."""
    calls: dict[int, list[Call]] = {}
    layout = find_denoisers(model)[0]

    def note(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs, output: calls.setdefault(index, []).append((args, kwargs, output))

    handles = [b.module.register_forward_hook(note(b.index), with_kwargs=True) for b in layout.blocks]
    with tenuto.attach(model, Partly(), **options) as run:
        outputs = generate(kind, model, steps=STEPS)
    for handle in handles:
        handle.remove()
    return calls, outputs, run.telemetry


def masked(kind: Architecture) -> Architecture:
    """The same with the last word of every prompt masked, where the model takes a mask."""

    def make(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
        inputs = kind.make(randn, batch, size)
        key = "encoder_attention_mask"
        if key in inputs or kind.name.startswith("PixArt"):
            mask = torch.ones(inputs["encoder_hidden_states"].shape[:2])
            mask[:, -1] = 0
            inputs[key] = mask.to(inputs[key].dtype) if key in inputs else mask
        return inputs

    return replace(kind, make=make)


def at(tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return image.take_along_dim(tokens[..., None], 1)


@torch.no_grad()
def streams_of(block: Block, call: Call) -> tuple[torch.Tensor, torch.Tensor, Streams]:
    """Image input, image output as called, and the output of the plain block for that input."""
    args, kwargs, raw = call
    given = block.streams(args, kwargs)
    output, plain = unpack(block, raw, given)[0], unpack(block, block.module(*args, **kwargs), given)
    assert given[0] is not None and output is not None
    return given[0], output, plain


@architectures
def test_chosen_tokens_are_what_the_block_computes_from_the_mixed_states(name: str) -> None:
    kind = masked(ARCHITECTURES[name])
    model = kind.build()
    calls, _, _ = watched(kind, model)
    layout = find_denoisers(model)[0]
    ends = [sum(layout.lists[: n + 1]) - 1 for n in range(len(layout.lists))]
    for block in layout.blocks:
        for step in range(1, STEPS, 2):
            before, after, _ = streams_of(block, calls[block.index][step - 1])
            hidden, mixed, plain = streams_of(block, calls[block.index][step])
            tokens = quarter(hidden)
            assert plain[0] is not None
            assert relative(at(tokens, mixed), at(tokens, plain[0])) < 1e-5
            others = torch.ones(mixed.shape[:2], dtype=torch.bool).scatter(1, tokens, False)
            assert relative(mixed[others], plain[0][others]) > 1e-4, "or the others were computed as well"
            if block.index not in ends:
                assert torch.equal(mixed[others], (hidden + (after - before))[others])


@architectures
def test_all_tokens_give_the_computed_output(name: str) -> None:
    kind = masked(ARCHITECTURES[name])
    model = kind.build()
    plain = generate(kind, model, steps=STEPS)
    with tenuto.attach(model, Partly(stride=1)) as run:
        outputs = generate(kind, model, steps=STEPS)
    assert run.telemetry.counts()["correct"] == run.telemetry.counts()["compute"] > 0
    assert run.telemetry.flops == pytest.approx(run.telemetry.full_flops)
    for found, expected in zip(outputs["cond"], plain["cond"], strict=True):
        assert relative(found, expected) < 1e-5


@pytest.mark.slow
@architectures
def test_books(name: str) -> None:
    kind = ARCHITECTURES[name]
    model = kind.build()
    plain = generate(kind, model, steps=STEPS)
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    _, outputs, telemetry = watched(kind, model)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before, "submodules are as they were"
    with tenuto.attach(model, tenuto.EveryN(n=2)) as whole:
        assert not same(generate(kind, model, steps=STEPS), outputs)
    assert same(generate(kind, model, steps=STEPS), plain)
    assert all(0.25 <= event.tokens < 0.27 for event in telemetry.events if event.decision == "correct")
    assert telemetry.reuse_ratio == pytest.approx(0.5 * 0.75, rel=0.02)
    assert whole.telemetry.flops < telemetry.flops < 0.9 * telemetry.full_flops


def test_memory_is_one_more_residual_per_block() -> None:
    model = TinyDiT(blocks=5)
    with tenuto.attach(model, tenuto.EveryN(n=2)) as plain:
        denoise(model)
    with tenuto.attach(model, Partly()) as run:
        denoise(model)
        one = plain.telemetry.peak_cache_bytes
        assert run.telemetry.cache_bytes == one * (1 + 5)
        run.reset()
        assert run.telemetry.cache_bytes == 0


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_shadow_mode_shows_the_error_of_the_corrected_estimate(name: str) -> None:
    kind = ARCHITECTURES[name]
    model = kind.build()
    _, outputs, _ = watched(kind, model)
    calls, shadowed, telemetry = watched(kind, model, shadow=True)
    assert same(shadowed, outputs)
    errors = [event.error for event in telemetry.events if event.decision == "correct" and event.first_block == 0]
    blocks = find_denoisers(model)[0].blocks[: telemetry.events[0].last_block + 1]
    for error, step in zip(errors, range(1, STEPS, 2), strict=True):
        args, kwargs, _ = calls[0][step]
        truth: Streams = blocks[0].streams(args, kwargs)
        for block in blocks:
            given = block.with_streams(truth, *calls[block.index][step][:2])
            with torch.no_grad():
                truth = unpack(block, block.module(*given[0], **given[1]), truth)
        _, found, _ = streams_of(blocks[-1], calls[blocks[-1].index][step])
        assert truth[0] is not None and error == pytest.approx(float(change_of(found, truth[0]).max()), rel=1e-4)
        assert error > 0


def test_a_tiny_model_of_our_own() -> None:
    model = TinyDiT()
    plain = denoise(model)
    with tenuto.attach(model, Partly(stride=1)):
        assert relative(denoise(model), plain) < 1e-5
    with tenuto.attach(model, Partly(stride=3)) as run, torch.no_grad():
        denoise(model)
    assert {event.tokens for event in run.telemetry.events} == {0, 2 / 6}
    assert 0.5 < run.telemetry.flops / run.telemetry.full_flops < 0.9


@pytest.mark.slow
def test_compiled_blocks() -> None:
    kind = ARCHITECTURES["dit"]
    model, eager = kind.build(), kind.build()
    for block in model.transformer_blocks:
        block.compile(backend="eager")
    generate(kind, model, steps=STEPS)
    with tenuto.attach(model, Partly()) as run:
        outputs = generate(kind, model, steps=STEPS)
    _, expected, telemetry = watched(kind, eager)
    assert run.telemetry.summary() == telemetry.summary()
    for found, wanted in zip(outputs["cond"], expected["cond"], strict=True):
        assert relative(found, wanted) < 1e-5
    torch._dynamo.reset()


def test_convolutions_are_refused() -> None:
    model = ARCHITECTURES["sana"].build()
    said = r"Block transformer_blocks\.0 \(SanaTransformerBlock\) mixes tokens by a convolution \(Conv2d\).*without a"
    with pytest.raises(AttachError, match=said), tenuto.attach(model, Partly()):
        pass
    assert not [path for path, module in model.named_modules() if "forward" in vars(module)]


class Bare(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


def test_blocks_without_an_mlp_are_refused() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([Bare(), Bare()])
    said = r"Block blocks\.0 \(Bare\) has no MLP called ff, ffn"
    with pytest.raises(AttachError, match=said), tenuto.attach(model, Partly()):
        pass


TOKENS = torch.tensor([[4, 0], [1, 3]])
EVERY = torch.arange(5).expand(2, -1)


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("mask", [None, (5, 7), (1, 7)])
def test_attention_of_chosen_queries(heads: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    query, key, value = (torch.randn(2, *heads, n, 4) for n in (5, 7, 7))
    attn_mask = None if mask is None else torch.randn(mask)
    whole = attend(query, key, value, attn_mask)
    with _Narrow(TOKENS, 5):
        part = attend(query, key, value, attn_mask=attn_mask)
    rows = TOKENS.view(2, *[1] * len(heads), 2, 1)
    assert torch.allclose(part.take_along_dim(rows, -2), whole.take_along_dim(rows, -2), atol=1e-6)
    assert (part.abs().sum(-1) > 0).sum() == part[..., 0].numel() * 2 / 5, "zero for the others"


@pytest.mark.parametrize("first", ["image", "text"])
def test_joined_sequences(first: str) -> None:
    """Where image and text are joined, the text's rows are computed as well; text as long as the image: everything."""
    for words, computed in ((3, 3 + 2), (5, 5 + 5)):
        image, text = torch.randn(2, 5, 4), torch.randn(2, words, 4)
        with _Narrow(TOKENS, 5):
            both = torch.cat([image, text] if first == "image" else [text, image], dim=1)
            part = attend(both, both, both)
        whole = attend(both, both, both)
        start = 0 if first == "image" else words
        assert torch.allclose(
            part[:, start : start + 5].take_along_dim(TOKENS[..., None], 1),
            whole[:, start : start + 5].take_along_dim(TOKENS[..., None], 1),
            atol=1e-6,
        )
        assert (part.abs().sum(-1) > 0).sum(1).tolist() == [computed] * 2


def test_what_is_not_the_image_is_left_alone() -> None:
    other, causal = torch.randn(2, 6, 4), torch.randn(2, 5, 4)
    with _Narrow(TOKENS, 5):
        assert torch.equal(attend(other, other, other), attend(other, other, other))
        part = attend(causal, causal, causal, is_causal=True)
    assert torch.equal(part, attend(causal, causal, causal, is_causal=True))


def test_modules_run_for_the_chosen_tokens_only() -> None:
    seen: list[tuple[int, ...]] = []
    model = TinyDiT(blocks=1)
    block = find_denoisers(model)[0].blocks[0]
    subset = Subset(block)
    assert subset.parts == [block.module.mlp]
    narrow = subset.part(lambda x: seen.append(tuple(x.shape)) or x + 1)
    x = torch.randn(2, 5, 4)
    narrow(x)
    assert torch.equal(subset.run(TOKENS, 5, lambda: at(TOKENS, narrow(x))), at(TOKENS, x) + 1)
    subset.run(TOKENS, 5, lambda: narrow(torch.randn(2, 6, 4)))
    assert seen == [(2, 5, 4), (2, 2, 4), (2, 6, 4)]
    with pytest.raises(ZeroDivisionError):
        subset.run(TOKENS, 5, lambda: 1 / 0)
    assert subset._here.narrow is None
