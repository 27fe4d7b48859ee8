#!/usr/bin/env bash
# transformers 5.23.0, seen 2026-11-30: a layer with a sliding window keeps the memory of the whole prompt.
#
# Guessed before running: a layer with a window of 64 tokens holds the memory of 63 tokens after a prompt of 4,096, since
# that is what its keys and values show.
# Seen: keys and values of 63 tokens are views into tensors of all 4,096, which stay until the next token is written. With
# batch, layers and a long prompt, the peak is that of full attention, and whoever counts `keys.numel()` does not see it.
source "$(dirname "$0")/setup.sh"
python_with transformers==5.23.0
"$PYTHON" - <<'PYTHON'
import torch
import transformers
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

WINDOW, PROMPT = 64, 4096
print("torch", torch.__version__, "transformers", transformers.__version__)
config = MistralConfig(
    vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, sliding_window=WINDOW, max_position_embeddings=2 * PROMPT,
)
model, cache = MistralForCausalLM(config).eval(), DynamicCache(config=config)


def memory():
    keys = cache.layers[0].keys
    return keys.shape[-2], keys.numel() * keys.element_size(), keys.untyped_storage().nbytes()


with torch.no_grad():
    model(torch.arange(PROMPT)[None] % 100, past_key_values=cache, logits_to_keep=1)
    tokens, shown, held = memory()
    print(f"after the prompt: {tokens} tokens, {shown:,} bytes shown, {held:,} bytes held")
    model(torch.tensor([[1]]), past_key_values=cache)
    after = memory()
    print(f"one token later:  {after[0]} tokens, {after[1]:,} bytes shown, {after[2]:,} bytes held")
assert tokens == WINDOW - 1 and held == shown // tokens * PROMPT, "the whole prompt is not held any more"
assert after[2] <= 2 * after[1], "it is held for longer now"
print("as found: the memory of the whole prompt is held")
PYTHON
