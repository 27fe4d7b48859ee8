"""Train the class-conditional diffusion transformer on the autoencoder's latents.

    python models/dit_fashion/train_transformer.py --work build/dit_fashion

v-prediction, cosine schedule, exponential moving average of the weights. Interrupt and start again: it resumes.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import checkpoint
import data
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from train_autoencoder import CONFIG as VAE_CONFIG

NULL_CLASS = 1000  # the id DiTPipeline uses for the unconditional branch
CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 10,
    "sample_size": 8,
    "patch_size": 1,
    "num_embeds_ada_norm": 1000,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def normalise_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode all images; fold per-channel zero mean and unit variance into the 1x1 convolutions; return latents."""
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(data.to_model(chunk)).latent_dist.mean for chunk in tqdm(images.split(500), desc="latents")]
        )
        mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        before, after = vae.quant_conv, vae.post_quant_conv
        before.weight[:4] /= std.view(-1, 1, 1, 1)
        before.bias[:4] = (before.bias[:4] - mean) / std
        before.bias[4:] -= 2 * std.log()
        after.bias += after.weight[:, :, 0, 0] @ mean
        after.weight *= std.view(1, -1, 1, 1)
    return (latents - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def prepare(work: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``[60000, 4, 8, 8]`` and labels of the training set, computed once."""
    path = work / "latents.pt"
    if not path.exists():
        images, labels = data.load("train", folder)
        vae = AutoencoderKL(**VAE_CONFIG).eval()
        vae.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True)["model"])
        latents = normalise_latents(vae, images)
        checkpoint.save(path, {"latents": latents, "labels": labels, "vae": vae.state_dict()})
    stored = torch.load(path, weights_only=True)
    return stored["latents"], stored["labels"]


def initialise(transformer: DiTTransformer2DModel) -> None:
    """adaLN-Zero: every block starts as the identity and the output as zero."""
    for block in transformer.transformer_blocks:
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.05)
    for layer in (transformer.proj_out_1, transformer.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def rate(step: int, steps: int) -> float:
    """Learning rate factor: 200 steps of warm-up, constant, a linear decay over the last fifth.

    The plateau makes a run extendable: start again with more (or fewer) ``--steps`` and it goes on (or winds down).
    """
    return max(min(1.0, (step + 1) / 200, 5 * (steps - step) / steps), 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/dit_fashion"))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.9995, help="of the moving average, after its warm-up")
    parser.add_argument("--drop", type=float, default=0.1, help="fraction of labels replaced by the null class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    latents, labels = prepare(args.work, args.data)
    transformer = DiTTransformer2DModel(**CONFIG).to(args.device).eval()  # eval: labels are dropped here, jointly
    initialise(transformer)
    for block in transformer.transformer_blocks:  # plain attention: its backward pass is 1.7x faster on CPU here
        block.attn1.set_processor(AttnProcessor())
    average = deepcopy(transformer).requires_grad_(False)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(args.device)
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, args.steps))
    modules = {"model": transformer, "average": average, "optimiser": optimiser, "schedule": schedule}
    path = args.work / "transformer.pt"
    start = checkpoint.resume(path, modules)

    @torch.compile
    def loss_of(noisy: torch.Tensor, target: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        predicted = transformer(noisy, timestep=time, class_labels=label).sample
        return ((predicted.float() - target) ** 2).mean()

    running = 0.0
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="transformer", mininterval=10)
    for step in bar:
        index = torch.randint(len(latents), (args.batch,))
        clean, label = latents[index].to(args.device), labels[index].to(args.device)
        label = torch.where(torch.rand(args.batch, device=args.device) < args.drop, NULL_CLASS, label)
        time = torch.randint(1000, (args.batch,), device=args.device)
        noise = torch.randn_like(clean)
        alpha = alphas[time].view(-1, 1, 1, 1)
        noisy, target = (
            alpha.sqrt() * clean + (1 - alpha).sqrt() * noise,
            alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
        )
        with torch.autocast(args.device, torch.bfloat16):
            loss = loss_of(noisy, target, time, label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            keep = min(args.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(transformer.parameters()), 1 - keep)
        running += (loss.item() - running) / min(step - start + 1, 200)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            checkpoint.save(path, checkpoint.snapshot(step + 1, modules))


if __name__ == "__main__":
    main()
