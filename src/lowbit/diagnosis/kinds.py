"""What can be wrong with a quantized network, and what is to be done about it."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The kinds of findings. Rules and thresholds are in `findings`."""

    STEP_AT_BOUND = "step-at-bound"
    """Training has driven a step to the end of its bounds, a factor 1024 from its start: it has diverged there."""
    CALIBRATION_DATA = "calibration-data"
    """The quantizers were initialized with data on another scale than the network's inputs."""
    SIGNED_GRID = "signed-grid"
    """A signed grid for values that are never negative: half of its codes have no use."""
    UNSIGNED_GRID = "unsigned-grid"
    """An unsigned grid for values of which many are negative: they all become zero."""
    ZERO_POINT = "zero-point"
    """An offset that puts much of the grid where no data is."""
    ONE_SIDED = "one-sided"
    """A signed grid of few bits and without an offset for values nearly all on one side of zero, as SiLU's are."""
    CLIPPED = "clipped"
    """A step so small that what lies beyond the grid costs more than rounding does."""
    STEP_TOO_LARGE = "step-too-large"
    """A step so large that the data takes few of the codes."""
    OUTLIER = "outlier"
    """A few weights far from all others stretch the step that they share."""
    LOW_BITS = "low-bits"
    """A layer with far fewer bits than the others, which costs the network more than all of those."""
    DEAD_CHANNEL = "dead-channel"
    """A channel of which nothing but zero is left."""
    BATCHNORM_DRIFT = "batchnorm-drift"
    """Stored batch-norm statistics that are not those of the data."""
    OSCILLATION = "oscillation"
    """Weights that jump back and forth between two codes during training."""


REMEDIES: dict[Kind, str] = {
    Kind.STEP_AT_BOUND: (
        "Training has diverged: train again with a lower learning rate (`optimizer.lr`, or `step_lr` of "
        "`lowbit.parameter_groups`), `schedule.warmup_epochs` or `grad_clip`."
    ),
    Kind.CALIBRATION_DATA: (
        "Calibrate on batches that went through the same normalization as in training: `lowbit.prepare` again, then "
        "`lowbit.calibrate(model, batches)`; in a run, check `data.mean` and `data.std`."
    ),
    Kind.SIGNED_GRID: (
        'Leave the choice to calibration: a method other than "lsq+2" and "lsq+3", no `signed=True`, and calibration '
        "data like "
        "the network's inputs."
    ),
    Kind.UNSIGNED_GRID: (
        "Calibrate with data that has the negative values (`lowbit.calibrate` on batches like the network's inputs), "
        "or take "
        'method="lsq+", which learns an offset.'
    ),
    Kind.ZERO_POINT: 'Calibrate again (`lowbit.prepare`, `lowbit.calibrate`) with init_activations="least-squares".',
    Kind.ONE_SIDED: (
        'Take method="lsq+" (`--method lsq+`), which learns an offset: the whole grid is where the values are.'
    ),
    Kind.CLIPPED: (
        'Start the step from the data: init_activations="least-squares" (or init_weights=) of `lowbit.prepare`, '
        "`quantization.init-activations` of a recipe; then train on, or give the layer more bits by a rule."
    ),
    Kind.STEP_TOO_LARGE: (
        'Start the step from the data: init_activations="least-squares" (or init_weights=) of `lowbit.prepare`, and '
        "calibrate "
        "on batches like the network's inputs."
    ),
    Kind.OUTLIER: (
        'Give every channel a step of its own (`lowbit.Rule(layer, granularity="channel")`), or initialize the step '
        "where "
        "the error is "
        'least (init_weights="least-squares"), which clips the outlier.'
    ),
    Kind.LOW_BITS: "Give the layer more bits by a rule: `lowbit.Rule(layer, weights=…, activations=…)`.",
    Kind.DEAD_CHANNEL: (
        'A step per channel keeps small channels alive: `lowbit.Rule(layer, granularity="channel")`. If the channel '
        "is dead in "
        "full precision too, remove it, or start from other weights."
    ),
    Kind.BATCHNORM_DRIFT: (
        "Estimate the statistics again on training batches: `lowbit.reestimate_batchnorm(model, batches)`, "
        "`--bn-batches N` of `lowbit train`."
    ),
    Kind.OSCILLATION: (
        "Dampen or freeze: `--quantization.dampening`, `--quantization.freezing 0.02`, "
        "`--quantization.transition-rate`; or lower the learning rate and re-estimate batch-norm (`--bn-batches N`)."
    ),
}
"""What to do about a finding of each kind."""
