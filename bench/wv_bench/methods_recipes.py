"""The methods that `wv-bench methods` compares: each a name, and a function from a budget to a recipe's text.

All have the same network, augmentation, batch and number of optimiser steps, and a moving average of the weights beside
the weights; what differs is written here, their numbers in `methods_values`. Runs nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from wv_bench.methods_values import EMA_DECAY, LR_BATCH, WARMUP_FRACTION, Budget, Values


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One contestant."""

    name: str
    about: str
    """For the table's legend: what it is, and whose."""
    recipe: Callable[[Budget, Values], str]
    """The recipe's text, TOML."""
    base: str | None = None
    """Method whose finished run of the same seed this one starts from; its cost counts."""
    annotate: tuple[tuple[str, ...], ...] = ()
    """Arguments of `wv-annotate`, one command each, before the training; `{base}` is the base's run, `{overlays}` the
    folder of the overlays, `{clusters}` and `{suspects}` are numbers of `Values`."""
    exclude: str | None = None
    """Overlay, of those made by `annotate`, whose samples are not shown."""
    for_skew: bool = False
    """Means something only where classes differ in size."""


def _text(budget: Budget, *phases: str) -> str:
    """A recipe of these phases."""
    top = (
        f'model = "{budget.model}"',
        f"batch_size = {budget.batch_size}",
        f"size_px = {budget.size_px}",
        f"ema_decay = {EMA_DECAY}",
        "validate_every_epochs = 0",
        "log_every_steps = 20",
        "",
        "[augment]",
        "crop_scale = [0.85, 1.0]",
        "crop_ratio = [0.9, 1.1]",
        "eval_crop_fraction = 1.0",
    )
    return "\n".join(top) + "\n" + "".join(phases)


def _phase(
    name: str, steps: int, *keys: str, lr: float, schedule: str = "cosine", warmup: int = 0, tables: Iterable[str] = ()
) -> str:
    """A phase: `keys` are lines of TOML of its own, `tables` those of its tables, heads included."""
    length = () if any(key.startswith("max_steps") for key in keys) else (f"steps = {steps}",)
    lines = [
        *("", "[[phases]]", f'name = "{name}"', *length, f"lr = {lr:g}"),
        *(() if schedule == "constant" else (f'schedule = "{schedule}"',)),
        *(() if not warmup else (f"warmup_steps = {warmup}",)),
        *keys,
    ]
    return "\n".join(lines) + "\n" + "".join(f"\n{table}\n" for table in tables)


def _whole(budget: Budget, *keys: str, tables: Iterable[str] = ()) -> str:
    """One phase with a cosine over all steps: plain training, and whatever changes only the loss."""
    steps = budget.steps
    return _text(budget, _phase("all", steps, *keys, lr=budget.lr, warmup=_warmup(budget), tables=tables))


def _warmup(budget: Budget) -> int:
    return round(WARMUP_FRACTION * budget.steps)


def _split(budget: Budget, values: Values) -> tuple[int, int, int]:
    """Steps of base, gated, fine-tune."""
    base = round(values.base_fraction * budget.steps)
    finetune = round(values.gate_finetune_fraction * budget.steps)
    return base, budget.steps - base - finetune, finetune


def _three(
    budget: Budget,
    values: Values,
    *,
    base: Iterable[str] = (),
    gated: Iterable[str] = (),
    finetune: Iterable[str] = (),
    base_tables: Iterable[str] = (),
    gate: str | None,
) -> str:
    """base → gated → fine-tune; `base`, `gated`, `finetune`: further keys of each phase."""
    first, second, third = _split(budget, values)
    phases = [
        _phase("base", first, *base, lr=budget.lr, schedule="constant", warmup=_warmup(budget), tables=base_tables),
        _phase("gated", second, *gated, lr=budget.lr, tables=() if gate is None else (gate,)),
    ]
    if third:
        low = values.finetune_lr * budget.batch_size / LR_BATCH
        phases.append(_phase("finetune", third, "backbone_factor = 0.1", *finetune, lr=low, schedule="constant"))
    return _text(budget, *phases)


def _gate_table(values: Values) -> str:
    lines = (
        "[phases.gate]",
        f'kind = "{values.gate_kind}"',
        f'unit = "{values.gate_unit}"',
        f"start = {values.gate_start}",
        f"end = {values.gate_end}",
    )
    return "\n".join(lines)


def _sce_table(values: Values) -> str:
    lines = (f"alpha = {values.sce_alpha}", f"beta = {values.sce_beta}", f"log_zero = {values.sce_log_zero}")
    return "\n".join(('[phases.loss]\nkind = "sce"', *lines))


def _denominator(values: Values) -> str:
    return f'denominator = "{values.gate_denominator}"'


def _ce(budget: Budget, values: Values) -> str:  # noqa: ARG001 - as all methods
    return _whole(budget)


def _ce_phases(budget: Budget, values: Values) -> str:
    return _three(budget, values, gate=None)


def _sun2018(budget: Budget, values: Values) -> str:
    steps, weights = budget.steps, ('class_weights = "sqrt"',) if budget.skewed else ()
    longest, finetune = round(0.5 * steps), round(values.finetune_fraction * steps)
    plateau = f"[phases.plateau]\nwindow_steps = {max(1, round(0.05 * steps))}"
    gate = f'[phases.gate]\nkind = "top1"\nstart = {values.sun_start}\nend = 0.0'
    until = ('until = "plateau"', f"max_steps = {longest}", *weights)
    low = values.finetune_lr * budget.batch_size / LR_BATCH
    return _text(
        budget,
        _phase("base", longest, *until, lr=budget.lr, schedule="constant", warmup=_warmup(budget), tables=(plateau,)),
        _phase("gated", steps - longest - finetune, 'denominator = "all"', *weights, lr=budget.lr, tables=(gate,)),
        _phase("finetune", finetune, "backbone_factor = 0.1", *weights, lr=low, schedule="constant"),
    )


def _gate(budget: Budget, values: Values) -> str:
    return _three(budget, values, gated=(_denominator(values),), gate=_gate_table(values))


def _gate_skip(budget: Budget, values: Values) -> str:
    skip = f"skip_visits = {values.skip_visits}\nskip_margin = {values.skip_margin}"
    return _three(budget, values, gated=(_denominator(values),), gate=f"{_gate_table(values)}\n{skip}")


def _agreement(budget: Budget, values: Values) -> str:
    gate = f'[phases.gate]\nkind = "agreement"\nstart = {values.agreement}\nend = {values.agreement}'
    return _three(budget, values, gated=(_denominator(values),), gate=gate)


def _label_smoothing(budget: Budget, values: Values) -> str:
    return _whole(budget, f"label_smoothing = {values.label_smoothing}")


def _mixup(budget: Budget, values: Values) -> str:
    return _whole(budget, f"mixup_alpha = {values.mixup_alpha}")


def _mixup_gate(budget: Budget, values: Values) -> str:
    mixed = f"mixup_alpha = {values.mixup_alpha}"
    return _three(budget, values, base=(mixed,), gated=(mixed, _denominator(values)), gate=_gate_table(values))


def _mixup_then_gate(budget: Budget, values: Values) -> str:
    mixed, late = f"mixup_alpha = {values.mixup_alpha}", replace(values, base_fraction=values.late_base_fraction)
    return _three(budget, late, base=(mixed,), gated=(_denominator(values),), gate=_gate_table(values))


def _sce_then_gate(budget: Budget, values: Values) -> str:
    late, robust = replace(values, base_fraction=values.late_base_fraction), (_sce_table(values),)
    return _three(budget, late, base_tables=robust, gated=(_denominator(values),), gate=_gate_table(values))


def _gce(budget: Budget, values: Values) -> str:
    return _whole(budget, tables=(f'[phases.loss]\nkind = "gce"\nq = {values.gce_q}',))


def _sce(budget: Budget, values: Values) -> str:
    return _whole(budget, tables=(_sce_table(values),))


def _elr(budget: Budget, values: Values) -> str:
    lines = (f"elr_lambda = {values.elr_lambda}", f"elr_beta = {values.elr_beta}")
    return _whole(budget, tables=("\n".join(('[phases.loss]\nkind = "elr"', *lines)),))


def _weights(budget: Budget, values: Values) -> str:
    return _whole(budget, f'class_weights = "{values.weights}"')


def _balance(budget: Budget, values: Values) -> str:
    return _whole(budget, f"balance = {values.balance}")


def _rebalanced(values: Values) -> tuple[str, str]:
    return f"balance = {values.balance}", f'class_weights = "{values.weights}"'


def _balanced(budget: Budget, values: Values) -> str:
    return _whole(budget, *_rebalanced(values))


_ADJUSTED = 'logit_prior = "adjusted"'


def _adjusted(budget: Budget, values: Values) -> str:  # noqa: ARG001 - as all methods
    return _whole(budget, _ADJUSTED)


def _adjusted_gate(budget: Budget, values: Values) -> str:
    gated = (_ADJUSTED, _denominator(values))
    return _three(budget, values, base=(_ADJUSTED,), gated=gated, finetune=(_ADJUSTED,), gate=_gate_table(values))


def _balanced_gate(budget: Budget, values: Values) -> str:
    both = _rebalanced(values)
    return _three(
        budget, values, base=both, gated=(*both, _denominator(values)), finetune=both, gate=_gate_table(values)
    )


def _decoupled(budget: Budget, values: Values) -> str:
    head = round(values.head_fraction * budget.steps)
    return _text(
        budget,
        _phase("all", budget.steps - head, lr=budget.lr, warmup=_warmup(budget)),
        _phase("head", head, "backbone_factor = 0.0", "new_head = true", "balance = 0.0", lr=budget.lr),
    )


def _curriculumnet(budget: Budget, values: Values) -> str:
    first, second = (round(part * budget.steps) for part in values.curriculum_fractions)

    def tiers(most: int) -> tuple[str]:
        lines = ('overlay = "tiers"', f"max_tier = {most}", "weights = [1.0, 0.5, 0.5]")
        return ("\n".join(("[phases.curriculum]", *lines)),)

    return _text(
        budget,
        _phase("easy", first, lr=budget.lr, schedule="constant", warmup=_warmup(budget), tables=tiers(1)),
        _phase("middle", second, lr=budget.lr, schedule="constant", tables=tiers(2)),
        _phase("all", budget.steps - first - second, lr=budget.lr, tables=tiers(3)),
    )


def _clusters(budget: Budget, values: Values) -> str:
    steps, lr = budget.steps, budget.lr
    clusters, finetune = round(values.clusters_fraction * steps), round(values.finetune_fraction * steps)
    base = round(values.base_fraction * (steps - clusters))
    gate = f'[phases.gate]\nkind = "top1"\nstart = {values.sun_start}\nend = 0.0'
    low = values.finetune_lr * budget.batch_size / LR_BATCH
    named = 'labels = "clusters"'
    return _text(
        budget,
        _phase("clusters", clusters, named, lr=lr, schedule="constant", warmup=_warmup(budget)),
        _phase("base", base, "new_head = true", lr=lr, schedule="constant"),
        _phase("gated", steps - clusters - base - finetune, 'denominator = "all"', lr=lr, tables=(gate,)),
        _phase("finetune", finetune, "backbone_factor = 0.1", lr=low, schedule="constant"),
    )


def _distill(budget: Budget, values: Values) -> str:
    lines = ('overlay = "teacher"', f"label_share = {values.teacher_label_share}")
    return _whole(budget, tables=("\n".join(("[phases.teacher]", *lines)),))


_ON_CPU = ("--loader-threads", "1")
_FEATURES = ("features", "{base}", "--shards", "{shards}", "--out", "{overlays}/features", *_ON_CPU)
_TIERS = ("curriculum", "{overlays}/features", "--shards", "{shards}", "--out", "{overlays}/tiers")
_TEACHER = ("teacher", "{base}", "--shards", "{shards}", "--out", "{overlays}/teacher", *_ON_CPU)
_SUSPECTS = ("suspects", "{base}", "--shards", "{shards}", "--out", "{overlays}/suspects")
_WORST = ("exclude", "{overlays}/suspects", "--top", "{suspects}", "--shards", "{shards}", "--out", "{overlays}/worst")
_CLUSTERS = (
    *("clusters", "{overlays}/features", "--shards", "{shards}", "--out", "{overlays}/clusters"),
    *("--clusters", "{clusters}", "--pca", "32"),
)

METHODS = {
    method.name: method
    for method in (
        Method(name="ce", about="cross-entropy, plain", recipe=_ce),
        Method(
            name="ce_phases", about="cross-entropy over the phases and rates of `gate`: its control", recipe=_ce_phases
        ),
        Method(
            name="sun2018",
            about="Sun et al., 2018, as written: top-1 threshold after the plateau, lowered to 0, then fine-tuning",
            recipe=_sun2018,
        ),
        Method(
            name="gate",
            about="our gate: the label's confidence averaged over visits, a share of each batch",
            recipe=_gate,
        ),
        Method(
            name="gate_skip",
            about="`gate`, in the loader too: what was far under it for several visits is not read",
            recipe=_gate_skip,
        ),
        Method(name="agreement", about="gate where the label is not nearly the prediction", recipe=_agreement),
        Method(name="label_smoothing", about="label smoothing (Szegedy et al., 2016)", recipe=_label_smoothing),
        Method(name="mixup", about="mixup (Zhang et al., 2018)", recipe=_mixup),
        Method(name="gce", about="generalised cross-entropy (Zhang and Sabuncu, 2018)", recipe=_gce),
        Method(name="sce", about="symmetric cross-entropy (Wang et al., 2019)", recipe=_sce),
        Method(name="elr", about="early-learning regularisation (Liu et al., 2020)", recipe=_elr),
        Method(name="mixup_gate", about="our gate, with mixup in base and gated phase", recipe=_mixup_gate),
        Method(name="mixup_then_gate", about="mixup first, then our gate without it", recipe=_mixup_then_gate),
        Method(
            name="sce_then_gate",
            about="symmetric cross-entropy first, then our gate with cross-entropy",
            recipe=_sce_then_gate,
        ),
        Method(
            name="curriculumnet",
            about="CurriculumNet (Guo et al., 2018): tiers by density of the features of `ce`, one after the other",
            recipe=_curriculumnet,
            base="ce",
            annotate=(_FEATURES, _TIERS),
        ),
        Method(
            name="clusters",
            about="Sun et al., 2018, after clusters of the features of `ce`: a new head, then their gate",
            recipe=_clusters,
            base="ce",
            annotate=(_FEATURES, _CLUSTERS),
        ),
        Method(
            name="distill",
            about="distillation (Li et al., 2017): the run of `gate` as the teacher",
            recipe=_distill,
            base="gate",
            annotate=(_TEACHER,),
        ),
        Method(
            name="without_suspects",
            about="cross-entropy without those whose labels the run of `gate` suspects most",
            recipe=_ce,
            base="gate",
            annotate=(_SUSPECTS, _WORST),
            exclude="worst",
        ),
        Method(name="weights", about="class weights alone", recipe=_weights, for_skew=True),
        Method(name="balance", about="sampling by τ alone", recipe=_balance, for_skew=True),
        Method(name="balanced", about="sampling by τ, and class weights for the rest", recipe=_balanced, for_skew=True),
        Method(
            name="decoupled",
            about="a new head on the frozen backbone, classes shown alike (Kang et al., 2020)",
            recipe=_decoupled,
            for_skew=True,
        ),
        Method(name="adjusted", about="logit adjustment (Menon et al., 2021)", recipe=_adjusted, for_skew=True),
        Method(
            name="balanced_gate",
            about="sampling by τ, class weights and our gate",
            recipe=_balanced_gate,
            for_skew=True,
        ),
        Method(name="adjusted_gate", about="logit adjustment and our gate", recipe=_adjusted_gate, for_skew=True),
    )
}
"""By name, in the table's order."""

GATES = ("gate", "gate_skip", "agreement", "mixup_gate", "mixup_then_gate", "sce_then_gate")
SKEW_GATES = ("balanced_gate", "adjusted_gate")
"""Those of sets whose classes differ in size."""
RIVALS = ("gce", "sce", "elr", "mixup", "label_smoothing")
CORE = ("ce", "sun2018", "gate", "mixup_then_gate", "sce_then_gate", *RIVALS)
"""What `--methods core` runs."""
SKEW_CORE = ("ce", "sun2018", "gate", "weights", "balance", "balanced", "adjusted", *SKEW_GATES)
"""The same for sets whose classes differ in size."""
