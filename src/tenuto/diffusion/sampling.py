"""Under which sampling a profile was fitted, and whether it holds under another.

A gate's promise is about the states that calibration has seen. Samplers of one kind lead through much the same states:
profiles fitted under DDIM hold under DPM-Solver and UniPC, and under any guidance from 1 to 7.5. Under samplers that
scale their noise (Euler, Heun, LMS) they do not, and neither from noise prediction to flow matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenuto.calibration import Profile
from tenuto.errors import CalibrationError

__all__ = ["check_sampling", "check_timesteps", "facts", "kind_of"]

SCALED = ("Euler", "Heun", "LMS", "KDPM2", "EDM", "DPMSolverSDE")
ALIKE = {"plain": "DDIM, DPM-Solver or UniPC", "scaled": "Euler or Heun", "flow": "flow matching"}


def kind_of(sampler: str) -> str:
    """The kind of a scheduler, by its class name: "flow" (flow matching), "scaled" (noise of any size, the model's
    input is scaled), or "plain" (variance-preserving)."""
    if "Flow" in sampler:
        return "flow"
    return "scaled" if any(name in sampler for name in SCALED) else "plain"


def facts(scheduler: Any) -> dict[str, Any]:
    """What a profile records of the scheduler it is fitted under."""
    config: Any = getattr(scheduler, "config", {})
    kept = {key: config[key] for key in ("prediction_type", "timestep_spacing") if config.get(key) is not None}
    flow = bool(config.get("use_flow_sigmas"))  # DPM-Solver and UniPC can do flow matching too
    name = type(scheduler).__name__
    return {"sampler": name, "kind": "flow" if flow else kind_of(name), **kept}


def check_sampling(profile: Profile, scheduler: Any) -> None:
    """Refuse a profile under another kind of sampling than it was fitted under; without a record of that, nothing is
    known and nothing is refused.

    Raises:
        CalibrationError: naming both.
    """
    fitted, now = profile.settings, facts(scheduler)
    sampler = fitted.get("sampler")
    if not isinstance(sampler, str):
        return
    kind = fitted.get("kind", kind_of(sampler))
    other = [key for key in ("prediction_type",) if fitted.get(key, now.get(key)) != now.get(key)]
    if kind != now["kind"] or other:
        said = f" with {other[0]}={now.get(other[0])!r} instead of {fitted[other[0]]!r}" if other else ""
        raise CalibrationError(
            f"The profile was fitted under {sampler} and does not hold under {now['sampler']}{said}: its errors may "
            f"exceed rtol. Sample by {ALIKE.get(kind, sampler)}, or calibrate under this scheduler and pass profile=..."
        )


def check_timesteps(profile: Profile, timesteps: Sequence[float]) -> None:
    """Refuse as many timesteps as the profile was fitted on, but spaced otherwise: each must be nearest to its own.

    Raises:
        CalibrationError: naming the first that is not.
    """
    fitted = profile.numbers.get("timesteps")
    if not fitted or len(fitted) != len(timesteps):
        return  # another number of steps has its own message
    for place, timestep in enumerate(timesteps):
        nearest = min(range(len(fitted)), key=lambda i: abs(fitted[i] - timestep))
        if nearest != place:
            raise CalibrationError(
                f"Step {place} of this generation is at timestep {timestep:g}, where the profile's was at "
                f"{fitted[place]:g}: the steps are spaced otherwise. Use the timestep_spacing it was fitted with, or "
                "calibrate with this one and pass profile=..."
            )
