"""``attach``: put a KV policy on a transformers model, and take it off again. The only file that touches ``nn.Module``,
but for :mod:`tenuto.kv.reuse.partial`.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, GenerationMixin
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tenuto.budget import MemoryBudget
from tenuto.calibration import fingerprint
from tenuto.errors import AttachError, InputError
from tenuto.kv.cache import KVCache
from tenuto.kv.layer import KVLayer
from tenuto.kv.models import Layout, find_layout
from tenuto.kv.policy import Every, KVMethod, KVPolicy
from tenuto.kv.reuse.assembler import Assembler
from tenuto.kv.reuse.chunks import ChunkStore
from tenuto.kv.reuse.join import join
from tenuto.kv.saved import load, save
from tenuto.restoring import put_until

__all__ = ["AttachedRun", "attach"]

NAME = "tenuto"
_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_current: ContextVar[KVCache | None] = ContextVar("tenuto_kv_cache", default=None)


class AttachedRun:
    """What ``attach`` yields.

    Attributes:
        policy: what was attached; blocks: its choices; budget: what a cache may hold.
        layout: what was found about the model.
        last: the cache used last, None before the first call.
    """

    def __init__(self, model: Any, policy: KVPolicy | KVMethod, blocks: KVPolicy, budget: MemoryBudget) -> None:
        self.policy, self.blocks, self.budget = policy, blocks, budget
        self.model = model
        self.layout = find_layout(model)
        self.last: KVCache | None = None
        self.deferred: list[KVCache] | None = None

    def cache(self) -> KVCache:
        """A new, empty cache, to be given as ``past_key_values``: for several turns or questions on one cache."""
        return KVCache(self.blocks, self.budget, self.layout, self._replay)

    def join(self, chunks: Sequence[torch.Tensor], assembler: Assembler, *, store: ChunkStore | None = None) -> KVCache:
        """A cache of chunks one after the other, to be given as ``past_key_values`` with all their ids and a question.

        It is compressed when the question has been read.

        Args:
            chunks: token ids ``[1, tokens]`` each; the first begins the sequence, with what must stand there.
            assembler: how their caches are joined, for example ``CacheBlend(recompute=0.15)``.
            store: where caches of chunks are found, and put if they are not there; without, all are computed.

        Raises:
            AttachError: the model has layers that slide, or keys that cannot be turned.
            InputError: no chunk, an empty one, or several rows.
            StoreError: the store does not take a chunk.
        """
        self.last = cache = self.cache()
        join(cache, chunks, assembler, store)
        return cache

    def save(self, path: Path | str, cache: KVCache | None = None) -> None:
        """Write a cache (by default the last one) to a file, for the same model and policy.

        Raises:
            InputError: there is nothing to save, or the file cannot be written.
        """
        chosen = cache or self.last
        if chosen is None:
            raise InputError("There is no cache yet: run the model on a prompt before saving.")
        save(chosen, path, fingerprint(self.layout.decoder))

    def load(self, path: Path | str) -> KVCache:
        """A cache from a file, to be given as ``past_key_values``.

        Raises:
            InputError: no such file, a damaged one, or the cache of another model or policy.
        """
        return load(self.cache(), path, fingerprint(self.layout.decoder), self.model.device)

    @property
    def bytes_held(self) -> int:
        """Bytes the last cache holds, counted from its tensors."""
        return self.last.bytes_held if self.last else 0

    @property
    def bytes_full(self) -> int:
        """Bytes DynamicCache would hold for the same tokens."""
        return self.last.bytes_full if self.last else 0

    def summary(self) -> dict[str, Any]:
        """The last cache in numbers: tokens seen, entries held, bytes held and full, their ratio, most bytes held."""
        held, full = self.bytes_held, self.bytes_full
        rows = [number for layer in self.last.counts() for row in layer for number in row] if self.last else []
        return {
            "policy": type(self.policy).__name__,
            "budget": str(self.budget),
            "tokens_seen": max(self.last.sequences.seen, default=0) if self.last else 0,
            "entries_per_head": sum(rows) / len(rows) if rows else 0.0,
            "bytes_held": held,
            "bytes_full": full,
            "compression_ratio": full / held if held else 1.0,
            "peak_bytes": self.last.peak if self.last else 0,
        }

    @contextmanager
    def prefill(self) -> Iterator[None]:
        """Calls made inside are chunks of one prompt: what they put into a cache is compressed at the end, at once."""
        self.deferred = []
        try:
            yield
            for cache in self.deferred:
                cache.deferred = False
                cache.compress()
        finally:
            self.deferred = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What calls inside put into a cache is held whole: for questions and answers on a compressed context."""
        self.deferred = []
        try:
            yield
        finally:
            self.deferred = None

    def step(self, original: Callable[..., Any], named: dict[str, Any]) -> Any:
        """One call of the decoder's ``forward``."""
        cache = self._cache_for(named)
        if cache is None:
            return original(**named)
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        mask, positions = named.get("attention_mask"), named.get("position_ids")
        given: Any = ids if ids is not None else embeds
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise AttachError("An attention mask of four dimensions was given. Give a mask [batch, tokens], or none.")
        if positions is not None and positions.dim() != 2:
            raise AttachError("Positions of several kinds per token (as multimodal models have) are not supported.")
        self.last, cache.deferred = cache, self.deferred is not None
        if self.deferred is not None and cache not in self.deferred:
            self.deferred.append(cache)
        cache.begin(given.shape[0], given.shape[1], mask, positions, given.device)
        if cache.keeps_tokens:
            cache.note(ids)
        token = _current.set(cache)
        try:
            result = original(**named)
        finally:
            _current.reset(token)
        cache.finish()
        return result

    def _cache_for(self, named: dict[str, Any]) -> KVCache | None:
        cache, wanted = named.get("past_key_values"), named.get("use_cache")
        if cache is None and not (self.layout.config.use_cache if wanted is None else wanted):
            return None
        if cache is None:
            cache = named["past_key_values"] = self.cache()
        if not isinstance(cache, KVCache) or cache.layout.decoder is not self.layout.decoder:
            kind = "The cache of another model" if isinstance(cache, KVCache) else f"A {type(cache).__name__}"
            raise AttachError(f"{kind} was passed to an attached model. Pass none, or one made by run.cache().")
        return cache

    def _replay(self, cache: KVCache) -> None:
        """Run what the scorer asks for over the cache, one call for all rows each, and take it back."""
        tokens, scorer = cache.sequences.tokens, self.blocks.scorer
        wanted = zip_longest(*[scorer.replay(row[row >= 0].long()) for row in tokens])
        for chunk in wanted:
            width = max(0 if part is None else len(part) for part in chunk)
            ids = tokens.new_zeros(len(chunk), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, part in enumerate(chunk):
                if part is not None and len(part):
                    ids[row, -len(part) :], mask[row, -len(part) :] = part, 1
            last = cache.sequences.positions[:, -1:].long()
            with cache.borrowed(mask.sum(-1).tolist()):
                self.layout.decoder(
                    input_ids=ids,
                    attention_mask=torch.cat([(tokens >= 0).long(), mask], 1),
                    position_ids=(last + mask.cumsum(-1)).clamp(min=0),
                    past_key_values=cache,
                    use_cache=True,
                )


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls instead of its own attention: ours on layers of ours, SDPA on all others."""
    cache, number = _current.get(), getattr(module, "layer_idx", None)
    layer = cache.layers[number] if cache is not None and isinstance(number, int) else None
    if not isinstance(layer, KVLayer):
        plain: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
        result: tuple[torch.Tensor, None] = plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return result
    if dropout:
        raise AttachError("The model is in training mode with attention dropout. Call model.eval() first.")
    return layer.attend(query, key, value, scaling or query.shape[-1] ** -0.5, options.get("softcap")), None


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """Our attention needs no mask; layers that slide, and calls without a cache, get SDPA's."""
    cache = _current.get()
    if cache is not None and len(cache.engine) == len(cache.layers):
        return None
    made: torch.Tensor | None = sdpa_mask(*args, **options)
    return made


def _wrap_decoder(stack: ExitStack, run: AttachedRun) -> None:
    decoder: Any = run.layout.decoder
    original, names = decoder.forward, list(inspect.signature(type(decoder).forward).parameters)[1:]

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return run.step(original, dict(zip(names, args, strict=False)) | kwargs)

    put_until(stack, decoder, "forward", forward)
    configs = {id(m.config): m.config for m in decoder.modules() if "config" in vars(m)}
    for config in configs.values():
        put_until(stack, config, "_attn_implementation_internal", NAME)


def _wrap_generation(stack: ExitStack, run: AttachedRun) -> None:
    model = run.model
    prepare, prefill, generate = model._prepare_cache_for_generation, model._prefill, model.generate

    @wraps(prepare)
    def make_cache(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return prepare(generation_config, model_kwargs, *args, **kwargs)
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise AttachError(
                f"cache_implementation={generation_config.cache_implementation!r} was asked for on an attached model. "
                "Leave it out: the attached policy makes the cache."
            )
        model_kwargs["past_key_values"] = run.cache()
        return None

    @wraps(prefill)
    def in_one(*args: Any, **kwargs: Any) -> Any:
        config = args[1] if len(args) > 1 else kwargs["generation_config"]
        if config.prefill_chunk_size is None or run.deferred is not None:
            return prefill(*args, **kwargs)
        with run.prefill():
            return prefill(*args, **kwargs)

    @wraps(generate)
    def write(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate(*args, **kwargs)
        finally:  # the proposals of assisted decoding are over
            if run.last is not None:
                run.last.deactivate_past_recording()

    put_until(stack, model, "_prepare_cache_for_generation", make_cache)
    put_until(stack, model, "_prefill", in_one)
    put_until(stack, model, "generate", write)


def _check(blocks: KVPolicy, budget: MemoryBudget, layout: Layout) -> None:
    for spec in layout.layers:
        if spec.site and blocks.codec is not None:
            blocks.codec.check(spec.head_dim)
        if spec.site and blocks.positioner.turned and spec.site.rope is None:
            raise AttachError(f"{type(blocks.positioner).__name__} cannot turn keys of this model's rotary embedding.")
    least = max(blocks.floor, 1)
    fits = layout.entries(int(budget.amount), blocks) if budget.kind == "bytes" else int(budget.amount)
    if budget.kind != "keep" and fits < least:
        raise InputError(
            f"The budget {budget} is {max(fits, 0)} tokens per head, and the policy keeps at least {least} "
            "(sinks and window). Give a larger budget or a smaller window."
        )


@contextmanager
def attach(
    model: Any, policy: KVPolicy | KVMethod, *, budget: MemoryBudget, every: int | None = None
) -> Iterator[AttachedRun]:
    """Run a transformers model under a KV policy inside a ``with`` block.

    Args:
        model: a decoder-only transformers model, for example from ``AutoModelForCausalLM``.
        policy: for example ``SnapKV()``, or a composition ``KVPolicy(scorer=SnapKV(), allocator=AdaKV())``.
        budget: what a cache may hold, for example ``MemoryBudget.keep(0.5)``.
        every: compress while decoding too, every so many tokens, so that the budget is never passed; by default as
            the policy says, which for most methods is at the end of every prefill only.

    Raises:
        AttachError: no such model, attention that is not standard, or attached already.
        InputError: the budget is below what the policy always keeps.
        PolicyError: the codec cannot encode heads of this size.
    """
    blocks = policy.compose() if isinstance(policy, KVMethod) else policy
    blocks = blocks if every is None else replace(blocks, trigger=Every(every))
    run = AttachedRun(model, policy, blocks, budget)
    _check(blocks, budget, run.layout)
    if run.layout.decoder in _attached:
        raise AttachError(f"{type(model).__name__} has a policy attached already. Leave that `with` block first.")
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    with ExitStack() as stack:
        _attached.add(run.layout.decoder)
        stack.callback(_attached.discard, run.layout.decoder)
        _wrap_decoder(stack, run)
        if isinstance(model, GenerationMixin):
            _wrap_generation(stack, run)
        yield run
