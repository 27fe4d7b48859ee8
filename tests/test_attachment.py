"""One ``attach`` for both families: the policy decides, and arguments of the other family are refused."""

from __future__ import annotations

import pytest
import torch

import tenuto
from tenuto.diffusion.denoiser import AttachedRun as FeatureRun
from tenuto.errors import InputError
from tenuto.kv.attach import AttachedRun as EntryRun
from tenuto.testing import TinyDiT, TinyLM, denoise

pytestmark = pytest.mark.usefixtures("one_thread")
KEEP = tenuto.MemoryBudget.keep(0.5)


def test_a_diffusion_policy() -> None:
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        denoise(model)
    assert isinstance(run, FeatureRun) and run.telemetry.reuse_ratio > 0


def test_a_kv_policy() -> None:
    model = TinyLM()
    with tenuto.attach(model, tenuto.StreamingLLM(), budget=KEEP) as run, torch.no_grad():
        model.generate(torch.arange(1, 41)[None], max_new_tokens=2, do_sample=False)
    assert isinstance(run, EntryRun) and run.bytes_held < run.bytes_full


def test_what_belongs_to_the_other_family_is_refused() -> None:
    with pytest.raises(InputError, match=r"^budget= is for KV policies; EveryN takes none"):
        tenuto.attach(TinyDiT(), tenuto.EveryN(), budget=KEEP)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"^shadow= is for diffusion policies; SnapKV takes none"):
        tenuto.attach(TinyLM(), tenuto.SnapKV(), budget=KEEP, shadow=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"^SnapKV needs a budget"):
        tenuto.attach(TinyLM(), tenuto.SnapKV())  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"was given a str as its policy"):
        tenuto.attach(TinyDiT(), "every_n")  # type: ignore[call-overload]
