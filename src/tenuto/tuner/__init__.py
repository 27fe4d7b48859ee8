"""Find the policy and its numbers that meet a target: ``tenuto tune``.

    found = tune("bundled:dit-fashion", "psnr>=30", Path("tuned"))
    print(found.policy, found.met, found.speedup)

Three sets of seeds that share none: profiles are fitted on one, settings are tried on the second, and what was chosen
is measured on the third, as ``tenuto bench`` measures it. The search never sees the third.
"""

from __future__ import annotations

from tenuto.tuner.choose import Search, Setting
from tenuto.tuner.tune import Tuned, tune

__all__ = ["Search", "Setting", "Tuned", "tune"]
