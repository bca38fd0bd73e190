"""Networks by name, and weights from files."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lowbit import models
from lowbit._torchvision import import_torchvision
from lowbit.errors import LowbitError
from lowbit.models.preact_resnet import PreActResNet


@pytest.mark.parametrize("name", ["cifar-resnet20", "digits-cnn"])
def test_own_networks_trace_and_count_classes(name):
    model = models.create(name.replace("-", "_"), num_classes=7).eval()
    images = torch.randn(2, 1, 8, 8) if name == "digits-cnn" else torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model(images)
        assert outputs.shape == (2, 7)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), outputs)


def test_option_a_shortcut():
    block = models.create("cifar-resnet20").layer2[0]
    x = torch.randn(2, 16, 6, 6)
    y = block.shortcut(x)
    assert y.shape == (2, 32, 3, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_compiles_without_graph_break():
    model = models.create("cifar-resnet20").eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(images), model(images))


def test_given_weights_load_and_classify(shared_data):
    from lowbit.data import DataConfig, InMemoryImages, open_dataset
    from lowbit.data.holdout import limited

    weights = shared_data / "cifar10-resnet" / "resnet20-jpeg.safetensors"
    model = models.create("cifar-resnet20", weights=weights).eval()
    data = shared_data / "cifar10-jpeg"
    config = DataConfig(str(data), batch_size=256)
    loader = InMemoryImages(limited(open_dataset(data, "test"), 512), config, train=True, num_classes=10)
    with torch.inference_mode():
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in loader)
    # 87.87 % on all 10,000; four standard errors of 512 are 5.8 points
    assert 0.82 < right / 512 < 0.94


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_file(tmp_path, suffix):
    source = models.create("digits-cnn")
    state = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = models.create("digits-cnn", weights=path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("linear.bias"), r"missing linear\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"linear.bias": torch.zeros(3)}), r"of another shape linear\.bias \(3,\) for \(10,\)"),
        (lambda s: [s.pop(name) for name in list(s) if "bn" in name], r"missing bn1\.weight, .* and 13 more"),
    ],
)
def test_weights_of_another_network(tmp_path, change, message):
    state = models.create("digits-cnn").state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    model = models.create("digits-cnn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LowbitError, match=message):
        models.load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unusable_weight_files(tmp_path):
    for name, content, message in [
        ("a.safetensors", b"\x00" * 20, "not a readable safetensors file"),
        ("a.pt", b"\x00" * 20, "not a file of tensors"),
        ("a.bin", b"", "not a file of tensors"),
        ("a.txt", b"", "must be a .safetensors"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LowbitError, match=message):
            models.create("digits-cnn", weights=tmp_path / name)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(LowbitError, match="no state dict"):
        models.create("digits-cnn", weights=tmp_path / "list.pt")
    torch.save(models.create("digits-cnn"), tmp_path / "module.pth")  # would run code to load
    with pytest.raises(LowbitError, match="save a state dict, not a whole module"):
        models.create("digits-cnn", weights=tmp_path / "module.pth")
    with pytest.raises(LowbitError, match="does not exist"):
        models.create("digits-cnn", weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenetv2_050", "timm.models.efficientnet"),
        ("mobilenetv2-050", "timm.models.efficientnet"),
        ("resnet18.tv_in1k", "timm.models.resnet"),
        ("deit_tiny.fb_in1k", "timm.models.vision_transformer"),
        ("vgg16_bn", "torchvision.models.vgg"),
        ("vgg16_bn.tv_in1k", "timm.models.vgg"),
        ("torchvision:resnet18", "torchvision.models.resnet"),
        ("shufflenet_v2_x1_5", "torchvision.models.shufflenetv2"),
        ("shufflenetv2_x1.0", "torchvision.models.shufflenetv2"),
    ],
)
def test_networks_of_the_libraries(name, module):
    with torch.device("meta"):
        model = models.create(name, num_classes=5)
    assert type(model).__module__ == module
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    assert linear[-1].out_features == 5


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnt18", "resnet18"),
        ("cifar-resnet21", "cifar-resnet20"),
        ("digit_cnn", "digits-cnn"),
        ("torchvision:vgg_11", "vgg11"),
        ("torchvision:vgg11.tv_in1k", "vgg11"),
    ],
)
def test_unknown_name_has_close_ones(name, close):
    with pytest.raises(LowbitError, match=f"unknown network '{name}'.*Did you mean .*{close}"):
        models.create(name)


def test_pretrained_without_a_source(monkeypatch):
    with pytest.raises(LowbitError, match="give a local file"):
        models.create("cifar-resnet20", pretrained=True)
    with pytest.raises(LowbitError, match="keep one of the two"):
        models.create("cifar-resnet20", pretrained=True, weights="w.safetensors")
    import timm

    def offline(*args, **kwargs):
        raise OSError("no connection\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(LowbitError, match=r"weights of resnet18 cannot be fetched \(no connection\).*local file"):
        models.create("resnet18", pretrained=True)


def test_torchvision_pretrained_gets_a_head_of_its_own(monkeypatch):
    torchvision = import_torchvision()
    asked = []

    def published(name, weights=None, progress=True):
        asked.append((name, weights))
        return torchvision.models.get_model_builder(name)()

    monkeypatch.setattr(torchvision.models, "get_model", published)
    model = models.create("shufflenetv2-x0.5", num_classes=7, pretrained=True)
    assert asked == [("shufflenet_v2_x0_5", "DEFAULT")]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert models.create("shufflenetv2-x0.5", pretrained=True).fc.out_features == 1000
    with pytest.raises(LowbitError, match="squeezenet1_1: its last layer is not linear"):
        models.create("torchvision:squeezenet1_1", num_classes=7, pretrained=True)

    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(LowbitError, match=r"weights of shufflenet_v2_x0_5 cannot be fetched \(no connection\)"):
        models.create("shufflenetv2-x0.5", pretrained=True)


def test_an_autoencoder_has_no_classes():
    assert models.create("autoencoder").eval()(torch.randn(2, 640)).shape == (2, 640)
    with pytest.raises(LowbitError, match="has no classes"):
        models.create("autoencoder", num_classes=2)


def test_depths_there_are():
    with pytest.raises(LowbitError, match="6n \\+ 2"):
        models.CifarResNet(18)
    with pytest.raises(LowbitError, match=r"one of .18, 34, 50, 101, 152., got 20"):
        PreActResNet(20)


def test_torchvision_and_timm_import_in_a_fresh_process():
    code = """
import sys
from lowbit._torchvision import import_torchvision
assert "torchvision" not in sys.modules
module = import_torchvision()
assert import_torchvision() is module is sys.modules["torchvision"]
import timm, torchvision.models
from torchvision.transforms import v2
import torch
print(v2.CenterCrop(2)(torch.arange(16).reshape(1, 4, 4)).tolist(), torchvision.models.resnet18().fc.out_features)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[[[5, 6], [9, 10]]] 1000"
