"""Puts a run together: world, data, model, folder; starts or resumes it, and records what it is.

Nothing is written before everything that can be refused has been refused.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wv_loader import Loader, LoaderStats, MetricsServer, engine_line, serve_metrics
from wv_shards import Dataset, ShardsError, write_atomic
from wv_train.allocator import keep_freed_memory
from wv_train.checkpoint import Checkpoint
from wv_train.data import (
    DataConfig,
    class_counts,
    keys_of,
    open_phase_loader,
    open_phase_overlays,
    open_validation_loader,
    read_class_weights,
)
from wv_train.distributed import RANK_TIMEOUT_S, World, launch_id, lost_contact, lost_rank, open_world
from wv_train.errors import ModelError, NonFiniteLossError, RecipeError, TrainError
from wv_train.holdout import HeldOut
from wv_train.learner import with_synchronized_batch_norm
from wv_train.live_view import PhaseLength
from wv_train.models import check_model, make_model
from wv_train.new_head import draw_head
from wv_train.phase_overlays import PhaseOverlays, check_overlays
from wv_train.phase_plan import PhasePlan, plan_phase
from wv_train.progress import RunLog, Screen
from wv_train.recipe import Recipe, recipe_from_table
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped
from wv_train.source_version import source_commit, source_line
from wv_train.table import first_difference, to_table, to_toml
from wv_train.trainer import Pace, Trainer, TrainingData
from wv_train.truth import read_truth
from wv_train.weights import load_weights, read_weights


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the training shards are, read once through the first phase's loader."""

    samples: int
    classes: list[str]
    class_counts: list[int]
    class_bands: list[int | None]
    manifest_digest: str
    engine: str
    engine_description: str
    """Name and version of what decodes, for a person."""
    engine_line: str
    """The same with the reason for it."""
    right: NDArray[np.int8] | None = None
    """(N,) as `read_truth` gives it, on rank 0 alone, which writes the metrics; None without a truth."""
    pretrained_digest: str | None = None
    """Of the file of weights that the model started from."""
    pretrained_line: str = ""
    """What was taken from it, for a person."""
    held_out: HeldOut | None = None
    """Where a part of the training shards is the validation set."""
    overlays: dict[str, str] = field(default_factory=dict)
    """Name of each overlay that a phase asks for → its checksum."""


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
        model, plans, facts = prepare(job, world, checkpoint)
        if job.resume and checkpoint is None:
            _check_pretrained(run, job, facts)
        if job.resume:
            began = run.read_info() if checkpoint is None else checkpoint.trainer
            check_overlays(job.data.overlays, began.get("overlay_checksums", {}), facts.overlays, run.path)
        screen = Screen()
        metrics = cleanup.enter_context(_serve_metrics(job, world))
        say = screen.say if world.is_main else _silent
        for line in opening_lines(job, world, model, plans, facts):
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


def prepare(job: Job, world: World, checkpoint: Checkpoint | None = None) -> tuple[nn.Module, list[PhasePlan], Facts]:
    """Open every loader once and make the model: all that can be refused before anything is written.

    Raises TrainError where the training shards are not those of `checkpoint`.
    """
    plans = []
    facts: Facts | None = None
    data = replace(job.data, quarantine=None)  # its folder is not there yet
    checksums: dict[str, str] = {}
    for index, phase in enumerate(job.recipe.phases):
        overlays = open_phase_overlays(data, job.recipe, index)
        checksums |= overlays.checksums
        with closing(open_phase_loader(data, job.recipe, index, world, overlays)) as loader:
            facts = facts or _facts(loader, data)
            path = phase.class_weights_file
            given = read_class_weights(Path(path), facts.classes) if path else None
            new_head = job.recipe.draws_head(index)
            plans.append(plan_phase(phase, loader, given, overlays=overlays, new_head=new_head))
        del overlays  # of millions of samples
    assert facts is not None  # a recipe has a phase
    facts = replace(facts, overlays=checksums)
    if checkpoint is not None:
        checkpoint.check_data(RunDirectory(job.out).last, manifest_digest=facts.manifest_digest, classes=facts.classes)
    if job.truth is not None and world.is_main:
        with Dataset.open(job.data.shards) as dataset:
            facts = replace(facts, right=read_truth(job.truth, dataset))
    if job.data.validates:
        with closing(_open_validation(job, world, facts)) as validation:
            if job.data.holdout is not None:
                facts = replace(facts, held_out=HeldOut.of(job.data.holdout, facts.class_counts, validation))
    torch.manual_seed(job.recipe.seed)
    first = min(checkpoint.position["phase"], len(plans) - 1) if checkpoint is not None else 0
    outputs, names = plans[first].outputs, facts.classes
    if job.recipe.phases[first].labels is not None:
        names = [f"cluster {number}" for number in range(outputs)]  # no file has a head of these
    model = make_model(job.recipe.model, outputs)
    if job.recipe.pretrained and checkpoint is None:  # which holds all weights
        weights = read_weights(Path(job.recipe.pretrained))
        line = load_weights(model, weights, names)
        facts = replace(facts, pretrained_digest=weights.digest, pretrained_line=line)
    if plans[0].new_head and checkpoint is None:
        draw_head(model, job.recipe.model, outputs, seed=job.recipe.seed, phase_index=0)
    model = model.to(world.device).to(memory_format=torch.channels_last)  # as the loader's images
    if job.recipe.sync_batch_norm:
        model = with_synchronized_batch_norm(model, world)
    check_model(model, job.recipe.model, size_px=job.recipe.size_px, classes=outputs, device=world.device)
    return model, plans, facts


def opening_lines(job: Job, world: World, model: nn.Module, plans: list[PhasePlan], facts: Facts) -> list[str]:
    """What runs here, for a person: engine, device, world, batch, classes, imbalance, seed, model, phases."""
    recipe = job.recipe
    counts = np.array(facts.class_counts)
    some = counts[counts > 0]
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    lines = [
        facts.engine_line,
        f"device {device}, world size {world.size}, global batch {recipe.batch_size}, "
        f"torch threads {torch.get_num_threads()}, seed {recipe.seed}",
        f"{int(counts.sum()):,} samples in {len(counts):,} classes, {some.min():,} to {some.max():,} a class "
        f"(imbalance {some.max() / some.min():.1f})",
        f"model {recipe.model}: {_parameters(model):,} parameters, {recipe.size_px} px",
        source_line(),
    ]
    if facts.pretrained_line:
        lines.append(facts.pretrained_line)
    elif not recipe.pretrained and not any(phase.backbone_factor for phase in recipe.phases):
        lines.append("warning: every phase freezes the backbone, which stays as it was drawn; start with --pretrained")
    if facts.held_out is not None:
        lines += facts.held_out.lines()
    if empty := int((counts == 0).sum()):
        lines.append(f"warning: {empty:,} classes have no sample and will not be learned")
    if job.pace.compile_model:
        lines.append("the model is compiled: the first steps take minutes, and a signal is granted after them")
    return [*lines, *(_phase_line(plan) for plan in plans)]


def _phase_line(plan: PhasePlan) -> str:
    """Length, rates, and whatever is not as usual."""
    phase, gate = plan.phase, plan.phase.gate
    parts = [f"at most {plan.steps:,} steps" if phase.until else f"{plan.steps:,} steps"]
    parts.append(f"lr {phase.lr:g} {phase.schedule}")
    if phase.backbone_factor == 0:
        parts.append("backbone frozen")
    elif (phase.backbone_factor, phase.head_factor) != (1.0, 1.0):
        parts.append(f"of it {phase.backbone_factor:g} for the backbone and {phase.head_factor:g} for the head")
    if phase.labels is not None:
        parts.append(f"learns the {plan.outputs:,} clusters of {phase.labels}, not validated")
    if plan.new_head:
        parts.append("new head")
    if (curriculum := phase.curriculum) is not None:
        weights = ", ".join(f"{weight:g}" for weight in curriculum.weights[: curriculum.max_tier])
        parts.append(f"tiers up to {curriculum.max_tier} of {curriculum.overlay}, weights {weights}")
    if (teacher := phase.teacher) is not None:
        parts.append(f"soft labels of {teacher.overlay}, label share {teacher.label_share:g}")
    parts += [f"balance {phase.balance:g}", f"class weights {phase.class_weights}"]
    if phase.logit_prior != "none":
        parts.append(f"logit prior {phase.logit_prior}")
    if phase.loss.kind != "cross_entropy":
        parts.append(f"loss {phase.loss}")
    if phase.label_smoothing:
        parts.append(f"label smoothing {phase.label_smoothing:g}")
    if phase.mixup_alpha:
        parts.append(f"mixup {phase.mixup_alpha:g}")
    if gate is not None:
        unit = "a share of " if gate.unit == "share" else ""
        parts.append(f"gate {gate.kind} {unit}{gate.start:g} to {gate.end:g} ({gate.schedule})")
        parts.append("loss over the kept" if phase.denominator == "kept" else "loss over all")
        if gate.skip_visits:
            parts.append(f"not read after {gate.skip_visits} visits far under it")
    return f"phase {phase.name}: {', '.join(parts)}"


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


def _facts(loader: Loader, data: DataConfig) -> Facts:
    return Facts(
        samples=loader.num_samples,
        classes=list(loader.class_names),
        class_counts=class_counts(data).tolist(),
        class_bands=list(loader.class_bands),
        manifest_digest=loader.manifest_digest,
        engine=loader.engine.name,
        engine_description=loader.engine.description,
        engine_line=engine_line(loader.engine),
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
        open_validation=(lambda: _open_validation(job, world, facts)) if job.data.validates else None,
        samples=facts.samples,
        classes=facts.classes,
        manifest_digest=facts.manifest_digest,
        bands=facts.class_bands,
        right=facts.right,
    )


def _open_validation(job: Job, world: World, facts: Facts) -> Loader:
    shards, exclude = job.data.validated_on()
    return open_validation_loader(
        shards,
        job.recipe,
        world,
        classes=facts.classes,
        exclude=exclude,
        engine=job.data.engine,
        threads=job.data.loader_threads,
        bad_budget=job.data.bad_budget,
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
        "parameters": _parameters(model),
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


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _silent(_text: str) -> None:
    """Ranks other than 0 say nothing."""
