"""Reading a prompt with fewer entries: against the plain model, and against the same thing written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError, PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.adakv import AdaKV
from tenuto.kv.policies.h2o import H2O
from tenuto.kv.policies.kivi import Kivi
from tenuto.kv.policies.kvmerger import KVMerger
from tenuto.kv.policies.kvzip import KVzip
from tenuto.kv.policies.quest import Quest
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policy import KVPolicy
from tenuto.prompt.policies.semtoken import SemToken
from tenuto.prompt.policy import PromptMethod
from tenuto.prompt.read import Prompt, read
from tenuto.prompt.spans import Spans
from tenuto.testing.kv import TinyLM, follow, tokens

FULL = MemoryBudget.keep(1.0)
METHODS = [info.cls for info in catalog.methods("prompt").values()]


@torch.no_grad()
def by_hand(model: Any, ids: torch.Tensor, prompt: Prompt, layer: int, after: torch.Tensor) -> torch.Tensor:
    """Logits after the prompt and each later token, ``[1 + after, vocabulary]``: layers called one by one, masks and
    positions written out, nothing cached."""
    count, spans, later = ids.shape[1], prompt.spans, after.shape[1]
    positions = torch.arange(count + later)[None]
    hidden = model.model.embed_tokens(torch.cat([ids, after], 1))
    sizes = torch.ones(count + later)
    for number, block in enumerate(model.model.layers):
        if number == layer:
            mass = torch.ones(count) if spans.weight is None else spans.weight
            bounds = list(zip(spans.starts.tolist(), (spans.ends + 1).tolist(), strict=True))
            pieces = [(hidden[:, a:b] * mass[a:b, None]).sum(1) / mass[a:b].sum() for a, b in bounds]
            hidden = torch.cat([torch.stack(pieces, 1), hidden[:, count:]], 1)
            places = [a + max(range(b - a), key=lambda i, a=a: (float(mass[a + i]), i)) for a, b in bounds]
            positions = torch.tensor([*places[:-1], count - 1, *range(count, count + later)])[None]
            counts = [float(mass[a:b].sum()) if b - a > 1 else 1.0 for a, b in bounds]
            sizes = torch.cat([torch.tensor(counts), torch.ones(later)])
        size = hidden.shape[1]
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        mask = sizes[-size:].log().expand(size, size).masked_fill(~seen, float("-inf"))[None, None]
        angles = model.model.rotary_emb(hidden, positions)
        hidden = block(hidden, attention_mask=mask, position_ids=positions, position_embeddings=angles)
    return model.lm_head(model.model.norm(hidden))[0, -later - 1 :]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", METHODS)
def test_entries_stand_for_their_tokens(kind: type[PromptMethod], layer: int) -> None:
    model, ids, after = TinyLM(), tokens(90), tokens(6, 1)
    with attach(model, KVPolicy(), budget=FULL) as run:
        prompt = read(run, ids, kind(ratio=0.8, layer=layer))
        steps = [model(after[:, at : at + 1], past_key_values=prompt.cache).logits[0, -1] for at in range(6)]
    expected = by_hand(model, ids, prompt, layer, after)
    assert torch.allclose(torch.stack([prompt.logits, *steps]), expected, atol=1e-4 * float(expected.abs().max()))
    held = [rows[0][0] for rows in prompt.cache.counts()]
    assert held == [96] * layer + [len(prompt.spans) + 6] * (3 - layer)
    assert sum(held) / 3 - 6 == pytest.approx(0.8 * 90, abs=1)


@pytest.mark.parametrize("kind", METHODS)
@torch.no_grad()
def test_merging_nothing_is_the_plain_model_bit_for_bit(kind: type[PromptMethod]) -> None:
    model, ids, steps = TinyLM(), tokens(70), tokens(5, 1)
    plain = model(ids, past_key_values=DynamicCache(config=model.config), logits_to_keep=1).logits[0, -1]
    with attach(model, KVPolicy(), budget=FULL) as run:
        prompt = read(run, ids, kind(ratio=1.0))
        assert torch.equal(prompt.logits, plain)
        assert torch.equal(
            *(follow(model, each, steps[:, :1], steps[:, 1:]) for each in (prompt.cache, _whole(run, ids)))
        )


def _whole(run: Any, ids: torch.Tensor) -> Any:
    cache = run.cache()
    run.model(ids, past_key_values=cache)
    return cache


@pytest.mark.parametrize("kind", METHODS)
def test_the_ratio_is_met_at_every_length(kind: type[PromptMethod]) -> None:
    model = TinyLM()
    with attach(model, KVPolicy(), budget=FULL) as run:
        for count in (1, 2, 5, 40, 41, 200):
            for ratio in (0.75, 0.5, 0.33):
                prompt = read(run, tokens(count), kind(ratio=ratio))
                assert abs(len(prompt.spans) - ratio * count) <= 1
                assert torch.isfinite(prompt.logits).all()
                assert prompt.cache.get_seq_length() == count


def test_a_repeated_word_and_a_long_prompt() -> None:
    model = TinyLM()
    with attach(model, KVPolicy(), budget=FULL) as run:
        assert len(read(run, torch.full((1, 64), 7), SemToken()).spans) == 32
        prompt = read(run, tokens(8192), SemToken(ratio=0.33))
    assert abs(len(prompt.spans) - 0.33 * 8192) <= 1
    assert int(prompt.spans.sizes.sum()) == 8192


def test_what_cannot_be_read_is_refused() -> None:
    model = TinyLM()
    with attach(model, KVPolicy(), budget=FULL) as run:
        for wrong in (tokens(0), tokens(5, rows=2), tokens(5)[0]):
            with pytest.raises(InputError, match=r"one prompt \[1, tokens\]"):
                read(run, wrong, SemToken())
        with pytest.raises(PolicyError, match="too late"):
            read(run, tokens(50), SemToken(ratio=0.5, layer=2))
        assert torch.isfinite(read(run, tokens(50), SemToken()).logits).all()
    assert not any(block._forward_pre_hooks for block in model.model.layers)


POLICIES = [
    SnapKV(window=8),
    H2O(),
    KVzip(),
    KVMerger(),
    KVPolicy(scorer=SnapKV(window=8), allocator=AdaKV(), selector=SnapKV(window=8), codec=Kivi(bits=4)),
    Kivi(bits=4),
]


@pytest.mark.parametrize("policy", POLICIES, ids=[type(p).__name__ for p in POLICIES])
def test_a_policy_compresses_what_was_merged(policy: Any) -> None:
    model, ids = TinyLM(), tokens(260)
    with attach(model, policy, budget=MemoryBudget.keep(0.45)) as run:
        prompt = read(run, ids, SemToken(ratio=0.6))
        cache, places = prompt.cache, set(prompt.spans.places.tolist())
        spent = sum(sum(rows[0]) for rows in cache.counts())
        assert spent <= 0.45 * 260 * 6
        assert spent > 0.4 * 260 * 6
        for layer in range(3):
            for head in range(2):
                kept = [number for number in cache.survivors(layer, 0, head) if number >= 0]
                assert kept == sorted(set(kept))
                assert set(kept) <= places
        assert cache.bytes_held < cache.bytes_full
        logits = follow(model, cache, tokens(4, 2), tokens(6, 3))
        assert torch.isfinite(logits).all()


def test_eviction_keeps_weights_with_their_entries() -> None:
    model, ids = TinyLM(), tokens(120)
    with attach(model, SnapKV(window=8), budget=MemoryBudget.keep(0.3)) as run:
        prompt = read(run, ids, SemToken(ratio=0.5))
        sizes = dict(zip(prompt.spans.places.tolist(), prompt.spans.counts.tolist(), strict=True))
        for layer in prompt.cache.engine:
            held = layer.holding()
            for segment in range(2):
                index, weights = held.column(segment, "index"), held.column(segment, "weights")
                assert weights is not None
                assert index is not None
                assert weights.tolist() == [sizes[number] for number in index.tolist()]


def test_a_budget_in_bytes_counts_the_weights() -> None:
    model, ids = TinyLM(), tokens(300)
    allowed = 300 * 2 * 3 * 2 * 32 * 4 // 3
    with attach(model, SnapKV(window=8), budget=MemoryBudget.bytes(allowed)) as run:
        prompt = read(run, ids, SemToken(ratio=0.6))
        assert allowed * 0.9 < prompt.cache.bytes_held <= allowed


def test_generation_goes_on_behind_the_prompt() -> None:
    model, ids, question = TinyLM(), tokens(80), tokens(7, 4)
    whole = torch.cat([ids, question], 1)
    with attach(model, KVPolicy(), budget=FULL) as run:
        cache = read(run, ids, SemToken()).cache
        twin = cache.fork()
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(whole)}
        written = model.generate(whole, past_key_values=cache, **options)[0, whole.shape[1] :]
        said, given = list[int](), question
        for _ in range(6):
            said.append(int(model(given, past_key_values=twin).logits[0, -1].argmax()))
            given = torch.tensor([said[-1:]])
        assert written.tolist() == said
        assert twin.sequences.positions[0].tolist() == list(range(80 + 7 + 5))
        assert twin.crop(-3) is None
        with pytest.raises(AttachError, match="share an entry"):
            twin.crop(-45)


def test_no_entry_that_knows_later_tokens_survives_a_cut() -> None:
    """At every length to cut to: refused and nothing changed, or all that is left stands for what is left."""
    model, refused = TinyLM(), 0
    with attach(model, KVPolicy(), budget=FULL) as run:
        prompt = read(run, tokens(90), SemToken(ratio=0.6, recent=4))
        spans = list(zip(prompt.spans.starts.tolist(), prompt.spans.ends.tolist(), strict=True))
        model(tokens(3, 1), past_key_values=prompt.cache)
        for length in range(10, 93):
            cache = prompt.cache.fork()
            held = cache.counts()
            try:
                cache.crop(length - 93)
            except AttachError:
                refused += 1
                assert cache.counts() == held
                assert cache.get_seq_length() == 93
                continue
            assert not any(start < length <= end for start, end in spans)
            kept = [number for number in cache.survivors(2, 0, 0) if number >= 0]
            assert kept == [place for place in [*prompt.spans.places.tolist(), 90, 91, 92] if place < length]
    assert 40 < refused < 83


def test_a_second_turn_is_merged_into_the_same_cache() -> None:
    model = TinyLM()
    with attach(model, KVPolicy(), budget=FULL) as run:
        first = read(run, tokens(60), SemToken())
        second = read(run, tokens(80, 1), SemToken(), cache=first.cache)
        assert second.cache is first.cache
        assert second.cache.sequences.seen == [140]
        assert second.cache.counts()[0][0] == [70, 70]
        kept = second.cache.survivors(0)
        assert kept == [*first.spans.places.tolist(), *(60 + second.spans.places).tolist()]


def test_a_merged_cache_can_be_saved(tmp_path: Path) -> None:
    model, steps = TinyLM(), tokens(5, 1)
    with attach(model, KVPolicy(), budget=FULL) as run:
        prompt = read(run, tokens(60), SemToken())
        run.save(tmp_path / "cache", prompt.cache)
        pair = [
            follow(model, cache, steps[:, :2], steps[:, 2:]) for cache in (prompt.cache, run.load(tmp_path / "cache"))
        ]
    assert torch.equal(*pair)


def test_in_bfloat16() -> None:
    model = TinyLM().to(torch.bfloat16)
    with attach(model, KVPolicy(), budget=FULL) as run:
        prompt = read(run, tokens(90), SemToken(layer=1))
        logits = follow(model, prompt.cache, tokens(3, 1), tokens(2, 2))
    assert logits.dtype is torch.bfloat16
    assert torch.isfinite(logits).all()


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_policy_that_puts_entries_into_pages_is_refused() -> None:
    with (
        attach(TinyLM(), Quest(page=8, pages=2), budget=FULL) as run,
        pytest.raises(AttachError, match="count weights"),
    ):
        read(run, tokens(40), SemToken(ratio=0.5))


@pytest.mark.parametrize("text", ["plain words", "naïve café 日本語", "🦉🦉👩‍👩‍👧 owl 🦉", "🦉"])
@pytest.mark.parametrize("dropping", [False, True])
def test_the_side_table_is_lossless(text: str, dropping: bool) -> None:
    ids = torch.tensor(list(text.encode()))
    kept = torch.arange(0, len(ids), 2)
    lengths = [min(3, len(ids) - at) for at in range(0, len(ids), 3)]
    spans = Spans.of_tokens(kept) if dropping else Spans.of_lengths(lengths)
    prompt = Prompt(ids, spans, cache=None, logits=torch.zeros(1))  # type: ignore[arg-type]
    table = prompt.table(Bytes())
    assert "".join(piece for piece, _ in table) == text
    assert [size for _, size in table if size] == spans.sizes.tolist()
