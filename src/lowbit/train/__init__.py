"""Training from a config to a run folder, and back from the folder to the network."""

from lowbit.train.build import about, load, start_of
from lowbit.train.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    QuantizationConfig,
    ScheduleConfig,
    TrainConfig,
)
from lowbit.train.distillation import DistillationConfig
from lowbit.train.evaluation import evaluate_network, evaluate_run
from lowbit.train.loop import run
from lowbit.train.reconstruction import ReconstructionConfig
from lowbit.train.state import Result
from lowbit.train.tasks import TASKS, Task, TaskKind

__all__ = [
    "TASKS",
    "DataConfig",
    "DistillationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "QuantizationConfig",
    "ReconstructionConfig",
    "Result",
    "ScheduleConfig",
    "Task",
    "TaskKind",
    "TrainConfig",
    "about",
    "evaluate_network",
    "evaluate_run",
    "load",
    "run",
    "start_of",
]
