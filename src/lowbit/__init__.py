"""lowbit: quantization-aware training of PyTorch models to 2–8 bits, and integer-only networks proved code by code.

float model → prepare → calibrate → train → to_integer → run, verify, export
"""

from lowbit._deprecated import renamed_in_module
from lowbit.allocation import Allocation, Budget, allocate
from lowbit.deployment import export, to_integer, verify
from lowbit.diagnosis import Diagnosis, diagnose
from lowbit.errors import LowbitError
from lowbit.grid import Grid
from lowbit.integer.network import IntegerNetwork
from lowbit.layers.rules import Rule
from lowbit.layers.sites import quantizers
from lowbit.layers.unquantized import UnquantizedWarning
from lowbit.qat.batchnorm import reestimate_batchnorm
from lowbit.qat.calibrate import calibrate
from lowbit.qat.oscillation import OscillationFreezer, dampening_loss
from lowbit.qat.prepare import prepare
from lowbit.qat.reconstruct import Reconstructed, reconstruct
from lowbit.qat.summary import layer_table, model_size_bits
from lowbit.qat.training import parameter_groups, round_zero_points, set_progress
from lowbit.qat.transition import TransitionRate
from lowbit.quantizer.functional import fake_quantize
from lowbit.quantizer.methods import METHODS, Method
from lowbit.quantizer.module import Quantizer
from lowbit.quantizer.step import Balance

__version__ = "0.2.0.dev0"

__all__ = [
    "METHODS",
    "Allocation",
    "Balance",
    "Budget",
    "Diagnosis",
    "Grid",
    "IntegerNetwork",
    "LowbitError",
    "Method",
    "OscillationFreezer",
    "Quantizer",
    "Reconstructed",
    "Rule",
    "TransitionRate",
    "UnquantizedWarning",
    "allocate",
    "calibrate",
    "dampening_loss",
    "diagnose",
    "export",
    "fake_quantize",
    "layer_table",
    "model_size_bits",
    "parameter_groups",
    "prepare",
    "quantizers",
    "reconstruct",
    "reestimate_batchnorm",
    "round_zero_points",
    "set_progress",
    "to_integer",
    "verify",
]

__getattr__ = renamed_in_module(__name__, {"snap_offsets": "round_zero_points"})
