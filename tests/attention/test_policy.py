import pytest

from tenuto.attention import MKA, attentions, parse
from tenuto.errors import PolicyError


@pytest.mark.parametrize("name", sorted(attentions()))
def test_a_text_and_back(name: str) -> None:
    attention = parse(name)
    assert str(attention) == name and parse(str(attention)) == attention
    assert hash(attention) == hash(parse(name))


def test_options_are_read() -> None:
    attention = parse("mka:window=64, horizons=0, original=true")
    assert attention == MKA(window=64, horizons=0, original=True)
    assert str(attention) == "mka:window=64,horizons=0,original=true"
    assert parse(str(attention)) == attention


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mkas", "Did you mean"),
        ("mka:windw=3", "Did you mean"),
        ("mka:window=x", "a whole number"),
        ("mka:original=maybe", "true or false"),
        ("mka:window=0", "1 or more"),
    ],
)
def test_a_wrong_text_is_one_sentence_that_helps(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        parse(text)


def test_an_attention_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        value = "somewhere:Mine"

        def __init__(self, given: object) -> None:
            self.given = given

        def load(self) -> object:
            return self.given

    class Mine(MKA):
        name = "mine"

    for given, said in ((Mine, ""), (int, "no attention"), (MKA, "Two attentions")):
        attentions.cache_clear()
        monkeypatch.setattr("tenuto.attention.named.entry_points", lambda group, given=given: [Point(given)])
        if said:
            with pytest.raises(PolicyError, match=said):
                parse("window")
        else:
            assert parse("mine:window=9") == Mine(window=9)
    monkeypatch.undo()
    attentions.cache_clear()
