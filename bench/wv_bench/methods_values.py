"""What the contestants of `wv-bench methods` share, and the methods' own numbers: `VALUES` is the one place of them."""

from dataclasses import dataclass, fields

PEAK_LR = 0.05
"""Of a batch of 128; scaled linearly with the batch (Goyal et al., 2017)."""
LR_BATCH = 128
WARMUP_FRACTION = 0.04
"""Of all steps: a hundred where there are 2,400."""
EMA_DECAY = 0.995


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What all methods of a comparison share."""

    images: int
    """Training samples that an epoch is counted by."""
    epochs: int
    batch_size: int = 128
    model: str = "wv_resnet_16_32_64"
    size_px: int = 32
    skewed: bool = False
    """Whether the classes' sizes differ: Sun et al.'s method then has its class weights."""

    @property
    def steps(self) -> int:
        """Optimiser steps of a run."""
        return max(20, round(self.images * self.epochs / self.batch_size))

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return PEAK_LR * self.batch_size / LR_BATCH


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """The methods' own numbers. They are chosen by `--tune`, on held-out samples with noisy labels."""

    base_fraction: float = 0.4
    """Share of the steps before a gate."""
    late_base_fraction: float = 0.6
    """The same where mixup or a robust loss comes before it."""
    gate_finetune_fraction: float = 0.0
    """Share of the steps after a gate of ours: none, as learning all again brings the noise back."""
    finetune_fraction: float = 0.05
    """The same of Sun et al.'s gate."""
    finetune_lr: float = 0.0005
    """Of a batch of 128; the backbone's is a tenth of it."""
    gate_kind: str = "label_average"
    gate_unit: str = "share"
    gate_start: float = 0.4
    gate_end: float = 0.35
    gate_denominator: str = "kept"
    skip_visits: int = 3
    """Visits far under the gate after which the loader leaves a sample out."""
    skip_margin: float = 0.5
    """What is far: under this part of the threshold."""
    sun_start: float = 0.3
    """Threshold on the top-1 confidence after the plateau; it ends at 0."""
    agreement: float = 0.9
    """Least ratio of the label's confidence to the largest."""
    label_smoothing: float = 0.4
    mixup_alpha: float = 1.0
    gce_q: float = 0.5
    sce_alpha: float = 0.1
    sce_beta: float = 1.0
    sce_log_zero: float = -4.0
    elr_lambda: float = 3.0
    elr_beta: float = 0.7
    teacher_label_share: float = 0.5
    """λ of Li et al., 2017: the given label's share of the target."""
    suspects: float = 0.3
    """Share of the samples that are left out as suspects."""
    balance: float = 0.5
    """τ of the rebalanced recipes."""
    weights: str = "inverse"
    """Class weights beside it."""

    clusters: int = 40
    """Of Sun et al.'s pre-training on clusters."""
    clusters_fraction: float = 0.3
    """Share of the steps that learn clusters."""
    curriculum_fractions: tuple[float, float] = (0.3, 0.3)
    """Shares of the steps with the easy tier, and with easy and middle."""
    head_fraction: float = 0.1
    """Share of the steps that train a new head alone."""

    def changed(self) -> str:
        """What differs from the defaults, as `name=value` with commas between; empty: nothing."""
        pairs = ((one.name, getattr(self, one.name), one.default) for one in fields(self))
        return ",".join(f"{name}={value}" for name, value, default in pairs if value != default)


VALUES = Values()
