#!/usr/bin/env bash
# transformers 5.23.0, seen 2026-11-30: a model in float64 computes its norms in float32, and generate rounds its logits.
#
# Guessed before running: after `model.double()` everything is computed in float64, so a change of 1e-11 in the input
# changes the output by about as much, and the logits that `generate` returns are the model's own.
# Seen: LlamaRMSNorm converts to float32 and back, so the change is lost on the way in all but a few numbers, where it
# jumps by the step of float32; `generate` returns float32 logits. A comparison "in double precision" is one in single.
source "$(dirname "$0")/setup.sh"
python_with transformers==5.23.0
"$PYTHON" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0,
    eos_token_id=None,
)
model = LlamaForCausalLM(config).double().eval()
norm, ids = model.model.norm, torch.arange(1, 9)[None]
hidden = torch.randn(1, 1000, 64, dtype=torch.float64)
with torch.no_grad():
    same = (norm(hidden) == norm(hidden * (1 + 1e-11 * torch.randn_like(hidden)))).double().mean().item()
    own = model(ids).logits[:, -1]
    given = model.generate(
        ids, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
    ).logits[0]
print(f"norm: {norm(hidden).dtype}; {100 * same:.2f}% of its outputs do not see a change of 1e-11")
print(f"logits: {own.dtype} of the model, {given.dtype} of generate, up to {(own - given).abs().max():.1e} apart")
assert norm(hidden).dtype == torch.float64 and same > 0.99, "norms are in double precision now"
assert own.dtype == torch.float64 and given.dtype == torch.float32, "generate keeps double precision now"
print("as found: double precision is not kept")
PYTHON
