"""``tenuto.attach``: one name for both families. The policy says which family's ``attach`` is meant.

with tenuto.attach(pipe, tenuto.FastCache(rtol=0.1)) as run: ...
with tenuto.attach(model, tenuto.SnapKV(), budget=tenuto.MemoryBudget.keep(0.25)) as run: ...
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, overload

from tenuto.errors import InputError

if TYPE_CHECKING:
    from tenuto.budget import MemoryBudget
    from tenuto.calibration import Profile
    from tenuto.diffusion import run as feature_run
    from tenuto.diffusion.policy import FeaturePolicy, Recorder
    from tenuto.kv import attach as kv_attach
    from tenuto.kv.offload.settings import Prefetch
    from tenuto.kv.policy import KVMethod, KVPolicy
    from tenuto.reuse.prefix import PrefixStore
    from tenuto.tiers.tier import Tier

__all__ = ["attach"]


@overload
def attach(
    target: Any,
    policy: FeaturePolicy,
    *,
    profile: Profile | None = None,
    count_flops: bool = True,
    shadow: bool = False,
    watcher: Recorder | None = None,
) -> AbstractContextManager[feature_run.AttachedRun]: ...
@overload
def attach(
    target: Any,
    policy: KVMethod | KVPolicy,
    *,
    budget: MemoryBudget,
    every: int | None = None,
    store: PrefixStore | None = None,
    tier: Tier | None = None,
    prefetch: Prefetch | None = None,
) -> AbstractContextManager[kv_attach.AttachedRun]: ...
def attach(
    target: Any,
    policy: Any,
    *,
    profile: Profile | None = None,
    count_flops: bool = True,
    shadow: bool = False,
    watcher: Recorder | None = None,
    budget: MemoryBudget | None = None,
    every: int | None = None,
    store: PrefixStore | None = None,
    tier: Tier | None = None,
    prefetch: Prefetch | None = None,
) -> AbstractContextManager[Any]:
    """Run a model under a caching policy inside a ``with`` block.

    Args:
        target: for a diffusion policy a diffusers pipeline or transformer; for a KV policy a transformers decoder.
        policy: a policy of either family.
        profile, count_flops, shadow, watcher: for diffusion policies, see ``tenuto.diffusion.attach``.
        budget, every, store, tier, prefetch: for KV policies, see ``tenuto.kv.attach``; a budget must be given.

    Raises:
        InputError: the policy is none, an argument is of the other family, or a KV policy came without a budget.
        AttachError, CalibrationError, PolicyError: as the family's ``attach``.
    """
    from tenuto.diffusion.policy import FeaturePolicy

    feature = {"profile": profile, "watcher": watcher, "shadow": shadow or None}
    stored = {"budget": budget, "every": every, "store": store, "tier": tier, "prefetch": prefetch}
    if isinstance(policy, FeaturePolicy):
        _refuse(policy, stored, "KV")
        from tenuto.diffusion.attach import attach as attach_features

        return attach_features(target, policy, profile=profile, count_flops=count_flops, shadow=shadow, watcher=watcher)
    from tenuto.kv.policy import KVMethod, KVPolicy

    if not isinstance(policy, KVMethod | KVPolicy):
        raise InputError(
            f"attach() was given a {type(policy).__name__} as its policy. Give a method of the families diffusion or "
            "kv, for example tenuto.catalog.parse(text); `tenuto methods` lists them."
        )
    _refuse(policy, feature, "diffusion")
    if budget is None:
        raise InputError(
            f"{type(policy).__name__} needs a budget: attach(model, policy, budget=tenuto.MemoryBudget.keep(0.5))."
        )
    from tenuto.kv.attach import attach as attach_entries

    return attach_entries(target, policy, budget=budget, every=every, store=store, tier=tier, prefetch=prefetch)


def _refuse(policy: Any, given: dict[str, Any], family: str) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise InputError(f"{wrong[0]}= is for {family} policies; {type(policy).__name__} takes none. Leave it out.")
