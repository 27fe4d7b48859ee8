"""Block lists found by structure; streams read from and written to blocks of any convention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from torch import nn

from tenuto.diffusion.models import Block, find_denoisers, find_layout, output_order, pack, unpack
from tenuto.errors import AttachError

IMAGE, TEXT = torch.zeros(2, 6, 4), torch.ones(2, 3, 4)
LISTS = {
    **dict.fromkeys(("dit", "pixart", "sd3", "wan", "cogvideox", "ltx", "sana"), (3,)),
    **{"flux": (2, 2), "hunyuan_video": (2, 2), "chroma": (2, 2), "qwenimage": (2,)},
}


class Plain(nn.Module):
    def forward(self, hidden_states: Any, temb: Any = None) -> Any:
        return hidden_states


class Two(nn.Module):
    def forward(self, encoder_hidden_states: Any, hidden_states: Any) -> Any:
        return encoder_hidden_states, hidden_states


class Opaque(nn.Module):
    def forward(self, encoder_hidden_states: Any, hidden_states: Any) -> Any:
        return self.work(hidden_states)


class Other(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class Model(nn.Module):
    def __init__(self, **lists: list[nn.Module]) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)
        for key, blocks in lists.items():
            self.add_module(key, nn.ModuleList(blocks))


class Pipe:
    def __init__(self, **components: Any) -> None:
        self.components = components


def block_of(cls: type[nn.Module]) -> Block:
    layout = find_layout(Model(blocks=[cls(), cls()]))
    assert layout is not None
    return layout.blocks[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    layout = find_denoisers(ARCHITECTURES[name].build())[0]
    assert layout.lists == LISTS[name]
    assert [block.index for block in layout.blocks] == list(range(sum(layout.lists)))
    assert all(layout.root.get_submodule(block.path) is block.module for block in layout.blocks)


def test_customary_names_come_first_and_others_count_from_two() -> None:
    both = find_layout(Model(refiners=[Plain(), Plain()], blocks=[Plain()], odd=[Other(), Other()]))
    assert both is not None and [block.path for block in both.blocks] == ["blocks.0"]
    own = find_layout(Model(stages=[Plain(), Plain(), Plain()], one=[Plain()]))
    assert own is not None and own.lists == (3,)
    assert find_layout(Model(one=[Plain()], odd=[Other(), Other()], blocks=[])) is None


def test_a_pipeline_s_denoisers() -> None:
    first, second = Model(blocks=[Plain()]), Model(blocks=[Plain(), Plain()])
    pipe = Pipe(vae=Model(blocks=[Plain()]), transformer=first, transformer_2=second, scheduler=object())
    found = find_denoisers(pipe)
    assert [(layout.name, layout.root) for layout in found] == [("transformer", first), ("transformer_2", second)]
    assert [layout.root for layout in find_denoisers(Pipe(transformer=first, transformer_2=None))] == [first]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Model(odd=[Other()]), "in Model: searched its children proj (Linear), odd (ModuleList) for"),
        (Plain(), "in Plain: searched its children none for"),
        (Pipe(unet=Other(), scheduler=object()), "in Pipe: searched its components unet (Other) for"),
        (Pipe(transformer=Other()), "searched its components transformer (Other) for"),
        (Pipe(), "searched its components none for"),
        ("a path", "in str: searched its components none for"),
    ],
)
def test_what_was_searched_is_said(target: Any, said: str) -> None:
    with pytest.raises(AttachError) as error:
        find_denoisers(target)
    text = str(error.value)
    assert said in text and text.startswith("No transformer blocks") and "\n" not in text
    assert text.endswith("Give a diffusers pipeline with a transformer, or the transformer itself.")


def test_streams_by_position_and_by_name() -> None:
    assert block_of(Plain).streams((IMAGE,), {}) == (IMAGE, None)
    assert block_of(Plain).streams((), {"hidden_states": IMAGE, "temb": TEXT}) == (IMAGE, None)
    assert block_of(Two).streams((TEXT, IMAGE), {}) == (IMAGE, TEXT)
    assert block_of(Two).streams((None,), {"hidden_states": IMAGE}) == (IMAGE, None)
    with pytest.raises(AttachError, match=r"Block blocks\.0 was called without a hidden_states tensor"):
        block_of(Two).streams((TEXT,), {})


def test_the_order_of_a_pair_is_read_from_the_source() -> None:
    assert block_of(Two).order == (1, 0)
    assert block_of(Plain).order is None and block_of(Opaque).order is None


def test_the_source_is_believed_where_shapes_do_not_tell() -> None:
    text, far = IMAGE + 0.1, IMAGE + 9  # as many tokens of text as of image, and the image moved further
    assert output_order(block_of(Two), (text, far), (IMAGE, IMAGE + 1)) == (1, 0)
    assert output_order(block_of(Two), (IMAGE, TEXT), (IMAGE, TEXT)) == (0, 1), "but for shapes that contradict it"


def test_the_order_of_a_pair_without_a_source() -> None:
    block = block_of(Opaque)
    assert output_order(block, (TEXT, IMAGE), (IMAGE, TEXT)) == (1, 0)
    assert output_order(block, (IMAGE, None), (IMAGE, TEXT)) == (0, 1)
    near, far = IMAGE + 0.1, IMAGE + 1.1  # both of the image's shape: nearer to it, or to the text
    assert output_order(block, (far, near), (IMAGE, IMAGE + 1)) == (1, 0)
    assert output_order(block, (near, far), (IMAGE, IMAGE + 1)) == (0, 1)
    with pytest.raises(AttachError, match="returns no stream of its input's shape"):
        output_order(block, (TEXT, TEXT), (IMAGE, TEXT))


def test_unpack_and_pack() -> None:
    assert unpack(block_of(Plain), IMAGE, (IMAGE, None)) == (IMAGE, None)
    assert unpack(block_of(Two), (TEXT, IMAGE), (IMAGE, TEXT)) == (IMAGE, TEXT)
    assert pack(None, (IMAGE, None)) is IMAGE
    assert pack((1, 0), (IMAGE, TEXT)) == (TEXT, IMAGE)
    assert pack((0, 1), (IMAGE, None)) == (IMAGE, None)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ((IMAGE, TEXT, TEXT), "returns a tuple of 3; a tensor or a pair"),
        ({"sample": IMAGE}, "returns dict; a tensor or a pair"),
        (TEXT, "changes the shape of its hidden states"),
    ],
)
def test_outputs_that_cannot_be_cached(raw: Any, said: str) -> None:
    with pytest.raises(AttachError, match=said):
        unpack(block_of(Plain), raw, (IMAGE, None))
