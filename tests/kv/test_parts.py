"""Every kind of block, in its smallest form, under all laws: running state, replay, merging, compensation, joint
allocation and precision classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError
from tenuto.kv.attach import attach
from tenuto.kv.policies.adakv import JointHeads
from tenuto.kv.policies.h2o import ReceivedAttention
from tenuto.kv.policies.kivi import Groups
from tenuto.kv.policies.knorm import KeyNorm
from tenuto.kv.policy import Allocator, Drop, Entries, KVPolicy, Reducer, Scored, Scorer, Selector, TopK, View
from tenuto.testing.kv import KV_LAWS, TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, slots=True)
class Repeated(Scorer):
    """The most attention received when the prompt is run again, 40 tokens at a time."""

    features: int = 1
    observes: ClassVar[Literal["no", "calls", "replay"]] = "replay"

    def replay(self, tokens: torch.Tensor) -> Sequence[torch.Tensor]:
        return tokens.split(40)

    def observe(self, state: torch.Tensor, attention: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.maximum(state, attention.amax((-3, -2))[..., None])

    def score(self, view: View) -> torch.Tensor:
        return view.state[..., 0]


@dataclass(frozen=True, slots=True)
class AllTogether(Allocator):
    """The best entries of all layers and heads, after what is protected."""

    joint: ClassVar[bool] = True

    def allocate(self, layers: Sequence[Scored], total: int) -> list[torch.Tensor]:
        certain = [scored.protected.sum(-1) for scored in layers]
        open_ = [scored.scores.masked_fill(scored.protected, float("-inf")) for scored in layers]
        free = total - sum(int(count.sum()) for count in certain)
        every = torch.cat([scores.flatten() for scores in open_])
        edge = every.sort(descending=True).values[min(max(free, 0), len(every) - 1)]
        return [c + (scores > edge).sum(-1) for c, scores in zip(certain, open_, strict=True)]


@dataclass(frozen=True, slots=True)
class IntoNext(Reducer):
    """A loser is averaged into the next entry that is kept, or dropped if there is none."""

    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        merged = []
        for head, entries in enumerate(Drop().reduce(view, kept)):
            held = view.held[head]
            place = kept[head].long().cumsum(0) - kept[head].long()
            use = held & (place < len(entries))
            weight = view.weights[head] * use
            total = torch.zeros(len(entries)).index_add_(0, place[use], weight[use])
            pieces = []
            for source in (view.keys[head], view.values[head]):
                sums = torch.zeros(len(entries), source.shape[1]).index_add_(
                    0, place[use], source[use].float() * weight[use][:, None]
                )
                pieces.append((sums / total[:, None]).to(source.dtype))
            merged.append(Entries(pieces[0], pieces[1], entries.index, total, entries.state))
        return merged


@dataclass(frozen=True, slots=True)
class OneForAll(Reducer):
    """The mean of all losers, as one entry that stands for as many tokens."""

    extra: ClassVar[int] = 1

    def reduce(self, view: View, kept: torch.Tensor) -> list[Entries]:
        found = []
        for head, part in enumerate(Drop().reduce(view, kept)):
            lost = view.held[head] & ~kept[head]
            if not lost.any():
                found.append(part)
                continue
            weight = view.weights[head][lost]
            mean = [
                ((x[head][lost].float() * weight[:, None]).sum(0) / weight.sum()).to(x.dtype)
                for x in (view.keys, view.values)
            ]
            ones = torch.ones(len(part)) if part.weights is None else part.weights
            found.append(
                Entries(
                    torch.cat([mean[0][None], part.keys]),
                    torch.cat([mean[1][None], part.values]),
                    torch.cat([torch.tensor([-1], dtype=torch.int32), part.index]),
                    torch.cat([weight.sum()[None], ones]),
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class TwoClasses(Selector):
    """The better half in the first class, the other half in the second."""

    sinks: int = 0
    window: int = 0
    classes: ClassVar[int] = 2

    def select(self, scored: Scored, counts: torch.Tensor) -> torch.Tensor:
        best = TopK().select(scored, (counts + 1) // 2)
        return 2 * TopK().select(scored, counts) - best


@dataclass(frozen=True, slots=True)
class Marked(Groups):
    """Groups, which also remembers the classes it was given."""

    def encode(
        self, keys: torch.Tensor, values: torch.Tensor, *, classes: torch.Tensor | None, queries: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        marks = torch.ones(len(keys), dtype=torch.uint8) if classes is None else classes
        code = Groups(self.bits, self.group, self.residual).encode(keys, values, classes=None, queries=queries)
        return code | {"marks": marks}

    def take(self, code: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
        plain = Groups(self.bits, self.group, self.residual)
        return plain.take(code, index) | {"marks": code["marks"][index]}

    def entry_bytes(self, head_dim: int, itemsize: int) -> float:
        return Groups(self.bits, self.group, self.residual).entry_bytes(head_dim, itemsize) + 1


POLICIES = {
    "running": KVPolicy(scorer=ReceivedAttention(), selector=TopK(window=8)),
    "running+codec": KVPolicy(scorer=ReceivedAttention(), allocator=JointHeads(0.2), codec=Groups(8, 16, 0)),
    "replay": KVPolicy(scorer=Repeated(), allocator=AllTogether(), selector=TopK(sinks=2)),
    "joint": KVPolicy(scorer=KeyNorm(), allocator=AllTogether(), selector=TopK(window=4)),
    "merging": KVPolicy(scorer=KeyNorm(), allocator=JointHeads(0.2), losers=IntoNext()),
    "compensation": KVPolicy(selector=TopK(sinks=2, window=8), losers=OneForAll()),
    "classes": KVPolicy(scorer=KeyNorm(), selector=TwoClasses(), codec=Marked(4, 16, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", KV_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", POLICIES)
def test_law(name: str, law: Callable[[Any], None]) -> None:
    law(POLICIES[name])


def test_no_token_is_lost_in_a_sum() -> None:
    with attach(model := TinyLM(), POLICIES["compensation"], budget=MemoryBudget.keep(0.3)) as run:
        follow(model, cache := run.cache(), tokens(80), tokens(0))
        for turn in range(3):
            follow(model, cache, tokens(20, turn), tokens(0))
        for layer in cache.engine:
            assert layer.held is not None
            for segment in range(2):
                weights = layer.held.column(segment, "weights")
                assert weights is not None and float(weights.sum()) == 140


def test_running_state_is_the_attention_that_happened() -> None:
    """In a model of plain softmax attention, what all entries received is what all queries gave: one each."""
    with attach(model := TinyLM(), POLICIES["running"], budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), tokens(30), tokens(5, 1))
        state = cache.engine[0].held.column(0, "state")  # type: ignore[union-attr]
        assert state is not None
        torch.testing.assert_close(state.sum(), torch.tensor(2.0 * 35))
        with pytest.raises(AttachError, match="cannot take tokens back"):
            cache.crop(-1)


def test_classes_reach_the_codec() -> None:
    with attach(model := TinyLM(), POLICIES["classes"], budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), tokens(84), tokens(0))
        held = cache.engine[0].held
        assert held is not None and held.encoded[0] is not None
        norms = torch.linalg.vector_norm(held.all_keys(0)[:80], dim=-1)
        marks = held.encoded[0].code["marks"]
        assert set(marks.tolist()) == {1, 2}
        assert norms[marks == 1].mean() < norms[marks == 2].mean()
