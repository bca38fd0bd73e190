"""Float network in, network with quantizers out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowbit
from lowbit import LowbitError, Rule


class Block(nn.Module):
    """Two layers on one tensor, an addition, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


class Other(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def batch(*shape):
    torch.manual_seed(1)
    return torch.randn(*shape)


def calibrated(model=None, **options):
    torch.manual_seed(0)
    return lowbit.calibrate(lowbit.prepare(model or Block(), **options), [batch(4, 3, 8, 8)])


def bits(model):
    return {row.name: (row.weight_bits, row.activation_bits) for row in lowbit.layer_table(model)}


def test_the_original_is_untouched_and_its_names_stay():
    model = Block()
    before = copy.deepcopy(model.state_dict())
    prepared = calibrated(model, weights=2, activations=3)
    assert type(model.stem) is nn.Conv2d and model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert before.keys() <= prepared.state_dict().keys()
    assert isinstance(prepared, Block) and isinstance(prepared.left, nn.Conv2d)
    assert bits(prepared) == {"stem": (8, 8), "left": (2, 3), "right": (2, 3), "head": (8, 8)}


def test_a_prepared_layer_computes_the_layer_on_quantized_tensors():
    prepared = calibrated(weights=3, activations=3, granularity="channel")
    x = torch.relu(batch(2, 8, 6, 6))
    layer = prepared.left
    s, w = layer.input_quantizer.step, layer.weight_quantizer.step
    x_hat = (x / s).round().clamp(0, 7) * s
    w_hat = (layer.weight / w).round().clamp(-4, 3) * w
    torch.testing.assert_close(layer(x), F.conv2d(x_hat, w_hat, layer.bias, padding=1, groups=2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, dilation=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="reflect"), (2, 4, 9, 9)),
        (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 9, 9)),
        (nn.ConvTranspose3d(4, 6, 2, bias=False), (2, 4, 4, 4, 4)),
        (nn.Linear(4, 6), (2, 7, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_every_kind_of_layer_at_8_bits_stays_close_to_itself(layer, shape, granularity):
    x = batch(*shape)
    model = nn.Sequential(layer)
    prepared = lowbit.calibrate(lowbit.prepare(model, method="minmax", granularity=granularity), [x])
    expected = model(x)
    assert 0 < (prepared(x) - expected).abs().max() < 0.03 * expected.abs().max()
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert prepared[0].weight_quantizer.raw_step.numel() == (1 if granularity == "tensor" else channels)


@pytest.mark.parametrize("transposed", [False, True])
def test_per_channel_means_per_output_channel(transposed):
    """Scaling one output channel's weights by a power of two scales that channel's output and step, and no other's."""
    layer = (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False) if transposed else nn.Conv2d(4, 6, 3, groups=2, bias=False)
    )
    x = batch(2, 4, 7, 7)

    def output():
        model = lowbit.prepare(
            nn.Sequential(layer), first_last=3, granularity="channel", rules=[Rule("0", activations=None)]
        )
        return lowbit.calibrate(model)(x)

    before = output()
    with torch.no_grad():
        (layer.weight[2:, 1] if transposed else layer.weight[4]).mul_(1024)
    expected = before.clone()
    expected[:, 4] *= 1024
    torch.testing.assert_close(output(), expected)


@pytest.mark.parametrize(("granularity", "steps"), [("group:6", 8 * 4 * 9 // 6), ("channels:2", 4), ("group:36", 8)])
def test_groups_have_a_step_each_and_share_what_they_should(granularity, steps):
    prepared = calibrated(granularity="tensor", rules=[Rule("left", granularity=granularity)])
    quantizer = prepared.left.weight_quantizer
    assert quantizer.raw_step.numel() == steps
    weight = prepared.left.weight.detach()
    grouped = weight.reshape(steps, -1)
    torch.testing.assert_close(quantizer.step.reshape(-1), 2 * grouped.abs().mean(1) / math.sqrt(7))
    quantizer(prepared.left.weight).sum().backward()
    assert quantizer.raw_step.grad.shape == quantizer.raw_step.shape


def test_full_precision_sides():
    prepared = calibrated(weights=None, activations=4)
    assert set(bits(prepared).values()) == {(None, 8), (None, 4)}
    weights_only = lowbit.calibrate(lowbit.prepare(Block(), activations=None))  # needs no data
    assert set(bits(weights_only).values()) == {(8, None), (4, None)}
    assert bits(calibrated(first_last=None))["stem"] == (None, None)


def test_rules_the_first_match_wins():
    rules = [
        Rule("left", weights=2, method="lsq+"),
        Rule("(left|right)", weights=3, activations=None),
        Rule("head", skip=True),
    ]
    prepared = calibrated(rules=rules)
    assert bits(prepared) == {"stem": (8, 8), "left": (2, 4), "right": (3, None), "head": (None, None)}
    assert prepared.left.weight_quantizer.method.name == "lsq+" and type(prepared.head) is nn.Linear


def test_a_tensor_that_feeds_two_layers_has_one_quantizer():
    prepared = calibrated()
    assert prepared.left.input_quantizer is prepared.right.input_quantizer
    assert len([n for n, _ in lowbit.quantizers(prepared)]) == 4 + 3
    apart = calibrated(rules=[Rule("left", activations=3)])
    assert apart.left.input_quantizer is not apart.right.input_quantizer


def test_different_tensors_keep_their_own_quantizers():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    assert len(list(lowbit.quantizers(calibrated(model)))) == 6


@pytest.mark.parametrize("method", ["lsq", "lsq+", "lg-lsq"])
def test_a_checkpoint_brings_back_everything(method):
    trained = calibrated(method=method)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    fresh = lowbit.prepare(Block(), method=method)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.left.input_quantizer is fresh.right.input_quantizer
    lowbit.calibrate(fresh, [100 * batch(4, 3, 8, 8)])  # finds nothing left to start
    x = batch(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


def test_a_float_checkpoint_loads_and_its_weights_are_started_from():
    prepared, other = calibrated(), Block()
    with torch.no_grad():
        other.left.weight.mul_(16)
    prepared.load_state_dict(other.state_dict())
    with pytest.raises(LowbitError, match="calibrate"):
        prepared(batch(1, 3, 8, 8))
    lowbit.calibrate(prepared, [batch(4, 3, 8, 8)])
    expected = 2 * other.left.weight.abs().mean() / math.sqrt(7)
    torch.testing.assert_close(prepared.left.weight_quantizer.step, expected.detach())


def test_a_part_of_a_checkpoint_leaves_the_other_layers_started():
    model = lowbit.calibrate(lowbit.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), [torch.randn(3, 4)])
    model.load_state_dict({"1.weight": torch.randn(4, 4), "1.bias": torch.randn(4)}, strict=False)
    assert [q.initialized for _, q in lowbit.quantizers(model)] == [True, True, False, False]


def test_calibration_leaves_batch_norm_and_modes_alone():
    model = Block().train()
    model.norm.eval()
    prepared = lowbit.prepare(model)
    mean = prepared.norm.running_mean.clone()
    lowbit.calibrate(prepared, [batch(4, 3, 8, 8)] * 3)
    assert torch.equal(prepared.norm.running_mean, mean)
    assert prepared.training and not prepared.norm.training


def test_calibration_takes_pairs_dictionaries_and_averages_batches():
    x, y = batch(4, 3, 8, 8), 3 * batch(4, 3, 8, 8)
    for batches in ([x, y], [(x, 0), (y, 1)], [torch.cat([x, y])]):
        model = lowbit.calibrate(lowbit.prepare(Block(), method="lsq"), batches)
        expected = 2 * torch.cat([x, y]).abs().mean() / math.sqrt(127)
        torch.testing.assert_close(model.stem.input_quantizer.step, expected)
    lowbit.calibrate(lowbit.prepare(Block()), [{"x": x}])


@pytest.mark.parametrize("integer_only", [False, True])
def test_without_a_method_it_is_lsq_from_another_start(integer_only):
    x = batch(4, 3, 8, 8)

    def steps(**options) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = lowbit.calibrate(lowbit.prepare(Block(), integer_only=integer_only, **options), [x])
        return {name: quantizer.step for name, quantizer in lowbit.quantizers(model)}

    found, papers = steps(), steps(method="lsq")
    assert found == steps(method="lsq", init_activations="least-squares")
    for name, step in found.items():
        assert (step == papers[name]) == (not name.endswith("input_quantizer")), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": 9}, "weights: bits must be a whole number from 1 to 8"),
        ({"activations": 0}, "activations: bits must"),
        ({"first_last": 33}, "first_last: bits must"),
        ({"method": "lsq2"}, "unknown method 'lsq2'. Did you mean 'lsq"),
        ({"rules": [Rule("nothing.*")]}, r"rule 'nothing\.\*' matches no layer"),
        ({"rules": [Rule("left.*"), Rule("left")]}, "an earlier rule already matches left"),
        ({"rules": [Rule("(")]}, "not a regular expression"),
        ({"weights": 4.5}, "weights: bits must"),
        ({"rules": ["left"]}, r"must be lowbit\.Rule"),
        ({"granularity": "rows"}, "layer 'stem': unknown granularity 'rows'"),
        ({"granularity": "group:5"}, "layer 'stem' has 27 inputs, not a multiple of 5"),
    ],
)
def test_bad_options_are_refused_and_the_model_is_untouched(options, words):
    model = Block()
    keys = model.state_dict().keys()
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(model, **options)
    assert model.state_dict().keys() == keys and type(model.stem) is nn.Conv2d


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.ReLU()), "no convolution or linear layer"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), Other(3, 3, 1)),
            "layer '1' is a .*Other with a forward of its own, which may compute its output in another way",
        ),
        (nn.Sequential(nn.LazyLinear(3)), "layer '0' is (lazy|a torch.nn.modules.linear.LazyLinear)"),
        (nn.TransformerEncoderLayer(8, 2), "TransformerEncoderLayer|never called"),
        (nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": nn.Linear(2, 2)}), "'a.out_proj' is never called"),
        (lowbit.prepare(Block()), "prepared already"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_models_that_cannot_be_prepared(model, words):
    with pytest.raises(LowbitError, match=words):
        lowbit.prepare(model)


class Unused(Block):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("change", "batches", "words"),
    [
        (lambda m: None, [], "no batches"),
        (lambda m: None, [torch.full((1, 3, 8, 8), float("nan"))], "input of layer 'stem' holds NaN"),
        (lambda m: nn.init.zeros_(m.norm.weight), [torch.randn(1, 3, 8, 8)], "input of layer 'left' is all zero"),
        (lambda m: nn.init.zeros_(m.left.weight), [torch.randn(1, 3, 8, 8)], "weight of layer 'left' is all zero"),
        (
            lambda m: nn.init.constant_(m.right.weight, float("inf")),
            [torch.randn(1, 3, 8, 8)],
            "weight of layer 'right' holds",
        ),
        (lambda m: None, ["text"], "must be a tensor"),
        (lambda m: None, torch.randn(1, 3, 8, 8), "got one tensor"),
        (lambda m: None, [torch.randn(0, 3, 8, 8)], "batch is empty"),
    ],
)
def test_bad_calibration_starts_nothing(change, batches, words):
    prepared = lowbit.prepare(Block())
    change(prepared)
    with pytest.raises(LowbitError, match=words):
        lowbit.calibrate(prepared, batches)
    assert not any(quantizer.initialized for _, quantizer in lowbit.quantizers(prepared))
    assert len(list(lowbit.quantizers(prepared))) == 8


def test_a_layer_no_batch_reaches_is_named():
    with pytest.raises(LowbitError, match="no batch reaches the input of layer 'spare'"):
        lowbit.calibrate(lowbit.prepare(Unused()), [batch(1, 3, 8, 8)])


class Auxiliary(nn.Module):
    """A head that training runs, as GoogLeNet's and Inception's are; and one that nothing runs."""

    def __init__(self, spare=False) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.aux = nn.Sequential(
            nn.Dropout(0.9), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)
        )
        self.spare = nn.Linear(2, 2) if spare else None

    def forward(self, x):
        x = self.norm(self.body(x))
        aux = self.aux(x) if self.training else None
        y = self.head(x.mean((2, 3)))
        return y if aux is None else (y, aux)


def test_heads_that_training_alone_runs_are_initialized_too():
    torch.manual_seed(0)
    model, x = Auxiliary(), batch(4, 3, 8, 8)
    model.norm.running_mean += 1.0
    model.body.training = False  # as the user has it
    prepared = lowbit.prepare(model, method="lsq")
    before = copy.deepcopy(prepared.state_dict())
    with pytest.warns(
        UserWarning, match="training alone reaches the input of layer 'aux.1' and 1 more: initialized"
    ) as said:
        lowbit.calibrate(prepared, [x, 2 * x])
    assert len(said) == 1 and said[0].filename == __file__
    assert prepared.training and prepared.aux[0].training and not prepared.body.training
    for name in ("norm", "aux.2"):
        for key, value in prepared.get_submodule(name).state_dict().items():
            assert torch.equal(value, before[f"{name}.{key}"])
    model.eval()
    features = torch.cat(
        [model.norm(model.body(each)) for each in (x, 2 * x)]
    )  # no dropout, batch-norm as in evaluation
    step = prepared.aux[1].input_quantizer.step
    torch.testing.assert_close(step, 2 * features.abs().mean() / 7**0.5, rtol=1e-5, atol=0)
    assert prepared.train()(x)[1].shape == (4, 2)
    # Others are initialized as without a head.
    model.aux = None
    alone = lowbit.calibrate(lowbit.prepare(model, method="lsq"), [x, 2 * x])
    assert torch.equal(alone.body.input_quantizer.step, prepared.body.input_quantizer.step)


def test_batches_that_are_used_up_or_do_not_help_are_told():
    x = batch(4, 3, 8, 8)
    with pytest.raises(LowbitError, match=r"no batch reaches the input of layer 'aux.1' and 1 more: .*\(in a list, if"):
        lowbit.calibrate(lowbit.prepare(Auxiliary()), iter([x]))
    with pytest.raises(LowbitError, match="no batch reaches the input of layer 'spare':"):
        lowbit.calibrate(lowbit.prepare(Auxiliary(spare=True)), [x])


def test_calibrating_a_float_model_says_what_comes_first():
    with pytest.raises(LowbitError, match=r"lowbit\.prepare comes before"):
        lowbit.calibrate(Block(), [batch(1, 3, 8, 8)])


def test_compiles_whole_without_recompiling_over_steps(compiler):
    torch._dynamo.reset()
    prepared = calibrated(weights=2, activations=2, method="lg-lsq")
    reference = copy.deepcopy(prepared)
    compiled = torch.compile(prepared, fullgraph=True)
    counter = torch._dynamo.utils.counters
    counter.clear()
    optimizer = torch.optim.SGD(lowbit.parameter_groups(prepared, weight_decay=1e-4), lr=0.05, momentum=0.9)
    eager = torch.optim.SGD(lowbit.parameter_groups(reference, weight_decay=1e-4), lr=0.05, momentum=0.9)
    for number in range(4):
        x = batch(4, 3, 8, 8) + number
        for network, opt in ((compiled, optimizer), (reference, eager)):
            opt.zero_grad()
            network(x).square().mean().backward()
            opt.step()
        lowbit.set_progress(prepared, number / 4)
    assert counter["stats"]["unique_graphs"] == 1 and not counter["graph_break"]
    torch.testing.assert_close(prepared.state_dict(), reference.state_dict(), rtol=1e-4, atol=1e-5)


def test_layer_table_counts():
    prepared = calibrated(weights=2, activations=3)
    rows = {row.name: row for row in lowbit.layer_table(prepared, batch(1, 3, 8, 8))}
    assert rows["left"].macs == 8 * 8 * 8 * 4 * 9 and rows["head"].macs == 40
    assert rows["left"].bit_operations == rows["left"].macs * 6
    assert rows["left"].size_bits == rows["left"].parameters * 2
    float_bits = sum(p.numel() for p in prepared.parameters()) * 32
    saved = sum(row.parameters * (32 - row.weight_bits) for row in rows.values())
    assert lowbit.model_size_bits(prepared) == float_bits - saved


def test_a_shared_quantizer_is_saved_by_formats_that_refuse_shared_memory(tmp_path):
    """Hugging Face's Trainer saves with `save_file`; `save_model` would leave out all names but one."""
    from safetensors.torch import load_file, load_model, save_file, save_model

    model = calibrated()
    assert model.left.input_quantizer is model.right.input_quantizer
    x = batch(4, 3, 8, 8)
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    save_model(model, str(tmp_path / "model.safetensors"))
    by_file, by_model = lowbit.prepare(Block()), lowbit.prepare(Block())
    by_file.load_state_dict(load_file(tmp_path / "file.safetensors"))
    load_model(by_model, str(tmp_path / "model.safetensors"))
    for again in (by_file, by_model):
        assert again.left.input_quantizer is again.right.input_quantizer
        assert torch.equal(again.eval()(x), model.eval()(x))


class OneChannel(nn.Module):
    """A layer-norm over one channel gives its bias, whatever it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 1), nn.LayerNorm(1)
        self.fc1, self.fc2 = nn.Linear(1, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc2(self.fc1(self.norm(self.stem(x))))


def test_a_normalized_channel_that_is_its_bias_alone_is_calibrated_as_training_makes_it():
    torch.manual_seed(0)
    model, x = OneChannel(), batch(3, 4)
    prepared = lowbit.calibrate(lowbit.prepare(model, first_last=4), [x])
    assert not prepared.norm.bias.any() and not prepared.norm._forward_hooks
    nn.init.constant_(model.norm.bias, -0.04)  # as every parameter that is 0 at first
    trained = lowbit.calibrate(lowbit.prepare(model, first_last=4), [x])
    assert torch.equal(prepared.fc1.input_quantizer.step, trained.fc1.input_quantizer.step)
    # The zeros of dead layers and of empty data stay what they are.
    nn.init.zeros_(model.norm.bias)
    nn.init.zeros_(model.stem.bias)
    with pytest.raises(LowbitError, match="input of layer 'stem' is all zero"):
        lowbit.calibrate(lowbit.prepare(model), [0 * x])
    model.stem = nn.Sequential(nn.Linear(4, 1), nn.ReLU())
    nn.init.constant_(model.stem[0].bias, -100.0)
    with pytest.raises(LowbitError, match="input of layer 'fc1' is all zero"):
        lowbit.calibrate(lowbit.prepare(model), [x])
