"""The laws of the KV family, and a tiny language model to hold them on.

    from tenuto.testing import check_kv_policy
    check_kv_policy(MyMethod(window=16))

A law runs a prompt and then teacher-forced steps, and compares logits; what is kept is read from the cache itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tenuto.budget import MemoryBudget
from tenuto.kv.attach import AttachedRun, attach
from tenuto.kv.cache import KVCache
from tenuto.kv.policy import KVMethod, KVPolicy
from tenuto.testing.law import LawError, expect, law_round_trip
from tenuto.testing.seeded import seeded

__all__ = ["KV_LAWS", "LawError", "TinyLM", "check_kv_policy", "close", "follow", "tokens"]

TOLERANCE = 1e-4
"""Of the largest logit: float32 in another order. The longest chain of sums in a tiny model, three layers of width 64
and 300 tokens, has under 2,000 terms, which round by about eps sqrt(2000) = 5e-6; sharp attention amplifies it."""
Policy = KVMethod | KVPolicy


class TinyLM(LlamaForCausalLM):  # type: ignore[misc]
    """A Llama small enough for tests: three layers, two KV heads of 32 channels, random weights that attend sharply.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        config = LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            initializer_range=0.25,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        )
        with seeded(seed):
            super().__init__(config)
        self.eval()


def tokens(count: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    """Random token ids ``[rows, count]``, without the padding token."""
    return torch.randint(1, 97, (rows, count), generator=torch.Generator().manual_seed(seed))


def _long(policy: Policy) -> int:
    """A prompt length at which every policy can evict."""
    return 2 * _blocks(policy).floor + 90


def _blocks(policy: Policy) -> KVPolicy:
    return policy.compose() if isinstance(policy, KVMethod) else policy


def _half(policy: Policy) -> MemoryBudget:
    return MemoryBudget.keep(0.6)


@torch.no_grad()
def follow(model: Any, cache: Any, prompt: torch.Tensor, steps: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
    """Logits after a prompt and after each teacher-forced step, ``[rows, 1 + steps, vocabulary]``."""
    options = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    found = [model(prompt, past_key_values=cache, **options).logits[:, -1]]
    for at in range(steps.shape[1]):
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            options = {"attention_mask": mask, "position_ids": mask.sum(-1, keepdim=True) - 1}
        found.append(model(steps[:, at : at + 1], past_key_values=cache, **options).logits[:, -1])
    return torch.stack(found, 1)


@contextmanager
def _on(
    policy: Policy, budget: MemoryBudget | None = None, every: int | None = None, model: Any = None
) -> Iterator[tuple[Any, AttachedRun]]:
    model = model or TinyLM()
    with attach(model, policy, budget=budget or _half(policy), every=every) as run:
        yield model, run


def close(left: torch.Tensor, right: torch.Tensor, law: str) -> None:
    """Raise LawError unless logits agree to ``TOLERANCE`` of the largest of ``right``: float32 in another order."""
    gap = (left - right).abs().max()
    expect(bool(gap <= TOLERANCE * max(1.0, float(right.abs().max()))), law, f"logits that differ by {float(gap):.2e}")


def _exact(policy: Policy) -> bool:
    """Whether what is kept is kept as it was."""
    return _blocks(policy).codec is None


def law_full_budget_is_identity(policy: Policy) -> None:
    """With all of the budget nothing changes: logits, and what greedy and beam search write."""
    if not _exact(policy):
        return
    prompt, steps = tokens(_long(policy)), tokens(12, 1)
    model = TinyLM()
    plain = follow(model, DynamicCache(config=model.config), prompt, steps)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    written = [model.generate(prompt, num_beams=beams, **options) for beams in (1, 3)]
    with _on(policy, MemoryBudget.keep(1.0), model=model) as (_, run):
        close(follow(model, run.cache(), prompt, steps), plain, "a full budget is the identity")
        for beams, before in zip((1, 3), written, strict=True):
            after = model.generate(prompt, num_beams=beams, **options)
            expect(torch.equal(after, before), f"a full budget writes the same with {beams} beams", after.tolist())


def law_short_prompts_pass_through(policy: Policy) -> None:
    """A prompt that fits the budget is left as it is."""
    if not _exact(policy):
        return
    prompt, steps = tokens(5), tokens(6, 1)
    model = TinyLM()
    plain = follow(model, DynamicCache(config=model.config), prompt, steps)
    with _on(policy, MemoryBudget.tokens(1000), model=model) as (_, run):
        close(follow(model, run.cache(), prompt, steps), plain, "a short prompt passes through")
        one = model(prompt[:, :1]).logits
        expect(bool(torch.isfinite(one).all()), "a prompt of one token works", one)


def _allowed(cache: KVCache, budget: MemoryBudget) -> float:
    heads = sum(len(row) for layer in cache.counts() for row in layer[:1])
    seen = max(cache.sequences.seen)
    return heads * max(budget.amount * (seen if budget.kind == "keep" else 1), cache.policy.floor)


def _spent(cache: KVCache, row: int = 0) -> int:
    return sum(sum(layer[row]) for layer in cache.counts())


def law_within_budget(policy: Policy) -> None:
    """Never more than the budget: in entries, and in bytes counted from the tensors held; while decoding as well if
    compression is asked for there."""
    length = _long(policy)
    budgets = [MemoryBudget.keep(0.6), MemoryBudget.tokens(_blocks(policy).floor + 24)]
    for budget in budgets:
        for every in (None, 8):
            with _on(policy, budget, every) as (model, run):
                follow(model, cache := run.cache(), tokens(length), tokens(0))
                expect(_spent(cache) <= _allowed(cache, budget), "entries within the budget", (budget, cache.counts()))
                follow(model, cache, tokens(20, 2), tokens(0))
                expect(_spent(cache) <= _allowed(cache, budget), "a second turn within it", (budget, cache.counts()))
                for at in range(20 if every else 0):
                    model(tokens(1, at), past_key_values=cache)
                    expect(_spent(cache) <= _allowed(cache, budget), "each step within it", (budget, cache.counts()))
    for prompt, share in ((length, 0.7), (2 * length, 0.4)):  # in the second, entries that are encoded are evicted too
        full = prompt * 2 * 3 * 2 * 32 * 4
        with _on(policy, MemoryBudget.bytes(int(full * share)), 8) as (model, run):
            cache, most = run.cache(), 0
            for turn in (tokens(prompt), tokens(prompt // 4, 1), tokens(prompt // 4, 2)):
                follow(model, cache, turn, tokens(0))
                for at in range(24):
                    most = max(most, cache.bytes_held)
                    expect(most <= full * share, "bytes held within the budget", (most, full * share))
                    model(tokens(1, at), past_key_values=cache)
            expect(most > full * share / 2, "and most of it used", (most, cache.counts()))


def law_kept_are_tokens(policy: Policy) -> None:
    """Kept indices are unique, sorted and in range; sinks and window are among them."""
    blocks = _blocks(policy)
    with _on(policy) as (model, run):
        follow(model, cache := run.cache(), tokens(_long(policy), rows=2), tokens(0, rows=2))
        seen = cache.sequences.columns
        must = {*range(blocks.selector.sinks), *range(seen - blocks.selector.window, seen)}
        for layer, rows in enumerate(cache.counts()):
            for row, heads in enumerate(rows):
                for head, count in enumerate(heads):
                    kept = [number for number in cache.survivors(layer, row, head) if number >= 0]
                    expect(len(kept) + blocks.losers.extra >= count, "at most the reducer's extra entries", kept)
                    expect(kept == sorted(set(kept)), "kept indices are unique and sorted", kept)
                    expect(set(kept) <= set(range(seen)), "kept indices are in range", kept)
                    expect(must <= set(kept), "sinks and window are kept", sorted(must - set(kept)))
                    below = blocks.index is not None
                    expect(
                        not below or len(kept) == seen > count, "with an index all are kept, not all in memory", kept
                    )


def law_padding(policy: Policy) -> None:
    """A left-padded batch gives each row what it gives alone."""
    long = _long(policy)
    lengths, steps = [long, long - 17, long // 2, 3], tokens(10, 5, rows=4)
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    batch, mask = torch.zeros(4, long, dtype=torch.int64), torch.zeros(4, long, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        batch[row, long - prompt.shape[1] :], mask[row, long - prompt.shape[1] :] = prompt[0], 1
    with _on(policy, every=4) as (model, run):
        alone = [follow(model, run.cache(), p, steps[row : row + 1]) for row, p in enumerate(prompts)]
        together = follow(model, cache := run.cache(), batch, steps, mask)
        for row, single in enumerate(alone):
            close(together[row], single[0], f"row {row} of a left-padded batch equals the row alone")
        expect(len({_spent(cache, row) for row in range(4)}) > 1, "rows have budgets of their own", cache.counts())


def law_chunks(policy: Policy) -> None:
    """A prompt in chunks gives what it gives at once, by hand and through ``generate``."""
    prompt, steps = tokens(_long(policy)), tokens(6, 1)
    with _on(policy) as (model, run):
        whole = follow(model, run.cache(), prompt, steps)
        cache = run.cache()
        with run.prefill():
            for part in prompt[:, :-1].split(37, dim=1):
                follow(model, cache, part, tokens(0))
            last = follow(model, cache, prompt[:, -1:], tokens(0))
        after = follow(model, cache, steps[:, :1], steps[:, 1:])
        close(torch.cat([last, after], 1), whole, "chunked prefill equals one-shot prefill")
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        once = model.generate(prompt, **options)
        chunked = model.generate(prompt, prefill_chunk_size=29, **options)
        expect(torch.equal(once, chunked), "generate writes the same with prefill_chunk_size", chunked.tolist())


def law_turns(policy: Policy) -> None:
    """A second turn is compressed too; questions asked on forks of one context do not disturb each other."""
    prompt, long = tokens(_long(policy)), _long(policy)
    with _on(policy) as (model, run):
        follow(model, cache := run.cache(), prompt, tokens(4, 1))
        first = _spent(cache)
        forks = [cache.fork() for _ in range(2)]
        answers = [follow(model, fork, tokens(9, 3), tokens(4, 4)) for fork in forks]
        expect(torch.equal(*answers), "a fork answers as its twin", answers[0] - answers[1])
        expect(_spent(cache) == first, "asking a fork leaves the context as it was", cache.counts())
        follow(model, cache, tokens(long, 6), tokens(0))
        seen = max(cache.sequences.seen) * 6
        expect(
            _spent(cache) <= max(0.6 * seen, _blocks(policy).floor * 6), "the second turn is compressed", _spent(cache)
        )


def law_generation_modes(policy: Policy) -> None:
    """Greedy, sampling and beam search run under a real budget; rows of a beam search keep to themselves."""
    prompt = tokens(_long(policy), rows=2)
    with _on(policy, every=4) as (model, _):
        for options in ({"do_sample": False}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}):
            torch.manual_seed(0)
            out = model.generate(prompt, max_new_tokens=6, attention_mask=torch.ones_like(prompt), **options)
            expect(out.shape[1] == prompt.shape[1] + 6, f"generate works with {options}", out.shape)
        both = model.generate(prompt, max_new_tokens=6, num_beams=3, attention_mask=torch.ones_like(prompt))
        for row in range(2):
            mine = prompt[row : row + 1]
            alone = model.generate(mine, max_new_tokens=6, num_beams=3, attention_mask=torch.ones_like(mine))
            expect(torch.equal(alone[0], both[row]), "a beam search of two rows equals two searches", both.tolist())


def law_dtype(policy: Policy) -> None:
    """Dtype and device are kept."""
    model = TinyLM().to(torch.bfloat16)
    with _on(policy, model=model) as (_, run):
        logits = follow(model, cache := run.cache(), tokens(_long(policy)), tokens(3, 1))
        expect(logits.dtype is torch.bfloat16, "the model's dtype is kept", logits.dtype)
        expect(bool(torch.isfinite(logits).all()), "finite logits in bfloat16", logits)
        held = {layer.held.store.keys.dtype for layer in cache.engine if layer.held}
        expect(held == {torch.bfloat16}, "entries are held in the model's dtype", held)


def law_saved(policy: Policy) -> None:
    """A cache that is saved and loaded goes on as if it had not been."""
    with _on(policy) as (model, run), tempfile.TemporaryDirectory() as folder:
        follow(model, cache := run.cache(), tokens(_long(policy)), tokens(5, 1))
        run.save(Path(folder) / "cache", cache)
        loaded = run.load(Path(folder) / "cache")
        expect(loaded.counts() == cache.counts(), "a loaded cache holds the same entries", loaded.counts())
        pair = [follow(model, each, tokens(7, 2), tokens(5, 3)) for each in (cache, loaded)]
        close(pair[1], pair[0], "a loaded cache goes on as the saved one")


def law_detaches(policy: Policy) -> None:
    """Leaving the block restores the model exactly, also after an exception."""
    model, prompt = TinyLM(), tokens(20)
    before, implementation = model(prompt).logits, model.config._attn_implementation
    for fail in (False, True):
        try:
            with _on(policy, model=model):
                model(prompt)
                if fail:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        left = [name for name, module in model.named_modules() if "forward" in vars(module)]
        expect(not left and "_prefill" not in vars(model), "no wrapper is left behind", left)
        expect(model.config._attn_implementation == implementation, "the attention is the model's own", fail)
        expect(torch.equal(model(prompt).logits, before), "the model is as it was", f"exception: {fail}")


KV_LAWS: tuple[Callable[[Any], None], ...] = (
    law_full_budget_is_identity,
    law_short_prompts_pass_through,
    law_within_budget,
    law_kept_are_tokens,
    law_padding,
    law_chunks,
    law_turns,
    law_generation_modes,
    law_dtype,
    law_saved,
    law_detaches,
)


def check_kv_policy(policy: KVMethod) -> None:
    """Check every law on a tiny model.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    law_round_trip(policy)
    for law in KV_LAWS:
        law(policy)
