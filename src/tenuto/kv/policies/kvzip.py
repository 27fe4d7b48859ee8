"""KVzip: keep what the model needs to write the context out once more, whatever will be asked about it.

After the prompt, the context is run again over its own cache, a chunk at a time; an entry is worth the most attention
that any query of this repetition pays it. The best entries of all layers and heads together stay: one fraction for the
whole model, and heads really differ in length. It costs about one more prefill, once per context.

What it does not do: no tokenizer is at hand, so the instruction to repeat is given as token ids, and left out by
default; every chunk after the first is led in by the last tokens before it. Attention is over all that is held, and not
over first tokens, chunk and repetition alone: the same for contexts of one chunk. KVzip+, which weighs by norms, and
the form with fixed heads are left out. Tokens decoded later are not repeated: where decoding compresses too, they count
above all others, newer ones first.

Source: Kim et al. 2025, KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction, section 3,
https://arxiv.org/abs/2505.23416
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import Allocator, Claim, KVMethod, KVPolicy, Paper, Scored, Scorer, TopK, View

__all__ = ["JointLayers", "KVzip", "Repetition"]

LEAD = 8
"""Tokens before a chunk that lead it in."""
LEAST = 1e-30
"""Attention below which an entry counts as repeated all the same: zero is for those that were not."""


@dataclass(frozen=True, slots=True)
class Repetition(Scorer):
    """The most attention an entry gets from any query of any query head when the context is run again, in chunks of
    ``chunk`` tokens after the tokens of ``instruction`` (ids, separated by spaces)."""

    chunk: int = 2048
    instruction: str = ""
    features: int = 1
    observes: ClassVar[Literal["no", "calls", "replay"]] = "replay"

    def replay(self, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
        first = tokens.new_tensor([int(number) for number in self.instruction.split()])
        starts = range(0, len(tokens), self.chunk)
        return [torch.cat([first, tokens[max(start - LEAD, 0) : start + self.chunk]]) for start in starts]

    def observe(self, state: torch.Tensor, attention: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.maximum(state, attention.amax((-3, -2)).clamp(min=LEAST)[..., None])

    def score(self, view: View) -> torch.Tensor:
        most = view.state[..., 0]
        return torch.where(most > 0, most, 1 + view.index.float())


@dataclass(frozen=True, slots=True)
class JointLayers(Allocator):
    """The best entries of all layers and heads together, beyond those that are protected."""

    joint: ClassVar[bool] = True

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        certain = torch.cat([scored.protected.sum(-1) for scored in layers])
        open_ = [scored.scores.masked_fill(scored.protected, float("-inf")) for scored in layers]
        every = torch.cat([scores.flatten() for scores in open_])
        lengths = [scores.shape[1] for scores in open_ for _ in range(scores.shape[0])]
        owners = torch.arange(len(lengths), device=every.device).repeat_interleave(
            torch.tensor(lengths, device=every.device)
        )
        free = min(max(total - int(certain.sum()), 0), int(torch.isfinite(every).sum()))
        won = torch.bincount(owners[every.topk(free).indices], minlength=len(lengths))
        return list((certain + won).split([scores.shape[0] for scores in open_]))


@dataclass(frozen=True, slots=True, kw_only=True)
class KVzip(KVMethod):
    """Keep what the context is rebuilt from.

    Attributes:
        chunk: tokens repeated at a time.
        sinks: first tokens, which are always kept.
        instruction: token ids put before every chunk, separated by spaces: "Repeat the previous context", as the
            model's tokenizer writes it.
    """

    chunk: int = 2048
    sinks: int = 4
    instruction: str = ""

    paper: ClassVar[Paper] = Paper(
        "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction",
        "Kim, Kim, Kwon, Lee, Yun, Song",
        2025,
        "https://arxiv.org/abs/2505.23416",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("size of the cache", "3x to 4x smaller", "LLaMA3.1, Qwen2.5 and Gemma3", "abstract"),
        Claim("decoding latency with FlashAttention", "about 2x lower", "LLaMA3.1, Qwen2.5 and Gemma3", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("kvzip",)

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.sinks < 0:
            raise PolicyError(
                f"kvzip: chunk={self.chunk}, sinks={self.sinks}. chunk must be at least 1, sinks zero or more."
            )
        if not all(number.isdecimal() for number in self.instruction.split()):
            raise PolicyError(
                f"kvzip: instruction={self.instruction!r} is not allowed: give token ids separated by spaces."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=Repetition(self.chunk, self.instruction),
            allocator=JointLayers(),
            selector=TopK(sinks=self.sinks),
        )
