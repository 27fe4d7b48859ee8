"""ShortConv against its definition; the laws it shares with other attentions are in ``test_laws.py``."""

from __future__ import annotations

import torch
from retrofitted import SHAPE, call

from tenuto.attention import ShortConv


@torch.no_grad()
def test_short_conv_is_a_convolution() -> None:
    heads, asked = ShortConv(kernel=3).build(SHAPE), call(10)
    heads.taps.normal_(generator=torch.Generator().manual_seed(0))
    state = heads.state()
    heads(asked, state)
    x = torch.cat([torch.zeros(1, 2, 2, 6), asked.v], 2)
    taps = heads.taps[:, None, :, 0, 6:, None].transpose(3, 4)  # [kernel, 1, kv_heads, 1, head_dim]
    want = asked.v + sum(taps[back] * x[:, :, back : back + 10] for back in range(3))
    assert torch.allclose(state.then.v, want, atol=1e-6)
