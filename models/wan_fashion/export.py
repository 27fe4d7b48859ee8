"""Write the trained model as the package ships it: a ``WanPipeline`` folder in half precision; and judge it.

    python models/wan_fashion/export.py --work build/wan_fashion

The pipeline works on pixels: it has no autoencoder, text encoder or tokenizer. Prints the class accuracy of its clips,
and that of clips of the test images, which is the most to be expected.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from clips import clips
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from tenuto.bench.diffusion.clips import class_accuracy
from tenuto.bench.diffusion.scores import FashionJudge
from tenuto.zoo.clips import CLASSES, MOTIONS
from tenuto.zoo.pipelines import load_model
from train import CONFIG, data

BUNDLED = Path(__file__).parents[2] / "src" / "tenuto" / "bundled"


def export(work: Path, target: Path) -> None:
    transformer = WanTransformer3DModel(**CONFIG).eval()
    stored = torch.load(work / "transformer.pt", weights_only=True)
    transformer.load_state_dict(stored["average"])
    print(f"step {stored['step']}")
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    WanPipeline(
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    ).save_pretrained(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def judge(target: Path, folder: Path, count: int, steps: int, guidance: float) -> None:
    judges = FashionJudge()
    images, labels = data.load("t10k", folder)
    torch.manual_seed(0)
    motions = torch.arange(count) % len(MOTIONS)
    real = clips(images[:count], motions).transpose(1, 2) / 2 + 0.5
    print(f"clips of test images: {class_accuracy(real, labels[:count] + CLASSES * motions, judges):.4f}")
    model = load_model(str(target), "cpu")
    prompts = [number % model.prompts for number in range(count)]
    drawn = [
        model.draw(prompts[first : first + 30], range(first, min(first + 30, count)), steps, guidance)
        for first in range(0, count, 30)
    ]
    print(f"generated clips: {class_accuracy(torch.cat(drawn), torch.tensor(prompts), judges):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/wan_fashion"))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--out", type=Path, default=BUNDLED / "wan_fashion")
    parser.add_argument("--clips", type=int, default=240, help="to judge by")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    args = parser.parse_args()
    export(args.work, args.out)
    judge(args.out, args.data, args.clips, args.steps, args.guidance)


if __name__ == "__main__":
    main()
