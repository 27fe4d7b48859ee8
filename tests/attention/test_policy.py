import pytest

from tenuto.attention import ATTENTIONS, MKA, parse
from tenuto.errors import PolicyError


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
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
