from __future__ import annotations

import re
from collections.abc import Callable

from tenuto.records.kv import KVRun, Score
from tenuto.records.timing import Timing
from tenuto.report.kv.plots import kv_legend, quality_plots, ratio_plot
from tenuto.report.kv.table import kv_rows


def test_a_plot_for_each_task_with_its_own_context(kv: Callable[..., KVRun]) -> None:
    rows = kv_rows([kv("none"), kv("a"), kv("none", context=512), kv("b", context=512), kv("c", withheld="no")])
    plots = quality_plots(rows, 512)
    assert [plot.title for plot in plots] == ["niah_single", "perplexity"]
    assert re.findall(r"<title>(\d: \w)", plots[0].svg) == ["2: b"]
    assert [name for name, _ in kv_legend(rows)] == ["a", "b"]
    assert all(plot.left_out == [] for plot in plots)


def test_fewer_bytes_are_left_and_better_is_up(kv: Callable[..., KVRun], score: Callable[..., Score]) -> None:
    few = kv("a", budget="keep=0.1", bytes_held=2**20, scores={"vt": score(0.5)})
    many = kv("a", budget="keep=0.5", bytes_held=4 * 2**20, scores={"vt": score(0.9)})
    (plot,) = quality_plots(kv_rows([kv("none", scores={"vt": score(loss=None)}), few, many]), 1024)
    (x1, y1), (x2, y2) = (map(float, place) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', plot.svg))
    assert x1 < x2
    assert y1 > y2
    assert plot.svg.count('class="curve') == 1
    assert plot.svg.count('class="whisker') == 2
    assert "50.0 (45.0\u00a0to\u00a055.0)\nholds 12.5\u00a0%" in plot.svg


def test_the_full_cache_is_a_dashed_line_in_its_interval(kv: Callable[..., KVRun]) -> None:
    plot = quality_plots(kv_rows([kv("none"), kv("a")]), 1024)[0]
    line = float(re.search(r'class="uncached" d="M[\d.]+ ([\d.]+)H', plot.svg)[1])  # type: ignore[index]
    top, high = map(float, re.search(r'class="band".*? y="([\d.]+)".*? height="([\d.]+)"', plot.svg).groups())  # type: ignore[union-attr]
    assert top < line < top + high
    assert "uncached" not in quality_plots(kv_rows([kv("a")]), 1024)[0].svg


def test_what_is_not_measured_is_named_not_drawn(kv: Callable[..., KVRun], score: Callable[..., Score]) -> None:
    rows = kv_rows([kv("none", scores={"vt": score(loss=None)}), kv("a", scores={}), kv("b", ttft=None, bytes_full=0)])
    plot = quality_plots(rows, 1024)[0]
    assert (plot.svg, plot.left_out) == ("", ["1 (a, keep=0.25)", "2 (b, keep=0.25)"])
    assert ratio_plot(rows, 1024, "t", lambda run: run.ttft).left_out == ["2 (b, keep=0.25)"]


def test_faster_is_right_of_1(kv: Callable[..., KVRun]) -> None:
    def run(policy: str, ratio: float) -> KVRun:
        pairs = Timing(seconds=(1.0,) * 3, baseline_seconds=(0.9 * ratio, ratio, 1.1 * ratio))
        return kv(policy, decode=pairs)

    plot = ratio_plot(kv_rows([kv("none"), run("slow", 0.5), run("fast<", 2.0)]), 1024, "t", lambda run: run.decode)
    one = float(re.search(r'class="uncached" d="M([\d.]+) ', plot.svg)[1])  # type: ignore[index]
    slow = float(re.search(r'cx="([\d.]+)"', plot.svg)[1])  # type: ignore[index]
    fast = float(re.search(r'points="([\d.]+),', plot.svg)[1])  # type: ignore[index]
    assert slow < one < fast
    assert "2: fast&lt;, keep=0.25\n2.00×, n=3, 1.80\u00a0to\u00a02.20" in plot.svg


def test_nothing_timed_no_plot(kv: Callable[..., KVRun]) -> None:
    assert ratio_plot(kv_rows([kv("none"), kv("a", ttft=None)]), 1024, "t", lambda run: run.ttft).svg == ""


def test_long_names_are_shortened_and_whole_in_the_title(kv: Callable[..., KVRun]) -> None:
    name = "expected_attention+kivi:bits=4:group=32"
    svg = ratio_plot(kv_rows([kv(name)]), 1024, "t", lambda run: run.ttft).svg
    assert f"<title>1: {name}, keep=0.25" in svg
    assert re.search(r'class="tick"[^>]*>expected_attention\+kivi:bits=4:g…<', svg)
