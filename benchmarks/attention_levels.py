"""What each level of a trained MKA gives it: held-out bits per byte with levels off, or more and fewer chunks recalled.

    python benchmarks/attention_levels.py build/attention/models/*mka*-[012]

Nothing is trained again: a level is left out of the softmax of the finished model. Differences are to the model as it
was trained, paired by model, with 95 % intervals where there are several.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tenuto.attention import MKA
from tenuto.attention.policies.mka import MKAHeads
from tenuto.bench.attention.bits import bits_per_byte, held_windows
from tenuto.cli.attention_tables import markdown
from tenuto.errors import ModelError
from tenuto.records.intervals import mean_interval
from tenuto.train.tokens import prepare
from tenuto.train.training import load_trained, read_log


def settings(trained: MKA) -> dict[str, MKA]:
    """The trained attention, and what is measured beside it."""
    recalls = {f"{many} recalled": replace(trained, recall=many) for many in (1, 2, 4, 8) if many != trained.recall}
    return {
        "as trained": trained,
        "no recalled chunks": replace(trained, recall=0),
        "no summaries": replace(trained, session=False, horizons=0),
        "neither: the window alone": replace(trained, recall=0, session=False, horizons=0),
        **recalls,
    }


def heads_of(model: Any) -> list[MKAHeads]:
    """All layers' MKA.

    Raises:
        ModelError: it has none.
    """
    found = [module for module in model.modules() if isinstance(module, MKAHeads)]
    if not found:
        raise ModelError("This model has no MKA. Give folders of trainings with --attention mka.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    text = prepare()
    contexts = [factor * int(read_log(given.folders[0]).shape["context"]) for factor in (1, 4)]
    windows = held_windows(text, contexts[-1], given.windows)
    bits: dict[str, list[list[float]]] = {}
    for folder in tqdm(given.folders, desc="models", disable=None):
        model, _ = load_trained(folder)
        heads = heads_of(model)
        for name, attention in tqdm(settings(heads[0].attention).items(), leave=False, disable=None):
            for layer in heads:
                layer.attention = attention
            row = [bits_per_byte(model, windows, text.bytes_of, context).value for context in contexts]
            bits.setdefault(name, []).append(row)
    rows = []
    for name, found in bits.items():
        cells = [name]
        for at in range(len(contexts)):
            value = sum(row[at] for row in found) / len(found)
            beyond = [row[at] - base[at] for row, base in zip(found, bits["as trained"], strict=True)]
            interval = mean_interval(beyond)
            span = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
            told = "" if name == "as trained" else f", {sum(beyond) / len(beyond):+.3f}{span}"
            cells.append(f"{value:.3f}{told}")
        rows.append(cells)
    print(markdown(["levels", *(f"bits/byte at {context:,}" for context in contexts)], rows))


if __name__ == "__main__":
    main()
