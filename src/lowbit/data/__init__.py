"""Data sets by path, and data of your own.

A `DataSet` finds what a path holds: images in folders, parquet in the hub's layout, scikit-learn's digits, tar shards, or a class
or function of your own that gives tensors. `loaders` turns it into training and test batches as a `DataConfig` says. Small
images are decoded once and augmented a batch at a time (`InMemoryImages`); large ones are decoded by worker processes
(`StreamedImages`), and so are those of shards (`StreamedShards`) and samples of your own. All are a `Loader`.
"""

from lowbit.data.config import DataConfig
from lowbit.data.dataset import DataSet, Splits, eval_loader, loaders, num_classes, split_loaders, training_split
from lowbit.data.loader import Loader
from lowbit.data.memory import InMemoryImages
from lowbit.data.shard_stream import StreamedShards
from lowbit.data.shards import Shards, index_shards, open_shards
from lowbit.data.sources import ImageSource, open_dataset
from lowbit.data.stream import StreamedImages

__all__ = [
    "DataConfig",
    "DataSet",
    "ImageSource",
    "InMemoryImages",
    "Loader",
    "Shards",
    "Splits",
    "StreamedImages",
    "StreamedShards",
    "eval_loader",
    "index_shards",
    "loaders",
    "num_classes",
    "open_dataset",
    "open_shards",
    "split_loaders",
    "training_split",
]
