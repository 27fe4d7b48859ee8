"""The KV part as text, alone and beside the part about images."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tenuto.records.kv import KVRun, write_kv_run
from tenuto.report import write_report


class Outline(HTMLParser):
    """Headings with their level, ids, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "input", "wbr", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element, line {self.getpos()[0]}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)


@pytest.fixture
def both(example: tuple[Path, list[bytes]], kv_example: Path) -> Path:
    for record in kv_example.iterdir():
        shutil.copy(record, example[0])
    return example[0]


def test_a_folder_of_kv_records_makes_a_page(kv_example: Path) -> None:
    text = write_report(kv_example).path.read_text()
    outline = Outline(text)
    assert outline.open == []
    assert [title for tag, title in outline.headings if tag == "h2"] == [
        "Numbers",
        "Quality and memory",
        "Speed",
        "What was kept",
        "How to read this",
    ]
    rows = re.findall(r'<th scope="row".*?</tr>', text, flags=re.S)
    assert len(rows) == 11
    assert sum("full cache, the baseline" in row for row in rows) == 2
    assert sum("withheld: it has &lt;no&gt; chat template" in row for row in rows) == 2
    assert text.count('<svg class="plot"') == 2 * (2 + 2)
    assert text.count('<svg class="heat"') == 2 * 3
    assert "Nothing was recorded for" in text
    for part in ("tiny-lm", "5af571", "CPU, 1 thread, float32", "5.23.0", "--policies &#39;a,b&#39;"):
        assert part in text


def test_both_families_are_two_parts_with_headings(both: Path) -> None:
    outline = Outline(write_report(both).path.read_text())
    assert outline.open == []
    assert [title for tag, title in outline.headings if tag == "h2"] == ["Image generation", "Key-value caches"]
    assert [title for tag, title in outline.headings if tag == "h3"].count("Numbers") == 2
    assert len(outline.ids) == len(set(outline.ids))


def test_every_link_leads_somewhere(both: Path) -> None:
    text = write_report(both).path.read_text()
    links = re.findall(r'href="#([^"]+)"', text)
    assert {"diffusion", "kv", "reading", "kv-reading"} <= set(links) <= set(Outline(text).ids)


def test_only_images_look_as_before(example: tuple[Path, list[bytes]]) -> None:
    text = write_report(example[0]).path.read_text()
    assert "Key-value caches" not in text
    assert "part-title" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_the_records_are_in_the_page(kv_example: Path) -> None:
    text = write_report(kv_example).path.read_text()
    told = re.findall(r"<pre><code>(.*?)</code></pre>", text, flags=re.S)[-1]
    rows = json.loads(told.replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'"))
    assert len(rows) == 2 * (2 * 4 + 1) + 1
    assert {row["task"] for row in rows} == {"niah_single", "perplexity", None}


def test_nothing_outside_is_named(both: Path) -> None:
    text = re.sub('base64,[^"]*', "base64,", write_report(both).path.read_text())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"<script>.*?</script>", "", text, flags=re.S))


def test_unequal_conditions_name_policy_budget_and_context(kv_example: Path, kv: Callable[..., KVRun]) -> None:
    write_kv_run(kv("late", device="GPU, bfloat16"), kv_example)
    assert "<b>GPU, bfloat16</b> (late, keep=0.25, 1,024 tokens)" in write_report(kv_example).path.read_text()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"heads": [[2.0]]}, r"'snapkv' is damaged: heads is '\[\[2\.0\]\]', not \[layers\]\[kv_heads\] of fractions"),
        ({"colour": 1}, r"kv-snapkv-keep=0\.1-512\.json .* unknown fields \['colour'\]"),
        ({"scores": {"vt": {}}}, r"kv-snapkv-keep=0\.1-512\.json .* it has no count, interval, unit"),
    ],
)
def test_a_damaged_record_is_named_and_left_out(kv_example: Path, damage: object, said: str) -> None:
    record = kv_example / "kv-snapkv-keep=0.1-512.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **damage}))  # type: ignore[dict-item]
    (line,) = write_report(kv_example).refused
    assert re.search(said, line)


def test_same_records_same_page(both: Path) -> None:
    first = write_report(both).path.read_bytes()
    assert write_report(both).path.read_bytes() == first
