"""Tenuto's tiers, codecs and an eviction policy inside vLLM, by configuration: ``docs/vllm.md``.

vLLM's native offloading moves blocks of KV from the device to a pool in host memory, and from there to *secondary
tiers*. Here is such a tier (:mod:`tenuto.vllm.tier`), an eviction policy for the pool (:mod:`tenuto.vllm.policy`) and a
spec that lets all of it run without a GPU (:mod:`tenuto.vllm.spec`). vLLM finds them by itself
(:mod:`tenuto.vllm.plugin`). Its plug-in interfaces change from release to release: this is for one of them,
``plugin.VLLM``. The other modules need no vLLM.
"""
