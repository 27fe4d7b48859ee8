"""The configurations that are handed out are ones that work."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def recipes() -> dict[str, dict[str, Any]]:
    (block,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "docs/vllm.md").read_text(), re.M | re.S)
    served = yaml.safe_load((ROOT / "examples/ray_serve/serve.yaml").read_text())
    (model,) = served["applications"][0]["args"]["llm_configs"]
    return {"docs": json.loads(block), "ray": model["engine_kwargs"]["kv_transfer_config"]}


@pytest.mark.parametrize("name", ["docs", "ray"])
def test_what_cannot_be_loaded_is_recomputed(name: str) -> None:
    assert recipes()[name]["kv_load_failure_policy"] == "recompute"


@pytest.mark.parametrize("name", ["docs", "ray"])
def test_vllm_takes_every_option(name: str) -> None:
    pytest.importorskip("vllm")
    from vllm.config import KVTransferConfig

    from tenuto.vllm.tier import TenutoTier

    config = KVTransferConfig(**recipes()[name])
    extra = config.kv_connector_extra_config
    assert (extra["spec_name"], extra["eviction_policy"]) == ("TenutoTieringSpec", "s3fifo")
    (tier,) = extra["secondary_tiers"]
    assert tier.pop("type") == "tenuto"
    assert set(tier) <= set(inspect.signature(TenutoTier).parameters)


def test_the_page_says_what_every_option_of_the_tier_means() -> None:
    pytest.importorskip("vllm")
    from tenuto.vllm.tier import TenutoTier

    given = {"offloading_spec", "primary_kv_view", "tier_type", "backpressure_detector"}
    page = (ROOT / "docs/vllm.md").read_text()
    assert all(f"| `{name}` |" in page for name in set(inspect.signature(TenutoTier).parameters) - given)
