"""KVzip: the context in chunks, the most attention, one budget for all layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from views import scored_of, view_of

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import PolicyError
from tenuto.kv.attach import attach
from tenuto.kv.policies.kvzip import JointLayers, KVzip, Repetition
from tenuto.testing.kv import TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def test_chunks_are_led_in() -> None:
    parts = Repetition(chunk=10, instruction="90 91").replay(torch.arange(25))
    assert [part.tolist() for part in parts] == [
        [90, 91, *range(10)],
        [90, 91, *range(2, 20)],
        [90, 91, *range(12, 25)],
    ]
    assert not Repetition().replay(torch.arange(0))


def test_the_most_attention_of_any_query_head() -> None:
    attention = torch.tensor(
        [[[0.1, 0.6, 0.3, 0.0], [0.5, 0.3, 0.2, 0.0]], [[0.2, 0.2, 0.6, 0.0], [0.1, 0.1, 0.8, 0.0]]]
    )
    state = Repetition().observe(torch.tensor([[0.0], [0.7], [0.0], [0.0]]), attention, torch.tensor([9, 10]))
    torch.testing.assert_close(state[:, 0], torch.tensor([0.5, 0.7, 0.8, 0.0]))
    assert state[3] > 0, "an entry that no query looks at is one that was repeated"


def test_decoded_entries_count_above_all_others() -> None:
    view = replace(view_of(torch.zeros(1, 4, 2)), state=torch.tensor([[[0.9], [0.2], [0.0], [0.0]]]))
    torch.testing.assert_close(Repetition().score(view), torch.tensor([[0.9, 0.2, 3.0, 4.0]]))


def test_one_budget_for_all_layers() -> None:
    """Seven entries: four are protected, the three best of the others are 9, 8 (layer 0, head 0) and 7 (layer 1)."""
    first = scored_of([[9.0, 8.0, 1.0, 0.0], [2.0, 3.0, 1.0, 0.0]], protected=1)
    second = scored_of([[1.0, 1.0, 0.0], [7.0, 2.0, 0.0]], protected=1)
    counts = JointLayers().allocate([first, second], 7)
    assert [count.tolist() for count in counts] == [[3, 1], [1, 2]]
    assert [count.tolist() for count in JointLayers().allocate([first, second], 99)] == [[4, 4], [3, 3]]


def test_the_repetition_is_a_real_one() -> None:
    """The state of an entry is the most attention any token of the repetition pays it, computed without the engine."""
    prompt = tokens(30)
    model = TinyLM()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        twice = model(torch.cat([prompt, prompt], 1), output_attentions=True).attentions[0][0]
    model = TinyLM()
    with attach(model, KVzip(), budget=MemoryBudget.keep(1)) as run:
        follow(model, cache := run.cache(), prompt, tokens(0))
        assert cache.engine[0].held is not None
        for head in range(2):
            state = cache.engine[0].held.column(head, "state")
            expected = twice[2 * head : 2 * head + 2, 30:, :30].amax((0, 1))
            assert state is not None
            torch.testing.assert_close(state[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_text() -> None:
    policy = KVzip(instruction="12 7")
    assert catalog.parse(catalog.text(policy), "kv") == policy


@pytest.mark.parametrize(
    ("options", "message"), [({"chunk": 0}, "chunk must be at least 1"), ({"instruction": "Repeat"}, "give token ids")]
)
def test_what_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        KVzip(**options)  # type: ignore[arg-type]
