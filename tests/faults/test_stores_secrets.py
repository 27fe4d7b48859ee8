"""No password of an address is shown: not in messages, warnings, recorded commands or names, however it is written."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tenuto.cli import main
from tenuto.cli.group import command
from tenuto.errors import TenutoError, redact
from tenuto.tiers.address import open_levels
from tenuto.tiers.remote import RemoteTier

SECRET = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'\\"), min_size=6, max_size=16
)
SCHEMES = st.sampled_from(["redis", "rediss", "valkey", "valkeys", "unix", "s3", "memory", "nosuch", "http", "reids"])
FORMS = st.sampled_from(
    [
        "{scheme}://user:{secret}@host:6379/0",
        "{scheme}://:{secret}@host",
        "{scheme}://{secret}@host/0?codec=int8",
        "{scheme}://user:{secret}@[::1]:6379",
        "{scheme}://host:6379/0?password={secret}",
        "{scheme}://host?codec=raw&secret={secret}&max=1GiB",
        "{scheme}://user:{secret}@/run/server.sock?db=1",
        "host:?max=1MiB,{scheme}://user:{secret}@host",
        "{scheme}://user:{secret}",
    ]
)


@st.composite
def addresses(draw: st.DrawFn) -> tuple[str, str]:
    """An address, and the secret in it."""
    secret = f"sEcReT{draw(SECRET)}"
    written, form = quote(secret, safe="") if draw(st.booleans()) else secret, draw(FORMS)
    assume("@" not in written or "host" in form or "/run" in form)  # what follows an @ would be the host
    return form.format(scheme=draw(SCHEMES), secret=written), secret


def shown(text: str, secret: str) -> bool:
    """Whether a part of the secret can be read: its beginning, or its last letters where they are a part apart."""
    return "sEcReT" in text or quote("sEcReT") in text or secret[-5:] in text


@settings(max_examples=300, deadline=None)
@given(addresses())
def test_no_part_of_a_password_is_left(given: tuple[str, str]) -> None:
    address, secret = given
    assert not shown(redact(address), secret), redact(address)
    assert not shown(redact(f"Cannot reach {address}"), secret)


@settings(max_examples=100, deadline=None)
@given(addresses())
def test_no_message_shows_one(given: tuple[str, str]) -> None:
    address, secret = given
    said: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for level in open_levels(address):
                said += [repr(level), str(vars(level.tier).get("name", ""))]
                level.tier.close()
        except TenutoError as error:
            said.append(str(error))
            assert error.__suppress_context__ or error.__cause__ is None or not shown(str(error.__cause__), secret)
    said += [str(each.message) for each in told]
    assert not any(shown(text, secret) for text in said), said


@pytest.mark.parametrize(
    ("address", "rest"),
    [
        ("redis://user:pass@host:6379/0?codec=int8", "redis://...@host:6379/0?codec=int8"),
        ("redis://host:6379/0?timeout=5&password=x", "redis://host:6379/0?timeout=5&password=..."),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("disk:~/a@b?max=1GiB", "disk:~/a@b?max=1GiB"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock?db=1"),
        ("user:pass@host:6379", "...@host:6379"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("--store=redis://u:p@h", "--store=redis://...@h"),
        ("no address at all", "no address at all"),
    ],
)
def test_what_is_no_secret_stays(address: str, rest: str) -> None:
    assert redact(address) == rest


def test_commands_and_errors_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "redis://me:s3cret@host:1/0?ssl_password=hidden"
    monkeypatch.setattr("sys.argv", ["tenuto", "run", "--store", address, f"--other={address}"])
    assert "s3cret" not in command() and "hidden" not in command()
    for args in (["store", "stat", address], ["store", "stat", "host:", address], ["store", address]):
        result = CliRunner().invoke(main, args, prog_name="tenuto")
        assert result.exit_code == 2 and "s3cret" not in result.output and "hidden" not in result.output, result.output


def test_no_other_place_writes_the_command_line_into_records() -> None:
    """Scripts and the package have words of their own command from one place, which redacts."""
    root = Path(__file__).parents[2]
    paths = [*(root / "src").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    bare = re.compile(r"(join|f\")[^\n]*sys\.argv|sys\.orig_argv")
    assert bare.search("shlex.join(sys.argv)") and bare.search('f"python {sys.argv}"')
    assert not [path.name for path in paths if bare.search(path.read_text())]


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with RemoteTier("redis://me:s3cret@127.0.0.1:1/0", timeout=0.5) as tier:
        assert tier.name == "127.0.0.1:1"
        with pytest.warns(RuntimeWarning, match="cannot be used") as caught:
            assert tier.get("k") is None
    assert "s3cret" not in str(caught[0].message)
