from __future__ import annotations

from collections.abc import Callable

from tenuto.records.diffusion import Run
from tenuto.report.diffusion.table import table_rows
from tenuto.report.facts import common_facts, differences, headlines


def test_settings_that_differ_are_listed_with_their_policies(make: Callable[..., Run]) -> None:
    runs = [make("none"), make("a"), make("b", settings={"steps": 20, "samples": 99})]
    named = [(run.policy, run) for run in runs]
    found = {difference.name: difference.values for difference in differences(named)}
    assert found["samples"] == [("12", ["none", "a"]), ("99", ["b"])]
    assert found["seed"] == [("0", ["none", "a"]), ("—", ["b"])]
    assert {fact.name for fact in common_facts(named)} == {
        *("model", "weights", "family", "device", "steps"),
        *("tenuto", "torch", "diffusers", "python"),
    }


def test_headlines(make: Callable[..., Run]) -> None:
    runs = [
        make("none"),
        make("fast", speedup=3.0, psnr=22.0),
        make("good", speedup=1.5, psnr=33.0),
        make("slow", speedup=0.9, psnr=50.0),
        make("held", speedup=9.0, psnr=60.0, withheld="nothing was reused"),
    ]
    policies, fastest, close, closest = headlines(table_rows(runs))
    assert (policies.value, policies.note) == ("4", "against the uncached model; 1 of them without a speed-up")
    assert (fastest.policy, fastest.value, fastest.note) == ("fast", "3.00×", "at 22.0\u00a0dB")
    assert (close.policy, closest.policy) == ("good", "good")


def test_headlines_without_any_speedup(make: Callable[..., Run]) -> None:
    (only,) = headlines(table_rows([make("a", speedup=None)]))
    assert only.note == "without a baseline Run ('none'); 1 of them without a speed-up"
