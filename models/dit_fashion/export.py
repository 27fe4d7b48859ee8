"""Write the trained model as the package ships it: a ``DiTPipeline`` folder in half precision, and the judge.

python models/dit_fashion/export.py --work build/dit_fashion
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import data
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import save_file
from tqdm import tqdm
from train_autoencoder import CONFIG as VAE_CONFIG
from train_autoencoder import psnr
from train_classifier import accuracy
from train_transformer import CONFIG, NULL_CLASS, SCHEDULER

from tenuto.bench.diffusion.scores import FashionClassifier

BUNDLED = Path(__file__).parents[2] / "src" / "tenuto" / "bundled"
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def export_pipeline(work: Path, target: Path) -> None:
    vae = AutoencoderKL(**VAE_CONFIG, scaling_factor=1.0).eval()  # latents are normalised inside the autoencoder
    vae.load_state_dict(torch.load(work / "latents.pt", weights_only=True)["vae"])
    transformer = DiTTransformer2DModel(**CONFIG).eval()
    stored = torch.load(work / "transformer.pt", weights_only=True)
    transformer.load_state_dict(stored["average"])
    used = [*range(10), NULL_CLASS]
    with torch.no_grad():  # label rows that no class uses are noise: zeros compress
        for block in transformer.transformer_blocks:
            table = block.norm1.emb.class_embedder.embedding_table.weight
            kept = table[used].clone()
            table.zero_()
            table[used] = kept
    print(f"step {stored['step']}; autoencoder PSNR {psnr(vae, data.load('t10k')[0]):.2f} dB")
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipe = DiTPipeline(transformer.half(), vae.half(), DDIMScheduler(**SCHEDULER))
    pipe.save_pretrained(temporary)
    index = temporary / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": dict(enumerate(LABELS))}, indent=2) + "\n")
    if (target / "profiles").is_dir():  # profiles of other weights would be refused: make them again
        shutil.rmtree(target / "profiles")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def export_judge(work: Path, target: Path) -> None:
    """The classifier with the mean and covariance of its features over the 10,000 test images."""
    model = FashionClassifier().eval()
    model.load_state_dict(torch.load(work / "classifier.pt", weights_only=True)["model"])
    images, labels = data.load("t10k")
    print(f"classifier test accuracy {accuracy(model, images, labels):.4f}")
    with torch.no_grad():
        features = torch.cat([model.features(chunk / 255) for chunk in tqdm(images.split(500))]).double()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {"feature_mean": features.mean(0), "feature_cov": features.T.cov()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "classifier.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/dit_fashion"))
    parser.add_argument("--only", choices=["pipeline", "judge"])
    args = parser.parse_args()
    if args.only != "judge":
        export_pipeline(args.work, BUNDLED / "dit_fashion")
    if args.only != "pipeline":
        export_judge(args.work, BUNDLED / "fashion_judge")


if __name__ == "__main__":
    main()
