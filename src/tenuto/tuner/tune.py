"""``tune``: prepare, search, measure on held-out seeds, and write what ``attach`` takes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenuto import catalog
from tenuto.bench.diffusion import bench as diffusion_bench
from tenuto.bench.diffusion.fitting import Fitted, profiles_for
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.tuning import Trials
from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import InputError, PolicyError
from tenuto.measure.folders import check_folder
from tenuto.records.diffusion import Run
from tenuto.tuner.choose import Search, Setting
from tenuto.tuner.space import Space, space_of
from tenuto.tuner.target import Target
from tenuto.zoo.pipelines import ImageModel, load_model

__all__ = ["Tuned", "tune"]

HELD_OUT = "held-out"
RETRIES, MORE = 2, 2
"""How often a setting that missed a speed target when measured is exchanged for a stronger one, and how many more are
tried for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found.

    Attributes:
        target: as text; met: whether the policy meets it on held-out seeds.
        policy: as text; profile: its calibration profile's file, None if it needs none.
        run: the policy's record on held-out seeds; front: the records that none other beats in speed and quality.
        runs: everything measured there, the uncached baseline first.
        rejected: policies chosen before it, which missed a speed target when measured.
        trials: every setting tried, with its numbers on the search's own seeds; seconds: what it all took.
        snippet: Python that attaches it.
    """

    target: str
    met: bool
    policy: str
    profile: Path | None
    run: Run
    front: tuple[Run, ...]
    runs: tuple[Run, ...]
    rejected: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]
    seconds: float
    snippet: str

    @property
    def speedup(self) -> float | None:
        return self.run.speedup

    def sentence(self) -> str:
        """Whether the target was met, and by what."""
        speed = "no speed-up" if self.run.speedup is None else f"{self.run.speedup:.2f}x"
        closeness = "" if self.run.psnr is None else f", {self.run.psnr:.2f} dB"
        words = "target met" if self.met else "target not met, nearest"
        return f"{self.target}: {words}: {self.policy} ({speed}{closeness} on held-out seeds), {self.seconds:.0f} s."

    def row(self) -> dict[str, Any]:
        """The JSON object that ``--json`` prints."""
        return {
            "policy": self.policy,
            "profile": str(self.profile) if self.profile else None,
            "target": self.target,
            "met": self.met,
            **_point(self.run),
            "psnr_interval": self.run.psnr_interval,
            "speedup_range": self.run.speedup_range,
            "seconds": self.seconds,
            "rejected": self.rejected,
            "front": [{"policy": run.policy, **_point(run)} for run in self.front],
        }


def _point(run: Run) -> dict[str, float | None]:
    return {key: getattr(run, key) for key in ("speedup", "flops_speedup", "psnr", "ssim")}


def tune(
    model: str,
    target: str,
    out: Path,
    *,
    policies: Sequence[str] = (),
    trials: int = 8,
    job: Job | None = None,
    device: str = "auto",
    command: str = "",
) -> Tuned:
    """Search for the policy that meets a target at the least cost, and measure it on held-out seeds.

    Args:
        model: ``bundled:NAME`` or the folder of a DiTPipeline.
        target: ``psnr>=30``, ``ssim>=0.98`` (fastest wins), ``speedup>=2``, ``flops_speedup>=2`` (closest wins).
        out: folder for ``policy.txt``, ``profile.safetensors``, ``tune.json`` and the records in ``held-out/``.
        policies: names of methods; all that can be searched if empty.
        trials: settings tried per policy, at most.
        job: what the search draws per setting; the held-out seeds are as many, right after its own.
        device: "auto", or a torch device; command: stored in the records.

    Raises:
        InputError: a malformed target, a number out of range, a folder that cannot be written or holds another search,
            or no setting reused anything.
        PolicyError: there is no policy of that name. ModelError: the model is missing or damaged.
        CalibrationError: a profile does not fit.
    """
    started = time.perf_counter()
    job = job or Job(samples=40)
    aim, spaces = Target.parse(target), _spaces(policies)
    if trials < 1 or job.samples < 2:
        raise InputError(f"trials={trials}, samples={job.samples}: give at least 1 trial and 2 samples.")
    _check_unused(out)
    work = _Work(aim, load_model(model, device), job, out, device, command)
    chosen = work.search_in(spaces, trials)
    runs, rejected = work.judge(work.search.front(chosen)), list[str]()
    while not aim.met(run := _of(runs, chosen)) and aim.is_speed and len(rejected) < RETRIES:
        work.search.correct(chosen, run)
        stronger = work.search_in([space for space in spaces if space.name == chosen.name], MORE)
        if stronger.text == chosen.text:
            break
        rejected.append(chosen.text)
        chosen = stronger
        if chosen.text not in [it.policy for it in runs]:
            runs += [it for it in work.judge([chosen], fewer=()) if it.policy == chosen.text]
    return _written(work.search, chosen, runs, rejected, out, time.perf_counter() - started)


class _Work:
    """The three parts that share no seeds: profiles, search, measurement."""

    def __init__(self, target: Target, model: ImageModel, job: Job, out: Path, device: str, command: str) -> None:
        model.check(job.steps, job.guidance)
        self.model, self.job, self.out, self.device, self.command = model, job, out, device, command
        self.search, self.trials = Search(target), Trials(model, job)
        self.profiles: dict[str, list[Profile]] = {}

    def search_in(self, spaces: Sequence[Space], trials: int) -> Setting:
        """Try more settings of some policies; the best of all so far.

        Raises:
            InputError: none reused anything.
        """
        self.search.run(spaces, trials, self.trials.measure, self._profile_of, self.job.seed)
        best = self.search.best()
        if best is None:
            raise InputError(f"None of {len(self.search.settings)} settings reused anything. Give more --steps.")
        return best

    def _profile_of(self, name: str, policy: FeaturePolicy) -> Profile | None:
        """Found, or fitted once, apart from the seeds of the search and of the measurement."""
        whole, folder = _job(self.job, 0, 2 * self.job.samples), self.out / "profiles" / name
        mine = self.profiles.setdefault(name, [])
        fitted: Fitted | None = profiles_for(self.model, [policy], whole, mine, folder).get(policy)
        if fitted and not any(fitted.profile is profile for profile in mine):
            mine.append(fitted.profile)
        return fitted.profile if fitted else None

    def judge(self, settings: Sequence[Setting], fewer: Sequence[int] | None = None) -> list[Run]:
        """Measure settings on held-out seeds, as ``tenuto bench`` does."""
        profiles = {id(it.profile): it.profile for it in settings if it.profile}
        return diffusion_bench.bench(
            self.model.name,
            [it.policy for it in settings],
            self.out / HELD_OUT,
            _job(self.job, self.job.samples, self.job.samples),
            profiles=list(profiles.values()),
            fewer=fewer,
            device=self.device,
            command=self.command,
        )


def _spaces(names: Sequence[str]) -> list[Space]:
    if names:
        return [space_of(catalog.method(name, "diffusion")) for name in dict.fromkeys(names)]
    found = []
    for info in catalog.methods("diffusion").values():
        if info.cls.sweep or not any(option.required for option in info.options().values()):
            found.append(space_of(info))
    if not found:
        raise PolicyError("No method is installed that can be searched. `tenuto methods` lists what there is.")
    return found


def _job(job: Job, offset: int, samples: int) -> Job:
    return Job(steps=job.steps, samples=samples, guidance=job.guidance, seed=job.seed + offset, batch=job.batch)


def _check_unused(out: Path) -> None:
    check_folder(out)
    if any((out / HELD_OUT).glob("*.json")):
        raise InputError(f"{out} holds the records of another search. Give another --out folder.")


def _of(runs: Sequence[Run], setting: Setting) -> Run:
    return next(run for run in runs if run.policy == setting.text)


def _front(runs: Sequence[Run], search: Search) -> tuple[Run, ...]:
    """The policies' records that none other beats in both speed and quality, the slowest first."""
    tried = {setting.text for setting in search.settings}
    metric = "ssim" if search.target.metric == "ssim" else "psnr"
    points = [(run.speedup, getattr(run, metric), run) for run in runs if run.speedup and run.policy in tried]
    kept = [
        (speed, run)
        for speed, quality, run in points
        if not any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q, _ in points)
    ]
    return tuple(run for _, run in sorted(kept, key=lambda it: it[0]))


def _written(
    search: Search, chosen: Setting, runs: Sequence[Run], rejected: Sequence[str], out: Path, seconds: float
) -> Tuned:
    """The result, after writing it."""
    run = _of(runs, chosen)
    path = chosen.profile.save(out / "profile.safetensors") if chosen.profile else None
    found = Tuned(
        target=str(search.target),
        met=search.target.met(run),
        policy=chosen.text,
        profile=path,
        run=run,
        front=_front(runs, search),
        runs=tuple(runs),
        rejected=tuple(rejected),
        trials=tuple(_trial(search, setting) for setting in search.settings),
        seconds=round(seconds, 1),
        snippet=_snippet(chosen.text, path),
    )
    record = {**found.row(), "trials": found.trials, "snippet": found.snippet, "settings": run.settings}
    (out / "tune.json").write_text(json.dumps(record, indent=1, allow_nan=False))
    (out / "policy.txt").write_text(f"{chosen.text}\n")
    return found


def _trial(search: Search, setting: Setting) -> dict[str, Any]:
    outcome = setting.outcome
    return {
        "policy": setting.text,
        "psnr": sum(outcome.psnr) / len(outcome.psnr),
        "ssim": sum(outcome.ssim) / len(outcome.ssim) if outcome.ssim else None,
        "flops_speedup": outcome.flops_speedup,
        "predicted_speedup": search.predicted(setting),
        "margin": search.target.margin(outcome, search.predicted(setting)),
    }


def _snippet(policy: str, profile: Path | None) -> str:
    lines = ["import tenuto", "from tenuto import catalog", "", f"policy = catalog.parse({policy!r})"]
    given = ""
    if profile:
        lines.append(f"profile = tenuto.Profile.load({str(profile)!r})")
        given = ", profile=profile"
    return "\n".join([*lines, f"with tenuto.attach(pipe, policy{given}) as run:", "    ..."])
