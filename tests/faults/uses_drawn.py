"""Uses of a cache, drawn by hypothesis: ``TENUTO_DRAWS`` of them, 60 that are the same everywhere by default."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tenuto.testing.uses import CALLS, Use

DRAWS = int(os.environ.get("TENUTO_DRAWS", "60"))
drawn: Any = settings(
    max_examples=DRAWS,
    derandomize=DRAWS == 60,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
uses: Any = st.builds(
    Use,
    padding=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
    right=st.booleans(),
    calls=st.lists(st.tuples(st.sampled_from(CALLS), st.integers(1, 8)), max_size=5).map(
        lambda calls: (("read", 8), *calls)
    ),
    seed=st.integers(0, 99),
)
