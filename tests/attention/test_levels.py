import torch

from tenuto.attention.levels import MKALevel, mix


def level(name: str, logits: torch.Tensor, values: torch.Tensor) -> MKALevel:
    return MKALevel(name, logits, lambda weights: weights @ values)


def test_levels_together_are_one_softmax() -> None:
    torch.manual_seed(0)
    sizes = {"a": 5, "empty": 0, "b": 3, "unseen": 4}
    logits = {name: torch.randn(2, 7, size, dtype=torch.float64) * 30 for name, size in sizes.items()}
    logits["unseen"][:] = -torch.inf
    values = {name: torch.randn(2, size, 6, dtype=torch.float64) for name, size in sizes.items()}
    mixed = mix([level(name, logits[name], values[name]) for name in sizes])
    weights = torch.cat(list(logits.values()), -1).softmax(-1)
    assert torch.allclose(mixed.out, weights @ torch.cat(list(values.values()), 1), atol=1e-12)
    assert torch.allclose(mixed.share["b"], weights[..., 5:8].sum(-1), atol=1e-12)
    assert mixed.share["unseen"].abs().max() == 0
    assert torch.allclose(sum(mixed.share.values()), torch.ones(()).double(), atol=1e-12)


def test_merging_by_the_log_of_sums_is_the_same() -> None:
    torch.manual_seed(1)
    logits, values = torch.randn(4, 9), torch.randn(9, 3)
    parts = [slice(0, 4), slice(4, 9)]
    lse = torch.stack([logits[:, part].logsumexp(-1) for part in parts])
    outs = torch.stack([logits[:, part].softmax(-1) @ values[part] for part in parts])
    merged = (lse.softmax(0)[..., None] * outs).sum(0)
    found = mix([level(str(i), logits[:, part], values[part]) for i, part in enumerate(parts)])
    assert torch.allclose(found.out, merged, atol=1e-6)
