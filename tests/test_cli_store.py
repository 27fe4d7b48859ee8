"""``tenuto store`` and ``tenuto bench reuse``: what they print, what they change, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tenuto.cli import main
from tenuto.cli.group import command

pytestmark = pytest.mark.usefixtures("one_thread")


def tenuto(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="tenuto")


@pytest.fixture
def warmed(tiny_language: Path, tmp_path: Path) -> tuple[str, Path, str]:
    """Address of a warmed store, the text that warmed it, and what the command said."""
    text = tmp_path / "context.txt"
    text.write_text("What has been read need not be read again. " * 12)
    address = f"disk:{tmp_path}/store?max=64MiB"
    result = tenuto("store", "warm", address, text, "--model", tiny_language, "--page", 8)
    assert result.exit_code == 0, result.stderr
    return address, text, result.stdout


def test_a_store_is_warmed_listed_checked_and_cut_down(warmed: tuple[str, Path, str], tmp_path: Path) -> None:
    address, text, said = warmed
    assert said.startswith(f"{text}: ") and "in whole pages" in said
    (row,) = json.loads(tenuto("store", "stat", address, "--json").stdout)
    assert row["bytes_allowed"] == 64 * 2**20 and row["codec"] == "raw" and row["pages"] > 5
    (listed,) = json.loads(tenuto("store", "ls", address, "--json").stdout)
    assert listed["pages"] == row["pages"] and listed["tokens"] == 8 * row["pages"] and listed["dtype"] == "float32"
    assert str(row["pages"]) in tenuto("store", "stat", address).stdout
    whole = tenuto("store", "verify", address)
    assert whole.exit_code == 0 and f"{row['pages']} pages are whole, 0 damaged." in whole.stdout

    (segment,) = (tmp_path / "store").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        file.write(b"spoilt")
    broken = tenuto("store", "verify", address)
    assert broken.exit_code == 1 and "1 damaged." in broken.stdout and "damaged at byte" in broken.stdout
    assert tenuto("store", "verify", address, "--discard").exit_code == 0
    assert tenuto("store", "verify", address).exit_code == 0

    freed = tenuto("store", "prune", address, "--to", row["bytes_used"] // 2)
    assert freed.exit_code == 0 and "MiB freed" in freed.stdout
    (less,) = json.loads(tenuto("store", "stat", address, "--json").stdout)
    assert less["bytes_used"] <= row["bytes_used"] // 2


def test_a_conversation_begins_in_the_store(tiny_language: Path, tmp_path: Path) -> None:
    text = tmp_path / "context.txt"
    text.write_text("What has been read need not be read again. " * 12)
    address = f"disk:{tmp_path}/store"
    assert tenuto("store", "warm", address, text, "--model", tiny_language, "--chat").exit_code == 0
    said = ("run", "--model", tiny_language, "--max-tokens", 4, "--prompt-file", text)
    alone, kept = tenuto(*said), tenuto(*said, "--store", address)
    assert kept.exit_code == 0, kept.stderr
    assert kept.stdout.splitlines()[0] == alone.stdout.splitlines()[0]
    assert "tokens came from the store" in kept.stdout and " 0 tokens came" not in kept.stdout
    both = tenuto(*said, "--store", address, "--policy", "snapkv:window=4", "--budget", "keep=0.5")
    assert "saved" in both.stdout and " 0 tokens came" not in both.stdout, both.stderr


@pytest.mark.slow
def test_bench_store(tiny_language: Path, tmp_path: Path) -> None:
    args = ("bench", "reuse", "--model", tiny_language, "--context", 200, "--repeats", 2, "--out", tmp_path / "out")
    result = tenuto(*args, "--store", f"disk:{tmp_path}/s", "--store", "host:?codec=int4", "--json")
    assert result.exit_code == 0, result.stderr
    exact, small = json.loads(result.stdout)
    assert (exact["codec"], small["codec"]) == ("raw", "int4") and exact["restored"] == small["restored"] == 192
    assert exact["logits_error"] < 1e-4 < small["logits_error"] and exact["same_text"]
    assert exact["perplexity"] == pytest.approx(exact["perplexity_computed"], rel=1e-4)
    assert small["bytes_stored"] < 0.4 * exact["bytes_stored"]
    assert len(list((tmp_path / "out").glob("reuse-*.json"))) == 2
    report = tenuto("report", tmp_path / "out")
    assert report.exit_code == 0, report.stderr
    assert "Stores and codecs" in (tmp_path / "out" / "tenuto-report.html").read_text()
    table = tenuto(*args)
    assert all(name in table.stdout for name in ("delta8+zstd", "int4", "faster")), table.stderr


def test_what_one_tenant_stored_is_purged(tiny_language: Path, tmp_path: Path) -> None:
    text = tmp_path / "context.txt"
    text.write_text("What has been read need not be read again. " * 6)
    address = f"disk:{tmp_path}/store"
    for tenant in ("first", "second"):
        warm = ("store", "warm", address, text, "--model", tiny_language, "--page", 8, "--tenant", tenant)
        assert tenuto(*warm).exit_code == 0
    (both,) = json.loads(tenuto("store", "stat", address, "--json").stdout)
    assert tenuto("store", "purge", address, "--salt", "nobody").stdout == "0 pages removed.\n"
    assert tenuto("store", "purge", address, "--salt", "first").stdout == f"{both['pages'] // 2} pages removed.\n"
    (left,) = json.loads(tenuto("store", "stat", address, "--json").stdout)
    assert left["pages"] == both["pages"] // 2 and left["bytes_used"] < 0.6 * both["bytes_used"]


def test_records_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "redis://me:s3cret@host:6379/0?codec=int8"
    monkeypatch.setattr("sys.argv", ["tenuto", "bench", "reuse", "--store", address, "--out", "a:b@c"])
    assert command() == "tenuto bench reuse --store 'redis://...@host:6379/0?codec=int8' --out a:b@c"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("store lss", "Did you mean 'ls'?"),
        ("store stat disk:{out}/none", "There is no store in"),
        ("store ls dsik:{out}", "Did you mean 'disk'?"),
        ("store verify redis://127.0.0.1:1", "cannot be used"),
        ("store prune redis://127.0.0.1:1 --to 1GiB", "is no folder"),
        ("store prune disk:{out} --to much", "'much' is no size"),
        ("store warm disk:{out}/s {out}/none --model {words}", "cannot be read"),
        ("store warm disk:{out}/file/s {out}/file --model {words}", "cannot be used"),
        ("bench reuse --model {words} --store disk:{out}/s?codec=int5", "Did you mean 'int"),
        ("bench reuse --model {words} --context 100000", "was made for 2048"),
        ("run --model {words} --prompt-file {out}/file --store nowhere", "no address of a tier"),
    ],
)
def test_bad_input_is_one_line(tiny_language: Path, tmp_path: Path, args: str, said: str) -> None:
    (tmp_path / "file").write_text("in the way")
    result = tenuto(*args.format(out=tmp_path, words=tiny_language).split())
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.replace("\r", "\n").split("\n") if line.strip()]
    assert line.startswith("tenuto: error: ") and said in line, line
