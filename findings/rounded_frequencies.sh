#!/usr/bin/env bash
# transformers 5.23.0, seen 2026-12-01: a Llama put in bfloat16 with `.to` turns its keys by other angles than one loaded
# in bfloat16.
#
# Guessed before running: the table of rotary frequencies stays in float32 either way, as it is multiplied by positions
# in the thousands. Seen: it is a buffer, and `model.to(torch.bfloat16)` rounds it;
# `from_pretrained(dtype=torch.bfloat16)` keeps it in float32. At position 4,096 angles differ by 1.8 radians, and
# logits of a random model by half of their norm.
source "$(dirname "$0")/setup.sh"
python_with transformers==5.23.0
"$PYTHON" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
config = LlamaConfig(
    hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=64, max_position_embeddings=8192, initializer_range=0.2,
)
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained("model")
loaded = LlamaForCausalLM.from_pretrained("model", dtype=torch.bfloat16).eval()
moved = LlamaForCausalLM.from_pretrained("model", dtype=torch.float32).to(torch.bfloat16).eval()
same = all(torch.equal(a, b) for a, b in zip(loaded.parameters(), moved.parameters()))
first, second = loaded.model.rotary_emb.inv_freq, moved.model.rotary_emb.inv_freq
angle = float((first.double() - second.double()).abs().max()) * 4096
with torch.no_grad():
    ids = torch.randint(0, 64, (1, 4097))
    logits = [model(ids).logits[0, -1].float() for model in (loaded, moved)]
off = float((logits[0] - logits[1]).norm() / logits[0].norm())
print(f"parameters are equal: {same}; frequencies: loaded {first.dtype}, moved {second.dtype}")
print(f"at position 4,096: angles up to {angle:.1f} radians apart, logits {off:.2f} of their norm")
assert same
assert first.dtype is torch.float32 and second.dtype is torch.bfloat16, "both are kept alike now"
assert angle > 1
assert off > 0.1
print("as found: the two models are not the same")
PYTHON
