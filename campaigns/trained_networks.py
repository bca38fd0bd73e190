"""`python -m campaigns.trained_networks --data PATH --output docs/results`: every kind of network, trained a little, in integers.

Small forms of DeiT-tiny, Swin-tiny and ConvNeXt-atto, a U-Net, a YOLO-style head with three outputs and a siamese network with two
inputs, on CIFAR-10-JPEG's images; an LSTM and a GRU that read scikit-learn's digits by half rows, 16 steps; a BERT-tiny-like encoder that
tells from which page of the documentation 24 bytes are. Each is trained in full precision, prepared, calibrated, trained on, converted and
exported; then every code of the ONNX file, and of the trained network, is compared with the integer reference on samples that
were not trained on. What the table has already is not computed again: a stopped campaign goes on. `--again` computes all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from benchmarks import harness
from lowbit._torchvision import import_torchvision
from lowbit.data import eval_loader, loaders
from lowbit.files import atomic_write
from lowbit.recipes import get_recipe
from lowbit.verification.report import Report

BATCH, BATCHES, TESTED = 32, 48, 64
DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
LENGTH = 24

Batch = Mapping[str, Tensor]
"""Inputs by name, and under "labels" what they are."""


# ---------------------------------------------------------------- data


@cache
def images(data: Path, batches: int) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Batches of (images, classes): to train on, and others."""
    config = replace(
        get_recipe("cifar10-resnet20")().data,
        path=str(data),
        batch_size=BATCH,
        limit=BATCH * batches,
        eval_batch_size=BATCH,
    )
    train, _ = loaders(config, seed=0)
    test = zip(range(TESTED // BATCH), eval_loader(config))
    return [(x, y) for x, y, *_ in train], [(x, y) for _, (x, y, *_) in test]


def pictures(data: Path, batches: int = BATCHES) -> Iterator[list[Batch]]:
    """Batches to train on, then others."""
    for part in images(data, batches):
        yield [{"x": x, "labels": y} for x, y in part]


few_pictures = partial(pictures, batches=24)


def half_rows(data: Path) -> Iterator[list[Batch]]:
    """A digit as a sequence: 16 steps of 4 pixels."""
    from sklearn.datasets import load_digits

    digits, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x, order = (
        digits.float().reshape(-1, 16, 4) / 16,
        torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)),
    )
    for part in (order[TESTED:], order[:TESTED]):
        yield [{"x": x[each], "labels": labels[each]} for each in part.split(BATCH) if len(each) == BATCH]


def pairs(data: Path) -> Iterator[list[Batch]]:
    """Two pictures; whether they are of one class. Half of the pairs are."""
    for part in images(data, BATCHES):
        batches = []
        for x, y in part:
            order = y.argsort()  # neighbours of this order are often alike
            other = torch.where(torch.arange(len(y)) % 2 == 0, order, order.roll(7))
            batches.append(
                {"first": x[order], "second": x[other.roll(1)], "labels": (y[order] == y[other.roll(1)]).long()}
            )
        yield batches


@cache
def _pages() -> list[bytes]:
    return [page.read_bytes() for page in sorted(DOCUMENTS.glob("*.md"))]


def texts(data: Path) -> Iterator[list[Batch]]:
    """Up to 24 bytes of a page of the documentation, padded with 0, and the number of the page; the last tenth is not trained on."""
    generator = torch.Generator().manual_seed(0)
    for count, low, high in ((BATCHES, 0.0, 0.9), (TESTED // BATCH, 0.9, 1.0)):
        batches = []
        for _ in range(count):
            labels = torch.randint(len(_pages()), (BATCH,), generator=generator)
            ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
            for row, label in enumerate(labels.tolist()):
                page = _pages()[label]
                place = (low + (high - low) * float(torch.rand((), generator=generator))) * (len(page) - LENGTH)
                length = int(torch.randint(LENGTH // 3, LENGTH + 1, (), generator=generator))
                part = page[int(place) : int(place) + length]
                ids[row, : len(part)] = torch.tensor(list(part))
            batches.append({"ids": ids, "labels": labels})
        yield batches


# ---------------------------------------------------------------- networks


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two steps down and up again, with what was there before beside it; tells bright positions from dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _conv(3, 16), _conv(16, 32, 2), _conv(32, 64, 2)
        self.up, self.merge = nn.ConvTranspose2d(64, 32, 2, 2), _conv(64, 32)
        self.last, self.head = _conv(48, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a)
        y = self.merge(torch.cat([self.up(self.third(b)), b], 1))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.last(torch.cat([y, a], 1)))


class Yolo(nn.Module):
    """Three scales, each with a map of classes and boxes of its own, from features that are merged on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.middle, self.large = (
            _conv(3, 16, 2),
            _conv(16, 32, 2),
            _conv(32, 48, 2),
            _conv(48, 64, 2),
        )
        self.to_middle, self.to_small = _conv(64 + 48, 48), _conv(48 + 32, 32)
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * 15, 1) for width in (32, 48, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        small = self.small(self.stem(x))
        middle = self.middle(small)
        large = self.large(middle)
        middle = self.to_middle(torch.cat([F.interpolate(large, scale_factor=2.0), middle], 1))
        small = self.to_small(torch.cat([F.interpolate(middle, scale_factor=2.0), small], 1))
        return {
            name: head(y) for name, head, y in zip(("small", "middle", "large"), self.heads, (small, middle, large))
        }


class Siamese(nn.Module):
    """One network for both pictures; what it says of their features' products and differences."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(128, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.body(first), self.body(second)
        return self.head(torch.cat([a * b, (a - b).abs()], 1))


class Spotter(nn.Module):
    """A recurrent layer over a sequence, and a class from what it says last."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        sequence, _ = self.rnn(x)
        return self.head(sequence[:, -1])


class Encoder(nn.Module):
    """BERT with two layers of 64 features: words, places, a padding mask, a class from the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = (
            nn.Embedding(256, 64, padding_idx=0),
            nn.Embedding(LENGTH, 64),
            nn.LayerNorm(64),
        )
        layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(64, 64), nn.Linear(64, len(_pages()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        x = self.layers(x, src_key_padding_mask=ids == 0)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import_torchvision()  # before timm, which imports it too
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


# ---------------------------------------------------------------- losses and answers


def _of_classes(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(loss, which answers are right)."""
    return F.cross_entropy(output, batch["labels"]), output.argmax(1) == batch["labels"]


def _of_positions(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    bright = (batch["x"].mean(1) > batch["x"].mean((1, 2, 3))[:, None, None]).long()
    return F.cross_entropy(output, bright), output.argmax(1) == bright


def _of_scales(output: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The class from the mean over the positions and anchors of each scale; boxes are to be the middle of the picture."""
    maps = [each.unflatten(1, (3, 15)) for each in output.values()]
    classes = [each[:, :, 5:].mean((1, 3, 4)) for each in maps]
    loss = sum(F.cross_entropy(each, batch["labels"]) for each in classes)
    boxes = sum((each[:, :, :5] - 0.5).square().mean() for each in maps)
    return torch.as_tensor(loss + boxes), torch.stack(classes).sum(0).argmax(1) == batch["labels"]


@dataclass(frozen=True)
class Task:
    """A network, what it is trained on, at how many bits, and for how many steps before and at them."""

    make: Callable[[], nn.Module]
    data: Callable[[Path], Iterator[list[Batch]]]
    bits: tuple[int, int]
    steps: tuple[int, int]
    judged: Callable[..., tuple[Tensor, Tensor]] = _of_classes
    rate: float = 3e-3


TASKS = {
    "DeiT-tiny": Task(
        _timm("deit_tiny_patch16_224", img_size=32, patch_size=4, depth=4), few_pictures, (4, 8), (24, 24), rate=2e-3
    ),
    "Swin-tiny": Task(
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            patch_size=2,
            window_size=4,
            embed_dim=48,
            depths=(2, 2),
            num_heads=(3, 6),
        ),
        few_pictures,
        (4, 8),
        (24, 24),
        rate=2e-3,
    ),
    "ConvNeXt-atto": Task(
        _timm("convnext_atto", depths=(1, 1, 2, 1), patch_size=2), few_pictures, (4, 8), (24, 24), rate=2e-3
    ),
    "BERT-tiny-like": Task(Encoder, texts, (4, 8), (300, 48), rate=5e-4),
    "U-Net": Task(UNet, few_pictures, (4, 4), (24, 24), _of_positions, 2e-3),
    "YOLO-style": Task(Yolo, pictures, (4, 4), (192, 48), _of_scales),
    "siamese": Task(Siamese, pairs, (4, 4), (192, 48)),
    "LSTM": Task(lambda: Spotter(nn.LSTM), half_rows, (4, 8), (800, 60)),
    "GRU": Task(lambda: Spotter(nn.GRU), half_rows, (4, 8), (800, 60)),
}


# ---------------------------------------------------------------- the campaign


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: x for name, x in batch.items() if name != "labels"}


def _train(model: nn.Module, task: Task, batches: Sequence[Batch], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(lowbit.parameter_groups(model, weight_decay=1e-2), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    model.train()
    for batch in islice(cycle(batches), steps):
        optimizer.zero_grad()
        task.judged(model(**_inputs(batch)), batch)[0].backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def _right(model: Callable, task: Task, batches: Sequence[Batch]) -> str:
    found = torch.cat([task.judged(model(batch), batch)[1].flatten() for batch in batches])
    return f"{100 * float(found.float().mean()):.1f}"


def row(name: str, options: argparse.Namespace) -> dict[str, object]:
    """One network: trained, converted, exported and compared."""
    task, began = TASKS[name], time.perf_counter()
    train, test = task.data(options.data)
    before, at_bits = (steps if options.steps is None else options.steps for steps in task.steps)
    torch.manual_seed(options.seed)
    model = task.make()
    _train(model, task, train, before, task.rate)
    weights, activations = task.bits
    example = _inputs(train[0])
    clock = time.process_time()
    prepared = lowbit.prepare(model, weights=weights, activations=activations, integer_only=True, example_input=example)
    prepare_seconds = time.process_time() - clock
    lowbit.calibrate(prepared, [_inputs(batch) for batch in train[:4]])
    _train(prepared, task, train, at_bits, 5e-4)
    clock = time.process_time()
    integer = lowbit.to_integer(prepared, example)
    seconds = prepare_seconds + time.process_time() - clock
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        lowbit.export(integer, path, batches=[_inputs(test[0])])
        report: Report = lowbit.verify(prepared, path, [_inputs(batch) for batch in test])
    codes = [each for each in report.rows if each.trained_differ is not None and not each.is_float]
    outputs = integer.graph.outputs

    def reference(batch: Batch) -> Tensor | dict[str, Tensor]:
        found = integer.outputs(_inputs(batch))
        return found if len(outputs) > 1 else found[outputs[0]]

    compared = sum(each.compared for each in codes)
    return {
        "network": name,
        "setting": f"W{weights}A{activations}",
        "steps": f"{before} + {at_bits}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "right: float": _right(lambda batch: model(**_inputs(batch)), task, test),
        "trained": _right(lambda batch: prepared(**_inputs(batch)), task, test),
        "integers": _right(reference, task, test),
        "nodes": len(integer.graph.nodes),
        "codes": f"{report.compared:,}",
        "file differs": report.differ,
        "conversion differs": report.conversion_differ,
        "trained differs": f"{100 * sum(each.trained_differ or 0 for each in codes) / compared:.4f} %",
        "largest": f"{max(each.trained_largest or 0 for each in codes):g}",
        "prepare + to_integer s": f"{seconds:.1f}",
        "all s": f"{time.perf_counter() - began:.0f}",
    }


def page(found: Sequence[Mapping[str, object]], how: str) -> str:
    """The table as a page of the documentation."""
    head = list(found[0])
    lines = [[*head], ["---"] * len(head), *[[str(each[key]) for key in head] for each in found]]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"""# Trained networks of every kind, in integers

    python -m campaigns.trained_networks --data PATH --output docs/results

{how}

{table}

"right" is the share of right answers in percent, on {TESTED} samples that were not trained on (of the U-Net, of their positions): networks
are trained for a minute or less, and these columns say whether low bits and integers follow the float network, not how good it is: the
transformers and ConvNeXt have hardly begun to learn, and the encoder's pages are told by chance. "codes" are
all tensors of codes of these samples, "file differs" how many of the ONNX file's are not the integer reference's, "trained differs" the
share of codes that the trained network's own quantizers give otherwise, and "largest" by how many steps.

"conversion differs" counts the values of the trained network's own operations, in float64 and from the same codes before them, that
are not the integer network's: next to a tie both codes are right. It is 0, so every difference between the trained network and
integers is one of float32's order of summation at a tie, and what follows from it behind that tie: an 8-bit gate that differs by one step
moves many codes of a state of 16 bits. Answers that differ where no code does are ties of the two largest outputs, equal in integers.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m campaigns.trained_networks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10-JPEG")
    parser.add_argument("--networks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="NAME")
    parser.add_argument(
        "--steps", type=int, default=None, help="of training, before and at low bits; default: each network's own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="compute what the table has already")
    parser.add_argument("--output", type=Path, default=None, metavar="FOLDER", help="for trained-networks.csv and .md")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    how = (
        f"{harness.machine()}, one thread; timm {version('timm')}, ONNX Runtime {onnxruntime.__version__}. Seed {options.seed}; "
        f"steps of {BATCH} samples by AdamW, in full precision and then at low bits. Seconds of prepare and to_integer are of the processor."
    )
    print(how)
    file = None if options.output is None else options.output / "trained-networks.csv"
    order = list(TASKS).index
    table = harness.ResumedTable(file, ["network"], lambda each: order(each["network"]), again=options.again)
    for name in options.networks:
        if [name] not in table:
            table.add(row(name, options))
    harness.print_table(table.rows)
    if options.output is not None:
        with atomic_write(options.output / "trained-networks.md") as temporary:
            temporary.write_text(page(table.rows, how))


if __name__ == "__main__":
    main()
