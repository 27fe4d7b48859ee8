"""What joining chunks that were computed apart costs, and how much of full prefill's quality it keeps.

    python benchmarks/kv_reuse.py --model FOLDER [--context 1020 --examples 8 --repeats 5]

Per assembler one line: two measures of quality, the share of the gap to full prefill that each closes, and the CPU time
of one thread to the first token.

Documents: numbers at the start of a document, what they are at the end of the one before; a number is right if every
one of its tokens is the likeliest. Prose: real text in chunks of equal length, and the Kullback-Leibler divergence of
the 64 tokens after it from full prefill, in nats. Gaps are those of the naive concatenation (keys where they were) and,
stricter, of the one with keys turned to their place.

Time to the first token is that of the chunks and a question, with chunks loaded from a store on disk (read, checked,
turned); full prefill is the plain model, nothing attached. Repeats are taken in turn; median and range.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import tenuto
from tenuto.bench.likelihood import CONTINUED, text_of
from tenuto.reuse.chunks import ChunkStore
from tenuto.reuse.policies.cacheblend import CacheBlend
from tenuto.reuse.policies.cachecraft import CacheCraft
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.policies.full import FullRecompute
from tenuto.reuse.policy import Assembler, Seen
from tenuto.texts.documents import Documents
from tenuto.tiers.disk import DiskTier
from tenuto.zoo.language import LanguageModel, load_language


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyTokens(Assembler):
    """The control: as CacheBlend, but tokens drawn at random go on."""

    recompute: float = 0.15

    def choose(self, seen: Seen) -> torch.Tensor | None:
        if seen.layer != 1:
            return None
        order = torch.randperm(len(seen.at), generator=torch.Generator().manual_seed(len(seen.at)))
        return order[: round(self.recompute * len(order))].sort().values


FULL, NAIVE, TURNED = "full prefill", "naive concatenation", "keys turned (KVLink, untrained)"
ROWS: dict[str, Assembler] = {
    FULL: FullRecompute(),
    NAIVE: Concatenate(rotate=False),
    TURNED: Concatenate(),
    "CacheBlend 5 %": CacheBlend(recompute=0.05),
    "CacheBlend 15 %": CacheBlend(recompute=0.15),
    "CacheBlend 30 %": CacheBlend(recompute=0.3),
    "Cache-Craft 15 %": CacheCraft(overhead=0.15),
    "random tokens 15 %": AnyTokens(recompute=0.15),
}
Scores = dict[str, dict[str, list[float]]]


class Bench:
    """A model with a store of chunks."""

    def __init__(self, language: LanguageModel, store: ChunkStore) -> None:
        self.language, self.model, self.store = language, language.model, store
        self.scores: Scores = defaultdict(lambda: defaultdict(list))

    def attached(self) -> Any:
        return tenuto.attach(self.model, tenuto.Knorm(), budget=tenuto.MemoryBudget.keep(1.0))

    def documents(self, seed: int, tokens: int) -> None:
        """One example of the task, all rows."""
        texts, questions = Documents().documents(seed, tokens, self.language.count)
        chunks = [self.language.encode(text) for text in texts]
        asked = [(self.language.encode(q.text), self.language.encode(f" {q.answers[0]}")) for q in questions]
        for name, run, cache in self._caches(chunks):
            for question, answer in asked:
                ids = torch.cat([question, answer], 1)
                logits = run.model(ids, past_key_values=cache.fork()).logits[0, question.shape[1] - 1 : -1]
                self.scores[name]["right"].append(float((logits.argmax(-1) == answer[0]).all()))

    def prose(self, seed: int, tokens: int) -> None:
        """One piece of real text, all rows; full prefill is the first."""
        ids = text_of(self.language, seed, tokens + CONTINUED + 1)
        following, wanted = ids[:, tokens:], None
        for name, run, cache in self._caches(list(ids[:, :tokens].split(-(-tokens // Documents.parts), 1))):
            logits = run.model(following, past_key_values=cache).logits[0, :-1]
            q = logits.log_softmax(-1)
            p = wanted = q if wanted is None else wanted
            self.scores[name]["kl"].append(float((p.exp() * (p - q)).sum(-1).mean()))
            self.scores[name]["nll"].append(float(cross_entropy(logits, following[0, 1:])))

    def _caches(self, chunks: list[torch.Tensor]) -> Any:
        with self.attached() as run:
            for name, assembler in ROWS.items():
                yield name, run, run.join(chunks, assembler, store=self.store)

    def first_token(self, tokens: int) -> dict[str, float]:
        """CPU seconds to the first token, per row."""
        texts, questions = Documents().documents(0, tokens, self.language.count)
        chunks, question = [self.language.encode(text) for text in texts], self.language.encode(questions[0].text)
        seconds = {}
        for name, assembler in ROWS.items():
            if name == FULL:
                start = time.process_time()
                self.model(torch.cat([*chunks, question], 1), use_cache=True, logits_to_keep=1)
            else:
                with self.attached() as run:
                    start = time.process_time()
                    cache = run.join(chunks, assembler, store=self.store)
                    run.model(question, past_key_values=cache, logits_to_keep=1)
            seconds[name] = time.process_time() - start
        return seconds


def table(scores: Scores, times: list[dict[str, float]]) -> list[str]:
    """One line per row."""
    mean = {name: {key: statistics.mean(xs) for key, xs in mine.items()} for name, mine in scores.items()}
    columns = "right   closed       KL  perplexity  closed of naive, of turned   first token (s)      of full prefill"
    found = [f"{'':32} {columns}"]
    for name, mine in mean.items():
        gap = mean[FULL]["right"] - mean[NAIVE]["right"]
        closed = (mine["right"] - mean[NAIVE]["right"]) / gap if gap else float("nan")
        share = [1 - mine["kl"] / mean[other]["kl"] for other in (NAIVE, TURNED)]
        spent = [each[name] for each in times]
        ratio = [each[name] / each[FULL] for each in times]
        found.append(
            f"{name:32} {mine['right']:5.2f} {closed:8.0%} {mine['kl']:8.4f} {math.exp(mine['nll']):11.2f}"
            f" {share[0]:16.0%} {share[1]:10.0%} {statistics.median(spent):10.2f} ({min(spent):.2f}-{max(spent):.2f})"
            f" {statistics.median(ratio):8.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
        )
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder, or bundled:smollm2")
    parser.add_argument("--context", type=int, default=1020, help="tokens of all chunks together, at most")
    parser.add_argument("--examples", type=int, default=8, help="of each of the two measures of quality")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first example")
    parser.add_argument("--repeats", type=int, default=5, help="of the time to the first token")
    given = parser.parse_args()
    torch.set_num_threads(1)
    language = load_language(given.model, "cpu")
    with tempfile.TemporaryDirectory() as folder, DiskTier(folder, capacity=2**33) as tier:
        bench = Bench(language, ChunkStore(tier))
        for seed in range(given.first, given.first + given.examples):
            bench.documents(seed, given.context)
            bench.prose(seed, given.context)
        bench.first_token(given.context)
        times = [bench.first_token(given.context) for _ in range(given.repeats)]
    print(
        f"{given.context} tokens in {Documents.parts} chunks; {given.examples} examples of {Documents.parts - 1} "
        f"questions, {given.examples} of {CONTINUED} tokens; {given.repeats} repeats; one thread"
    )
    print("\n".join(table(bench.scores, times)))


if __name__ == "__main__":
    main()
