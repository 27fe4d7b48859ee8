"""``attach``: put a policy on a model, and take it off again. The only file that changes an ``nn.Module``.

    with tenuto.attach(pipe, tenuto.FirstBlock(threshold=0.1)) as run:
        images = pipe(class_labels=[3, 7]).images
    print(run.summary())

While attached, the instance attribute ``forward`` of the denoiser and of its blocks is a wrapper; on exit, also after
an exception, it is what it was. Where a pipeline is given, ``scheduler.set_timesteps`` tells when a generation starts
and how long it is; for a bare transformer a turn of the timesteps or a new shape does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from tenuto.calibration import Profile, find, fingerprint
from tenuto.diffusion.denoiser import Denoiser
from tenuto.diffusion.models import Layout, find_denoisers
from tenuto.diffusion.parallel import inside_split
from tenuto.diffusion.policy import FeaturePolicy, Recorder
from tenuto.diffusion.run import AttachedRun
from tenuto.diffusion.schedulers import Watch
from tenuto.errors import AttachError, CalibrationError
from tenuto.restoring import wrap_until

__all__ = ["AttachedRun", "attach", "check_count", "name_of", "serves"]

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _wrap(stack: ExitStack, denoiser: Denoiser) -> None:
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
    _wrap_root(stack, denoiser)
    for block in denoiser.layout.blocks:
        compiled = block.module._compiled_call_impl  # by Module.compile: wrapped as it is, nothing is compiled again
        owner = inside_split(block.module) if compiled is None else block.module
        slot = "forward" if compiled is None else "_compiled_call_impl"
        wrap_until(stack, owner, slot, partial(denoiser.block, block))
    for subset in denoiser.subsets:
        for part in subset.parts:
            wrap_until(stack, part, "forward", subset.part)
    if getattr(root, "cache_context", None) is not None:  # diffusers' CacheMixin has it, other models have not
        wrap_until(stack, root, "cache_context", partial(_contexts, denoiser))


def _wrap_root(stack: ExitStack, denoiser: Denoiser) -> None:
    """Wrap the denoiser's own ``forward``, and again whenever somebody has put another in its place.

    diffusers' model offloading does that after every call of a pipeline: its hooks are taken off and put on again, and
    what was wrapped around them is lost.
    """
    root, mine = denoiser.layout.root, ExitStack()
    stack.callback(mine.close)

    def wrap() -> None:
        wrap_until(mine, root, "forward", lambda call: torch.compiler.disable(denoiser.root(call), recursive=False))
        denoiser.wrapped = vars(root)["forward"]

    def displaced() -> None:
        with denoiser.cache.lock:
            if vars(root).get("forward") is not denoiser.wrapped:
                mine.close()
                wrap()

    wrap()
    denoiser.displaced = displaced


def _contexts(denoiser: Denoiser, original: Callable[..., Any]) -> Callable[..., Any]:
    """diffusers' ``cache_context``, also telling us which guidance branch is called."""

    @wraps(original)
    @contextmanager
    def cache_context(name: str, *args: Any, **options: Any) -> Iterator[Any]:
        with denoiser.saying.being(name), original(name, *args, **options) as value:
            yield value

    return cache_context


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


def name_of(policy: FeaturePolicy) -> str:
    """The name profiles are kept under: that of the method's file, or of the method it wraps."""
    return type(policy.profiled).__module__.rpartition(".")[2]


def _profile_for(policy: FeaturePolicy, root: nn.Module, profile: Profile | None) -> Profile | None:
    if not policy.profiled.calibrated:
        return None
    name, mark = name_of(policy), fingerprint(root)
    if profile is None:
        profile = find(name, mark, accept=partial(serves, policy))
    if profile is None:
        raise CalibrationError(
            f"{type(policy).__name__} needs a calibration profile for this model (fingerprint {mark}) and none was "
            f"found. Make one with `tenuto calibrate {name}`, or tenuto.calibrate(), and pass profile=..."
        )
    profile.check(name, mark)
    return profile


def check_count(policy: FeaturePolicy, target: Any, layouts: Sequence[Layout]) -> None:
    """Refuse a calibrated policy for a pipeline with several denoisers."""
    if policy.profiled.calibrated and len(layouts) > 1:
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
    watcher: Recorder | None = None,
) -> Iterator[AttachedRun]:
    """Run a diffusers pipeline or transformer under a caching policy inside a ``with`` block.

    Args:
        target: a pipeline with a ``transformer``, or a transformer.
        policy: for example ``FirstBlock(threshold=0.1)``.
        profile: calibration profile for policies that need one; by default the one that fits the model is looked up.
        count_flops: measure operations once per input shape (adds about one step's time to the first step).
        shadow: compute what is estimated as well and record the true error of every estimate in ``telemetry.events``.
            The estimate is what goes on, so the errors are those of the cached run; nothing is saved.
        watcher: in shadow mode, is shown every estimate's state and its truth (closed-loop calibration).

    Raises:
        AttachError: nothing to attach to, attached already, compiled as a whole, or more denoisers than it is for.
        CalibrationError: the policy needs a profile and none fits this model.
    """
    _uncompiled(target)
    layouts = find_denoisers(target)
    check_count(policy, target, layouts)
    profile = _profile_for(policy, layouts[0].root, profile)
    run = AttachedRun(policy, profile)
    composition = policy.compose(profile)
    with ExitStack() as stack:
        for layout in layouts:
            denoiser = Denoiser(layout, composition, run, count_flops, shadow, watcher)
            _wrap(stack, denoiser)
            run.denoisers.append(denoiser)
        if not isinstance(target, nn.Module):
            run.notice = Watch(stack, target, run).look
            run.notice()
        yield run
