"""``attach``: put a policy on a model, and take it off again. The only file that touches ``nn.Module``.

    with tenuto.attach(pipe, tenuto.FirstBlock(threshold=0.1)) as run:
        images = pipe(class_labels=[3, 7]).images
    print(run.summary())

While attached, the instance attribute ``forward`` of the denoiser and of its blocks is a wrapper; on exit, also after
an exception, it is what it was. Where a pipeline is given, ``scheduler.set_timesteps`` tells when a generation starts
and how long it is; for a bare transformer a turn of the timesteps or a new shape does.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from tenuto.calibration import Profile, find, fingerprint
from tenuto.diffusion.cache import FeatureCache
from tenuto.diffusion.clock import Clock
from tenuto.diffusion.flops import FlopMeter
from tenuto.diffusion.models import Block, Layout, find_denoisers, output_order, pack, unpack
from tenuto.diffusion.policy import Composition, FeaturePolicy, Streams
from tenuto.diffusion.recording import Recording
from tenuto.errors import AttachError, CalibrationError
from tenuto.telemetry import Telemetry

__all__ = ["AttachedRun", "attach", "calibrate", "serves"]

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


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
        self.denoisers: list[_Denoiser] = []

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


class _Denoiser:
    """The wrappers of one denoiser, and the cache they talk to."""

    def __init__(
        self, layout: Layout, composition: Composition, run: AttachedRun, count_flops: bool, shadow: bool
    ) -> None:
        self.layout, self.run, self.shadow = layout, run, shadow
        self.cache = FeatureCache(composition, layout.lists, run.policy.warmup, run.telemetry)
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
        beside = meter.beside if meter else _now
        eager = getattr(original, "_torchdynamo_orig_callable", original)

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            streams: Streams = block.streams(args, kwargs)
            if opens:
                beside(lambda: cache.enter(span, streams, lambda: _modulated(block, eager, args, kwargs)))
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
            if closes:
                beside(lambda: cache.computed(output))
            return raw

        return forward


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


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an instance attribute until the stack unwinds; what was there (or was not) comes back exactly."""
    space = vars(owner)
    if name in space:
        stack.callback(setattr, owner, name, space[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _wrap(stack: ExitStack, denoiser: _Denoiser) -> None:
    root = denoiser.layout.root
    if root in _attached:
        raise AttachError(f"{type(root).__name__} has a policy attached already. Leave that `with` block first.")
    if root._compiled_call_impl is not None:
        raise AttachError(
            f"{type(root).__name__} is compiled as a whole, so no block can be skipped. Compile its blocks instead: "
            "model.compile_repeated_blocks()."
        )
    _attached.add(root)
    stack.callback(_attached.discard, root)
    _replace(stack, root, "forward", torch.compiler.disable(denoiser.root(root.forward), recursive=False))
    for block in denoiser.layout.blocks:
        compiled = block.module._compiled_call_impl  # by Module.compile: wrapped as it is, nothing is compiled again
        slot = "forward" if compiled is None else "_compiled_call_impl"
        _replace(stack, block.module, slot, denoiser.block(block, compiled or block.module.forward))
    context: Any = getattr(root, "cache_context", None)  # diffusers' CacheMixin has it, other models have not
    if context is not None:
        _replace(stack, root, "cache_context", _contexts(denoiser, context))


def _contexts(denoiser: _Denoiser, original: Callable[..., Any]) -> Callable[..., Any]:
    """diffusers' ``cache_context``, also telling us which guidance branch is called."""

    @wraps(original)
    @contextmanager
    def cache_context(name: str, *args: Any, **options: Any) -> Iterator[Any]:
        before, denoiser.context = denoiser.context, name
        try:
            with original(name, *args, **options) as value:
                yield value
        finally:
            denoiser.context = before

    return cache_context


def _watch(stack: ExitStack, scheduler: Any, run: AttachedRun) -> None:
    """Start every denoiser cold when the pipeline sets its timesteps."""
    original = scheduler.set_timesteps

    @wraps(original)  # pipelines read its signature to learn what the scheduler takes
    def set_timesteps(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        total = len(scheduler.timesteps) if len(run.denoisers) == 1 else None
        for denoiser in run.denoisers:
            denoiser.start(run.session, total)
        return result

    _replace(stack, scheduler, "set_timesteps", set_timesteps)


def _uncompiled(target: Any) -> None:
    components: dict[str, Any] = getattr(target, "components", {})
    modules = [value for key, value in components.items() if key.startswith("transformer")]
    for module in [target] if isinstance(target, nn.Module) else modules:
        children = module.children() if isinstance(module, nn.Module) else ()
        lists = [child for child in children if isinstance(child, nn.ModuleList)]
        if "OptimizedModule" in {
            type(part).__name__ for part in (module, *(block for each in lists for block in each))
        }:
            raise AttachError(
                "The model or its blocks are wrapped by torch.compile(), so no block can be skipped. Attach to the "
                "plain model and compile its blocks in place: model.compile_repeated_blocks(), or block.compile()."
            )


def serves(policy: FeaturePolicy, profile: Profile) -> bool:
    """Whether the profile holds what this policy, with its numbers, needs."""
    try:
        policy.compose(profile)
    except CalibrationError:
        return False
    return True


def _name_of(policy: FeaturePolicy) -> str:
    """The name profiles are kept under: that of the method's file."""
    return type(policy).__module__.rpartition(".")[2]


def _profile_for(policy: FeaturePolicy, root: nn.Module, profile: Profile | None) -> Profile | None:
    if not policy.calibrated:
        return None
    name, mark = _name_of(policy), fingerprint(root)
    if profile is None:
        profile = find(name, mark, accept=partial(serves, policy))
    if profile is None:
        raise CalibrationError(
            f"{type(policy).__name__} needs a calibration profile for this model (fingerprint {mark}) and none was "
            f"found. Make one with `tenuto calibrate {name}`, or tenuto.calibrate(), and pass profile=..."
        )
    profile.check(name, mark)
    return profile


def _check_count(policy: FeaturePolicy, target: Any, layouts: Sequence[Layout]) -> None:
    if policy.calibrated and len(layouts) > 1:
        raise AttachError(
            f"{type(policy).__name__} is calibrated for one denoiser and {type(target).__name__} has {len(layouts)}. "
            f"Give one at a time: {', '.join(f'pipe.{layout.name}' for layout in layouts)}."
        )


@contextmanager
def attach(
    target: Any,
    policy: FeaturePolicy,
    *,
    profile: Profile | None = None,
    count_flops: bool = True,
    shadow: bool = False,
) -> Iterator[AttachedRun]:
    """Run a diffusers pipeline or transformer under a caching policy inside a ``with`` block.

    Args:
        target: a pipeline with a ``transformer``, or a transformer.
        policy: for example ``FirstBlock(threshold=0.1)``.
        profile: calibration profile for policies that need one; by default the one that fits the model is looked up.
        count_flops: measure operations once per input shape (adds about one step's time to the first step).
        shadow: compute what is estimated as well and record the true error of every estimate in ``telemetry.events``.
            The estimate is what goes on, so the errors are those of the cached run; nothing is saved.

    Raises:
        AttachError: nothing to attach to, attached already, compiled as a whole, or more denoisers than it is for.
        CalibrationError: the policy needs a profile and none fits this model.
    """
    _uncompiled(target)
    layouts = find_denoisers(target)
    _check_count(policy, target, layouts)
    profile = _profile_for(policy, layouts[0].root, profile)
    run = AttachedRun(policy, profile)
    composition = policy.compose(profile)
    with ExitStack() as stack:
        for layout in layouts:
            denoiser = _Denoiser(layout, composition, run, count_flops, shadow)
            _wrap(stack, denoiser)
            run.denoisers.append(denoiser)
        scheduler = getattr(target, "scheduler", None)
        if not isinstance(target, nn.Module) and scheduler is not None:
            _watch(stack, scheduler, run)
        yield run


def calibrate(
    target: Any,
    policy: FeaturePolicy,
    generate: Callable[[int], Any],
    *,
    seeds: Sequence[int],
    settings: dict[str, Any],
) -> Profile:
    """Watch uncached generations and fit the policy's profile.

    Args:
        target: the pipeline or transformer, nothing attached.
        policy: a calibrated policy; its own numbers may matter (a scope, a longest skip).
        generate: runs one generation for a seed, for example ``lambda s: pipe([3], generator=torch.manual_seed(s))``.
        seeds: one generation each; keep them apart from the seeds you judge by.
        settings: what the profile is for (steps, guidance, sampler): stored with it.

    Raises:
        PolicyError: the policy takes no profile.
        CalibrationError: no seeds.
    """
    if not seeds:
        raise CalibrationError("calibrate() was given no seeds. Give at least two, for example seeds=range(8).")
    _check_count(policy, target, find_denoisers(target))
    recorder = policy.recorder()
    with attach(target, Recording(watcher=recorder), count_flops=False) as run:
        for number, seed in enumerate(seeds):
            recorder.begin(number)
            run.reset()
            generate(seed)
        mark = fingerprint(run.denoisers[0].layout.root)
    tensors, numbers = recorder.fit()
    return Profile(policy=_name_of(policy), fingerprint=mark, settings=dict(settings), numbers=numbers, tensors=tensors)
