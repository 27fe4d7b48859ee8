"""Train the KL autoencoder (32x32x1 -> 8x8x4) that the diffusion transformer works behind.

    python models/dit_fashion/train_autoencoder.py --work build/dit_fashion

Stops with the mean PSNR on the 10,000 test images; the transformer needs at least 27 dB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import checkpoint
import data
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

CONFIG = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 32,
    "mid_block_add_attention": False,
}


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB, on the original 28x28 pixels in [0, 1]."""
    values = []
    with torch.no_grad():
        for chunk in images.split(500):
            recon = data.from_model(vae.decode(vae.encode(data.to_model(chunk)).latent_dist.mode()).sample)
            values.append(-10 * torch.log10(((recon - chunk / 255) ** 2).mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/dit_fashion"))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--epochs", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, _ = data.load("train", args.data)
    test, _ = data.load("t10k", args.data)
    vae = AutoencoderKL(**CONFIG).to(args.device, memory_format=torch.channels_last)
    with torch.no_grad():  # start almost noiseless: at log-variance 0 the decoder learns to ignore its input
        vae.quant_conv.bias[4:].fill_(-6.0)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.98))
    steps = int(args.epochs * len(images) / args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, steps, pct_start=0.05, final_div_factor=100)
    modules = {"model": vae, "optimiser": optimiser, "schedule": schedule}
    path = args.work / "autoencoder.pt"
    start = checkpoint.resume(path, modules)

    def loss_of(x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = vae.encode(x).latent_dist
        z = moments.mean + moments.std * noise
        recon = vae.decode(z).sample
        kl = 0.5 * (moments.mean**2 + moments.var - 1 - moments.logvar).mean()
        error = ((recon.float() - x) ** 2).mean()
        return error + args.kl * kl.float(), error

    bar = tqdm(range(start, steps), initial=start, total=steps, desc="autoencoder", mininterval=5)
    for step in bar:
        batch = data.to_model(images[torch.randint(len(images), (args.batch,))]).to(args.device)
        noise = torch.randn(args.batch, 4, 8, 8, device=args.device)
        with torch.autocast(args.device, torch.bfloat16):
            loss, error = loss_of(batch.contiguous(memory_format=torch.channels_last), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(mse=f"{error.item():.5f}")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            checkpoint.save(path, checkpoint.snapshot(step + 1, modules))
        if (step + 1) % 500 == 0:
            tqdm.write(f"step {step + 1}: test PSNR {psnr(vae, test[:1000]):.2f} dB")
    print(f"test PSNR {psnr(vae, test):.2f} dB")


if __name__ == "__main__":
    main()
