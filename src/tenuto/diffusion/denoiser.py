"""Denoiser: one attached model, its wrappers and the cache they talk to."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from tenuto.diffusion.cache import FeatureCache
from tenuto.diffusion.call import Call
from tenuto.diffusion.clock import Clock
from tenuto.diffusion.conditions import attentions, conditions, shapes
from tenuto.diffusion.flops import FlopCount, FlopMeter
from tenuto.diffusion.models import Block, Layout, output_order, pack, unpack
from tenuto.diffusion.parallel import reducer
from tenuto.diffusion.passed import Passed, found_in, plain, stand_in
from tenuto.diffusion.policy import Composition, Recorder, Streams, alone
from tenuto.diffusion.run import AttachedRun
from tenuto.diffusion.session import Said, over
from tenuto.diffusion.tokens import Subset
from tenuto.errors import AttachError, TenutoError
from tenuto.restoring import hook_until

__all__ = ["Denoiser"]

USED_LATER = (
    "This is no output of the model but a stand-in for that of a skipped block, kept by a hook and used after the "
    "call. Use it inside the call, or take hidden states from a model without a policy."
)


class _ThisCall(threading.local):
    """The call that this thread is making."""

    call: Call | None = None
    count: FlopCount | None = None


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
        reduce = reducer(layout.root)
        if composition.corrector is not None and reduce is not alone:
            raise AttachError(
                "A policy with a token level does not run under context parallelism, where each device holds a part of "
                "the tokens. Use one without, or one device."
            )
        self.subsets = [Subset(block) for block in layout.blocks] if composition.corrector is not None else []
        self.cache = FeatureCache(composition, layout.lists, run.policy.warmup, run.telemetry, reduce, watcher)
        fitted = [] if run.profile is None else run.profile.numbers.get("timesteps") or []
        self.clock = Clock(1 if fitted and fitted[0] < fitted[-1] else -1)
        self.saying: Said[str | None] = Said("branch", None)
        self.meter = FlopMeter() if count_flops else None
        self.orders: dict[int, tuple[int, int] | None] = {}
        own = inspect.signature(type(layout.root).forward)
        self.signature = own.replace(parameters=list(own.parameters.values())[1:])
        self.displaced: Callable[[], None] = _nothing
        self.wrapped: Any = None
        self.attentions = attentions(layout.root)
        self._here = _ThisCall()

    @property
    def context(self) -> str | None:
        """The guidance branch that diffusers' ``cache_context`` has named here and now."""
        return self.saying()

    def start(self, session: Hashable, total: int | None, announced: bool = False) -> None:
        """A generation of ``total`` steps starts (None: unknown) in ``session`` (None: in all); ``announced``: by
        somebody who knows when the next one does."""
        with self.cache.lock:
            self.cache.reset(session, total)
            self.clock.reset(session, announced)

    def coverage(self) -> dict[str, Any]:
        """Which part of the model may be skipped: its blocks and their share of the parameters, the block lists that
        are left out, and how many spans are decided about."""
        return {**self.layout.coverage(), "spans": len(self.cache.spans)}

    def root(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of the denoiser's ``forward``."""

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._here.call is not None:  # a wrapper further out is at work
                return original(*args, **kwargs)
            self.run.notice()
            given = self.signature.bind_partial(*args, **kwargs).arguments
            signature = (shapes(given), conditions(self.layout.root, self.attentions))
            session = self.run.session
            with self.cache.claimed(session):
                try:
                    return self._called(session, given.get("timestep"), signature, partial(original, *args, **kwargs))
                except BaseException:
                    self.start(session, None)
                    raise

        return forward

    def _called(self, session: Hashable, timestep: Any, signature: Any, original: Callable[[], Any]) -> Any:
        """One call, made again if what it skipped was used, or if it ran through other blocks than those before."""
        for ended in [each for each in self.cache.sessions() if over(each)]:
            self.start(ended, None)
        with self.cache.lock:
            tick = self.clock.tick(session, self.context, timestep)
        for again in (False, True):
            call = self.cache.begin(session, tick.branch, tick.timestep, signature, tick.fresh, again=again)
            call.recording = torch.is_grad_enabled()
            result = self._made(call, signature, original)
            if call.used:
                self._divide(call)
            if not call.repeats:
                break
        self.cache.end(call)
        if not call.path:
            name, blocks = type(self.layout.root).__name__, len(self.layout.blocks)
            raise AttachError(
                f"A call of {name} ran through none of its {blocks} blocks: nothing can be cached. Something has "
                "replaced them, or their forward, since the policy was attached."
            )
        return result

    def _made(self, call: Call, signature: Any, original: Callable[[], Any]) -> Any:
        """Run the denoiser once."""
        self._here.call = call
        try:
            if self.meter is None:
                result = original()
            else:
                with self.meter.call(signature) as self._here.count:
                    result = original()
                call.whole, executed = self._here.count.totals()
                with self.cache.lock:
                    self.run.telemetry.flops += executed
        except Exception as error:
            if isinstance(error, TenutoError) or not (call.used or call.strayed):
                raise
            return None  # what it skipped was used: no wonder. It is made again
        finally:
            self._here.call = self._here.count = None
        for passed in found_in((result,)):
            passed.note()
        call.over = True
        return result

    def _divide(self, call: Call) -> None:
        """Something besides the next block uses what some blocks return: no span goes on behind those."""
        if self.run.policy.profiled.calibrated and self.run.profile is not None and "gates" in self.run.profile.numbers:
            paths = ", ".join(self.layout.blocks[block].path for block in sorted(call.used)[:3])
            raise AttachError(
                f"{type(self.layout.root).__name__} uses what {paths} returned besides handing it to the next block "
                "(ControlNet residuals, collected hidden states), and the profile was fitted for spans across them. "
                "Use a policy that needs no profile: `tenuto methods` says which."
            )
        self.cache.divide(call.used)

    def block(self, block: Block, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of one block's ``forward``."""
        eager = getattr(original, "_torchdynamo_orig_callable", original)

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call, count = self._here.call, self._here.count
            if call is None:  # from outside: by a copy that shares it, or a checkpoint that computes it once more
                self.displaced()
                return original(*args, **kwargs)
            opens = call.arrive(block.index)
            args, kwargs = self._unwrapped(call, block, args, kwargs, opens)
            streams: Streams = block.streams(args, kwargs)
            beside = count.beside if count else _now
            if opens:
                modulated = partial(_modulated, block, eager, args, kwargs)
                if beside(lambda: call.enter(block.index, streams, modulated)):
                    self._no_gradients(call, streams)
            if call.tokens is not None:
                return self._part(call, block, partial(eager, *args, **kwargs), streams)
            if call.skipping and not self.shadow:
                if count:
                    count.skip(block.index)
                return self._skipped(call, block, streams, opens)
            return self._run(call, block, original, streams, args, kwargs)

        return forward

    def _unwrapped(
        self, call: Call, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any], opens: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments without stand-ins. Only in a skipped span may there be any, and only the stand-in for the
        output of the block before."""
        given = list(found_in((args, kwargs)))
        if call.skipping and call.tokens is None and not opens:
            image = block.streams(args, kwargs)[0]
            if not isinstance(image, Passed) or image.block != call.path[-2]:
                call.used.add(call.path[-2])
        else:
            for each in given:
                each.note()
        if not given:
            return args, kwargs
        return tuple(map(_plain, args)), {key: _plain(value) for key, value in kwargs.items()}

    def _no_gradients(self, call: Call, streams: Streams) -> None:
        """An estimate has no gradient. Checkpoints of the older kind hide inside that gradients are recorded."""
        hidden = call.recording and getattr(self.layout.root, "gradient_checkpointing", False)
        if (torch.is_grad_enabled() or hidden) and (
            any(s is not None and s.requires_grad for s in streams)
            or any(parameter.requires_grad for parameter in self.layout.root.parameters())
        ):
            raise AttachError(
                "Gradients are being recorded, and a step that is estimated has none. Call the model under "
                "torch.no_grad() to generate, or outside of the `with` block to train."
            )

    def _skipped(self, call: Call, block: Block, streams: Streams, opens: bool) -> Any:
        """What a block of a skipped span returns: the estimate if it is the last, else a stand-in."""
        order = self.orders.get(block.index)
        if call.closes(block.index):
            return pack(order, call.estimate())
        # a copy: models may write into what a block returns, and the span's input must stay as it was
        kept = tuple(None if s is None else s.clone() for s in streams) if opens else streams
        return pack(order, self._stand_ins(call, block, kept))

    def _stand_ins(self, call: Call, block: Block, streams: Streams) -> Streams:
        def note() -> None:
            if call.over:
                raise AttachError(USED_LATER)
            call.used.add(block.index)

        return tuple(None if s is None else stand_in(s, block.index, note) for s in streams)

    def _run(
        self,
        call: Call,
        block: Block,
        original: Callable[..., Any],
        streams: Streams,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a block; in shadow mode, of a skipped span too: then the estimate goes on, and its error is recorded."""
        index, count = block.index, self._here.count
        first = index not in self.orders
        marks = _marks(streams, first)
        raw = count.run(index, original, args, kwargs) if count else original(*args, **kwargs)
        if marks != _marks(streams, first):
            raise AttachError(f"Block {block.path} changes its input in place: its residual is lost. Not cacheable.")
        output = unpack(block, raw, streams)
        if first:
            self.orders[index] = output_order(block, raw, streams) if isinstance(raw, tuple) else None
        if call.skipping:
            last = call.closes(index)
            return pack(
                self.orders[index], call.estimate(truth=output) if last else self._stand_ins(call, block, output)
            )
        if self.subsets and call.computing:
            call.passed(index, streams, output)
        if call.closes(index):
            (count.beside if count else _now)(lambda: call.computed(output))
        return raw

    def _part(self, call: Call, block: Block, run: partial[Any], streams: Streams) -> Any:
        """Run a block for the chosen tokens of a skipped span; in shadow mode also as a whole, on the true states."""
        tokens, image, count = call.tokens, streams[0], self._here.count
        if tokens is None or image is None:
            raise RuntimeError("no tokens were chosen")
        if self.shadow:
            before = call.truth or streams
            args, kwargs = block.with_streams(before, run.args, run.keywords)
            call.truth = unpack(block, run.func(*args, **kwargs), before)
        some = partial(self.subsets[block.index].run, tokens, image.shape[1], run)
        raw = count.part(block.index, tokens.shape[1], some, besides=self.shadow) if count else some()
        output = call.passed(block.index, streams, unpack(block, raw, streams))
        if call.closes(block.index):
            output = call.estimate(truth=call.truth if self.shadow else None, mixed=output)
            call.truth = ()
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

    here = threading.get_ident()

    def catch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if threading.get_ident() == here:  # other threads may be at this block too
            raise _Captured(named["hidden_states"] if "hidden_states" in named else given[0])

    with ExitStack() as stack:
        hook_until(stack, attention, catch)
        try:
            original(*args, **kwargs)
        except _Captured as caught:
            tensor: torch.Tensor = caught.args[0]
            return tensor
    raise AttachError(f"Block {block.path} did not call its attention: its modulated input cannot be read.")


def _nothing() -> None:
    return None


def _now(work: Callable[[], Any]) -> Any:
    return work()


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, Passed) else value


def _marks(streams: Streams, first: bool) -> tuple[object, ...]:
    """What changes when a stream is written to: its version; in inference mode, which keeps none, a sum (``first``)."""
    return tuple(
        (str(float(s.sum(dtype=torch.float64))) if first else "") if s.is_inference() else s._version
        for s in streams
        if s is not None
    )
