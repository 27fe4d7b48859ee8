"""Measuring shortened prompts, on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tenuto.bench.prompt.bench import ASKED, Way, bench, make_case, outcome, read_kinds, read_methods
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError
from tenuto.kv.attach import attach
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policy import KVPolicy
from tenuto.prompt.policies.semtoken import SemToken
from tenuto.prompt.read import read
from tenuto.records.prompt import read_prompt_runs
from tenuto.testing.kv import TinyLM
from tenuto.texts.redundant import KINDS, compose
from tenuto.zoo.language import LanguageModel

pytestmark = pytest.mark.slow
CONTEXT = 3000
WAYS = [
    "none", "semtoken", "drop_norm", "drop_surprise", "fixed", "random_spans", "snapkv", "semtoken+policy", "policy"
]  # fmt: skip


class Letters:
    """A tokenizer of one token per letter, of an alphabet of 96."""

    all_special_ids = (0,)

    def __call__(self, text: str, **options: Any) -> Any:
        ids = [min(max(ord(letter) - 31, 1), 96) for letter in text]
        return SimpleNamespace(input_ids=torch.tensor([ids]) if options.get("return_tensors") else ids)

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(chr(int(number) + 31) for number in ids)


def tiny() -> LanguageModel:
    return LanguageModel(name="tiny", model=TinyLM(), tokenizer=Letters(), fingerprint="none")


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_holds_its_facts_and_goes_on_in_the_text(kind: str) -> None:
    language = tiny()
    case = make_case(language, kind, 3, CONTEXT)
    text = Letters().decode(case.context[0])
    assert CONTEXT * 0.5 < case.context.shape[1] <= CONTEXT
    assert len(case.following) == 128
    for question, answer in case.questions:
        number = Letters().decode(answer).strip()
        assert f"is {number}." in text
        assert number not in Letters().decode(question[0])
    again = make_case(language, kind, 3, CONTEXT)
    assert torch.equal(case.context, again.context)
    assert not torch.equal(case.context[0, :200], make_case(language, kind, 4, CONTEXT).context[0, :200])
    whole = "".join(compose(kind, 3, 2)[0])
    heard = Letters().decode(case.following)
    assert Letters().decode(language.encode(whole)[0]).count(heard) >= 1


def test_every_way_is_measured_at_equal_entries(tmp_path: Path) -> None:
    settings = [SemToken(ratio=0.5, layer=1)]
    rows = bench(tiny(), settings, ["logs"], policy=SnapKV(window=8), tokens=CONTEXT, examples=2, out=tmp_path)
    assert [row.way for row in rows] == WAYS
    for row in rows:
        wanted = {"none": 1.0, "semtoken+policy": 0.25, "policy": 0.25}.get(row.way, 0.5)
        assert row.held == pytest.approx(wanted, abs=0.01)
        assert row.seconds > 0
    none, semtoken = rows[:2]
    assert none.extra == semtoken.behind == 0
    assert [row.way for row in rows if row.reference] == ["semtoken"]
    assert [row.way for row in rows if replace(row, beside="").reference] == ["semtoken"]
    assert none.behind == pytest.approx(-semtoken.extra)
    assert semtoken.extra_interval is not None
    assert semtoken.extra_interval[0] <= semtoken.extra <= semtoken.extra_interval[1]
    stored = {run.way: run for run in read_prompt_runs(tmp_path)}
    assert [replace(stored[row.way], pieces=[]) for row in rows] == rows
    told = Letters().decode(make_case(tiny(), "logs", 0, CONTEXT).context[0])
    assert "".join(text for text, _ in stored["semtoken"].pieces) == told


@pytest.mark.parametrize("kind", ASKED)
@torch.no_grad()
def test_an_answer_counts_where_greedy_generation_begins_with_it(kind: str) -> None:
    """The model is asked for what it generates, and for something else."""
    language, way = tiny(), Way(name="semtoken", merge=SemToken(layer=1))
    case = make_case(language, kind, 0, CONTEXT)
    ((question, _),) = case.questions
    with attach(language.model, KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        prompt = read(run, case.context, SemToken(layer=1), tokenizer=language.tokenizer)
        with run.whole():
            said: list[int] = []
            for _ in range(6):
                asked = torch.cat([question, torch.tensor([said], dtype=torch.int64)], 1)
                said.append(int(language.model(asked, past_key_values=prompt.cache.fork()).logits[0, -1].argmax()))
    for answer, reached in ((said, 1.0), ([*said[:-1], (said[-1] + 1) % 97], 0.0)):
        told = replace(case, questions=((question, torch.tensor(answer)),))
        found = outcome(language, way, told)
        assert found.answered == reached
        assert found.right == pytest.approx(1.0 if reached else 5 / 6)
        assert math.isfinite(found.loss)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'logs'"):
        read_kinds("logz")
    with pytest.raises(InputError, match="No kind"):
        read_kinds("")
    with pytest.raises(InputError, match="too short"):
        make_case(tiny(), "logs", 0, 200)
    assert [each.ratio for each in read_methods(["semtoken:layer=2"], "0.75,0.5")] == [0.75, 0.5]
