"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import tenuto as tenuto_
from tenuto import MemoryBudget, catalog
from tenuto.bench.diffusion import bench as diffusion_bench
from tenuto.bench.diffusion.job import Job
from tenuto.bench.kv import bench as kv_bench
from tenuto.bench.kv.job import KVJob
from tenuto.bench.reading import CacheEntry
from tenuto.calibration import Profile
from tenuto.cli import main
from tenuto.records.diffusion import read_runs
from tenuto.records.kv import read_kv_runs
from tenuto.zoo import named as zoo
from tenuto.zoo import smollm2

pytestmark = pytest.mark.bundled
KEYS = {
    "policy", "speedup", "flops_speedup", "psnr", "ssim", "fid", "class_accuracy", "reuse_ratio", "cache_bytes",
    "peak_bytes",
}  # fmt: skip


def tenuto(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="tenuto")


def refused(*args: object) -> str:
    """The one line that a refused command prints."""
    result = tenuto(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.replace("\r", "\n").split("\n") if line.strip()]
    assert line.startswith("tenuto: error: ")
    return line.removeprefix("tenuto: error: ")


@pytest.mark.processes
def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tenuto.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(set(sys.modules) & {'torch', 'numpy', 'rich', 'diffusers', 'tqdm'})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.endswith("set()\n")
    for name in ("methods", "models", "demo", "bench", "report", "calibrate", "cite", "run", "tune"):
        assert re.search(rf"^  {name} ", result.stdout, re.M)


def test_methods(plugin: str) -> None:
    listed = {entry["name"]: entry for entry in json.loads(tenuto("methods", "--json").stdout)}
    assert list(listed) == list(catalog.methods())
    assert "sixth" in listed
    assert listed["every_n"]["options"]["n"] == {"type": "int", "default": 2}
    assert listed["fastcache"]["calibrated"]
    plain = tenuto("methods").stdout
    assert all(name in plain for name in listed)
    card = tenuto("methods", "pi").stdout
    assert card.startswith("pi_attention: attention, class PiAttention")
    assert "published: perplexity against RingAttention: 8.3 % lower" in card and "older name: pi is now" in card
    assert "Did you mean 'semtoken' (prompt)?" in refused("methods", "semtokn")


def test_cite() -> None:
    everything = tenuto("cite").stdout
    assert everything.count("@misc{") == sum(info.cls.paper is not None for info in catalog.methods().values())
    for name in ("mka", "pikv", "semtoken", "pi_attention"):
        assert f"@misc{{{name}20" in tenuto("cite", name).stdout
    assert "note = {tokens against the tokenizer" in tenuto("cite", "semtoken").stdout
    assert "a baseline without a paper" in refused("cite", "random_spans")
    assert tenuto("cite", "teacache").stdout.count("@misc{") == 1
    assert "Did you mean 'teacache'" in refused("cite", "teacahce")


def test_bench_report_and_json(tiny_model: Path, offline: None, tmp_path: Path, plugin: str) -> None:
    out = tmp_path / "new" / "bench"
    args = ("--model", tiny_model, "--steps", 4, "--samples", 6, "--guidance", 1.5, "--seed", 1, "--device", "cpu")
    policies = "first_block:threshold=0.0,every_n:n=2,warmup=1,sixth"
    result = tenuto("bench", "diffusion", *args, "--policies", policies, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert all(set(row) >= KEYS for row in rows)
    assert [row["policy"] for row in rows[:4]] == ["none", "first_block:threshold=0.0", "every_n", "sixth"]
    assert [row["speedup"] is None for row in rows[:4]] == [True, True, False, False]
    stored = {run.policy: run for run in read_runs(out)}
    assert rows == json.loads(json.dumps([stored[row["policy"]].row() for row in rows]))
    assert "step" in result.stderr, "no progress bar"
    page = tenuto("report", out)
    assert page.exit_code == 0, page.stderr
    assert page.stdout == f"Report: {out / 'tenuto-report.html'}\n"
    assert "sixth" in (out / "tenuto-report.html").read_text()
    table = tenuto("bench", "diffusion", *args, "--policies", "every_n", "--out", out)
    assert re.search(r"every_n +\d+\.\d\dx \(", table.stdout)
    assert f"tenuto report {out}" in table.stdout


def test_calibrate_then_run_with_the_profile(
    tiny_model: Path, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, picture = tmp_path / "t.safetensors", tmp_path / "t.png"
    numbers = ("--model", tiny_model, "--steps", 6)
    made = tenuto("calibrate", "teacache", *numbers, "--runs", 2, "--out", profile)
    assert made.exit_code == 0, made.stderr
    assert Profile.load(profile).fingerprint in made.stdout
    policy = ("--policy", "teacache:threshold=0.5", "--profile", profile)
    drawn = tenuto("run", *numbers, *policy, "--labels", "1,2", "--out", picture)
    assert drawn.exit_code == 0, drawn.stderr
    assert "of block executions not computed" in drawn.stdout
    assert picture.is_file()
    header = Profile.load(profile)
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path / "home"))
    kept = tenuto("calibrate", "teacache:threshold=0.5", *numbers, "--runs", 2)
    assert kept.exit_code == 0, kept.stderr
    found = tenuto("run", *numbers, *policy[:2], "--labels", "1,2", "--out", tmp_path / "again.png")
    assert found.stdout.split(": ")[1] == drawn.stdout.split(": ")[1]
    Profile(policy="teacache", fingerprint="f" * 16, numbers=header.numbers).save(tmp_path / "other.safetensors")
    said = refused("run", *numbers, *policy[:2], "--profile", tmp_path / "other.safetensors", "--out", picture)
    assert "f" * 16 in said
    assert header.fingerprint in said


def test_demo(
    tiny_model: Path, tiny_language: Path, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "PACKAGED", tmp_path)
    monkeypatch.setattr(diffusion_bench, "DEMO", Job(steps=8, samples=10))
    monkeypatch.setattr(kv_bench, "DEMO", KVJob(contexts=(300,), tasks=("niah_single",), examples=1))
    monkeypatch.setattr(
        kv_bench, "demo_rows", lambda: [CacheEntry(policy=tenuto_.Knorm(), budget=MemoryBudget.keep(0.5))]
    )
    monkeypatch.setattr(smollm2, "find", lambda: tiny_language)
    monkeypatch.setattr(smollm2, "at_hand", lambda: True)
    monkeypatch.setattr("tenuto.bench.diffusion.fitting.RUNS", 6)
    shutil.copytree(tiny_model, tmp_path / "dit_fashion")
    result = tenuto("demo", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert f"Report: {tmp_path / 'out' / 'tenuto-report.html'}" in result.stdout
    assert (tmp_path / "out" / "tenuto-report.html").stat().st_size > 10_000
    names = [run.policy for run in read_runs(tmp_path / "out" / "tenuto-report")]
    methods = {name.rpartition("+")[2].partition(":")[0] for name in names}
    assert {"none", "fewer_steps", *catalog.methods("diffusion")} == methods
    assert all(name in result.stdout for name in names)
    assert [run.policy for run in read_kv_runs(tmp_path / "out" / "tenuto-report")] == ["none", "knorm"]
    monkeypatch.setattr(smollm2, "at_hand", lambda: False)
    without = tenuto("demo", "--out", tmp_path / "without", "--json")
    assert without.exit_code == 0, without.stderr
    assert "tenuto models pull smollm2" in without.stderr
    assert all(row["policy"] != "knorm" for row in json.loads(without.stdout))


KV_KEYS = {
    "policy", "budget", "context", "task", "score", "bytes_held", "bytes_full", "ttft_s", "decode_cpu_ms", "peak_bytes",
}  # fmt: skip


def test_bench_kv_report_and_json(tiny_language: Path, one_thread: None, tmp_path: Path) -> None:
    out = tmp_path / "new"
    args = ("--model", tiny_language, "--budget", "keep=0.5,keep=1.0", "--context", 300, "--examples", 1, "--out", out)
    result = tenuto("bench", "kv", "--policies", "knorm", *args, "--tasks", "niah_single", "--json")
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [(row["policy"], row["budget"]) for row in rows] == [
        ("none", "full"),
        ("knorm", "keep=0.5"),
        ("knorm", "keep=1.0"),
    ]
    assert all(set(row) >= KV_KEYS for row in rows)
    assert rows[1]["bytes_held"] < 0.6 * rows[1]["bytes_full"]
    assert "row" in result.stderr, "no progress bar"
    table = tenuto("bench", "kv", "--policies", "snapkv", *args, "--tasks", "niah_single", "--every", 8)
    assert "another job" in table.stderr  # decoding under another rule
    again = tenuto("bench", "kv", "--policies", "streaming_llm", *args, "--tasks", "niah_single")
    assert re.search(r"streaming_llm +keep=0.5 +300 ", again.stdout)
    page = tenuto("report", out)
    assert page.exit_code == 0, page.stderr
    text = (out / "tenuto-report.html").read_text()
    assert all(name in text for name in ("knorm", "streaming_llm", "niah_single"))


def test_a_conversation(tiny_language: Path, one_thread: None, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("What is held? " * 20)
    said = ("run", "--model", tiny_language, "--max-tokens", 4)
    plain = tenuto(*said, "--prompt-file", prompt)
    assert plain.exit_code == 0, plain.stderr
    assert "nothing saved" in plain.stdout
    held = tenuto(*said, "--prompt-file", prompt, "--policy", "snapkv", "--budget", "keep=0.25")
    assert re.search(r"the cache holds 0\.\d\d of 0\.\d\d MiB, 0\.\d\d MiB \(\d\d\.\d%\) saved", held.stdout), (
        held.stdout
    )
    typed = CliRunner().invoke(main, [str(arg) for arg in said], input="one\ntwo\n", prog_name="tenuto")
    assert typed.stdout.count("tokens seen") == 2


def test_models(tiny_language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find", lambda: None)
    monkeypatch.setattr(smollm2, "at_hand", lambda: False)
    listed = {row["name"]: row for row in json.loads(tenuto("models", "list", "--json").stdout)}
    assert listed["bundled:dit-fashion"]["here"]
    assert not listed["bundled:smollm2"]["here"]
    assert "tenuto models pull smollm2" in " ".join(tenuto("models", "list").stdout.split())
    assert "tenuto models pull smollm2" in refused("models", "path", "smollm2")
    monkeypatch.setattr(smollm2, "find", lambda: tiny_language)
    assert (
        tenuto("models", "path", "smollm2").stdout == tenuto("models", "pull", "smollm2").stdout == f"{tiny_language}\n"
    )
    assert Path(tenuto("models", "path", "dit-fashion").stdout.strip()).is_dir()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("benhc", "No such command 'benhc'. Did you mean 'bench'?"),
        ("bench difusion", "Did you mean 'diffusion'?"),
        ("--vresion", "No such option '--vresion'"),
        ("bench diffusion --polices every_n", "--polices"),
        ("bench diffusion --policies evry_n --out {out}", "Did you mean 'every_n'"),
        ("bench diffusion --policies first_block:treshold=1 --out {out}", "Did you mean 'threshold'?"),
        ("bench diffusion --policies every_n:n=x --out {out}", "give a whole number"),
        ("bench diffusion --policies every_n --steps -3 --out {out}", "-3 is not in the range x>=1"),
        ("bench diffusion --policies every_n --samples 0 --out {out}", "0 is not in the range x>=1"),
        ("bench diffusion --policies every_n --guidance -1 --out {out}", "-1.0 is not in the range x>=0"),
        ("bench diffusion --policies every_n --out {out}/file/in", "Cannot write in"),
        ("bench diffusion --policies every_n --model {out}/none --out {out}/o", "There is no model at"),
        ("bench diffusion --policies teacache --profile {out}/none --out {out}/o", "There is no profile at"),
        ("bench kv --policies snapvk --budget keep=0.5 --out {out}/o", "Did you mean 'snapkv'"),
        ("bench kv --policies snapkv --budget keep=0 --out {out}/o", "the kept fraction is above 0 and at most 1"),
        ("bench kv --policies snapkv --budget keep=1.5 --out {out}/o", "above 0 and at most 1"),
        ("bench kv --policies snapkv --budget half --out {out}/o", "Write keep=0.25, tokens=512 or bytes=20MiB"),
        ("bench kv --policies snapkv --budget tokens=9 --context 300 --model {words} --out {out}/o", "at least 32"),
        ("bench kv --policies knorm --budget keep=0.5 --context x --out {out}/o", "Give for example 1024,2048"),
        ("bench kv --policies knorm --budget keep=0.5 --tasks niah --out {out}/o", "Did you mean 'niah_"),
        ("bench kv --policies knorm --budget keep=0.5 --question before --out {out}/o", "after, inside"),
        ("bench kv --policies knorm --budget keep=0.5 --model {model} --out {out}/o", "no language model at"),
        ("bench kv --policies kivi --budget keep=1 --context 300 --model {words} --out {out}/o", "head size 8"),
        ("bench kv --policies every_n --budget keep=0.5 --out {out}/o", "every_n"),
        ("models pull smollm", "Did you mean 'smollm2'?"),
        ("run --model {words} --policy snapkv", "missing here: --budget"),
        ("run --model {words} --labels 3", "--labels does not go with"),
        ("run --model {model} --budget keep=0.5", "--budget does not go with"),
        ("run --model {words} --prompt-file {out}/none", "cannot be read"),
        ("run --model {out}", "There is no model at"),
        ("calibrate every_n --model {model} --out {out}/p.safetensors", "needs no calibration"),
        ("calibrate teacache --model {model} --steps 9999 --out {out}/p.safetensors", "1 to 1000"),
        ("report {out}/none", "is not a folder"),
        ("report {out}", "holds no records"),
        ("demo --out {out}/file/in", "Cannot write in"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_model: Path, tiny_language: Path, tmp_path: Path, args: str, said: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert said in refused(*args.format(out=tmp_path, model=tiny_model, words=tiny_language).split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_truncated_weights_file(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    os.truncate(copy / "transformer" / "diffusion_pytorch_model.safetensors", 9000)
    line = refused("bench", "diffusion", "--model", copy, "--policies", "every_n", "--out", tmp_path / "out")
    assert "cannot be loaded: Unable to load weights" in line
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tenuto.report", None)
    assert "pip install 'tenuto[all]'" in refused("report", tmp_path)
