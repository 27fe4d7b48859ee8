"""FastMKA put into a model that is trained already: the added parameters alone, a short fine-tune.

    tenuto models pull smollm2
    python benchmarks/attention_retrofit.py --out FOLDER [--steps 30 --tokens 256 --held 16]
        [--methods fastmka@0.01,short_conv@0.01,norms@0.001]

Prints, per method, whether logits are the plain model's before training, and held-out bits per byte before and after
``--steps`` steps of one sequence, with the change and its 95 % interval (paired bootstrap over held-out windows).
All methods see the same windows of the same text (`tenuto.texts.corpus`) in the same order, with AdamW, the learning
rate behind ``@`` and a linear decay. ``norms`` trains the plain model's own normalisation weights: what any few
parameters gain from the kind of text. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from tenuto.attention import FastMKA, ShortConv, added, retrofit
from tenuto.texts.corpus import Corpus, Document, collect
from tenuto.zoo.language import LanguageModel, load_language

METHODS = {"fastmka": FastMKA(), "short_conv": ShortConv(), "norms": None}
DEFAULT = "fastmka@0.01,short_conv@0.01,norms@0.001"
EVERY = 10  # steps between two checkpoints


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``[1, tokens + 1]`` and the UTF-8 bytes of all but the first."""

    ids: torch.Tensor
    bytes: int


def window(model: LanguageModel, documents: tuple[Document, ...], tokens: int, chance: random.Random) -> Window:
    """A random place of a random document that is long enough."""
    while True:
        text = chance.choice(documents).text
        read = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(read.input_ids) > tokens:
            start = chance.randrange(len(read.input_ids) - tokens)
            part = slice(start, start + tokens + 1)
            first, last = read.offset_mapping[part][1][0], read.offset_mapping[part][-1][1]
            return Window(torch.tensor([read.input_ids[part]]), len(text[first:last].encode()))


def nats(model: Any, part: Window) -> torch.Tensor:
    """The sum over the window's next tokens."""
    logits = model(part.ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits[0], part.ids[0, 1:], reduction="sum")


@torch.no_grad()
def bits(model: Any, windows: list[Window]) -> list[float]:
    """Per byte, of each window."""
    return [float(nats(model, part)) / math.log(2) / part.bytes for part in tqdm(windows, desc="held out", leave=False)]


def trained(text: str, given: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """Train one method, from its checkpoint if there is one, and return the record that is in it."""
    language = load_language(given.model, "cpu")
    name, _, rate = text.partition("@")
    model, attention, file = language.model.float(), METHODS[name], Path(given.out) / f"{text}.pt"
    chance = random.Random(0)
    held = [window(language, corpus.held, given.tokens, chance) for _ in range(given.held)]
    said = {key: value for key, value in vars(given).items() if key not in ("out", "methods")}
    said |= {"method": str(attention), "rate": float(rate), "corpus": corpus.digest}
    record = torch.load(file) if file.is_file() else {"given": said, "step": 0, "train": []}
    if record["given"] != said:
        raise SystemExit(f"{file} is of another run: {record['given']}. Give another --out.")
    model.requires_grad_(False)
    plain = file.with_name(f"plain-{given.tokens}-{given.held}-{language.fingerprint[:8]}-{corpus.digest}.pt")
    if not plain.is_file():
        torch.save(bits(model, held), plain)
    record["before"] = torch.load(plain)
    if attention is None:
        weights = {name: weight for name, weight in model.named_parameters() if "norm" in name}
    else:
        with torch.no_grad():
            base = model(held[0].ids).logits
            record["same"] = torch.equal(base, retrofit(model, attention)(held[0].ids).logits)
        weights = added(model)
    learn(language, {key: weight.requires_grad_() for key, weight in weights.items()}, record, file, corpus)
    if "after" not in record:
        record["after"] = bits(model, held)
        torch.save(record, file)
    return record


def learn(
    language: LanguageModel, weights: dict[str, nn.Parameter], record: dict[str, Any], file: Path, corpus: Corpus
) -> None:
    """Steps up to the last one, with a checkpoint every few."""
    model, steps, tokens = language.model, record["given"]["steps"], record["given"]["tokens"]
    optimiser = torch.optim.AdamW(weights.values(), lr=record["given"]["rate"], betas=(0.9, 0.95), weight_decay=0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    if record["step"]:
        model.load_state_dict(record["weights"], strict=False)
        optimiser.load_state_dict(record["optimiser"])
        decay.load_state_dict(record["decay"])
    for step in tqdm(range(record["step"], steps), desc=file.stem, initial=record["step"], total=steps):
        part = window(language, corpus.train, tokens, random.Random(1 + step))
        loss = nats(model, part) / tokens
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimiser.step()
        decay.step()
        record["train"].append(loss.item())
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            record |= {"step": step + 1, "weights": {key: weight.detach() for key, weight in weights.items()}}
            record |= {"optimiser": optimiser.state_dict(), "decay": decay.state_dict()}
            torch.save(record, file)


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, by bootstrap."""
    chance = random.Random(0)
    means = sorted(sum(chance.choices(values, k=len(values))) / len(values) for _ in range(2000))
    return means[50], means[-51]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of checkpoints and records")
    parser.add_argument("--model", default="bundled:smollm2")
    parser.add_argument("--methods", default=DEFAULT)
    for name, default in (("steps", 30), ("tokens", 256), ("held", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    Path(given.out).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    corpus = collect()
    print(
        "| trained | parameters | same logits at step 0 | before | after | change (95 %) | training loss, last half |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in given.methods.split(","):
        record = trained(name, given, corpus)
        before, after = (sum(record[key]) / given.held for key in ("before", "after"))
        low, high = interval([b - a for a, b in zip(record["before"], record["after"], strict=True)])
        size = sum(weight.numel() for weight in record["weights"].values())
        last = record["train"][given.steps // 2 :]
        same = {True: "yes", False: "no"}.get(record.get("same"), "")
        print(
            f"| `{name}` | {size:,} | {same} | {before:.4f} | {after:.4f} | "
            f"{after - before:+.4f} ({low:+.4f} to {high:+.4f}) | {sum(last) / len(last):.4f} |"
        )


if __name__ == "__main__":
    main()
