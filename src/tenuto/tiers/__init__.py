"""Where pages of KV live when they are not in the model: in memory, on disk, on a server, or in several at once.

A page is a run of cached tokens, immutable, named by what it was computed from (:mod:`tenuto.tiers.key`) and written as
bytes that describe and check themselves (:mod:`tenuto.tiers.page`). A tier (:mod:`tenuto.tiers.tier`) keeps such bytes.
"""
