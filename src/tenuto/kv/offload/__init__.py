"""Long context beyond memory: old entries leave the model's memory as pages, and a step reads only the pages it needs.

A page is one layer's keys and values of a few tokens, all KV heads together, written once to a tier
(:mod:`tenuto.tiers`). In memory stay sinks, the recent window, a summary of every page and the *hot set*: pages that
were read last, as many as the budget leaves room for. The policy's :class:`tenuto.kv.index.Index` chooses from the
summaries. ``paged`` is one layer, ``row`` one row of it, ``pool`` the way to the tier, ``read`` the attention,
``prefetch`` and ``predict`` fetch pages before their layer asks.
"""
