"""Every operation of an integer network, one file each; an operation is its dataclass and all that is known of it.

To add one: docs/add-an-operation.md.
"""

from __future__ import annotations

from lowbit.integer.graph import Node
from lowbit.integer.ops.add import Add
from lowbit.integer.ops.average_pool import AveragePool
from lowbit.integer.ops.channel_shuffle import ChannelShuffle
from lowbit.integer.ops.concatenate import Concatenate
from lowbit.integer.ops.constant import Constant
from lowbit.integer.ops.convolution import Convolution
from lowbit.integer.ops.embedding import Embedding
from lowbit.integer.ops.expand import Expand
from lowbit.integer.ops.global_average_pool import GlobalAveragePool
from lowbit.integer.ops.index_select import IndexSelect
from lowbit.integer.ops.linear import Linear
from lowbit.integer.ops.linear_resize import LinearResize
from lowbit.integer.ops.lookup import Lookup
from lowbit.integer.ops.lookup_per_channel import LookupPerChannel
from lowbit.integer.ops.matmul import MatMul
from lowbit.integer.ops.max_pool import MaxPool
from lowbit.integer.ops.multiply import Multiply
from lowbit.integer.ops.normalize import Normalize
from lowbit.integer.ops.pad import Pad, PadChannels
from lowbit.integer.ops.pixel_shuffle import PixelShuffle, PixelUnshuffle
from lowbit.integer.ops.quantize import Quantize
from lowbit.integer.ops.reduce import Extremum, Reduce
from lowbit.integer.ops.requantize import Requantize
from lowbit.integer.ops.reshape import Reshape
from lowbit.integer.ops.slice import Slice
from lowbit.integer.ops.softmax import MaskedSoftmax, Softmax
from lowbit.integer.ops.subtract import Subtract
from lowbit.integer.ops.sum_of_products import SumOfProducts
from lowbit.integer.ops.transpose import Transpose
from lowbit.integer.ops.uneven_average_pool import UnevenAveragePool
from lowbit.integer.ops.upsample import Upsample

OPERATIONS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Quantize, Convolution, Linear, Add, Subtract, Multiply, Concatenate, Requantize, Lookup, MaxPool, AveragePool,
        GlobalAveragePool, Reshape, Slice, PadChannels, ChannelShuffle, Upsample, MatMul, Transpose, Expand,
        IndexSelect, Pad,
        Constant, Reduce, Extremum, Normalize, Softmax, Embedding, UnevenAveragePool, LinearResize, LookupPerChannel,
        PixelShuffle, PixelUnshuffle, MaskedSoftmax, SumOfProducts,
    )
}  # fmt: skip
"""Every operation there is, by name: what a file may contain."""
