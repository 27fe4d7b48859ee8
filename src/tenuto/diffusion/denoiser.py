"""Denoiser: one attached model, its wrappers and the cache they talk to; AttachedRun: what ``attach`` yields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from tenuto.calibration import Profile
from tenuto.diffusion.cache import FeatureCache
from tenuto.diffusion.clock import Clock
from tenuto.diffusion.flops import FlopMeter
from tenuto.diffusion.models import Block, Layout, output_order, pack, unpack
from tenuto.diffusion.parallel import reducer
from tenuto.diffusion.policy import Composition, FeaturePolicy, Recorder, Streams, alone
from tenuto.diffusion.tokens import Subset
from tenuto.errors import AttachError
from tenuto.telemetry import Telemetry

__all__ = ["AttachedRun", "Denoiser"]


class AttachedRun:
    """What ``attach`` yields.

    Attributes:
        policy: the policy attached; profile: its calibration profile, None if it needs none.
        telemetry: decisions and totals so far.
    """

    def __init__(self, policy: FeaturePolicy, profile: Profile | None) -> None:
        self.policy = policy
        self.profile = profile
        self.telemetry = Telemetry()
        self.session = ""
        self.denoisers: list[Denoiser] = []

    def summary(self) -> dict[str, Any]:
        """Totals of the run: block executions by decision, reuse ratio, FLOPs, bytes held."""
        return self.telemetry.summary()

    @contextmanager
    def generation(self, name: str) -> Iterator[None]:
        """Keep the calls made inside apart from all others: for generations that are interleaved by hand."""
        before, self.session = self.session, name
        try:
            yield
        finally:
            self.session = before

    def reset(self) -> None:
        """Forget everything: the next step starts cold."""
        for denoiser in self.denoisers:
            denoiser.start(None, None)


class Denoiser:
    """The wrappers of one denoiser, and the cache they talk to."""

    def __init__(
        self,
        layout: Layout,
        composition: Composition,
        run: AttachedRun,
        count_flops: bool,
        shadow: bool,
        watcher: Recorder | None,
    ) -> None:
        self.layout, self.run, self.shadow = layout, run, shadow
        self.truth: Streams = ()
        reduce = reducer(layout.root)
        if composition.corrector is not None and reduce is not alone:
            raise AttachError(
                "A policy with a token level does not run under context parallelism, where each device holds a part of "
                "the tokens. Use one without, or one device."
            )
        self.subsets = [Subset(block) for block in layout.blocks] if composition.corrector is not None else []
        self.cache = FeatureCache(composition, layout.lists, run.policy.warmup, run.telemetry, reduce, watcher)
        self.clock = Clock()
        self.context: str | None = None
        self.meter = FlopMeter() if count_flops else None
        self.span_of = {block: span for span in self.cache.spans for block in range(span.first, span.last + 1)}
        self.orders: dict[int, tuple[int, int] | None] = {}
        own = inspect.signature(type(layout.root).forward)
        self.signature = own.replace(parameters=list(own.parameters.values())[1:])

    def start(self, session: str | None, total: int | None) -> None:
        """A generation of ``total`` steps starts (None: unknown) in ``session`` (None: in all)."""
        self.cache.reset(session, total)
        self.clock.reset(session)

    def root(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of the denoiser's ``forward``."""

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = self.signature.bind_partial(*args, **kwargs).arguments
            shapes = tuple(
                (key, value.shape, value.dtype, value.device)
                for key, value in given.items()
                if isinstance(value, torch.Tensor)
            )
            tick = self.clock.tick(self.run.session, self.context, given.get("timestep"))
            self.cache.begin(self.run.session, tick.branch, tick.timestep, shapes, tick.fresh)
            try:
                if self.meter is None:
                    return original(*args, **kwargs)
                with self.meter.call(shapes):
                    result = original(*args, **kwargs)
            except BaseException:
                self.start(self.run.session, None)
                raise
            whole, executed = self.meter.totals()
            self.run.telemetry.full_flops += whole
            self.run.telemetry.flops += executed
            return result

        return forward

    def block(self, block: Block, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of one block's ``forward``."""
        span, index, cache, meter = self.span_of[block.index], block.index, self.cache, self.meter
        opens, closes = index == span.first, index == span.last
        keeps = bool(self.subsets) and not span.always
        beside = meter.beside if meter else _now
        eager = getattr(original, "_torchdynamo_orig_callable", original)

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            streams: Streams = block.streams(args, kwargs)
            if opens:
                beside(lambda: cache.enter(span, streams, lambda: _modulated(block, eager, args, kwargs)))
            if cache.tokens is not None:
                return self._part(block, closes, partial(eager, *args, **kwargs), streams)
            if cache.skipping and not self.shadow:
                if meter:
                    meter.skip(index)
                # a copy: models may write into what a block returns, and the span's input must stay as it was
                passed = tuple(None if s is None else s.clone() for s in streams) if opens else streams
                return pack(self.orders[index], cache.estimate() if closes else passed)
            first = index not in self.orders
            marks = _marks(streams, first)
            raw = meter.run(index, original, args, kwargs) if meter else original(*args, **kwargs)
            if marks != _marks(streams, first):
                raise AttachError(
                    f"Block {block.path} changes its input in place: its residual is lost. Not cacheable."
                )
            output = unpack(block, raw, streams)
            if first:
                self.orders[index] = output_order(block, raw, streams) if isinstance(raw, tuple) else None
            if closes and cache.skipping:  # in shadow mode both are known: the estimate goes on, its error is recorded
                return pack(self.orders[index], cache.estimate(truth=output))
            if keeps and not cache.skipping:
                cache.passed(index, streams, output)
            if closes:
                beside(lambda: cache.computed(output))
            return raw

        return forward

    def _part(self, block: Block, closes: bool, call: partial[Any], streams: Streams) -> Any:
        """Run a block for the chosen tokens of a skipped span; in shadow mode also as a whole, on the true states."""
        cache, tokens, image = self.cache, self.cache.tokens, streams[0]
        if tokens is None or image is None:
            raise RuntimeError("no tokens were chosen")
        if self.shadow:
            before = streams if block.index == self.span_of[block.index].first else self.truth
            args, kwargs = block.with_streams(before, call.args, call.keywords)
            self.truth = unpack(block, call.func(*args, **kwargs), before)
        run = partial(self.subsets[block.index].run, tokens, image.shape[1], call)
        raw = self.meter.part(block.index, tokens.shape[1], run, besides=self.shadow) if self.meter else run()
        output = cache.passed(block.index, streams, unpack(block, raw, streams))
        if closes:
            output = cache.estimate(truth=self.truth if self.shadow else None, mixed=output)
        return pack(self.orders[block.index], output)


class _Captured(Exception):
    """Carries a tensor out of a block that need not run on."""


def _modulated(
    block: Block, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """The input of a block's first attention: normalised and modulated by the timestep. Nothing later is run."""
    children = dict(block.module.named_children())
    attention = next((child for name, child in children.items() if name.startswith("attn")), None)
    if attention is None:
        raise AttachError(f"Block {block.path} has no attention whose input could be read; it has {list(children)}.")

    def catch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Captured(named["hidden_states"] if "hidden_states" in named else given[0])

    handle = attention.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        original(*args, **kwargs)
    except _Captured as caught:
        tensor: torch.Tensor = caught.args[0]
        return tensor
    finally:
        handle.remove()
    raise AttachError(f"Block {block.path} did not call its attention: its modulated input cannot be read.")


def _now(work: Callable[[], Any]) -> Any:
    return work()


def _marks(streams: Streams, first: bool) -> tuple[object, ...]:
    """What changes when a stream is written to: its version; in inference mode, which keeps none, a sum (``first``)."""
    return tuple(
        (str(float(s.sum(dtype=torch.float64))) if first else "") if s.is_inference() else s._version
        for s in streams
        if s is not None
    )
