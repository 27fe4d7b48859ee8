"""Fingerprints of tokens from a sentence encoder: what the text about each token means, by another, small model.

SemToken's ``fingerprint=sentences`` asks for them (Algorithm 1 of https://arxiv.org/abs/2508.15190, with its two tokens
on both sides); the model's own states and embeddings need no encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tenuto.errors import InputError

__all__ = ["AROUND", "Encoder", "encode", "wordllama"]

Encoder = Callable[[Sequence[str]], torch.Tensor]
"""Texts to vectors ``[texts, channels]``, all in one call."""

AROUND = 2
"""Tokens on both sides of a token that are encoded with it."""


def encode(tokenizer: Any, ids: torch.Tensor, encoder: Encoder | None = None) -> torch.Tensor:
    """What an encoder makes of the text about each of the tokens ``[tokens]``: ``[tokens, channels]``, length 1.

    Args:
        encoder: None for :func:`wordllama`.

    Raises:
        InputError: there is no tokenizer, WordLlama is not installed, or the encoder gives another number of vectors.
    """
    if tokenizer is None:
        raise InputError("fingerprint=sentences encodes text. Give the tokenizer, or use fingerprint=states.")
    numbers = ids.tolist()
    windows = [numbers[max(at - AROUND, 0) : at + AROUND + 1] for at in range(len(numbers))]
    found = (encoder or wordllama())(tokenizer.batch_decode(windows))
    if found.dim() != 2 or found.shape[0] != len(windows):
        raise InputError(f"The encoder gave {list(found.shape)} for {len(windows)} texts. Give [texts, channels].")
    return F.normalize(found.float(), dim=-1)  # of a text without words: zeros


@cache
def wordllama() -> Encoder:
    """WordLlama: 256 channels, a table of word vectors that comes with its package; nothing is downloaded.

    Raises:
        InputError: it is not installed.
    """
    try:
        import wordllama as package
    except ImportError as error:
        raise InputError("fingerprint=sentences needs WordLlama. Install it: pip install 'tenuto[prompt]'.") from error
    folder = Path(str(package.__file__)).parent  # where it looks for its own word list only if told
    model: Any = package.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda texts: torch.from_numpy(model.embed(list(texts)))
