"""The trained networks that come with lowbit: whole, small, of recorded runs, and as accurate as is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from campaigns.accuracy import results

from lowbit import LowbitError, models
from lowbit.data import eval_loader
from lowbit.files import sha256
from lowbit.models import trained
from lowbit.train import TrainConfig

IMAGES = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10-jpeg"


def test_the_folder_holds_what_is_named_and_nothing_else() -> None:
    files = {file.stem: file for file in trained._FOLDER.iterdir()}
    assert files.keys() == models.SHIPPED.keys()
    for name, file in files.items():
        assert sha256(file) == models.SHIPPED[name].sha256
    assert sum(file.stat().st_size for file in files.values()) < 600_000


@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_shipped_network_is_of_its_run(name: str) -> None:
    network, shipped = models.load(name), models.SHIPPED[name]
    line = results.read(results.FOLDER)[shipped.cell]
    assert network.metadata["trained"]["recipe"] == f"accuracy/{shipped.cell}"
    assert network.metadata["trained"]["weights"] == network.metadata["trained"]["activations"] == line["bits"]
    assert network.metadata["trained"]["epochs"] == line["epochs"]
    assert line["start"]["weights"] == shipped.origin
    # The trained network with its batch-norm folded and its sums in integers: nearly the same accuracy.
    assert shipped.test == pytest.approx(line["test"], abs=0.3)
    widths = {node.weight.bits for node in network.graph.nodes if hasattr(node, "weight")}
    assert widths == {line["bits"], 8}  # the first and the last layer at 8
    x = torch.zeros(2, 3, 32, 32)
    assert network(x).shape == (2, 10)


@pytest.mark.skipif(not IMAGES.exists(), reason=f"needs {IMAGES}")
@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_shipped_network_is_as_accurate_as_is_said(name: str) -> None:
    """On the first images, within three standard errors."""
    network, images = models.load(name), 256
    config = TrainConfig.from_dict({"data": {**network.metadata["images"], "path": str(IMAGES)}}).data
    right = seen = 0
    for x, labels in eval_loader(config):
        right += int((network(x).argmax(1) == labels).sum())
        seen += len(labels)
        if seen >= images:
            break
    expected = models.SHIPPED[name].test / 100
    assert abs(right / seen - expected) < 3 * (expected * (1 - expected) / seen) ** 0.5


def test_the_page_says_what_is_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    for name, shipped in models.SHIPPED.items():
        bits, size = (
            models.load(name).metadata["trained"]["weights"],
            (trained._FOLDER / f"{name}.safetensors").stat().st_size,
        )
        assert f"| `{name}` | {bits} bits | {shipped.test:.2f} | {size:,} |" in page


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(LowbitError, match="no file and no network that comes with lowbit: 'resnet9'"):
        models.load("resnet9")
