"""Train the video model: rectified flow on clips of Fashion-MNIST garments, class and motion by cross attention.

    python models/wan_fashion/train.py --work build/wan_fashion

The model works on pixels in [-1, 1] and predicts the velocity ``noise - clip`` at ``(1 - t) clip + t noise``.
Exponential moving average of the weights. Interrupt and start again: it resumes. ``--minutes`` ends a run by the clock:
the learning rate then falls with the time that is left instead of the steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch
from clips import clips
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from tenuto.zoo.clips import CLASSES, PROMPTS, TOKEN_WIDTH, tokens

sys.path.append(str(Path(__file__).parents[1] / "dit_fashion"))
import checkpoint
import data

CONFIG = {
    "patch_size": (1, 8, 8),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "out_channels": 1,
    "text_dim": TOKEN_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 6,
    "rope_max_seq_len": 32,
}
TIMES = 1000


def initialise(transformer: WanTransformer3DModel) -> None:
    """Every block starts near the identity and the output at zero."""
    projection = transformer.condition_embedder.time_proj
    torch.nn.init.normal_(projection.weight, std=0.02)
    torch.nn.init.zeros_(projection.bias)
    for block in transformer.blocks:
        torch.nn.init.normal_(block.scale_shift_table, std=0.02)
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
        torch.nn.init.zeros_(block.attn2.to_out[0].bias)
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0]):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    torch.nn.init.zeros_(transformer.scale_shift_table)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **options: object
) -> torch.Tensor:
    """Attention as three operations: at 128 tokens its backward pass is much faster on a CPU than the fused one's."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1).to(value.dtype) @ value


def rate(done: float, step: int) -> float:
    """Factor of the learning rate at the fraction ``done``: warm-up, constant, a linear fall over the last 30 %."""
    return max(min(1.0, (step + 1) / 100, (1 - done) / 0.3), 0.01)


class Clips:
    """Draws training examples: the noisy clip, the velocity, the time and the tokens."""

    def __init__(self, folder: Path) -> None:
        images, labels = data.load("train", folder)
        self.by_class = [images[labels == number] for number in range(CLASSES)]

    def draw(self, batch: int, drop: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        prompts = torch.randint(PROMPTS, (batch,))
        pools = [self.by_class[prompt % CLASSES] for prompt in prompts.tolist()]
        images = torch.stack([pool[int(torch.randint(len(pool), ()))] for pool in pools])
        mirrored = torch.rand(batch, 1, 1, 1) < 0.5
        clean = clips(torch.where(mirrored, images.flip(-1), images), prompts // CLASSES)
        moment = torch.sigmoid(torch.randn(batch) + 0.3)
        noise, t = torch.randn_like(clean), moment.view(-1, 1, 1, 1, 1)
        given = tokens(prompts, torch.rand(batch) >= drop)
        return (1 - t) * clean + t * noise, noise - clean, moment * TIMES, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/wan_fashion"))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="end after this time, whatever --steps says")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.998, help="of the moving average, after its warm-up")
    parser.add_argument("--drop", type=float, default=0.1, help="fraction of prompts replaced by null tokens")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    examples = Clips(args.data)
    transformer = WanTransformer3DModel(**CONFIG)
    initialise(transformer)
    average = deepcopy(transformer).requires_grad_(False)
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    modules = {"model": transformer, "average": average, "optimiser": optimiser}
    path = args.work / "transformer.pt"
    start = checkpoint.resume(path, modules)

    def loss_of(noisy: torch.Tensor, target: torch.Tensor, moment: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        predicted = transformer(noisy, moment, given, return_dict=False)[0]
        return ((predicted.float() - target) ** 2).mean()

    running, began = 0.0, time.monotonic()
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="transformer", mininterval=10)
    for step in bar:
        done = (time.monotonic() - began) / 60 / args.minutes if args.minutes else step / args.steps
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = args.lr * rate(done, step)
        noisy, target, moment, given = examples.draw(args.batch, args.drop)
        with (
            torch.autocast("cpu", torch.bfloat16),
            patch("torch.nn.functional.scaled_dot_product_attention", attention),
        ):
            loss = loss_of(noisy, target, moment, given)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            keep = min(args.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(transformer.parameters()), 1 - keep)
        running += (loss.item() - running) / min(step - start + 1, 200)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (step + 1) % 250 == 0:
            checkpoint.save(path, checkpoint.snapshot(step + 1, modules))
            tqdm.write(f"step {step + 1}: loss {running:.4f}")
    else:
        step = args.steps
    checkpoint.save(path, checkpoint.snapshot(step, modules))
    print(f"ended at step {step}, loss {running:.4f}")


if __name__ == "__main__":
    main()
