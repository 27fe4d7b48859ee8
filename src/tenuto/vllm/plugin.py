"""What vLLM calls when it starts: the entry point ``tenuto`` of the group ``vllm.general_plugins``."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from tenuto.errors import InputError

__all__ = ["VLLM", "check_version", "register"]

VLLM = "0.32"
"""The one minor release of vLLM whose plug-in interfaces this is written for."""

PACKAGE = "tenuto.vllm"


def check_version() -> None:
    """Raises: InputError: vLLM is not there, or is another release."""
    if find_spec("vllm") is None:
        raise InputError(f"vLLM is not installed. Install vllm=={VLLM}.* in an environment of its own.")
    import vllm

    if vllm.__version__.split(".")[:2] != VLLM.split("."):
        raise InputError(f"vLLM {vllm.__version__} is installed, and this Tenuto works with {VLLM}.* only. Change one.")


def register() -> None:
    """Make the names ``tenuto`` (a tier), ``s3fifo`` (an eviction policy) and ``TenutoTieringSpec`` known to vLLM.

    Calling it again does nothing. With another vLLM it warns and registers nothing, so that vLLM still starts.
    """
    try:
        check_version()
    except InputError as error:
        warnings.warn(f"Tenuto's tiers are not available in vLLM: {error}", RuntimeWarning, stacklevel=2)
        return
    from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    if "tenuto" in SecondaryTierFactory._registry:
        return
    SecondaryTierFactory.register_tier("tenuto", f"{PACKAGE}.tier", "TenutoTier")
    CachePolicyFactory.register_cache_policy("s3fifo", f"{PACKAGE}.policy", "S3FIFO")
    OffloadingSpecFactory.register_spec("TenutoTieringSpec", f"{PACKAGE}.spec", "TenutoTieringSpec")
