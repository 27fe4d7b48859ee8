"""What attaching costs when nothing is reused: a DiT-L/2-sized model with random weights, attached and plain in turn.

    python benchmarks/overhead.py [--blocks 24 --width 1024 --tokens 256 --batch 2 --repeats 9]

Prints the median and the spread of the ratio attached / plain of one denoising step, per policy with a closed gate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from copy import deepcopy

import torch
from diffusers import DiTTransformer2DModel

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.gate import RATES


def closed_policies(model: torch.nn.Module) -> dict[str, tuple[object, Profile | None]]:
    mark = fingerprint(model)
    polynomial = Profile(policy="teacache", fingerprint=mark, numbers={"coefficients": [0.0, 0.0, 0.0, 1.0, 0.0]})
    width = model.config.num_attention_heads * model.config.attention_head_dim
    never = {
        "span": 0,
        "longest": 1,
        "timesteps": list(range(1000)),
        "gates": [[[[1.0, 10.0]]] * 1000],
        "levels": list(RATES),
    }
    maps = {"down.0.0": torch.zeros(1, 1, 3 * width + 1, 32), "up.0.0": torch.zeros(1, 1, 32, width)}
    fitted = Profile(policy="fastcache", fingerprint=mark, numbers=never, tensors=maps)
    return {
        "fastcache:rtol=0": (tenuto.FastCache(rtol=0.0, longest=1), fitted),
        "every_n:n=1": (tenuto.EveryN(n=1), None),
        "first_block:threshold=0": (tenuto.FirstBlock(threshold=0.0), None),
        "teacache:threshold=0": (tenuto.TeaCache(threshold=0.0), polynomial),
        "taylorseer:interval=1": (tenuto.TaylorSeer(interval=1), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    side = int(args.tokens**0.5)
    model = DiTTransformer2DModel(
        num_attention_heads=args.width // 64,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=args.blocks,
        sample_size=side,
        patch_size=1,
    )
    model.eval().to(args.device)
    inputs = torch.randn(args.batch, 4, side, side, device=args.device)
    labels = torch.arange(args.batch, device=args.device)

    @torch.no_grad()
    def step(chosen: torch.nn.Module, timestep: int) -> float:
        time_step = torch.full((args.batch,), float(timestep), device=args.device)
        if args.device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        chosen(inputs, timestep=time_step, class_labels=labels)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    twin = deepcopy(model)  # stays plain, so that both can take turns
    for warm_up in range(4):
        step(model, 999 - warm_up), step(twin, 999 - warm_up)
    for name, (policy, profile) in closed_policies(model).items():
        ratios = []
        with tenuto.attach(model, policy, profile=profile) as run:
            for _ in range(2):  # the first counts operations, the second settles
                step(model, 1000 - len(run.telemetry.events))
            for repeat in range(args.repeats):
                timestep = 900 - 10 * repeat
                order = (model, twin) if repeat % 2 else (twin, model)
                seconds = {chosen is model: step(chosen, timestep) for chosen in order}
                ratios.append(seconds[True] / seconds[False])
        if run.telemetry.reuse_ratio:
            raise SystemExit(f"{name} reused although its gate is closed")
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name:26s} attached/plain: median {middle:.4f} ({low:.4f} to {high:.4f})", flush=True)


if __name__ == "__main__":
    main()
