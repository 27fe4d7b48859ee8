"""Synthetic Runs with small PNGs: a baseline, methods with several settings, withheld and missing values."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tenuto.records.diffusion import Run, write_run
from tenuto.records.kv import KVRun, Score, write_kv_run
from tenuto.records.timing import Timing

STEPS, BLOCKS = 20, 6


def png(width: int, height: int, pixel: Callable[[int, int], tuple[int, int, int]]) -> bytes:
    """A PNG whose pixel at (x, y) is ``pixel(x, y)``."""
    rows = (b"\x00" + b"".join(bytes(pixel(x, y)) for x in range(width)) for y in range(height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def samples(shift: int) -> bytes:
    """A four by three grid of little patterns; another ``shift``, another picture."""

    def pixel(x: int, y: int) -> tuple[int, int, int]:
        wave = math.sin((x + shift) / 3 + (x // 16) * 2) * math.cos(y / 4 + (y // 16))
        return tuple(int(127 + 120 * wave * f) for f in (1.0, 0.8, 0.5))  # type: ignore[return-value]

    return png(64, 48, pixel)


def make_run(policy: str, **changes: Any) -> Run:
    """A complete record; ``changes`` replace its fields."""
    complete: dict[str, Any] = {
        "model": "bundled:dit-fashion",
        "fingerprint": "0f3a9c",
        "settings": {"steps": STEPS, "samples": 12, "guidance": 1.5, "seed": 0},
        "versions": {"tenuto": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.0", "python": "3.11.9"},
        "device": "CPU, 2 threads, float32",
        "command": "tenuto bench diffusion --model bundled:dit-fashion --policies 'a,b' --steps 20 --out here",
        "telemetry": {"compute": 40, "reuse": 60, "forecast": 20},
        "grid": [[(step % 4) / 4 if block else 0.0 for block in range(BLOCKS)] for step in range(STEPS)],
        "decisions": [
            [
                "compute" if step % 4 == 0 or block == 0 else ("reuse" if block < 4 else "forecast")
                for block in range(BLOCKS)
            ]
            for step in range(STEPS)
        ],
        "timing": Timing(seconds=(1.0, 1.1, 0.9, 1.0, 1.0), baseline_seconds=(2.0, 2.1, 1.9, 2.1, 1.9)),
        "speedup": 2.0,
        "speedup_range": (1.9, 2.11),
        "flops_speedup": 2.6,
        "psnr": 27.25,
        "psnr_interval": (26.9, 27.6),
        "ssim": 0.9312,
        "fid": 12.34,
        "class_accuracy": 0.912,
        "reuse_ratio": 2 / 3,
        "cache_bytes": 3 * 2**20,
        "peak_bytes": 123456789,
        "calibration_seconds": 75.0,
    }
    return Run(policy=policy, **{**complete, **changes})


BASELINE: dict[str, Any] = {
    "telemetry": {},
    "grid": [],
    "decisions": [],
    "speedup": None,
    "speedup_range": None,
    "flops_speedup": None,
    "psnr": None,
    "psnr_interval": None,
    "ssim": None,
    "reuse_ratio": 0.0,
    "cache_bytes": 0,
    "calibration_seconds": 0.0,
}

WITHHELD = "the output equals the uncached one, and the policy does not claim to be exact"


def example_runs() -> list[Run]:
    """What a benchmark writes, with every kind of gap."""
    gaps = dict.fromkeys(("flops_speedup", "psnr", "psnr_interval", "ssim", "fid", "class_accuracy", "peak_bytes"))
    return [
        make_run("none", **BASELINE),
        make_run("fewer_steps:n=10", grid=[], decisions=[], telemetry={}, reuse_ratio=0.0, psnr=21.0, speedup=1.98),
        make_run("every_n:n=2", speedup=1.7, psnr=30.1, psnr_interval=(29.5, 30.7), speedup_range=(1.6, 1.8)),
        make_run("every_n:n=4", speedup=2.9, psnr=23.5, psnr_interval=(23.1, 24.0), speedup_range=(2.7, 3.0)),
        make_run("first_block:threshold=0.0", speedup=None, speedup_range=None, withheld=WITHHELD, reuse_ratio=0.0),
        make_run('odd:name="<b>&amp;\'</b>"', speedup=2.4, psnr=28.0),
        make_run(
            "bare:n=1", timing=None, speedup=None, speedup_range=None, grid=[], decisions=[], telemetry={}, **gaps
        ),
    ]


@pytest.fixture
def write_example() -> Callable[[Path, Sequence[Run]], list[bytes]]:
    """Writes Runs with their pictures into a folder and gives back the pictures' bytes."""

    def write(folder: Path, runs: Sequence[Run]) -> list[bytes]:
        written = []
        for index, run in enumerate(runs):
            for kind, shift in (("grid", index), ("difference", 100 + index)):
                if kind == "difference" and run.policy == "none":
                    continue
                data, name = samples(shift), f"{index}-{kind}.png"
                (folder / name).write_bytes(data)
                run.images[kind] = name
                written.append(data)
            write_run(run, folder)
        return written

    return write


@pytest.fixture
def example(tmp_path: Path, write_example: Callable[[Path, Sequence[Run]], list[bytes]]) -> tuple[Path, list[bytes]]:
    """A benchmark folder, and the bytes of all pictures in it."""
    folder = tmp_path / "bench"
    folder.mkdir()
    return folder, write_example(folder, example_runs())


@pytest.fixture
def make() -> Callable[..., Run]:
    """Makes one complete record: ``make(policy, **changes)``; the baseline has no values of its own."""
    return lambda policy, **changes: make_run(policy, **{**(BASELINE if policy == "none" else {}), **changes})


LAYERS, HEADS, BINS = 4, 2, 8
REPEATS = (0.95, 1.0, 1.02, 1.05, 1.1)


def make_score(value: float = 0.9, loss: float | None = 0.05, **changes: Any) -> Score:
    """A score of forty examples with the interval 0.05 up and down; a loss spans its own half."""
    complete: dict[str, Any] = {"interval": (value - 0.05, value + 0.05), "count": 40, "unit": "accuracy"}
    complete["loss_interval"] = None if loss is None else (loss / 2, 1.5 * loss)
    return Score(value=value, loss=loss, **{**complete, **changes})


def kv_timing(ratio: float, seconds: float) -> Timing:
    """Five pairs whose median ratio is ``1.02 * ratio``."""
    return Timing(seconds=(seconds / ratio,) * 5, baseline_seconds=tuple(seconds * r for r in REPEATS))


def make_kv_run(policy: str, **changes: Any) -> KVRun:
    """A complete KV record; ``changes`` replace its fields."""
    baseline = policy == "none"
    scores = {
        "niah_single": make_score(0.95 if baseline else 0.9, None if baseline else 0.05),
        "perplexity": make_score(14.2, None if baseline else 0.02, interval=(13.1, 15.3), unit="perplexity"),
    }
    complete: dict[str, Any] = {
        "budget": "full" if baseline else "keep=0.25",
        "context": 1024,
        "model": "tiny-lm",
        "fingerprint": "5af571",
        "settings": {"examples": 40, "question": "after"},
        "versions": {"tenuto": "0.2.0", "transformers": "5.23.0"},
        "device": "CPU, 1 thread, float32",
        "command": "tenuto bench kv --model tiny-lm --policies 'a,b' --out here",
        "scores": scores,
        "bytes_held": 8 * 2**20 if baseline else 2 * 2**20,
        "bytes_full": 8 * 2**20,
        "peak_bytes": 8 * 2**20,
        "ttft": kv_timing(1.0, 0.8),
        "decode": kv_timing(1.0 if baseline else 1.25, 0.02),
        "heads": [[(head + 1) / (layer + HEADS) for head in range(HEADS)] for layer in range(LAYERS)],
        "survivors": [[(b + 1) / BINS for b in range(BINS)] for _ in range(LAYERS)],
    }
    return KVRun(policy=policy, **{**complete, **changes})


def example_kv_runs() -> list[KVRun]:
    """Two contexts, several budgets, a policy that does not work, and one of which little is known."""
    empty: dict[str, Any] = {"scores": {}, "bytes_held": 0, "bytes_full": 0, "peak_bytes": 0, "heads": []}
    empty |= {"survivors": [], "ttft": None, "decode": None}
    runs = []
    for context in (512, 1024):
        runs += [
            make_kv_run("none", context=context),
            make_kv_run("snapkv", budget="keep=0.1", context=context, bytes_held=2**20),
            make_kv_run("snapkv", budget="keep=0.5", context=context, bytes_held=4 * 2**20),
            make_kv_run("adakv+kivi:bits=4", context=context, decode=kv_timing(0.8, 0.02)),
            make_kv_run("kvzip", context=context, withheld="it has <no> chat template", **empty),
        ]
    return [*runs, make_kv_run("bare", **empty)]


@pytest.fixture
def kv_example(tmp_path: Path) -> Path:
    """A folder of KV records."""
    folder = tmp_path / "kv"
    folder.mkdir()
    for run in example_kv_runs():
        write_kv_run(run, folder)
    return folder


@pytest.fixture
def kv() -> Callable[..., KVRun]:
    """Makes one complete KV record: ``kv(policy, **changes)``."""
    return make_kv_run


@pytest.fixture
def score() -> Callable[..., Score]:
    """Makes one score: ``score(value, loss, **changes)``."""
    return make_score
