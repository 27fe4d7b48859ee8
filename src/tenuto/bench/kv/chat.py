"""A conversation with a language model on one cache: every turn is read into what the turns before it left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tenuto.bench.reading import CacheEntry, attached, new_cache, plain_bytes, whole
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError, ModelError
from tenuto.kv.attach import AttachedRun
from tenuto.kv.policy import KVMethod
from tenuto.prompt.policy import PromptMethod
from tenuto.prompt.read import read
from tenuto.reuse.prefix import PrefixStore
from tenuto.zoo.language import LanguageModel, check_length, load_language

__all__ = ["Chat", "conversation", "read_prompt"]

MEBI = 2**20
UNFINISHED = "\ufffd"
"""What a tokenizer shows for a character whose last bytes are still to come."""


def read_prompt(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read, is empty, or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Give a text file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (at byte {error.start}). Give a text file.") from error
    if not text:
        raise InputError(f"{path} is empty. Write the prompt into it.")
    return text


class Chat:
    """What was said, and the cache that holds it.

    Attributes:
        turns: of user and assistant; seen: all tokens the model was given.
        first, each: seconds to the first token of the last answer, and per token after it.
    """

    def __init__(
        self, language: LanguageModel, run: AttachedRun | None, most: int, merge: PromptMethod | None = None
    ) -> None:
        self.language, self.run, self.most, self.merge = language, run, most, merge
        self.cache = new_cache(language, run)
        self.turns: list[dict[str, str]] = []
        self.text = ""
        self.seen: list[int] = []
        self.first = self.each = 0.0

    def say(self, prompt: str) -> Iterator[str]:
        """The answer to the user's next turn, in pieces as they come (greedy decoding).

        Raises:
            InputError: the conversation is longer than the model was made for.
            ModelError: the model's chat template rewrites earlier turns.
        """
        self.turns.append({"role": "user", "content": prompt})
        whole = self.language.chat(self.turns)
        if not whole.startswith(self.text):
            raise ModelError(
                f"The chat template of {self.language.name} rewrites earlier turns, so this turn cannot go on from the "
                "cache. Start a new conversation."
            )
        new = whole.removeprefix(self.text)
        ids = self.language.encode(new)
        check_length(self.language, len(self.seen) + ids.shape[1] + self.most)
        start = time.perf_counter()
        token, said, shown = self._next(ids[:, self._restored(ids) :]), list[int](), ""
        self.first, begun = time.perf_counter() - start, time.perf_counter()
        while token not in self.language.ends and len(said) < self.most:
            said.append(token)
            answer = self.language.decode(torch.tensor(said))
            if not answer.endswith(UNFINISHED):
                yield answer[len(shown) :]
                shown = answer
            token = self._next(torch.tensor([[token]], device=self.language.device))
        self.each = (time.perf_counter() - begun) / max(len(said), 1)
        self.turns.append({"role": "assistant", "content": shown})
        self.text += new + shown

    def _restored(self, ids: torch.Tensor) -> int:
        """Tokens of the first turn that came from a store."""
        if self.seen or self.run is None or self.run.prefixes is None:
            return 0
        self.cache = self.run.restore(ids)
        count: int = self.cache.get_seq_length()
        self.seen += ids[0, :count].tolist()
        return count

    @torch.no_grad()
    def _next(self, ids: torch.Tensor) -> int:
        self.seen += ids[0].tolist()
        if self.merge is not None and self.run is not None and ids.shape[1] > 1:
            prompt = read(self.run, ids, self.merge, tokenizer=self.language.tokenizer, cache=self.cache)
            return int(prompt.logits.argmax())
        found = self.language.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return int(found.logits[0, -1].argmax())

    def summary(self) -> str:
        """One sentence: tokens, times, bytes held and saved."""
        times = f"first token after {self.first:.2f} s, then {1000 * self.each:.0f} ms per token"
        if self.run is None:
            size = plain_bytes(self.cache)
            return f"{len(self.seen)} tokens seen; the cache holds {size / MEBI:.2f} MiB, nothing saved; {times}."
        held, full = self.cache.bytes_held, self.cache.bytes_full
        return (
            f"{len(self.seen)} tokens seen; the cache holds {held / MEBI:.2f} of {full / MEBI:.2f} MiB, "
            f"{(full - held) / MEBI:.2f} MiB ({1 - held / full:.1%}) saved; {times}."
        ) + (f" {self.run.prefixes.restored} tokens came from the store." if self.run.prefixes else "")


@contextmanager
def conversation(
    model: str,
    policy: KVMethod | None,
    budget: MemoryBudget | None,
    *,
    every: int | None = None,
    most: int = 256,
    device: str = "auto",
    store: PrefixStore | None = None,
    merge: PromptMethod | None = None,
) -> Iterator[Chat]:
    """A new conversation, with the policy attached inside the ``with`` block.

    Args:
        model: ``bundled:smollm2`` or a folder; policy, budget: None for the uncompressed cache.
        every: compress while decoding too, every so many tokens; most: tokens of one answer.
        store: where the beginning of the first prompt is looked for, and prompts are kept.
        merge: gives the model fewer entries than a turn has tokens; the policy compresses those.

    Raises:
        ModelError: the model is missing or damaged.
        AttachError, InputError, PolicyError: as :func:`tenuto.attach`.
    """
    language = load_language(model, device)
    entry = CacheEntry(policy=policy, budget=budget, every=every, store=store)
    with attached(language, entry) if policy or store or not merge else whole(language) as run:
        yield Chat(language, run, most, merge)
