"""What shortening a prompt costs and saves: SemToken beside plain ways, at equal entries held, on original tokens.

    python benchmarks/prompt_semtoken.py --model FOLDER [--context 2048 --examples 12 --ratio 0.5 --kinds logs,prose]

Prints one markdown table per kind of text and ratio: entries and bytes held over those of the whole prompt, nats per
original next token, what that is beyond the whole prompt and beyond SemToken (paired, with 95 % intervals), the share
of the digits of hidden numbers that are still known and of the questions that are answered right, and CPU seconds of
one thread to the first token, n-grams and choice included, with the median of the paired ratios to the whole
prompt's. The kinds niah_single, niah_multikey and passkey are RULER-style tasks: their loss is that of the right
answer.
"""

from __future__ import annotations

import argparse

import torch

from tenuto.bench.prompt.bench import measure, read_kinds, read_methods, summarise, ways
from tenuto.catalog import parse
from tenuto.cli.tables import prompt_cells
from tenuto.zoo.language import load_language

NOWHERE = {"model": "", "fingerprint": "", "settings": {}, "versions": {}, "device": ""}
"""The rows are printed and not kept."""

HEAD = (
    "way",
    "held",
    "bytes",
    "loss",
    "beyond none",
    "beyond SemToken",
    "facts",
    "answers",
    "first token, s",
    "faster",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:smollm2", help="bundled:smollm2 or a model folder")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a context")
    parser.add_argument("--examples", type=int, default=12, help="per kind and ratio")
    parser.add_argument("--ratio", default="0.5", help="for example 0.75,0.5,0.33")
    parser.add_argument("--kinds", default="logs,repeated,boilerplate,prose,code,conversation")
    parser.add_argument("--semtoken", default="", help="settings, for example layer=4")
    parser.add_argument("--ways", help="only these besides none and semtoken, for example drop_surprise,snapkv")
    parser.add_argument("--policy", help="also SemToken with this KV policy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    language, policy = load_language(given.model), parse(given.policy, "kv") if given.policy else None
    for kind in read_kinds(given.kinds):
        for method in read_methods([f"semtoken:{given.semtoken}" if given.semtoken else "semtoken"], given.ratio):
            asked = ways(method, policy)
            if given.ways is not None:
                asked = [way for way in asked if way.name in ("none", "semtoken", *given.ways.split(","))]
            found = list(measure(language, asked, kind, tokens=given.context, examples=given.examples))
            rows = summarise(kind, method, given.context, asked, found, NOWHERE)
            print(f"\n{kind}, ratio {method.ratio:g}, {given.context} tokens, {given.examples} examples\n")
            print("| " + " | ".join(HEAD) + " |\n|---" + "|---:" * (len(HEAD) - 1) + "|")
            for row in rows:
                print("| " + " | ".join(prompt_cells(row)[2:]) + " |", flush=True)


if __name__ == "__main__":
    main()
