"""``attach``: put a KV policy on a transformers model, and take it off again. It changes the ``nn.Module``, as no other
file does but :mod:`tenuto.reuse.partial`; :mod:`tenuto.kv.offload.prefetch` looks at the inputs of layers.

    with attach(model, AdaKV(), budget=MemoryBudget.keep(0.5)) as run:
        model.generate(**inputs, max_new_tokens=100)
    print(run.bytes_held, "of", run.bytes_full)

While attached, the decoder's ``forward`` gives every call a cache of ours and tells it of padding and positions,
``generate`` makes such caches, and attention goes through :mod:`tenuto.kv.attend`; on exit, also after an exception,
everything is what it was.

Assisted and prompt-lookup decoding verify their first proposals in the same call as the prompt, before it is
compressed; so they may write other tokens than greedy decoding, from more of the prompt.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import nn
from transformers import GenerationMixin

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError
from tenuto.kv.allowance import entries
from tenuto.kv.cache import KVCache
from tenuto.kv.call import current
from tenuto.kv.interface import NAME, register
from tenuto.kv.models import Layout, find_layout
from tenuto.kv.offload.prefetch import watch
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.policy import Every, KVMethod, KVPolicy
from tenuto.kv.run import AttachedRun
from tenuto.kv.section import opened
from tenuto.kv.stores import PromptStore
from tenuto.restoring import attend_by, wrap_until
from tenuto.tiers.host import HostTier
from tenuto.tiers.tier import Tier

__all__ = ["AttachedRun", "Stepping", "attach", "give_caches", "take_over"]

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Stepping(Protocol):
    """What steps a decoder with caches of ours: an :class:`AttachedRun`, or a run of a sharded model."""

    model: Any
    layout: Layout

    def step(self, original: Callable[..., Any], named: dict[str, Any]) -> Any: ...

    def cache(self) -> Any: ...


def take_over(stack: ExitStack, run: Stepping) -> None:
    """Have the model's decoder step through ``run`` until the stack unwinds.

    Raises:
        AttachError: it does so through another already.
    """
    decoder = run.layout.decoder
    if decoder in _attached:
        raise AttachError(f"{type(run.model).__name__} has a policy attached already. Leave that `with` block first.")
    register(stack)
    _attached.add(decoder)
    stack.callback(_attached.discard, decoder)
    _wrap_decoder(stack, run)


def _wrap_decoder(stack: ExitStack, run: Stepping) -> None:
    decoder: Any = run.layout.decoder
    names = list(inspect.signature(type(decoder).forward).parameters)[1:]

    def wrap(below: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return run.step(below, dict(zip(names, args, strict=False)) | kwargs)

        return forward

    wrap_until(stack, decoder, "forward", wrap)
    attend_by(stack, decoder, NAME)


def give_caches(stack: ExitStack, run: Stepping) -> None:
    """Have ``generate`` make caches of ours, until the stack unwinds."""

    def wrap(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def make_cache(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
                return prepare(generation_config, model_kwargs, *args, **kwargs)
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise AttachError(
                    f"cache_implementation={generation_config.cache_implementation!r} was asked for on an attached "
                    "model. Leave it out: the attached policy makes the cache."
                )
            model_kwargs["past_key_values"] = run.cache()
            return None

        return make_cache

    wrap_until(stack, run.model, "_prepare_cache_for_generation", wrap)


def _wrap_generation(stack: ExitStack, run: AttachedRun) -> None:
    def restoring(prefill: Callable[..., Any]) -> Callable[..., Any]:
        def in_one(*args: Any, **kwargs: Any) -> Any:
            config = args[1] if len(args) > 1 else kwargs["generation_config"]
            given = args[2] if len(args) > 2 else kwargs["model_kwargs"]
            cache = given.get("past_key_values")
            whole = config.output_hidden_states  # of all tokens, which must be computed for that
            if run.prefixes and not whole and isinstance(cache, KVCache) and not cache.sequences.columns:
                ids = args[0] if args else kwargs["input_ids"]
                if given.get("inputs_embeds") is None:  # else the ids are not what the model reads
                    run.prefixes.restore(cache, ids, given.get("attention_mask"), given.get("position_ids"))
            if config.prefill_chunk_size is None:
                return prefill(*args, **kwargs)
            with run.prefill():
                return prefill(*args, **kwargs)

        return in_one

    def ending(generate: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            with opened(run) as section:
                try:
                    return generate(*args, **kwargs)
                finally:  # the proposals of assisted decoding are over
                    for cache in section.caches:
                        cache.deactivate_past_recording()

        return write

    give_caches(stack, run)
    wrap_until(stack, run.model, "_prefill", restoring)
    wrap_until(stack, run.model, "generate", ending)


def _check(blocks: KVPolicy, budget: MemoryBudget, layout: Layout) -> None:
    for spec in layout.layers:
        if spec.site and blocks.codec is not None:
            blocks.codec.check(spec.head_dim)
        if spec.site and blocks.positioner.turned and spec.site.rope is None:
            raise AttachError(f"{type(blocks.positioner).__name__} cannot turn keys of this model's rotary embedding.")
    least = max(blocks.floor, 1)
    fits = entries(layout, blocks, int(budget.amount)) if budget.kind == "bytes" else int(budget.amount)
    if budget.kind != "keep" and fits < least:
        raise InputError(
            f"The budget {budget} is {max(fits, 0)} tokens per head, and the policy keeps at least {least} "
            "(sinks and window). Give a larger budget or a smaller window."
        )


def _tier_of(blocks: KVPolicy, tier: Tier | None, prefetch: Prefetch | None) -> Tier | None:
    if blocks.index is None and (tier is not None or prefetch is not None):
        raise InputError(
            "tier= and prefetch= are for policies that move old entries out of memory (those with an index); this one "
            "keeps or evicts them. Leave them out."
        )
    return tier or (None if blocks.index is None else HostTier(2**62))


@contextmanager
def attach(
    model: Any,
    policy: KVPolicy | KVMethod,
    *,
    budget: MemoryBudget,
    every: int | None = None,
    store: PromptStore | None = None,
    tier: Tier | None = None,
    prefetch: Prefetch | None = None,
) -> Iterator[AttachedRun]:
    """Run a transformers model under a KV policy inside a ``with`` block.

    Args:
        model: a decoder-only transformers model, for example from ``AutoModelForCausalLM``.
        policy: for example ``SnapKV()``, or a composition ``KVPolicy(scorer=SnapKV(), allocator=AdaKV())``.
        budget: what a cache may hold, for example ``MemoryBudget.keep(0.5)``.
        every: compress while decoding too, every so many tokens, so that the budget is never passed; by default as
            the policy says, which for most methods is at the end of every prefill only.
        store: a ``PrefixStore``, where prompts that were read before are found, and new ones are kept; ``generate``
            asks it. It stays open. What a policy throws away in this request is in the store all the same: prompts
            are kept whole.
        tier: where old entries go under a policy with an index, by default the memory of this process. The budget is
            then for what stays in the model's memory, and holds while decoding too.
        prefetch: fetch pages before they are asked for; by default they are fetched when they are.

    Raises:
        AttachError: no such model, attention that is not standard, attached already, or a store that a model of this
            kind or this policy cannot use.
        InputError: the budget is below what the policy always keeps, or a tier was given to a policy without an index.
        PolicyError: the codec cannot encode heads of this size.
    """
    blocks = policy.compose() if isinstance(policy, KVMethod) else policy
    blocks = blocks if every is None else replace(blocks, trigger=Every(every))
    layout, found = find_layout(model), _tier_of(blocks, tier, prefetch)
    _check(blocks, budget, layout)
    prefixes = None if store is None else store.of(model, layout, blocks)
    run = AttachedRun(model, layout, policy, blocks, budget, prefixes=prefixes, tier=found, prefetch=prefetch)
    with ExitStack() as stack:
        take_over(stack, run)
        if prefetch is not None:
            watch(stack, layout, prefetch, current.get)
        if isinstance(model, GenerationMixin):
            _wrap_generation(stack, run)
        if store is not None:
            stack.callback(store.flush)
        yield run
