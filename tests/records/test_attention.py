from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.cli.attention_tables import attention_tables, bands
from tenuto.errors import InputError
from tenuto.records.attention import (
    AttentionRun,
    Bits,
    Decode,
    grouped,
    read_attention_runs,
    write_attention_run,
)


def make(attention: str, seed: int, value: float) -> AttentionRun:
    return AttentionRun(
        attention=attention,
        seed=seed,
        parameters=1000,
        context=64,
        model=f"{attention}-{seed}",
        fingerprint="f",
        settings={"size": "tiny"},
        versions={"tenuto": "0"},
        device="CPU",
        train_tokens_per_cpu_s=1234.0,
        bits=tuple(Bits(context=c, value=value + c / 1000, last=value, bytes=99) for c in (64, 128)),
        decode=(Decode(context=256, seconds=(0.25, 0.5, 0.125), held={"device": 2**20, "host": 2**21}),) * (seed == 0),
        recall=((128, 20, 0), (128, 20, 5), (128, 100, 0), (64, 20, 0)),
        candidates=300,
        period=16 if attention == "pi" else 0,
        usage=({"local": 0.75, "session": 0.25},) if attention != "mha" else (),
    )


def test_a_record_comes_back(tmp_path: Path) -> None:
    run = make("mka:window=64,chunk=8", 0, 2.0)
    path = write_attention_run(run, tmp_path)
    assert read_attention_runs(tmp_path) == [run]
    assert run.recalled(128, 16, 32) == 0.5 and run.recalled(128, 200, 300) is None
    path.write_text(path.read_text().replace('"seed"', '"seeds"'))
    with pytest.raises(InputError, match="unknown fields.*version 0 of Tenuto wrote it"):
        read_attention_runs(tmp_path)


def test_differences_are_paired_by_seed() -> None:
    runs = [make("mha", seed, 2.0 + seed) for seed in range(3)]
    runs += [make("window", seed, 2.5 + seed + 0.01 * (seed == 1)) for seed in range(3)]
    mha, window = grouped(list(reversed(runs)))
    assert mha.attention == "mha" and len(mha.runs) == 3
    found = window.against(mha, lambda run: run.bits[0].value)
    assert found is not None and found[1] is not None
    mean, (low, high) = found
    assert mean == pytest.approx(0.5 + 0.01 / 3)
    assert (high - low) / 2 == pytest.approx(4.302653 * 0.01 / 3, rel=1e-4)  # t(0.975, 2) s / sqrt(3), s = 0.01/sqrt(3)
    assert grouped(runs[:1])[0].mean(lambda run: run.bits[0].value) == (2.064, None)


def test_the_tables_say_it() -> None:
    runs = [make(name, seed, 2.0) for name in ("mha", "mka") for seed in (0, 1)]
    told = attention_tables(runs, ["mha"])
    assert "| mha       | 2     | 1,000" in told
    assert "+0.0000 (+0.0000 to +0.0000)" in told
    assert "250.0" in told and "1.00 + 2.0 host" in told and "25.0%" in told
    assert (
        "| attention | 0 to 31 | 32 to 63 | 64 to 127 |" in told and "| mka       | 50%     | -        | 100%" in told
    )
    with pytest.raises(InputError, match="Did you mean 'mka'"):
        attention_tables(runs, ["mkb"])
    assert "modulo" not in told
    told = attention_tables([*runs, make("pi", 0, 2.0)])
    assert "by distance modulo 16, distances of 32 and more" in told  # of 100 alone, which is 4 modulo 16
    assert "| 0 to 1 | 2 to 3 | 4 to 5 |" in told and "| pi        | -      | -      | 100%   |" in told
    assert bands(1024)[-1] == (512, 1024) and bands(40) == [(0, 32), (32, 40)]
