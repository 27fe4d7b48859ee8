from __future__ import annotations

import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest

from tenuto.errors import InputError
from tenuto.vllm.plugin import VLLM, check_version, register


def test_another_vllm_is_refused_and_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("vllm")
    other.__version__ = "0.33.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", other)
    monkeypatch.setattr("tenuto.vllm.plugin.find_spec", lambda name: name)
    with pytest.raises(InputError, match=rf"0\.33\.0 .* works with {VLLM}"):
        check_version()
    with pytest.warns(RuntimeWarning, match="not available"):
        register()


def test_without_vllm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.vllm.plugin.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        check_version()


def test_vllm_finds_the_plugin() -> None:
    pytest.importorskip("vllm")
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "tenuto"]
    assert found.load() is register


def test_registered_names_are_ours() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    register()
    register()
    found = [
        SecondaryTierFactory.get_tier_class({"type": "tenuto"}),
        CachePolicyFactory.get_cache_policy_cls("s3fifo"),
        OffloadingSpecFactory.get_spec_cls({"spec_name": "TenutoTieringSpec"}),
    ]
    assert [cls.__name__ for cls in found] == ["TenutoTier", "S3FIFO", "TenutoTieringSpec"]
