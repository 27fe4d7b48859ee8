"""The corpus as tokens: a byte-level BPE tokenizer of our own, trained on the training part, kept for the next run.

Every token stands for whole bytes, so bits per byte are counted on the original bytes whatever the tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tenuto.home import home
from tenuto.measure.devices import versions
from tenuto.texts.corpus import BIBLE, PACKAGES, Corpus, collect

__all__ = ["END", "Tokens", "prepare", "token_bytes", "tokenise", "train_tokenizer"]

PIECES = 2048
END = "<|end|>"
ABOUT, DATA = "tokens.json", "tokens.safetensors"


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus.

    Attributes:
        tokenizer: a ``PreTrainedTokenizerFast``. train: token ids ``[n]`` (int32) of all training documents, each
            ended by :data:`END`. held: token ids of each held-out document, the longest first.
        digest: of the corpus's text; bible: whether the Bible is in it.
    """

    tokenizer: Any
    train: torch.Tensor
    held: tuple[torch.Tensor, ...]
    digest: str
    bible: bool

    @property
    def pieces(self) -> int:
        """Tokens of the tokenizer."""
        return len(self.tokenizer)

    @cached_property
    def bytes_of(self) -> torch.Tensor:
        """Bytes each token stands for."""
        return token_bytes(self.tokenizer)


def token_bytes(tokenizer: Any) -> torch.Tensor:
    """Bytes that each token of a byte-level tokenizer stands for, int64 ``[tokens]``; a special token none."""
    special = set(tokenizer.all_special_tokens)
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)
    for piece, i in tokenizer.get_vocab().items():
        counts[i] = 0 if piece in special else len(piece)  # the byte-level alphabet has one character per byte
    return counts


def train_tokenizer(texts: list[str], pieces: int = PIECES) -> Any:
    """A byte-level BPE tokenizer of so many tokens, the same for the same texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def tokenise(corpus: Corpus, pieces: int = PIECES) -> Tokens:
    """Train a tokenizer on the training part and tokenise both."""
    tokenizer = train_tokenizer([document.text for document in corpus.train], pieces)

    def ids(documents: Any) -> list[list[int]]:
        texts = [document.text for document in documents]
        return list(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids) if texts else []

    end = tokenizer.eos_token_id
    train = torch.tensor([token for row in ids(corpus.train) for token in (*row, end)], dtype=torch.int32)
    held = sorted((torch.tensor(row, dtype=torch.int32) for row in ids(corpus.held)), key=len, reverse=True)
    return Tokens(tokenizer=tokenizer, train=train, held=tuple(held), digest=corpus.digest, bible=corpus.bible)


def prepare() -> Tokens:
    """The installed text as tokens: read, split and tokenised once for these versions, then taken from its folder."""
    told = {**versions(*PACKAGES), "pieces": str(PIECES), BIBLE: str(shutil.which(BIBLE) is not None)}
    name = "-".join(f"{key}{value}" for key, value in sorted(told.items()))
    place = home() / "corpus" / name.replace("/", "_")
    if not (place / ABOUT).is_file():
        _keep(tokenise(collect()), place)
    return _load(place)


def _keep(tokens: Tokens, place: Path) -> None:
    """Write the folder beside its place and rename it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        new = Path(scratch) / "new"
        tokens.tokenizer.save_pretrained(new)
        held = {f"held{i:05}": row for i, row in enumerate(tokens.held)}
        save_file({"train": tokens.train, **held}, new / DATA)
        (new / ABOUT).write_text(json.dumps({"digest": tokens.digest, BIBLE: tokens.bible}))
        try:
            os.rename(new, place)
        except OSError:
            if not (place / ABOUT).is_file():  # else another process was quicker
                raise


def _load(place: Path) -> Tokens:
    from transformers import PreTrainedTokenizerFast

    told = json.loads((place / ABOUT).read_text())
    data = load_file(place / DATA)
    held = tuple(data[name] for name in sorted(data) if name.startswith("held"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place)
    return Tokens(tokenizer=tokenizer, train=data["train"], held=held, digest=told["digest"], bible=told[BIBLE])
