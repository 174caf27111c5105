"""Puts a run together: world, data, model, folder; starts or resumes it, and records what it is.

Nothing is written before everything that can be refused has been refused.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wv_loader import Loader, LoaderStats, MetricsServer, serve_metrics
from wv_shards import ShardsError, write_atomic
from wv_train.allocator import keep_freed_memory
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig, keys_of, open_phase_loader, open_phase_overlays
from wv_train.distributed import RANK_TIMEOUT_S, World, launch_id, lost_contact, lost_rank, open_world
from wv_train.errors import ModelError, NonFiniteLossError, RecipeError, TrainError
from wv_train.live_view import PhaseLength
from wv_train.opening import opening_lines, parameters_of
from wv_train.phase_overlays import PhaseOverlays, check_overlays
from wv_train.phase_plan import PhasePlan
from wv_train.prepare import Facts, open_validation, prepare
from wv_train.progress import RunLog, Screen
from wv_train.recipe import Recipe, recipe_from_table
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped
from wv_train.source_version import source_commit
from wv_train.table import first_difference, to_table, to_toml
from wv_train.trainer import Pace, Trainer, TrainingData


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What `wv-train` was asked to do."""

    recipe: Recipe
    data: DataConfig
    out: Path
    resume: bool = False
    device: str = "auto"
    threads: int | None = None
    """Threads of torch on a CPU; None leaves torch's choice."""
    pace: Pace = field(default_factory=Pace)
    truth: Path | None = None
    """What is known of the labels, to measure the gate against; see `truth`."""
    metrics_port: int | None = None
    """Where local rank 0 serves metrics, rank k at the k-th port after it; 0: each at a free one; None: nowhere."""
    metrics_host: str = "127.0.0.1"
    rank_timeout_s: float = RANK_TIMEOUT_S


def run_job(job: Job) -> None:
    """Train to the end.

    Raises Stopped after a signal; TrainError, LoaderError, ShardsError with a message of one line.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    run = RunDirectory(job.out)
    checkpoint = None
    if job.resume:
        checkpoint = _checkpoint_of(run, job)
    else:
        run.check_new()
    with open_world(job.device, rank_timeout_s=job.rank_timeout_s) as world, ExitStack() as cleanup:
        if world.device.type == "cpu":
            keep_freed_memory()
        model, plans, facts = prepare(
            job.recipe, job.data, world, truth=job.truth, checkpoint=checkpoint, saved_at=run.last
        )
        if job.resume and checkpoint is None:
            _check_pretrained(run, job, facts)
        if job.resume:
            began = run.read_info() if checkpoint is None else checkpoint.trainer
            check_overlays(job.data.overlays, began.get("overlay_checksums", {}), facts.overlays, run.path)
        screen = Screen()
        metrics = cleanup.enter_context(_serve_metrics(job, world))
        say = screen.say if world.is_main else _silent
        for line in opening_lines(job.recipe, world, model, plans, facts, compiled=job.pace.compile_model):
            say(line)
        if checkpoint is not None:
            _say_resumed(checkpoint, world, plans, say)
            _say_decoder(run.read_info(), facts, say)
        elif job.resume:
            say("no checkpoint yet: starting at step 0")
        if metrics:
            screen.say(f"metrics of rank {world.rank} at {metrics.url}")
        if world.is_main:
            cleanup.enter_context(run.held())
            if not job.resume:
                run.check_new()  # once more: another may have begun since
        log = _open_log(run, job, world, screen, _info(job, world, model, plans, facts), checkpoint)
        trainer = Trainer(
            recipe=job.recipe,
            plans=plans,
            model=model,
            data=_training_data(job, world, facts, metrics),
            world=world,
            run=run,
            log=log,
            pace=job.pace,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if log:
            lengths = [
                PhaseLength(name=plan.phase.name, steps=plan.steps, at_most=plan.phase.until is not None)
                for plan in plans
            ]
            screen.begin(
                sum(plan.steps for plan in plans), trainer.position.step, run=job.out.resolve().name, phases=lengths
            )
        try:
            _train(trainer, job, world, run, say)
        finally:
            if log:
                log.close()


def _train(trainer: Trainer, job: Job, world: World, run: RunDirectory, say: Callable[[str], None]) -> None:
    """Train, and say how it ended."""
    try:
        trainer.train()
        say(f"done: {trainer.position.step:,} steps, {trainer.position.samples:,} samples; run in {job.out}")
    except Stopped as stopped:
        say(f"{stopped} after step {trainer.position.step:,}, saved; resume with: {resume_command(job, world)}")
        raise
    except NonFiniteLossError as error:
        if world.is_main:
            _save_batches(run, job, error)
        raise NonFiniteLossError(f"{error}; its samples: {run.nonfinite}", batches=error.batches) from error
    except RuntimeError as error:
        if world.size == 1 or not lost_contact(error):
            raise
        where = f" at step {trainer.position.step:,}"
        raise TrainError(f"{lost_rank(error, where)}; resume with: {resume_command(job, world)}") from error


def should_resume(run: RunDirectory, resume: str | None) -> bool:
    """Whether to go on with a run: "must" always, "auto" where there is one; None where this launch began it.

    So a worker that `torchrun --max-restarts` starts again goes on at the last checkpoint.

    Ranks decide alike, though each looks for itself: rank 0 makes the folder after all have joined (`open_world`).
    """
    return resume == "must" or (resume == "auto" and run.run_json.exists()) or run.begun_by(launch_id())


def resume_command(job: Job, world: World) -> str:
    """What to type to continue the run."""
    start = f"torchrun --nproc-per-node {world.size} -m wv_train" if world.size > 1 else "wv-train"
    return f"{start} --resume --out {job.out}"


def _checkpoint_of(run: RunDirectory, job: Job) -> Checkpoint | None:
    """The checkpoint to go on from; None where the run was killed before its first. Refuses another recipe."""
    info = run.read_info()
    if (before := info.get("holdout")) != (now := job.data.holdout):
        raise RecipeError(
            f"holdout: the run in {run.path} has {before}, asked for was {now}: samples that it learned would be "
            "validated on; resume without changes, or start a new run with another --out"
        )
    saved = recipe_from_table(info["recipe"])
    if difference := first_difference(to_table(saved), to_table(job.recipe)):
        key, before, now = difference
        raise RecipeError(
            f"{key}: the run in {run.path} has {before!r}, asked for was {now!r}; resume without changes, "
            "or start a new run with another --out"
        )
    return Checkpoint.load(run.last) if run.last.exists() else None


def _check_pretrained(run: RunDirectory, job: Job, facts: Facts) -> None:
    """Where the run was killed before its first checkpoint, the file of weights must still be the one it began with."""
    if facts.pretrained_digest != (before := run.read_info().get("pretrained_digest")):
        raise ModelError(
            f"{job.recipe.pretrained}: the run in {run.path} began with weights of digest {before}, the file's is now "
            f"{facts.pretrained_digest}; give the same file, or start a new run with another --out"
        )


def _serve_metrics(job: Job, world: World) -> AbstractContextManager[MetricsServer | None]:
    if job.metrics_port is None:
        return nullcontext()
    port = job.metrics_port + int(os.environ.get("LOCAL_RANK", "0")) if job.metrics_port else 0
    return serve_metrics(LoaderStats(), port, host=job.metrics_host, rank=world.rank)


def _training_data(job: Job, world: World, facts: Facts, metrics: MetricsServer | None) -> TrainingData:
    @lru_cache(maxsize=1)  # of the phase that is trained
    def open_overlays(index: int) -> PhaseOverlays:
        return open_phase_overlays(job.data, job.recipe, index)

    def open_phase(index: int) -> Loader:
        loader = open_phase_loader(job.data, job.recipe, index, world, open_overlays(index))
        if metrics:
            metrics.show(loader.stats)
        return loader

    return TrainingData(
        open_phase=open_phase,
        open_overlays=open_overlays,
        overlays=facts.overlays,
        open_validation=(lambda: open_validation(job.recipe, job.data, world, facts.classes))
        if job.data.validates
        else None,
        samples=facts.samples,
        classes=facts.classes,
        manifest_digest=facts.manifest_digest,
        bands=facts.class_bands,
        right=facts.right,
    )


def _open_log(
    run: RunDirectory, job: Job, world: World, screen: Screen, info: dict[str, Any], checkpoint: Checkpoint | None
) -> RunLog | None:
    """Rank 0 makes the run's folder, or cuts its metrics to the checkpoint."""
    if not world.is_main:
        return None
    if not job.resume:
        run.write_info(info)
    run.cut_metrics(checkpoint.metrics_bytes if checkpoint else 0)
    texts = {
        "recipe": to_toml(info["recipe"]),
        "run": json.dumps({"command": info["command"], **info["versions"]}, indent=1),
    }
    return RunLog(run, screen, step=checkpoint.position["step"] if checkpoint else 0, texts=texts)


def _info(job: Job, world: World, model: nn.Module, plans: list[PhasePlan], facts: Facts) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "shards": str(job.data.shards),
        "val": str(job.data.val) if job.data.val else None,
        "truth": str(job.truth) if job.truth else None,
        "exclude": [str(path) for path in job.data.exclude],
        "holdout": job.data.holdout,
        "overlays": str(job.data.overlays),
        "overlay_checksums": facts.overlays,
        "manifest_digest": facts.manifest_digest,
        "classes": facts.classes,
        "class_counts": facts.class_counts,
        "class_bands": facts.class_bands,
        "exposures": {plan.phase.name: [float(shows) for shows in plan.exposure] for plan in plans},
        "recipe": to_table(job.recipe),
        "world_size": world.size,
        "launch": launch_id(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("wv-toolkit", "torch", "timm", "numpy")},
            **({"commit": commit} if (commit := source_commit()) else {}),
        },
        "engine": facts.engine,
        "engine_description": facts.engine_description,
        "parameters": parameters_of(model),
        "pretrained_digest": facts.pretrained_digest,
    }


def _say_resumed(checkpoint: Checkpoint, world: World, plans: list[PhasePlan], say: Callable[[str], None]) -> None:
    step, phase = checkpoint.position["step"], checkpoint.position["phase"]
    where = f"phase {plans[phase].phase.name}" if phase < len(plans) else "finished"
    say(f"resuming at step {step:,}, {where}")
    if (checkpoint.world_size, checkpoint.torch_threads) != (world.size, torch.get_num_threads()):
        say(
            f"note: saved with world size {checkpoint.world_size} and {checkpoint.torch_threads} torch threads; with "
            f"{world.size} and {torch.get_num_threads()} the same batches follow, but not bit for bit the same weights"
        )


def _say_decoder(saved: dict[str, Any], facts: Facts, say: Callable[[str], None]) -> None:
    if saved["engine_description"] != facts.engine_description:
        say(
            f"note: started with engine {saved['engine']} ({saved['engine_description']}), goes on with {facts.engine} "
            f"({facts.engine_description}): pixels may differ by a few levels"
        )


def _save_batches(run: RunDirectory, job: Job, error: NonFiniteLossError) -> None:
    rows = []
    for batch in error.batches:
        try:
            keys = keys_of(job.data.shards, batch.ordinals)
        except ShardsError:
            keys = []  # the ordinals alone must do
        rows.append({"step": batch.step, "ordinals": batch.ordinals, "keys": keys})
    write_atomic(run.nonfinite, (json.dumps({"batches": rows}, indent=1) + "\n").encode())


def _silent(_text: str) -> None:
    """Ranks other than 0 say nothing."""
