"""Read a prompt with fewer entries than it has tokens; later tokens go on behind it as if it had been read whole.

    with tenuto.attach(model, SnapKV(), budget=MemoryBudget.keep(0.25)) as run:
        prompt = read(run, ids, SemToken(ratio=0.5), tokenizer=tokenizer)
        model.generate(torch.cat([ids, question], 1), past_key_values=prompt.cache)

One pass: layers before ``method.layer`` see every token; there, spans are chosen and merged, and the layers from it on
hold one entry per span, of which a later token sees ``logit + log(count)``, where the count is the span's size, less
for tokens that weigh less (:attr:`Spans.counts`). An entry has the number and the RoPE position of its span's heaviest
token (:attr:`Spans.places`). The cache has *seen* all tokens: its length, the positions of what follows, budgets by
share and ``bytes_full`` count those.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tenuto.errors import AttachError, InputError
from tenuto.kv.attach import AttachedRun
from tenuto.kv.cache import KVCache
from tenuto.kv.call import current
from tenuto.prompt.encoder import Encoder, encode
from tenuto.prompt.policy import Look, PromptMethod
from tenuto.prompt.protect import marks
from tenuto.prompt.spans import Spans
from tenuto.restoring import hook_until

__all__ = ["Prompt", "read"]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that was read.

    Attributes:
        ids: its token ids ``[tokens]``; spans: what became one entry each.
        cache: holds it; give it as ``past_key_values``. logits: ``[vocabulary]`` of the first token after it.
    """

    ids: torch.Tensor
    spans: Spans
    cache: KVCache
    logits: torch.Tensor

    @property
    def ratio(self) -> float:
        """Spans over tokens."""
        return len(self.spans) / self.ids.shape[0]

    def table(self, tokenizer: Any) -> list[tuple[str, int]]:
        """The text of the prompt in pieces, with the size of the span each became; 0 for what was dropped.

        Joined, the pieces are the text: a character made of tokens of two spans is in the later one.
        """
        pieces, known, start = list[tuple[str, int]](), "", 0
        for stop, size in self._stretches():
            text = str(tokenizer.decode(self.ids[start:stop].tolist()))
            if text.endswith("\ufffd") and stop < self.ids.shape[0]:
                pieces.append(("", size))
                continue
            pieces.append((text[len(known) :], size))
            start = stop - 1  # decoded once more: what a token looks like may depend on the one before it
            known = str(tokenizer.decode(self.ids[start:stop].tolist()))
            if known.startswith("\ufffd"):
                start, known = stop, ""
        return pieces

    def _stretches(self) -> list[tuple[int, int]]:
        """Where each span ends, with its size, and runs of tokens in none, with 0."""
        found, done = list[tuple[int, int]](), 0
        for start, end in zip(self.spans.starts.tolist(), self.spans.ends.tolist(), strict=True):
            if start > done:
                found.append((start, 0))
            found.append((end + 1, end + 1 - start))
            done = end + 1
        return [*found, (self.ids.shape[0], 0)] if done < self.ids.shape[0] else found


@torch.no_grad()
def read(
    run: AttachedRun,
    ids: torch.Tensor,
    method: PromptMethod,
    *,
    tokenizer: Any = None,
    cache: KVCache | None = None,
    encoder: Encoder | None = None,
) -> Prompt:
    """Read a prompt ``[1, tokens]`` into a cache.

    Args:
        run: of an attached policy, which then compresses the entries further; ``KVPolicy()`` with
            ``MemoryBudget.keep(1.0)`` leaves them.
        tokenizer: tells numbers, names and code, so that they can be protected; None: nothing but both ends is.
        cache: of earlier turns, from ``run.cache()``; None: a new one.
        encoder: of sentences, for a method that asks for one; None: WordLlama.

    Raises:
        InputError: the prompt is empty, or more than one, or the encoder cannot be used.
        AttachError: the model has layers that slide, or the policy puts old entries into pages.
        PolicyError: the method cannot reach its ratio on this model.
    """
    if ids.dim() != 2 or ids.shape[0] != 1 or ids.shape[1] < 1:
        raise InputError(
            f"A prompt of shape {list(ids.shape)} was given. Give one prompt [1, tokens] that is not empty."
        )
    if any(spec.site is None or spec.calls > 1 for spec in run.layout.layers):
        raise AttachError(
            "Spans can be merged in a model whose layers all attend in full; this one has sliding layers."
        )
    if run.blocks.index is not None:
        raise AttachError(
            f"{type(run.policy).__name__} puts old entries into pages, which carry no count weights. Use another."
        )
    surprise = _surprise(run, ids) if method.surprised else None
    meaning = encode(tokenizer, ids[0], encoder) if method.encoded else None
    merging = _Merging(run, ids, method, marks(tokenizer, ids[0].cpu()), surprise, meaning)
    cache = run.cache() if cache is None else cache
    with ExitStack() as stack:
        if run.budget.kind == "bytes":
            stack.enter_context(run.prefill())  # a budget in bytes is known when the weights are
        for number, block in enumerate(list(merging.decoder.layers)[merging.at :]):
            hook = merging.first if number == 0 else merging.later
            hook_until(stack, block, hook)
        merging.cache = cache
        mask, positions = _behind(cache, ids)
        found = run.model(
            ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            attention_mask=mask,
            position_ids=positions,
        )
    if merging.spans is None:
        raise AttachError(f"{type(run.model).__name__} did not run its layer {merging.at}.")
    return Prompt(ids[0].cpu(), merging.spans, cache, found.logits[0, -1].float())


def _behind(cache: KVCache, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and positions of a prompt behind what is held: padding stays padding, positions go on from the last."""
    held, new = cache.get_seq_length(), ids.shape[1]
    mask = torch.ones(1, held + new, dtype=torch.int64, device=ids.device)
    positions = torch.arange(new, device=ids.device)[None]
    if held:
        mask[:, : held - cache.sequences.seen[0]] = 0
        positions = positions + cache.sequences.positions[:, -1:].to(ids.device, torch.int64) + 1
    return mask, positions


class _Merging:
    """What happens to the layers from the merging one on, in the one pass that reads the prompt."""

    def __init__(
        self,
        run: AttachedRun,
        ids: torch.Tensor,
        method: PromptMethod,
        marked: torch.Tensor,
        surprise: torch.Tensor | None,
        meaning: torch.Tensor | None,
    ) -> None:
        self.run, self.ids, self.method, self.marked = run, ids, method, marked
        self.surprise, self.meaning = surprise, meaning
        self.decoder: Any = run.layout.decoder
        self.cache: KVCache | None = None
        self.spans: Spans | None = None
        self.places = torch.empty(0, dtype=torch.int64)  # of the spans
        self.at = method.first(len(run.layout.layers))
        self.left = len(run.layout.layers) - self.at

    @property
    def _mine(self) -> bool:
        """Whether the call that is under way is the one that reads the prompt: other threads have theirs."""
        return self.cache is not None and current.get() is self.cache

    def first(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Choose the spans from the states that come in, and go on with their means."""
        if self.spans is not None or not self._mine:
            return None
        states: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        self.spans = self.method.choose(self._look(states))
        self.places = self.spans.places
        if len(self.spans) < states.shape[1]:
            states = self.spans.mean(states)
            self._tell()
        return self._thinned(states, args, kwargs)

    def later(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give a later layer the positions of the spans."""
        if self.left < 1 or self.spans is None or not self._mine:
            return None
        return self._thinned(args[0] if args else kwargs["hidden_states"], args, kwargs)

    def _thinned(self, states: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.left -= 1
        kept = {name: self._at_places(value) for name, value in kwargs.items()}
        if args:
            return (states, *(self._at_places(value) for value in args[1:])), kept
        return args, kept | {"hidden_states": states}

    def _at_places(self, value: Any) -> Any:
        """What is told of every token, such as rotary angles ``[batch, tokens, ...]``, of the spans' places."""
        if isinstance(value, tuple):
            return tuple(self._at_places(part) for part in value)
        tokens = self.ids.shape[1]
        if isinstance(value, torch.Tensor) and self.spans is not None and value.dim() > 1 and value.shape[1] == tokens:
            return value[:, self.places.to(value.device)]
        return value

    def _tell(self) -> None:
        """Tell the cache's layers what the entries of this call stand for."""
        spans, cache = self.spans, self.cache
        if spans is None or cache is None:
            return
        for layer in cache.engine[self.at :]:
            step = layer.step
            if step is not None:
                merged = bool((spans.sizes > 1).any())
                layer.step = replace(
                    step,
                    index=step.index[self.places.to(step.index.device)],
                    weights=spans.counts.to(step.index.device) if merged else None,
                )

    def _look(self, states: torch.Tensor) -> Look:
        embed = self.run.model.get_input_embeddings()
        return Look(
            ids=self.ids[0],
            embeddings=embed(self.ids)[0].float(),
            states=states[0].float(),
            marks=self.marked.to(states.device),
            surprise=self.surprise,
            layers=len(self.run.layout.layers),
            vocabulary=embed.weight.shape[0],
            meaning=self.meaning,
        )


def _surprise(run: AttachedRun, ids: torch.Tensor) -> torch.Tensor:
    logits = run.model(ids, use_cache=False).logits[0, :-1].float()
    nats = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return torch.cat([nats.new_full((1,), float("inf")), nats])
