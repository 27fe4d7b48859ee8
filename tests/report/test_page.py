"""The whole page as text: what is in it, what is not, and what happens when it cannot be written."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.records.diffusion import Run, write_run
from tenuto.report import write_report


class Table(HTMLParser):
    """Rows of the first table as lists of cell texts, and how deep the elements are left open."""

    VOID = frozenset({"meta", "img", "input", "wbr", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element, line {self.getpos()[0]}"

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return None

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()


def pictures(text: str) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(r'"data:image/png;base64,([^"]*)"', text)]


def test_default_name_and_given_name(example: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, _ = example
    assert write_report(folder).path == folder / "tenuto-report.html"
    other = tmp_path / "other.html"
    assert write_report(folder, other).path == other
    assert other.read_bytes() == (folder / "tenuto-report.html").read_bytes()
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*"))


def test_every_policy_has_a_row_and_the_baseline_is_first(example: tuple[Path, list[bytes]]) -> None:
    rows = Table(write_report(example[0]).path.read_text()).rows
    names = [row[0] for row in rows[1:]]
    assert names[0] == "noneno cache, the baseline"
    for policy in ("bare:n=1", "every_n:n=2", "every_n:n=4", "fewer_steps:n=10", "first_block:threshold=0.0"):
        assert sum(policy in name for name in names) == 1
    assert len({len(row) for row in rows}) == 1
    row = next(row for row in rows if "every_n:n=2" in row[0])
    assert row[1:6] == ["1.70×1.60\u00a0to\u00a01.80, n=5", "2.60×", "30.1029.5\u00a0to\u00a030.7", "0.9312", "12.34"]
    assert row[6:] == [
        "91.2\u00a0%",
        "66.7\u00a0%25\u00a0% forecast",
        "118\u00a0MiB",
        "3.0\u00a0MiB",
        "1\u00a0min\u00a015\u00a0s",
    ]


def test_withheld_is_a_dash_with_the_reason(example: tuple[Path, list[bytes]]) -> None:
    text = write_report(example[0]).path.read_text()
    row = next(row for row in Table(text).rows if "first_block" in row[0])
    assert row[1].startswith("—withheld: the output equals the uncached one")
    assert "first_block:threshold=0.0: no speed-up" in text


def test_missing_values_are_dashes_not_zeros(example: tuple[Path, list[bytes]]) -> None:
    row = next(row for row in Table(write_report(example[0]).path.read_text()).rows if "bare" in row[0])
    assert [cell[0] for cell in row[1:7]] == ["—"] * 6
    assert row[8].startswith("—")


def test_pictures_are_the_files(example: tuple[Path, list[bytes]]) -> None:
    folder, written = example
    found = pictures(write_report(folder).path.read_text())
    assert sorted(found) == sorted(written)
    assert len(set(found)) == len(found) == 13


def test_nothing_outside_is_named(example: tuple[Path, list[bytes]]) -> None:
    text = re.sub('base64,[^"]*', "base64,", write_report(example[0]).path.read_text())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    assert not re.search(r"https?:|import|fetch|XMLHttp", re.findall(r"<script>(.*?)</script>", text, flags=re.S)[0])
    for attribute in re.findall(r'\b(?:src|href)="([^"]{0,40})', text):
        assert attribute.startswith(("data:image/png;base64,", "#"))


def test_policy_text_is_escaped(example: tuple[Path, list[bytes]]) -> None:
    text = write_report(example[0]).path.read_text()
    assert "<b>&amp;'" not in text
    assert "&lt;b&gt;&amp;amp;&#39;&lt;/b&gt;" in text


def test_elements_are_closed(example: tuple[Path, list[bytes]]) -> None:
    assert Table(write_report(example[0]).path.read_text()).open == []


def test_head_has_model_settings_device_versions_and_command(example: tuple[Path, list[bytes]]) -> None:
    text = write_report(example[0]).path.read_text()
    for part in ("bundled:dit-fashion", "0f3a9c", "CPU, 2 threads, float32", "2.13.0", "<dd>1.5</dd>"):
        assert part in text
    commands = re.findall(r'<pre class="command"[^>]*><code>(.*?)</code>', text)
    assert len(commands) == 1
    assert commands[0].endswith("--policies &#39;a,b&#39; --steps 20 --out here")
    assert "Not the same in all Runs" not in text


def test_unequal_conditions_are_said(
    example: tuple[Path, list[bytes]], make: Callable[..., Run], write_example: Callable[..., object]
) -> None:
    write_run(make("late:n=1", device="GPU, bfloat16"), example[0])
    text = write_report(example[0]).path.read_text()
    assert "Not the same in all Runs" in text
    assert "<b>GPU, bfloat16</b> (late:n=1)" in text


def test_without_baseline_the_page_says_so(
    tmp_path: Path, make: Callable[..., Run], write_example: Callable[[Path, Sequence[Run]], object]
) -> None:
    write_example(tmp_path, [make("every_n:n=2")])
    text = write_report(tmp_path).path.read_text()
    assert "the uncached model was not measured" in text
    assert "The folder holds no baseline Run." in text


def test_same_runs_same_page(example: tuple[Path, list[bytes]]) -> None:
    first = write_report(example[0]).path.read_bytes()
    assert write_report(example[0]).path.read_bytes() == first


def test_no_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no records.*diffusion, kv, attention, prompt, reuse, shards"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


BROKEN = {
    "half": '{"policy": "a"',
    "no_family": '{"policy": "a"}',
    "a_list": "[]",
    "deep": "[" * 100_000,
    "stranger": '{"family": "cooking", "policy": "a"}',
    "fields": '{"family": "diffusion", "policy": "a", "colour": 1}',
    "nested": '{"family": "kv", "policy": "a", "budget": {"keep": [1]}, "context": {}}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_record_is_named_and_the_rest_is_shown(example: tuple[Path, list[bytes]], name: str) -> None:
    (example[0] / f"{name}.json").write_text(BROKEN[name])
    report = write_report(example[0])
    (line,) = report.refused
    assert f"{name}.json" in line and "\n" not in line and len(line) < 500
    text = report.path.read_text()
    assert f"{name}.json" in text and "could not be shown" in text and "every_n" in text


def test_what_is_no_file_is_named_and_the_rest_is_shown(example: tuple[Path, list[bytes]]) -> None:
    (example[0] / "dangling.json").symlink_to(example[0] / "absent")
    (example[0] / "folder.json").mkdir()
    os.mkfifo(example[0] / "pipe.json")  # reading it would wait for ever
    refused = write_report(example[0]).refused
    assert [Path(line.split(" is not")[0]).name for line in refused] == ["dangling.json", "folder.json", "pipe.json"]


def test_where_nothing_can_be_shown_nothing_is_written(tmp_path: Path) -> None:
    for name in ("half", "a_list"):
        (tmp_path / f"{name}.json").write_text(BROKEN[name])
    with pytest.raises(InputError, match=r"a_list\.json.*1 more like it"):
        write_report(tmp_path)
    assert not (tmp_path / "tenuto-report.html").exists()


def test_a_value_that_cannot_be_drawn_is_named(example: tuple[Path, list[bytes]]) -> None:
    record = next(example[0].glob("every_n_n=2.json"))
    whole = json.loads(record.read_text())
    for value, said in (("<high>", "psnr is '<high>', not a finite number"), ([], "psnr is a list")):
        record.write_text(json.dumps({**whole, "psnr": value}))
        (line,) = write_report(example[0]).refused
        assert said in line
    record.write_text(json.dumps({**whole, "grid": [[2.0]]}))
    (line,) = write_report(example[0]).refused
    assert "'every_n:n=2' is damaged: grid is" in line


def test_unwritable_targets(example: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        write_report(example[0], tmp_path / "absent" / "report.html")
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)"):
        write_report(example[0], blocker / "report.html")
    with pytest.raises(InputError, match="is a folder"):
        write_report(example[0], tmp_path)


def test_a_failed_write_leaves_the_old_report_and_no_rest(
    example: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_report(example[0]).path
    target.write_text("old")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    before = sorted(example[0].iterdir())
    with pytest.raises(InputError, match="Permission denied") as error:
        write_report(example[0])
    assert "\n" not in str(error.value)
    assert target.read_text() == "old"
    assert sorted(example[0].iterdir()) == before
