"""Read texts into a store of prefixes, ahead of the requests that will begin with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach
from tenuto.kv.policy import KVPolicy
from tenuto.reuse.prefix import PrefixStore
from tenuto.zoo.language import LanguageModel, check_length

__all__ = ["warm"]


@torch.no_grad()
def warm(
    language: LanguageModel, store: PrefixStore, texts: Sequence[str], *, chat: bool = False
) -> Iterator[tuple[int, int]]:
    """Read each text and yield its tokens, and how many of them the store now holds.

    Args:
        chat: as the first turn of a user, in the model's chat template.

    Raises:
        InputError: a text is longer than the model was made for.
        AttachError: no prefix of this model can be stored.
    """
    with attach(language.model, KVPolicy(), budget=MemoryBudget.keep(1.0), store=store) as run:
        for text in texts:
            ids = language.encode(language.chat([{"role": "user", "content": text}]) if chat else text)
            check_length(language, ids.shape[1])
            cache = run.restore(ids)
            language.model(ids[:, cache.get_seq_length() :], past_key_values=cache, logits_to_keep=1)
            store.flush()
            yield ids.shape[1], run.stored(ids)
