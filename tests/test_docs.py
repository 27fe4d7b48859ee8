"""The code in the documents runs as printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import tenuto
from tenuto.testing.kv import KV_LAWS, TinyLM, tokens

ROOT = Path(__file__).resolve().parent.parent


def blocks(path: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", (ROOT / path).read_text(), re.M | re.S)


def tiny_pipeline() -> DiTPipeline:
    transformer = DiTTransformer2DModel(2, 8, 4, 8, num_layers=3, sample_size=8)
    vae = AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=4)
    pipe = DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_example_method_is_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("quiet_middle")
    monkeypatch.setitem(sys.modules, "quiet_middle", module)
    source, *_ = blocks("docs/add-a-method.md")
    exec(compile(source, "quiet_middle.py", "exec"), vars(module))
    pipe = tiny_pipeline()
    with tenuto.attach(pipe, module.QuietMiddle(n=2)) as run:
        pipe(class_labels=[3], num_inference_steps=10, output_type="np")
    assert [row[0] for row in run.telemetry.decisions()].count("reuse") == 3
    with pytest.raises(tenuto.PolicyError, match="at least 1"):
        module.QuietMiddle(n=0)


@pytest.mark.slow
def test_the_example_kv_method_obeys_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("long_keys")
    monkeypatch.setitem(sys.modules, "long_keys", module)
    _, source, *_ = blocks("docs/add-a-method.md")
    exec(compile(source, "long_keys.py", "exec"), vars(module))
    for law in KV_LAWS:
        law(module.LongKeys(window=4))
    model, prompt = TinyLM(), tokens(40)
    with tenuto.attach(model, module.LongKeys(window=0), budget=tenuto.MemoryBudget.tokens(10)) as run:
        model(prompt)
        kept = run.last.survivors(0)
    cache = model(prompt).past_key_values
    longest = cache.layers[0].keys[0, 0].norm(dim=-1).topk(10).indices
    assert kept == sorted(longest.tolist())
    with pytest.raises(tenuto.PolicyError, match="zero or more"):
        module.LongKeys(window=-1)


@pytest.mark.bundled
def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks("README.md")
    assert len(source.splitlines()) <= 12
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    assert len(names["images"]) == 3
    assert "'reuse_ratio'" in capsys.readouterr().out


def test_the_example_of_a_store_runs(
    tiny_language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = blocks("docs/stores.md")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"folder": tiny_language, "text": "What has been read need not be read again. " * 20}
    for restored in ("0", "[1-9]"):
        exec(compile(source, "stores.md", "exec"), dict(names))
        assert re.fullmatch(rf"{restored}\d*\n", capsys.readouterr().out.split("\r")[-1])


def test_the_page_of_attentions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("docs/attention.md"):
        exec(compile(block, "attention.md", "exec"), names)
    model, ids = names["model"], names["torch"].arange(200)[None]
    assert model.generate(ids, max_new_tokens=1).shape == (1, 201)
    assert list((tmp_path / "my-archive").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "docs/methods").glob("*.md")) if path.stem != "index"],
    ids=lambda path: path.stem,
)
def test_the_snippet_of_a_method_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks(str(path))
    assert f'"{path.stem}' in source or f"+{path.stem}" in source
    exec(compile(source, path.name, "exec"), {})
    assert capsys.readouterr().out.strip()
