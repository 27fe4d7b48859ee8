"""Our KV policies, kvpress and transformers' caches: same model, examples and budgets, the question not known before.

    python benchmarks/kv_peers.py --model bundled:smollm2 --kvpress-python VENV/bin/python --out build/kv-peers
        [--keep 0.25] [--examples 100] [--context 512] [--tasks niah_single,niah_multikey,passkey]
        [--rows NAME,...] [--policies TEXT ...]

Each method that kvpress has too runs in both libraries with equal numbers; compositions of ours (``--policies``) run
within the bytes that kvpress's rows hold at this ``keep``. A row that raises keeps the library's own words. Examples
are taken in turn, libraries alternate, times are CPU times of one thread. Every answer is written at once to
``results.jsonl``: the same command goes on where it stopped, and prints the tables of what is there.

kvpress needs its own venv, because its transformers is older than ours: ``pip install torch kvpress==0.5.5``. For the
rows of QuantizedCache: ``pip install optimum-quanto hqq``; where they are missing the row says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kv_peers import examples, tenuto_side, transformers_side
from kv_peers.answering import REFUSALS, Answers
from kv_peers.examples import Case
from kv_peers.kvpress_client import Pipe, kvpress
from kv_peers.rows import COMPOSITIONS, REPEAT, Row, rows
from kv_peers.table import Result, tables
from tqdm import tqdm

from tenuto.budget import MemoryBudget
from tenuto.errors import TenutoError
from tenuto.zoo.language import LanguageModel, load_language
from tenuto.zoo.named import resolve

RESULTS = "results.jsonl"
Sides = dict[str, Callable[[Row, Case], Answers]]


def read_results(out: Path) -> list[Result]:
    """What is in a folder so far."""
    path = out / RESULTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [Result(**told | {"texts": tuple(told["texts"])}) for told in map(json.loads, lines)]


def settle(out: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a folder.

    Raises:
        SystemExit: it holds results of other settings.
    """
    path = out / "settings.json"
    if path.exists() and (before := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{out} holds results of other settings, {before}. Give the same, or another --out.")
    path.write_text(json.dumps(settings))


def make_cases(args: argparse.Namespace, model: LanguageModel) -> list[Case]:
    """The examples, tasks in turn: those of the folder, and new ones where it has too few.

    Raises:
        SystemExit: the tasks now make other examples than those in the folder.
    """
    path, names = args.out / "examples.jsonl", args.tasks.split(",")
    cases = examples.read(path) if path.exists() else []
    if len(cases) < args.examples * len(names):
        from tenuto.texts.tasks import TEXT_TASKS, parse_tasks

        tasks, before = [TEXT_TASKS[name] for name in parse_tasks(args.tasks)], cases
        cases = [examples.make(task, seed, args.context, model) for seed in range(args.examples) for task in tasks]
        if cases[: len(before)] != before:
            raise SystemExit(f"{path} holds other examples than the tasks make now. Give another --out.")
        examples.write(cases, path)
    return cases[: args.examples * len(names)]


def budget_of(row: Row, case: Case, keep: float, token_bytes: int) -> MemoryBudget:
    """What a row of ours may hold."""
    if row.budget == "bytes":
        return MemoryBudget.bytes(int(keep * len(case.request.context)) * token_bytes)
    return MemoryBudget.keep(keep if row.budget == "keep" else 1.0)


def ours_and_plain(model: LanguageModel, keep: float) -> Sides:
    """The rows that run in this process."""
    config = model.model.config
    wide = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    token_bytes = wide * model.model.dtype.itemsize

    def tenuto(row: Row, case: Case) -> Answers:
        return tenuto_side.answer(model.model, row.text, budget_of(row, case, keep, token_bytes), case.request)

    return {
        "tenuto": tenuto,
        "transformers": lambda row, case: transformers_side.answer(model.model, row.text, case.request),
    }


def measure(row: Row, case: Case, sides: Sides, model: LanguageModel) -> Result:
    """One row on one example; what it raises is its result."""
    whose = asdict(row) | {"example": case.name}
    try:
        found = sides[row.side](row, case)
    except (TenutoError, *REFUSALS) as error:
        if row.side == "tenuto":
            raise
        told = str(error) if isinstance(error, TenutoError) else f"{type(error).__name__}: {error}"
        return Result(**whose, error=" ".join(told.split())[:300])
    texts = tuple(model.decode(torch.tensor(answer, dtype=torch.int64)) for answer in found.tokens)
    costs = {"bytes_held": found.bytes_held, "prefill_s": found.prefill_s, "decode_ms": found.decode_ms}
    return Result(**whose, **costs, score=case.score(texts), texts=texts)


def run(args: argparse.Namespace) -> list[Result]:
    """Measure what is not in the folder yet; the results of all rows that were asked for, row by row."""
    torch.set_num_threads(1)
    model = load_language(args.model, "cpu")
    repeat = " ".join(map(str, model.encode(REPEAT)[0].tolist()))
    every = rows(transformers_side.CACHES, args.policies, repeat)
    wanted = [row for row in every if not args.rows or row.method in args.rows]
    if unknown := set(args.rows) - {row.method for row in every}:
        raise SystemExit(f"No row is called {sorted(unknown)[0]!r}: give some of {', '.join(r.method for r in every)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    settle(args.out, {"fingerprint": model.fingerprint} | {n: vars(args)[n] for n in ("keep", "context", "tasks")})
    cases = make_cases(args, model)
    done = {(r.side, r.text, r.budget, r.example) for r in read_results(args.out)}
    work = [
        (row, case)
        for turn, case in enumerate(cases)
        for row in (wanted if turn % 2 else wanted[::-1])
        if (row.side, row.text, row.budget, case.name) not in done
    ]
    sides = ours_and_plain(model, args.keep)
    with ExitStack() as stack, (args.out / RESULTS).open("a") as file:
        if any(row.side == "kvpress" for row, _ in work):
            other: Pipe = stack.enter_context(
                kvpress(args.kvpress_python, resolve(args.model, "kv"), args.out / "kvpress.log")
            )
            (args.out / "kvpress.json").write_text(json.dumps(other.versions))
            sides["kvpress"] = lambda row, case: other.ask(row.text, args.keep, case.request)
        for row, case in tqdm(work, smoothing=0.02):
            file.write(json.dumps(asdict(measure(row, case, sides, model))) + "\n")
            file.flush()
    place = {(row.method, row.side): number for number, row in enumerate(wanted)}
    names = {case.name for case in cases}
    found = [r for r in read_results(args.out) if r.example in names and (r.method, r.side) in place]
    return sorted(found, key=lambda result: place[result.method, result.side])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="bundled:smollm2, or a folder")
    parser.add_argument("--kvpress-python", type=Path, required=True, help="python of the venv that has kvpress")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--examples", type=int, default=100, help="of each task")
    parser.add_argument("--context", type=int, default=512, help="tokens")
    parser.add_argument("--tasks", default="niah_single,niah_multikey,passkey")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=[], help="these rows only")
    parser.add_argument("--policies", nargs="+", default=list(COMPOSITIONS), help="compositions of ours")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        print(tables(run(args)))
    except TenutoError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
