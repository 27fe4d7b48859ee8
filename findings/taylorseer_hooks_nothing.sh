#!/usr/bin/env bash
# diffusers 0.42.1, seen 2026-11-30: TaylorSeer with its defaults caches nothing on some models, and does not say so.
#
# Guessed before running: `enable_cache(TaylorSeerCacheConfig())` hooks the attention of every model that has
# `enable_cache`, or raises.
# Seen: it looks for modules by name, and on Wan none has such a name: `is_cache_enabled` is True and every step is computed.
source "$(dirname "$0")/setup.sh"
python_with diffusers==0.42.1 transformers==5.23.0 accelerate
"$PYTHON" - <<'PYTHON'
import diffusers
import torch
from diffusers import FluxTransformer2DModel, TaylorSeerCacheConfig, WanTransformer3DModel

STEPS = 12
print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
flux = FluxTransformer2DModel(
    in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
)
wan = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
    freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
)
inputs = {
    "flux": {
        "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 4, 32),
        "pooled_projections": torch.randn(1, 32), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3),
        "timestep": torch.tensor([0.5]),
    },
    "wan": {
        "hidden_states": torch.randn(1, 4, 1, 8, 8), "encoder_hidden_states": torch.randn(1, 4, 16),
        "timestep": torch.tensor([500]),
    },
}
computed = {}
for name, model in {"flux": flux, "wan": wan}.items():
    # What is hooked by default is attention: count how often its first projection runs.
    calls = []
    next(m for n, m in model.named_modules() if n.endswith("to_q")).register_forward_hook(lambda *_: calls.append(1))
    model.eval().enable_cache(TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32))
    assert model.is_cache_enabled
    with torch.no_grad(), model.cache_context("cond"):
        for _ in range(STEPS):
            model(**inputs[name])
    hooked = sum("taylor" in hook.lower() for m in model.modules() if "_diffusers_hook" in vars(m)
                 for hook in m._diffusers_hook.hooks)
    computed[name] = len(calls)
    print(f"{name}: is_cache_enabled, {hooked} modules hooked, attention computed in {len(calls)} of {STEPS} steps")
assert computed["flux"] < STEPS, "it does not work on Flux either"
assert computed["wan"] == STEPS, "it works on Wan now"
print("as found: enabled, and nothing is cached")
PYTHON
