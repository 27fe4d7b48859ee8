"""Find the policy and its numbers that meet a target: ``tenuto tune``.

    found = tune("bundled:dit-fashion", "psnr>=30", Path("tuned"))
    print(found.policy, found.met, found.speedup)

Three sets of seeds that share none: profiles are fitted on one, settings are tried on the second, and what was chosen
is measured on the third, as ``tenuto bench`` measures it. A target of quality is never chosen by the third. A target of
speed that is missed there is tried again with a stronger setting, up to twice, on the same seeds: the clock, not the
pictures, decides that.
"""

from __future__ import annotations

from tenuto.tuner.choose import Search, Setting
from tenuto.tuner.tune import Tuned, tune

__all__ = ["Search", "Setting", "Tuned", "tune"]
