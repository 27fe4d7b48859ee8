"""Attentions side by side: the same text, steps and number of parameters, several seeds.

    python benchmarks/attention.py --out build/attention                # size cpu, three seeds
    python benchmarks/attention.py --size gpu --seeds 0 --out build/gpu

Trains every attention with every seed, one after the other, then measures all of them and prints the tables. Both go on
where they were stopped. Models are in OUT/models, records in OUT/runs (``tenuto report OUT/runs``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from tenuto.bench.attention.bench import AttentionJob, bench
from tenuto.cli.attention_tables import attention_tables
from tenuto.errors import redacted_command
from tenuto.records.files import file_name
from tenuto.train.minilm import canonical, read_size
from tenuto.train.training import Training, train

CONV = "short_conv+"
"""Every contender has the short convolution on keys and values, with which small models learn to look back in time."""


def attentions(context: int) -> list[str]:
    """What is compared: MKA with a window of an eighth of the context, what it must beat, then all others and MKA with
    a level off. At four times the context, the second window holds the bytes that MKA holds, and ``mqa`` more."""
    window, chunk = context // 8, context // 32
    same = window + 128 + 3 * chunk // 2 - 4  # as many entries as MKA's window, open chunk and summaries
    mka = f"{CONV}mka:window={window},chunk={chunk},crowd=28"
    return [
        f"{mka},recall=4,horizons=0,start=0.2",
        f"{CONV}window:window={window}",
        f"{CONV}window:window={same}",
        f"{CONV}mqa",
        "short_conv",
        f"{mka},recall=0,horizons=0,start=0.2",
        f"{mka},recall=4,horizons=0,start=0.2,session=false",
        f"{mka},recall=1,horizons=0,start=0.2",
        f"{mka},recall=4,start=0.2",
        f"{mka},recall=4,horizons=0",
        f"{CONV}fastmka",
        f"{CONV}pi:window={window},stride={context // 16},coprime=true",
        f"{CONV}gqa",
        "mla",
        "mha",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="cpu")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attentions", help="apart by semicolons; otherwise the list in this file")
    parser.add_argument("--baselines", help="apart by semicolons; otherwise the next four of that list, if trained")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    listed = attentions(read_size(given.size).context)
    names = given.attentions.split(";") if given.attentions else listed
    beside = given.baselines.split(";") if given.baselines else listed[1:5]
    texts = list(dict.fromkeys(map(canonical, names)))
    folders = []
    pairs = [(text, int(seed)) for seed in given.seeds.split(",") for text in texts]
    for text, seed in tqdm(pairs, desc="trainings", disable=None):
        folder = given.out / "models" / f"{file_name(text)}-{seed}"
        asked = Training(
            attention=text, seed=seed, steps=given.steps, size=given.size, device=given.device, threads=given.threads
        )
        train(asked, folder)
        folders.append(folder)
    command = redacted_command(["python", "benchmarks/attention.py", *sys.argv[1:]])
    runs = bench(folders, given.out / "runs", AttentionJob(), device=given.device, command=command)
    print(attention_tables(runs, [name for name in map(canonical, beside) if name in texts]))


if __name__ == "__main__":
    main()
