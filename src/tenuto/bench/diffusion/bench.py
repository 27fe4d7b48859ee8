"""The diffusion task: generate the same pictures under every policy and measure speed, memory and quality.

The rows: the uncached baseline ("none"), every policy, other libraries' methods if any are given, and the plain
baseline "fewer_steps:n=...", by default at the cost of the strongest and mildest of them. All rows draw the same
samples, batch by batch in turn, so that the pictures and the pairs of timings come from the same work. One untimed
batch per row comes first: it warms up and measures memory.

The ``reuse_ratio`` of "fewer_steps" is the fraction of the baseline's block executions that it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tenuto import catalog
from tenuto.bench.diffusion.clips import class_accuracy, frame_psnr, motion_error
from tenuto.bench.diffusion.contender import Calls, Contender
from tenuto.bench.diffusion.fitting import Fitted, profiles_for
from tenuto.bench.diffusion.grids import difference, grid, save_png
from tenuto.bench.diffusion.job import Job, labels_of
from tenuto.bench.diffusion.rounds import Rounds
from tenuto.bench.diffusion.rows import ImageEntry, cached
from tenuto.bench.diffusion.scores import FashionJudge, psnr, ssim
from tenuto.bench.diffusion.shadow import check_shadow, measure_shadow
from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import InputError
from tenuto.measure.devices import device_words, versions
from tenuto.measure.folders import check_folder
from tenuto.measure.resume import Unfinished
from tenuto.measure.speed import claim, interleave
from tenuto.records.diffusion import Run, read_runs, write_run
from tenuto.records.files import file_name
from tenuto.records.intervals import mean_interval
from tenuto.records.timing import Timing
from tenuto.zoo.pipelines import ImageModel, load_model

__all__ = ["BASELINE", "DEMO", "bench", "demo_policies"]

BASELINE = "none"
FEWER = "fewer_steps:n="
SHADOWED = 8
DEMO = Job(steps=50, samples=40, guidance=1.5, seed=0)
"""What `tenuto demo` generates: small enough for three minutes on two cores."""


def demo_policies() -> list[FeaturePolicy]:
    """One policy of every method, from the middle of its sweep."""
    found = catalog.methods("diffusion").values()
    return [catalog.parse(info.cls.sweep[len(info.cls.sweep) // 2] if info.cls.sweep else info.name) for info in found]


def bench(
    model: str,
    policies: Sequence[FeaturePolicy],
    out: Path,
    job: Job,
    *,
    profiles: Sequence[Profile] = (),
    rivals: Sequence[ImageEntry] = (),
    fewer: Sequence[int] | None = None,
    shadow: bool = False,
    device: str = "auto",
    command: str = "",
) -> list[Run]:
    """Measure the policies on an image model and write one record per row into ``out``, pictures beside them.

    Args:
        model: ``bundled:NAME`` or the folder of a DiTPipeline or WanPipeline.
        policies: what to compare with the uncached model.
        out: folder for records; ``images/`` and ``profiles/`` are made in it.
        job: steps, samples, guidance, seed, batch.
        profiles: for calibrated policies; others are looked up or fitted here, on seeds kept apart.
        rivals: methods of other libraries, measured in turn with ours.
        fewer: numbers of denoising steps for the "fewer_steps" rows; None for two that match the methods' cost.
        shadow: afterwards draw a few pictures in shadow mode and record every policy's true errors.
        device: "auto", or a torch device; command: stored in the records.

    Returns:
        The Runs written, the baseline first. Stopped before, the same call goes on from the last finished round
        (:mod:`tenuto.measure.resume`).

    Raises:
        InputError: the folder cannot be written or holds Runs of another job, or a number is out of range.
        ModelError: the model is missing or damaged.
        CalibrationError: a profile does not fit.
    """
    texts = [*map(catalog.text, policies), *(rival.name for rival in rivals)]
    _check(texts, fewer, job)
    check_folder(out)
    loaded = load_model(model, device)
    loaded.check(job.steps, job.guidance)
    if shadow:
        check_shadow(loaded)
    shared = _shared(loaded, job, command)
    _same_job(out, shared)
    unfinished = Unfinished(out, _plan(shared, texts, fewer))
    fitted = profiles_for(loaded, policies, job, profiles, out / "profiles")
    entries = [ImageEntry(name=BASELINE)]
    for policy in policies:
        it = fitted.get(policy)
        entries.append(cached(policy, it.profile, it.seconds) if it else cached(policy))
    rows = [Contender(entry, loaded, job) for entry in (*entries, *rivals)]
    timings = _measure(rows, loaded, job, fewer, Rounds(unfinished))
    runs = _write([_run(row, rows[0], timings.get(row.name), shared) for row in rows], rows, out)
    whole = _with_shadows(runs, policies, fitted, loaded, job, out) if shadow else runs
    unfinished.remove()
    return whole


def _check(texts: Sequence[str], fewer: Sequence[int] | None, job: Job) -> None:
    if not texts:
        raise InputError("No policy was given. Give at least one; `tenuto methods` lists them.")
    if len(set(texts)) < len(texts):
        raise InputError("A policy was given twice. Give every policy once.")
    if wrong := [n for n in fewer or () if not 1 <= n < job.steps]:
        raise InputError(f"fewer={wrong[0]} is not allowed: give 1 to {job.steps - 1}, fewer than the job's steps.")


def _with_shadows(
    runs: Sequence[Run],
    policies: Sequence[FeaturePolicy],
    fitted: Mapping[FeaturePolicy, Fitted],
    model: ImageModel,
    job: Job,
    out: Path,
) -> list[Run]:
    """The records again, with every policy's true errors."""
    samples, found = range(min(SHADOWED, job.samples)), {}
    for policy in tqdm(policies, desc="shadow", leave=False):
        it = fitted.get(policy)
        found[catalog.text(policy)] = measure_shadow(model, policy, it.profile if it else None, job, samples).row()
    whole = [replace(run, shadow=found.get(run.policy, {})) for run in runs]
    for run in whole:
        write_run(run, out)
    return whole


def _shared(model: ImageModel, job: Job, command: str) -> Run:
    """What all rows have in common."""
    settings = {
        "steps": job.steps,
        "samples": job.samples,
        "guidance": job.guidance,
        "seed": job.seed,
        "batch": len(job.batches[-1]),
        "sampler": model.sampler,
    }
    return Run(
        policy=BASELINE,
        model=model.name,
        fingerprint=model.fingerprint,
        settings=settings,
        versions=versions("diffusers"),
        device=device_words(model.device, model.pipe.transformer.dtype),
        command=command,
    )


def _plan(shared: Run, texts: Sequence[str], fewer: Sequence[int] | None) -> dict[str, Any]:
    """What has to be equal for one run to go on with what another measured."""
    told = {"model weights": shared.fingerprint, "device": shared.device, **shared.settings, **shared.versions}
    return {**told, "policies": list(texts), "fewer": None if fewer is None else sorted(set(fewer))}


def _same_job(out: Path, mine: Run) -> None:
    """Records of another job would end in one table with these: refuse before any work."""
    for run in read_runs(out) if out.is_dir() else []:
        told = {"model weights": run.fingerprint, **run.settings}
        for key, value in {"model weights": mine.fingerprint, **mine.settings}.items():
            if told.get(key) != value:
                raise InputError(
                    f"{out} holds Runs of another job ({key}: {told.get(key)}, now {value}). Give another --out folder."
                )


def _measure(
    rows: list[Contender], model: ImageModel, job: Job, fewer: Sequence[int] | None, rounds: Rounds
) -> dict[str, Timing]:
    """Probe all rows, add the fewer-steps rows, and time everything interleaved that works on this model."""
    to_do = 1 + job.repeats - rounds.done
    with Calls(model, to_do * sum(row.expected_calls for row in rows), "diffusion") as counter:
        speeds = []
        counter.expect(rows[0].expected_calls)
        rows[0].probe()  # once more than the others: it pays for what a process allocates only once
        for row in rows:
            row.counter = counter
            book = row.probe()
            if row.refused:
                counter.expect(-to_do * row.expected_calls)
            if book.reuse_ratio and book.flops_speedup:
                speeds.append(book.flops_speedup)
        for steps in sorted(set(fewer)) if fewer is not None else _matching_steps(job.steps, speeds):
            row = Contender(ImageEntry(name=f"{FEWER}{steps}", steps=steps), model, job)
            row.counter = counter
            counter.expect(to_do * row.expected_calls)
            row.probe()
            rows.append(row)
        able = [row for row in rows if not row.refused]
        works = rounds.works(able)
        baseline = works.pop(BASELINE)
        timings = interleave(baseline, works, repeats=job.repeats, warmup=0)  # the probes were the warm-up
    base = tuple(piece.seconds for piece in rows[0].pieces)
    return {BASELINE: Timing(seconds=base, baseline_seconds=base), **timings}


def _matching_steps(steps: int, speeds: Sequence[float]) -> list[int]:
    """Numbers of denoising steps that cost what the strongest and the mildest policy cost."""
    if not speeds:
        return []
    return sorted({n for speed in (max(speeds), min(speeds)) if 1 <= (n := max(round(steps / speed), 1)) < steps})


def _run(row: Contender, baseline: Contender, timing: Timing | None, shared: Run) -> Run:
    shared = replace(shared, policy=row.name, versions={**shared.versions, **row.entry.versions})
    if row.refused:
        return replace(shared, withheld=f"it does not work on this model: {row.refused}")
    pictures, reference = torch.cat(row.pictures), torch.cat(baseline.pictures)
    labels = torch.tensor(labels_of(range(row.job.samples), row.model.prompts))
    common = replace(shared, timing=timing, peak_bytes=row.peak_bytes, **_quality(pictures, labels))
    if row is baseline or timing is None:
        return replace(
            common, telemetry={"denoiser_calls": row.calls}, withheld="it is what the others are compared with"
        )
    book, method = row.telemetry(), row.entry.attach is not None
    reuse_ratio = book.reuse_ratio if method else 1 - row.calls / baseline.calls
    flops_speedup = book.flops_speedup if method else baseline.calls / row.calls
    identical = torch.equal(pictures, reference)
    claimed = claim(timing, saved=reuse_ratio > 0, identical=identical, exact=row.entry.exact)
    closeness = psnr(pictures, reference).tolist()
    return replace(
        common,
        telemetry={"denoiser_calls": row.calls, **(book.summary() if method else {})},
        grid=book.grid(),
        decisions=book.decisions(),
        speedup=claimed.speedup,
        speedup_range=claimed.speedup_range,
        withheld=claimed.withheld,
        flops_speedup=None if claimed.withheld else flops_speedup,
        psnr=sum(closeness) / len(closeness),
        psnr_interval=mean_interval(closeness),
        ssim=float(ssim(pictures, reference).mean()) if min(pictures.shape[-2:]) >= 11 else None,
        reuse_ratio=reuse_ratio,
        frame_psnr=frame_psnr(pictures, reference) if pictures.ndim == 5 else [],
        motion_error=motion_error(pictures, reference) if pictures.ndim == 5 else None,
        cache_bytes=book.peak_cache_bytes,
        calibration_seconds=row.entry.calibration_seconds,
    )


def _quality(pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """FID-fashion and class accuracy: for 28x28 pictures in one channel; the latter for clips in one channel too."""
    if pictures.ndim == 5 and pictures.shape[2] == 1:
        return {"fid": None, "class_accuracy": class_accuracy(pictures, labels, FashionJudge())}
    if pictures.shape[1:] != (1, 28, 28):
        return {"fid": None, "class_accuracy": None}
    judge = FashionJudge()
    fid = judge.fid(pictures) if len(pictures) > 1 else None
    return {"fid": fid, "class_accuracy": judge.class_accuracy(pictures, labels)}


def _write(runs: Sequence[Run], rows: Sequence[Contender], out: Path) -> list[Run]:
    """Pictures first, then the records that name them, each renamed when complete."""
    reference = torch.cat(rows[0].pictures)
    written = []
    for run, row in zip(runs, rows, strict=True):
        if row.refused:
            written.append(run)
            continue
        pictures = torch.cat(row.pictures)
        name = file_name(run.policy)
        images = {"grid": f"images/{name}.png"}
        save_png(grid(pictures), out / images["grid"])
        if row is not rows[0]:
            images["difference"] = f"images/{name}-difference.png"
            save_png(grid(difference(pictures, reference)), out / images["difference"])
        written.append(replace(run, images=images))
    for run in written:
        write_run(run, out)
    return written
