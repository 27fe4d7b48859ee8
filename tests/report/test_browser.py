"""The page in a real browser: no console errors, no outside requests, and it does what it says."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tenuto.records.diffusion import Run, write_run
from tenuto.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install the package `chromium`"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1280,900",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE = 90.0


@dataclass
class Page:
    """What a page did while it was loading and since: complaints on the console, and every address it asked for."""

    session: str
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: bool = False

    @property
    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("file:", "data:", "about:"))]

    def note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"].get("exception", params)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True


class Browser:
    """Chromium over its DevTools pipe: messages are JSON texts, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        pairs = os.pipe(), os.pipe()
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (pairs[0][0], pairs[1][1]))
        command = [
            sys.executable,
            "-c",
            LAUNCH,
            str(read),
            str(write),
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(read, write), start_new_session=True, **quiet)
        for fd in (read, write, pairs[0][0], pairs[1][1]):
            os.close(fd)
        self.to, self.back, self.rest, self.number = pairs[0][1], pairs[1][0], b"", 0
        self.pages: dict[str, Page] = {}

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.back], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("chromium did not answer")
            got = os.read(self.back, 1 << 16)
            if not got:
                raise ConnectionError("chromium ended")
            self.rest += got
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def _handle(self, message: dict[str, Any]) -> None:
        page = self.pages.get(message.get("sessionId", ""))
        if page and "method" in message:
            page.note(message["method"], message["params"])

    def ask(self, method: str, page: Page | None = None, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if page:
            message["sessionId"] = page.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._message(deadline)).get("id") != self.number:
            self._handle(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> Page:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = Page(session=self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        self.pages[page.session] = page
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.ask(f"{domain}.enable", page)
        self.ask("Emulation.setDeviceMetricsOverride", page, width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", page, features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.loaded = False
        self.ask("Page.navigate", page, url=path.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not page.loaded:
            self._handle(self._message(deadline))
        self.evaluate(page, "new Promise(done => setTimeout(done, 200))")
        return page

    def evaluate(self, page: Page, expression: str) -> Any:
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.ask("Runtime.evaluate", page, **options)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, page: Page, path: Path) -> None:
        shot = self.ask("Page.captureScreenshot", page, captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.to)
        os.close(self.back)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def report(example: tuple[Path, list[bytes]]) -> Path:
    return write_report(example[0]).path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_console_errors_and_outside_requests(browser: Browser, report: Path, scheme: str) -> None:
    page = browser.open(report, scheme=scheme)
    assert page.console == []
    assert page.outside == []
    assert page.requests[0] == report.resolve().as_uri()
    background = browser.evaluate(page, "getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("<script>throw new Error('broken')</script>", "console"),
        ("<script>console.error('broken')</script>", "console"),
        ("<img src='http://tenuto.invalid/x.png' alt=''>", "outside"),
        ("<script>fetch('http://tenuto.invalid/x.json').catch(() => 0)</script>", "outside"),
        ("<link rel='stylesheet' href='http://tenuto.invalid/x.css'>", "outside"),
    ],
)
def test_the_check_can_fail(browser: Browser, tmp_path: Path, fault: str, where: str) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(f"<!doctype html><title>bad</title><body>{fault}</body>")
    assert getattr(browser.open(bad), where)


def test_a_request_smuggled_into_the_report_is_refused_and_seen(browser: Browser, report: Path) -> None:
    report.write_text(report.read_text().replace("<main>", "<main><img src='http://tenuto.invalid/x.png' alt=''>"))
    page = browser.open(report)
    assert any("Content Security Policy" in line for line in page.console)


def test_every_picture_is_drawn(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    widths = browser.evaluate(page, "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert widths == [64] * 12
    sizes = (
        "[...document.querySelectorAll('.view-a svg, svg.plot, .pane use')].map(s => s.getBoundingClientRect().width)"
    )
    assert min(browser.evaluate(page, sizes)) > 100


def test_a_click_on_a_heading_sorts_and_keeps_gaps_last(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    click = "document.querySelectorAll('thead .heading')[{}].click()"
    column = (
        "[...document.querySelectorAll('tbody.methods tr')].map(r => r.cells[{}].querySelector('.value').textContent)"
    )
    browser.evaluate(page, click.format(1))
    assert browser.evaluate(page, column.format(1)) == ["2.90×", "2.40×", "1.98×", "1.70×", "—", "—"]
    assert browser.evaluate(page, "document.querySelectorAll('thead th')[1].ariaSort") == "descending"
    browser.evaluate(page, click.format(1))
    assert browser.evaluate(page, column.format(1)) == ["1.70×", "1.98×", "2.40×", "2.90×", "—", "—"]
    assert browser.evaluate(page, "document.querySelector('tbody tr th').textContent").startswith("none")
    browser.evaluate(page, click.format(3))
    assert browser.evaluate(page, column.format(3))[0] == "30.10"
    assert page.console == []


def test_switches_change_the_view(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    views = "'#{0}-2-a ~ .pair > .view-a, #{0}-2-a ~ .pair > .view-b'"
    shown = f"[...document.querySelectorAll({views})].map(e => e.offsetWidth > 0)"
    for group in ("picture", "map"):
        assert browser.evaluate(page, shown.format(group)) == [True, False]
        browser.evaluate(page, f"document.querySelector('label[for={group}-2-b]').click()")
        assert browser.evaluate(page, shown.format(group)) == [False, True]
        browser.evaluate(page, f"document.querySelector('[data-group={group}] [data-view=a]').click()")
        assert browser.evaluate(page, shown.format(group)) == [True, False]


@pytest.fixture
def both(example: tuple[Path, list[bytes]], kv_example: Path) -> Path:
    for record in kv_example.iterdir():
        shutil.copy(record, example[0])
    return write_report(example[0]).path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_parts_open_without_complaints(browser: Browser, both: Path, scheme: str) -> None:
    page = browser.open(both, width=390, scheme=scheme)
    assert (page.console, page.outside) == ([], [])
    assert browser.evaluate(page, "document.documentElement.scrollWidth") <= 390
    mark = "getComputedStyle(document.querySelector('#kv .small .mark.m0')).fill"
    assert browser.evaluate(page, mark) == {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}[scheme]


def test_each_table_sorts_by_itself(browser: Browser, both: Path) -> None:
    page = browser.open(both)
    rows = "[...document.querySelectorAll('#{} tbody.methods tr')]"
    held = rows.format("kv") + ".map(r => r.cells[3].querySelector('.value').textContent)"
    names = rows.format("diffusion") + ".map(r => r.cells[0].textContent).join()"
    before = browser.evaluate(page, names)
    browser.evaluate(page, "document.querySelectorAll('#kv thead .heading')[3].click()")
    percent = [f"{share}\u00a0%" for share in ("12.5", "12.5", "25.0", "25.0", "50.0", "50.0")]
    assert browser.evaluate(page, held) == [*percent, "—", "—", "—"]
    assert browser.evaluate(page, names) == before
    assert browser.evaluate(page, "document.querySelectorAll('[aria-sort]').length") == 1


def test_a_table_of_true_errors_leaves_the_switches_working(
    browser: Browser, example: tuple[Path, list[bytes]], make: Callable[..., Run]
) -> None:
    numbers = dict.fromkeys(("estimates", "worst", "mean", "output_error", "output_bound"), 0.5)
    shadow = {**numbers, "rtol": None, "kept": None}
    write_run(make("shadowed:n=1", shadow=shadow), example[0])
    page = browser.open(write_report(example[0]).path)
    assert page.console == []
    assert browser.evaluate(page, "document.querySelector('.switch-all').hidden") is False


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_off_the_side(browser: Browser, report: Path, width: int) -> None:
    page = browser.open(report, width=width)
    assert browser.evaluate(page, "document.documentElement.scrollWidth") <= width


def test_only_a_baseline_makes_a_page_too(
    browser: Browser,
    tmp_path: Path,
    write_example: Callable[[Path, Sequence[Run]], list[bytes]],
    make: Callable[..., Run],
) -> None:
    write_example(tmp_path, [make("none")])
    page = browser.open(write_report(tmp_path).path)
    assert (page.console, page.outside) == ([], [])


def test_the_table_fits_a_laptop(browser: Browser, report: Path) -> None:
    page = browser.open(report, width=1366)
    assert browser.evaluate(page, "(s => s.scrollWidth - s.clientWidth)(document.querySelector('.scroll'))") <= 0
