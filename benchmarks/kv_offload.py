"""Long context beyond memory, on a real model: are the right pages fetched in time, and what does reading few cost?

    python benchmarks/kv_offload.py [MODEL] [--context 1536 --tokens 48 --texts 2 --parts recall,stall,perplexity]

Teacher-forced on real prose. Pages of 16 tokens, 8 read per layer and step, sinks 4, window 64, as many pages in memory
as ``--hot`` says. The context is read once, uncompressed, and given to every row's cache.

recall      share of the pages a layer reads that a predictor names before its queries exist, layers 2 and up. Also
            against the 8 pages of the most attention by exact keys, every eighth token.
stall       seconds that attention waits for pages, every round trip to the tier taking ``--latency`` ms longer: without
            prefetching, with it, and with it where pages that have not come are left out.
perplexity  Quest, ShadowKV, LouisKV, random pages and a sliding window, as many tokens read each.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kv_offload_recall import Recall
from transformers import DynamicCache

import tenuto
from tenuto.bench.likelihood import text_of
from tenuto.kv.attach import AttachedRun
from tenuto.kv.offload.settings import Prefetch
from tenuto.kv.policies.quest import Quest
from tenuto.kv.policies.streaming_llm import StreamingLLM
from tenuto.kv.policy import Index, KVMethod, KVPolicy, TopK
from tenuto.tiers.host import HostTier
from tenuto.zoo.language import LanguageModel, load_language

PAGE, PAGES, SINKS, WINDOW = 16, 8, 4, 64


@dataclass(frozen=True, slots=True)
class RandomPages(Index):
    """Pages drawn anew at every step."""

    page: int = PAGE
    pages: int = PAGES

    def summarise(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"none": keys[:, 0, :1].clone()}

    def score(self, queries: torch.Tensor, summaries: dict[str, torch.Tensor], scaling: float) -> torch.Tensor:
        return torch.rand(len(summaries["none"]))


class SlowTier(HostTier):
    """A host tier behind a slow line: every round trip takes so many seconds longer."""

    seconds = 0.0

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        time.sleep(self.seconds)
        return [self.get(key) for key in keys]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A context that was read, and what follows it; the last two tokens of the context are still to be given."""

    ids: torch.Tensor
    context: int
    layers: list[tuple[torch.Tensor, ...]]

    @classmethod
    def of(cls, language: LanguageModel, seed: int, context: int, tokens: int) -> Text:
        ids = text_of(language, seed, context + tokens)
        cache = DynamicCache(config=language.model.config)
        language.model(ids[:, : context - 2], past_key_values=cache, logits_to_keep=1)
        return cls(ids, context, [(layer.keys, layer.values) for layer in cache.layers])

    def start(self, model: Any, run: AttachedRun) -> tuple[Any, torch.Tensor]:
        """A cache of the run that has read the context, and the logits after it."""
        cache, before = run.cache(), self.context - 2
        cache.fill(self.ids[:, :before], torch.arange(before)[None], self.layers)
        return cache, model(self.ids[:, before : self.context], past_key_values=cache).logits[0, -1]

    @property
    def following(self) -> torch.Tensor:
        return self.ids[:, self.context :]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def memory(hot: int, pages: int = PAGES) -> tenuto.MemoryBudget:
    """Sinks, window, one page on its way out, and so many pages."""
    return tenuto.MemoryBudget.tokens(SINKS + WINDOW + PAGE + max(hot, pages) * PAGE)


def recall(model: Any, texts: Sequence[Text], hot: int) -> None:
    """Print what each predictor names of what is read."""
    with ExitStack() as stack:
        found = Recall(PAGES, random.Random(0))
        for text in texts:
            with tenuto.attach(
                model, Quest(pages=PAGES, page=PAGE, sinks=SINKS, window=WINDOW), budget=memory(hot)
            ) as run:
                cache, logits = text.start(model, run)
                inputs = found.watch(stack, run)
                for number, token in enumerate(text.following[0]):
                    before = found.before(cache, logits)
                    logits = model(token.view(1, 1), past_key_values=cache).logits[0, -1]
                    found.step(run, cache, inputs, before, text.ids, exact=number % 8 == 0)
        print(f"Recall, {sum(text.following.shape[1] for text in texts)} tokens, {PAGES} pages read")
        head = ["predictor", "pages named", "recall of pages read", "of the true top pages"]
        table([*head, "the same, named by exact keys"], found.rows())


@contextmanager
def decoding(
    model: Any, text: Text, hot: int, seconds: float, prefetch: Prefetch | None
) -> Iterator[tuple[AttachedRun, float]]:
    """Decode what follows; the median wall seconds of a token."""
    tier = SlowTier(2**40)
    policy = Quest(pages=PAGES, page=PAGE, sinks=SINKS, window=WINDOW)
    with tenuto.attach(model, policy, budget=memory(hot), tier=tier, prefetch=prefetch) as run:
        cache, _ = text.start(model, run)
        tier.seconds, took = seconds, []
        for token in text.following[0]:
            start = time.perf_counter()
            model(token.view(1, 1), past_key_values=cache)
            took.append(time.perf_counter() - start)
        yield run, statistics.median(took)


def stall(model: Any, texts: Sequence[Text], hot: int, latency: float) -> None:
    """Print what attention waits under each way of fetching."""
    ways: dict[str, Prefetch | None] = {
        "none: fetched when asked for": None,
        "prefetch, wait": Prefetch(),
        "prefetch, timeout of 2 ms": Prefetch(miss="timeout", timeout=0.002),
        "prefetch, best effort": Prefetch(miss="best_effort"),
    }
    rows, base = [], 0.0
    for name, prefetch in ways.items():
        stalls, walls, totals = [], [], dict[str, float]()
        for text in texts:
            with decoding(model, text, hot, latency / 1000, prefetch) as (run, wall):
                facts = run.summary()
            stalls.append(1000 * facts["stall_s"] / text.following.shape[1])
            walls.append(1000 * wall)
            for key in ("pages_read", "hits", "pages_fetched", "pages_skipped", "dropped_mass", "mass_unknown"):
                totals[key] = totals.get(key, 0.0) + facts[key]
        mean = statistics.mean(stalls)
        base = base or mean
        rows.append(
            [
                name,
                f"{mean:.0f} ms",
                f"{100 * mean / base:.0f} %",
                f"{statistics.mean(walls):.0f} ms",
                f"{totals['hits'] / totals['pages_read']:.3f}",
                f"{totals['pages_fetched'] / totals['pages_read']:.2f}",
                f"{totals['pages_skipped'] / totals['pages_read']:.3f}",
                f"{100 * totals['dropped_mass'] / len(texts):.2f} %",
            ]
        )
    print(f"Stall, {latency:g} ms more per round trip, {hot} pages of each layer in memory")
    head = ["fetching", "stall per token", "of none", "wall per token", "there when asked", "fetched per read"]
    table([*head, "left out", "mass left out"], rows)


def perplexity(model: Any, texts: Sequence[Text], hot: int) -> None:
    """Print the perplexity of what follows, per method."""
    bound = {"sinks": SINKS, "window": WINDOW}
    read = SINKS + WINDOW + PAGES * PAGE
    ways: dict[str, tuple[KVMethod | KVPolicy, tenuto.MemoryBudget]] = {
        "everything": (Quest(), tenuto.MemoryBudget.keep(1)),
        "quest": (Quest(pages=PAGES, page=PAGE, **bound), memory(hot)),
        "shadowkv (12 chunks, 4 outliers)": (tenuto.ShadowKV(pages=12, outliers=4, **bound), memory(hot)),
        "louiskv": (tenuto.LouisKV(pages=PAGES, page=PAGE, **bound), memory(hot)),
        "random pages": (KVPolicy(selector=TopK(SINKS, WINDOW), index=RandomPages()), memory(hot)),
        "sliding window": (StreamingLLM(sinks=SINKS, every=1, contiguous=False), tenuto.MemoryBudget.tokens(read)),
    }
    rows = []
    for name, (policy, budget) in ways.items():
        torch.manual_seed(0)
        losses, share = [], 0.0
        for text in texts:
            with tenuto.attach(model, policy, budget=budget) as run:
                cache, logits = text.start(model, run)
                for token in text.following[0]:
                    losses.append(float(torch.nn.functional.cross_entropy(logits, token)))
                    logits = model(token.view(1, 1), past_key_values=cache).logits[0, -1]
                share += run.summary()["bytes_held"] / run.summary()["bytes_full"] / len(texts)
        loss = statistics.mean(losses)
        spread = statistics.stdev(losses) / len(losses) ** 0.5
        rows.append([name, f"{loss:.3f} ± {spread:.3f}", f"{2.718281828**loss:.2f}", f"{100 * share:.0f} %"])
    print(f"Perplexity, {len(losses)} tokens, {read} tokens read per step and layer (all but the first row)")
    table(["method", "nats per token", "perplexity", "bytes in memory"], rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled:smollm2", help="a model folder")
    parser.add_argument("--context", type=int, default=1536, help="tokens of the context")
    parser.add_argument("--tokens", type=int, default=48, help="tokens that follow")
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--hot", type=int, default=3 * PAGES, help="pages of a layer in memory")
    parser.add_argument("--latency", type=float, default=10.0, help="milliseconds more per round trip")
    parser.add_argument("--parts", default="recall,stall,perplexity")
    given = parser.parse_args()
    torch.set_num_threads(1)
    language = load_language(given.model, "cpu")
    texts = [Text.of(language, seed, given.context, given.tokens) for seed in range(given.texts)]
    parts = given.parts.split(",")
    if "recall" in parts:
        recall(language.model, texts, given.hot)
    if "stall" in parts:
        stall(language.model, texts, given.hot, given.latency)
    if "perplexity" in parts:
        perplexity(language.model, texts, given.hot)


if __name__ == "__main__":
    main()
