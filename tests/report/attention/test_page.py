"""The part about trained attentions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.records.attention import AttentionRun, Bits, Decode, write_attention_run
from tenuto.report import write_report


def make(attention: str, seed: int, value: float) -> AttentionRun:
    growing = attention == "mha"
    return AttentionRun(
        attention=attention,
        seed=seed,
        parameters=1000,
        context=64,
        model=f"{attention}-{seed}",
        fingerprint=f"{attention}{seed}",
        settings={"size": "tiny"},
        versions={"tenuto": "0"},
        device="CPU",
        train_tokens_per_cpu_s=1234.0,
        bits=tuple(Bits(context=c, value=value + 0.001 * seed, last=value, bytes=99) for c in (64, 128, 256)),
        decode=tuple(
            Decode(context=c, seconds=(0.001 * c, 0.002 * c), held={"device": 2**20 * (c if growing else 1), "host": 9})
            for c in (256, 512)
        )
        * (seed == 0),
        recall=((256, 20, 0), (256, 20, 5), (256, 100, 0)),
        candidates=300,
        usage=() if growing else ({"local": 0.75, "session": 0.25},),
        command="tenuto bench attention",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("mha", 2.0), ("mka:window=16,chunk=4", 1.5), ("window:window=16", 2.5)):
        for seed in (0, 1, 2):
            write_attention_run(make(name, seed, value), tmp_path)
    return tmp_path


def test_the_page_shows_what_the_records_hold(folder: Path) -> None:
    text = write_report(folder).path.read_text()
    assert "equal but for their attention" in text and "Not the same in all Runs" not in text
    assert "-0.500 against mha" in text and "3 seeds, 1,000 parameters" in text
    assert "mka:window=16,chunk=4, 256 tokens: 1.501 bits per byte (1.499\u00a0to\u00a01.503)" in text
    assert "512\u00a0MiB" in text and "9\u00a0B on host" in text
    assert "window:window=16, 0 to 31 tokens away: 50.0\u00a0% right" in text
    assert "likeliest of 300 words" in text and "75.0\u00a0%" in text
    assert text.count('class="plot"') == 4


def test_a_damaged_record_is_left_out(folder: Path) -> None:
    path = folder / "attention-mha-0.json"
    path.write_text(path.read_text().replace('"value": 2.0', '"value": -2.0'))
    (line,) = write_report(folder).refused
    assert "'mha' is damaged: value is '-2.0'" in line
