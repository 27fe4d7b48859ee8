"""Time per decoded token and bytes held, against context: one pass over a long text with stops, models in turn.

Each model reads the text in chunks through its own cache. At a stop all models decode tokens in turn, so that a slow
minute of the machine slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from tenuto.attention import held
from tenuto.errors import InputError
from tenuto.measure.speed import synchronise
from tenuto.records.attention import Decode

__all__ = ["decoding"]

CHUNK = 512
WARM_UP = 2


class _Reader:
    """A model in the middle of a text."""

    def __init__(self, model: Any, text: torch.Tensor) -> None:
        from transformers import DynamicCache

        self.model, self.text, self.read = model, text, 0
        self.cache = DynamicCache(config=model.config)

    def advance(self, to: int) -> None:
        """Read up to ``to`` tokens."""
        while self.read < to:
            self._call(min(CHUNK, to - self.read))

    def token(self) -> float:
        """Read one token; its seconds."""
        device = self.model.device
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        synchronise(device)
        start = clock()
        self._call(1)
        synchronise(device)
        return clock() - start

    @torch.inference_mode()
    def _call(self, count: int) -> None:
        ids = self.text[None, self.read : self.read + count].to(self.model.device)
        self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.read += count


def decoding(
    models: Mapping[str, Any], text: torch.Tensor, contexts: Sequence[int], repeats: int
) -> dict[str, tuple[Decode, ...]]:
    """Per model, decoding after each of ``contexts`` tokens.

    Args:
        models: by name, in evaluation mode; text: token ids ``[tokens]``, at least the longest context and
            ``repeats + 2`` more; contexts: tokens.

    Raises:
        InputError: the contexts do not rise by more tokens than are decoded at a stop, or the text is too short.
    """
    room, stops = WARM_UP + repeats, list(contexts)
    if any(high - low <= room for low, high in zip([0, *stops], stops, strict=False)):
        raise InputError(f"contexts={','.join(map(str, stops))} must rise by more than {room} tokens.")
    if len(text) < stops[-1] + room:
        raise InputError(f"The text has {len(text)} tokens, {stops[-1] + room} are read. Give shorter contexts.")
    readers = {name: _Reader(model, text) for name, model in models.items()}
    names, found = list(readers), dict[str, list[Decode]]()
    with tqdm(total=len(stops) * len(names), desc="decoding", leave=False, disable=None) as bar:
        for stop in stops:
            bytes_held = {}
            for name, reader in readers.items():
                reader.advance(stop)
                bytes_held[name] = held(reader.cache)
                bar.update()
            seconds: dict[str, list[float]] = {name: [] for name in names}
            for repeat in range(-WARM_UP, repeats):
                turn = repeat % len(names)
                for name in names[turn:] + names[:turn]:
                    spent = readers[name].token()
                    if repeat >= 0:
                        seconds[name].append(spent)
            for name in names:
                decode = Decode(context=stop, seconds=tuple(seconds[name]), held=bytes_held[name])
                found.setdefault(name, []).append(decode)
    return {name: tuple(decodes) for name, decodes in found.items()}
