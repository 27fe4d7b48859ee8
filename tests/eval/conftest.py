"""A little text as tokens, for tests of training and measuring small models."""

from __future__ import annotations

from pydoc_data.topics import topics

import pytest

from tenuto.eval.corpus import Document, split
from tenuto.eval.tokens import Tokens, tokenise


@pytest.fixture(scope="session")
def little_text() -> Tokens:
    documents = [Document(name=f"manual/{name}", text=topics[name]) for name in sorted(topics)[:50]]
    return tokenise(split(documents), pieces=512)
