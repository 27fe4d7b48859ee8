"""The name of a page: a digest of everything its numbers depend on.

Two pages have the same key only if model, tokenizer, adapter, dtype, codec, tenant, every token of the prefix and the
place where the page begins are the same. So one tenant cannot get another's page, nor one model another model's: they
do not have its name.

A key begins with a mark of the tenant, so that what one tenant stored can be listed and purged without reading it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from tenuto.errors import InputError

__all__ = ["KeySpace", "page_key", "tenant_mark"]

PERSON = b"tenuto.page.2"
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpace:
    """All that a page depends on but its tokens.

    Attributes:
        model: name of all that its numbers depend on (:class:`tenuto.identity.Identity`); tokenizer: likewise.
        adapter: fingerprint of what is added to the weights, such as a LoRA; empty for none.
        dtype: of the keys and values as computed; codec: how they are stored.
        tenant: who may read the page. A long random text also makes keys that nobody else can work out.
    """

    model: str
    tokenizer: str
    adapter: str
    dtype: str
    codec: str
    tenant: str

    def keys(self, tokens: Sequence[int], page: int) -> Iterator[str]:
        """The keys of the whole pages of ``tokens``, in order; n pages cost O(n). A rest shorter than a page has none.

        Args:
            tokens: ids of the sequence from its first token; page: tokens per page, at least 1.

        Raises:
            InputError: no such page size or token id.
        """
        if page < 1:
            raise InputError(f"A page of {page} tokens was asked for. Give at least 1.")
        prefix = self._digest()
        for start in range(0, len(tokens) - page + 1, page):
            prefix.update(_encode(tokens[start : start + page]))
            yield _finish(self.tenant, prefix.copy(), start)

    def _digest(self) -> hashlib.blake2b:
        digest = hashlib.blake2b(digest_size=32, person=PERSON)
        for text in astuple(self):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(struct.pack("<Q", len(data)) + data)
        return digest


def page_key(
    *,
    model: str,
    tokenizer: str,
    adapter: str,
    dtype: str,
    codec: str,
    tokens: Sequence[int],
    start: int,
    tenant: str,
) -> str:
    """The key of the page that holds the tokens from ``start`` to the end of ``tokens``: a mark, 64 hex digits.

    Args:
        tokens: ids of the whole prefix, up to and including the last token of this page.
        start: index in ``tokens`` of the page's first token.
        model, tokenizer, adapter, dtype, codec, tenant: see :class:`KeySpace`.

    Raises:
        InputError: the page is empty, or a token id is not in [0, 2**63).
    """
    if not 0 <= start < len(tokens):
        raise InputError(f"A page from token {start} of {len(tokens)} was asked for. Give a start within the tokens.")
    space = KeySpace(model=model, tokenizer=tokenizer, adapter=adapter, dtype=dtype, codec=codec, tenant=tenant)
    prefix = space._digest()
    prefix.update(_encode(tokens))
    return _finish(tenant, prefix, start)


def _encode(tokens: Sequence[int]) -> bytes:
    """8 bytes a token: the digest ends with one more such number, so no two inputs give the same bytes."""
    if bad := [token for token in tokens if not 0 <= token <= LARGEST]:
        raise InputError(f"Token id {bad[0]} was given. Token ids are whole numbers from 0 to 2**63 - 1.")
    return struct.pack(f"<{len(tokens)}Q", *tokens)


def tenant_mark(tenant: str) -> str:
    """What the keys of a tenant's pages begin with: 16 hex digits and a dash."""
    data = tenant.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8, person=b"tenuto.tenant.1").hexdigest() + "-"


def _finish(tenant: str, prefix: hashlib.blake2b, start: int) -> str:
    prefix.update(struct.pack("<Q", start))
    return tenant_mark(tenant) + prefix.hexdigest()
