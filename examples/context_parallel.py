"""One generation on two devices: diffusers' Ulysses context parallelism, with a cache whose ranks decide alike.

    torchrun --standalone --nproc-per-node=2 examples/context_parallel.py

Runs on two CPU processes with a tiny Flux of random weights: no download, no GPU. On GPUs use the "nccl" backend, put
model and inputs on ``cuda:{rank}`` and leave out ``mesh`` and ``mock.patch``, which only the CPU needs.
"""

from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxTransformer2DModel
from torch.distributed.device_mesh import init_device_mesh

import tenuto

STEPS = 10


def tiny_flux() -> FluxTransformer2DModel:
    """The same random weights on every rank."""
    torch.manual_seed(0)
    size = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    return FluxTransformer2DModel(
        in_channels=4, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), **size
    ).eval()


@torch.no_grad()
def generate(model: FluxTransformer2DModel) -> torch.Tensor:
    """Ten Euler steps over 16 image tokens and 4 text tokens; every rank is given all of them."""
    generator = torch.Generator().manual_seed(1)
    latents, prompt = (torch.randn(1, *shape, generator=generator) for shape in ((16, 4), (4, 8)))
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    for step in range(STEPS):
        with model.cache_context("cond"):
            (velocity,) = model(
                hidden_states=latents,
                encoder_hidden_states=prompt,
                pooled_projections=prompt[:, 0],
                timestep=torch.tensor([1 - step / STEPS]),
                img_ids=places,
                txt_ids=torch.zeros(4, 3),
                return_dict=False,  # diffusers gathers tensors, not output classes
            )
        latents = latents - velocity / STEPS
    return latents


def main() -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    policy = tenuto.FirstBlock(threshold=0.3)

    model = tiny_flux()
    with tenuto.attach(model, policy) as run:
        one = generate(model)
    alone = run.telemetry.reuse_ratio

    mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("ring", "ulysses"))
    with mock.patch("torch.accelerator.device_count", return_value=1):
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks, mesh=mesh))
    with tenuto.attach(model, policy) as run:  # after enable_parallelism
        several = generate(model)
    shared = run.telemetry.reuse_ratio

    words = "equal outputs" if torch.allclose(one, several, rtol=1e-4, atol=1e-5) else "DIFFERENT outputs"
    line = f"rank {rank}: {words}, {alone:.0%} reused on one device, {shared:.0%} on {ranks}\n"
    print(line, end="", flush=True)  # whole lines, whichever rank is first
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
