"""Train the small classifier whose features define FID-fashion and whose verdicts give class accuracy.

    python models/dit_fashion/train_classifier.py --work build/dit_fashion

Ends with the accuracy on the 10,000 test images, which must be at least 91 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import checkpoint
import data
import torch
from tqdm import tqdm

from tenuto.bench.diffusion.scores import FashionClassifier


def accuracy(model: FashionClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        hits = [model(i / 255).argmax(1) == t for i, t in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.cat(hits).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/dit_fashion"))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    (images, labels), test = data.load("train", args.data), data.load("t10k", args.data)
    model = FashionClassifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = args.epochs * len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    modules = {"model": model, "optimiser": optimiser, "schedule": schedule}
    path = args.work / "classifier.pt"
    start = checkpoint.resume(path, modules)
    for step in tqdm(range(start, steps), initial=start, total=steps, desc="classifier"):
        index = torch.randint(len(images), (args.batch,))
        batch = images[index].float() / 255
        if torch.rand(()) < 0.5:
            batch = batch.flip(-1)
        loss = torch.nn.functional.cross_entropy(model.train()(batch), labels[index], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            checkpoint.save(path, checkpoint.snapshot(step + 1, modules))
    print(f"test accuracy {accuracy(model.eval(), *test):.4f}")


if __name__ == "__main__":
    main()
