"""Pretrained networks of timm: their features, folding of BatchNorm, and where their weights come from."""

import copy
import importlib.util
import itertools
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gingham
from gingham.models.backbones import Backbone, find_weights, fold_batchnorm
from gingham.models.registry import build_classifier
from pretrained_files import TINY, randomize_batchnorm, write_weights

# With squeeze-excitation, attention, GroupNorm, grouped and depthwise convolutions, same padding and weight
# standardisation.
FAMILIES = (
    "test_resnet",
    TINY,
    "test_byobnet",
    "test_coatnet",
    "test_nfnet",
    "test_vit",
    "test_convnext",
    "hgnetv2_b0",
)


@pytest.mark.parametrize("name", [*FAMILIES, "tf_efficientnet_lite0", "mobilenetv4_conv_small"])
def test_folding_batchnorm_keeps_the_function_of_a_network(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    randomize_batchnorm(network)
    config = network.pretrained_cfg
    side = config["input_size"][1] if config.get("fixed_input_size") else 64
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = network(images)
        fold_batchnorm(network, torch.zeros(1, 3, side, side))
        actual = network(images)
    scale = float(expected.abs().max())
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["test_resnet", TINY, "hgnetv2_b0", "tf_efficientnet_lite0", "regnety_004"])
def test_every_batchnorm_of_usual_networks_is_folded(name):
    network = timm.create_model(name, num_classes=0)
    fold_batchnorm(network, torch.zeros(1, 3, 64, 64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Shared(nn.Module):
    """A convolution whose output goes to a BatchNorm in one use, and to other layers in another."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.convolution, self.norm, self.other = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.convolution(x)
        if self.variant == "convolution used twice":
            return self.norm(y).mean((2, 3)) + self.convolution(2 * x).mean((2, 3))
        if self.variant == "convolution used twice with its norm":
            return (self.norm(y) + self.norm(self.convolution(2 * x))).mean((2, 3))
        if self.variant == "two norms":
            return (self.norm(y) + self.other(y)).mean((2, 3))
        if self.variant == "norm used twice":
            return (self.norm(y) + self.norm(self.unused(x)[..., 1:-1, 1:-1])).mean((2, 3))
        if self.variant == "output also used directly":
            return (self.norm(y) + y).mean((2, 3))
        return self.norm(y.relu()).mean((2, 3))


@pytest.mark.parametrize(
    "variant",
    [
        "convolution used twice",
        "convolution used twice with its norm",
        "two norms",
        "norm used twice",
        "output also used directly",
        "activation between",
    ],
)
def test_convolutions_that_are_used_in_another_way_keep_their_function(variant):
    torch.manual_seed(0)
    network = Shared(variant).eval()
    randomize_batchnorm(network)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        fold_batchnorm(network, torch.zeros(1, 3, 8, 8))
        assert torch.allclose(network(images), expected, atol=1e-5)


@pytest.fixture
def backbone(tiny_weights):
    torch.manual_seed(0)
    network = Backbone(TINY, classes=4)
    network.load_pretrained(load_file(tiny_weights))
    nn.init.normal_(network.classifier.weight)
    return network.eval()


def test_features_are_those_of_timm_and_the_means_of_its_stages(backbone, tiny_weights):
    reference = timm.create_model(TINY)
    reference.load_state_dict(load_file(tiny_weights))
    reference.eval()
    images = torch.rand(3, 3, 48, 64)
    mean, std = (torch.tensor(reference.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        final, stages = reference.forward_intermediates((images - mean) / std)
        pooled = reference.forward_head(final, pre_logits=True)
        logits = reference((images - mean) / std)
        features = backbone.features(images)
        assert torch.allclose(reference.classifier(pooled), logits, atol=1e-4)  # the features of ImageNet's classifier
    expected = torch.cat([pooled, *(stage.mean((2, 3)) for stage in stages)], dim=1)
    assert torch.allclose(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["inception_v3", "densenet121", "levit_128s"])
def test_networks_of_other_families_have_features(name):
    network = Backbone(name, 2)
    config = network.body.pretrained_cfg
    side = config["input_size"][1] if config.get("fixed_input_size") else 96
    assert network(torch.rand(1, 3, side, side)).shape == (1, 2)


def test_a_network_without_the_methods_that_are_needed_is_refused(monkeypatch):
    real = timm.create_model

    def create(name, **options):
        network = nn.Sequential(real(name, **options))
        network.pretrained_cfg = network[0].pretrained_cfg
        return network

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        gingham.ModelError, match=f"timm's network {TINY} cannot be used .*forward_intermediates.*another"
    ):
        Backbone(TINY, 2)


@torch.no_grad()
def test_the_logits_are_those_of_the_standardised_features(backbone):
    images = torch.rand(50, 3, 32, 32)
    features = backbone.features(images)
    backbone.standardize(features)
    standardised = (features - backbone.feature_mean) / backbone.feature_std
    assert torch.allclose(standardised.mean(0), torch.zeros(1), atol=1e-3)
    varied = features.std(0) > 0.1 * features.std(0).mean()
    assert torch.allclose(standardised.std(0, correction=0)[varied], torch.ones(1), atol=1e-3)
    logits = standardised @ backbone.classifier.weight.T + backbone.classifier.bias
    assert torch.allclose(backbone.classify(features), logits, atol=1e-4)
    assert torch.allclose(backbone(images), logits, atol=1e-3)


@torch.no_grad()
def test_constant_features_stay_finite_when_they_are_standardised(backbone):
    features = torch.ones(8, len(backbone.feature_mean))
    backbone.standardize(features)
    assert backbone.classify(features).isfinite().all()


@torch.no_grad()
def test_a_grey_channel_is_repeated(backbone):
    grey = torch.rand(2, 1, 32, 32)
    assert torch.equal(backbone(grey), backbone(grey.repeat(1, 3, 1, 1)))
    assert not torch.allclose(backbone(grey), backbone(torch.rand(2, 3, 32, 32)))


def test_depths_rise_from_the_first_layer_to_the_classifier(backbone):
    depths = backbone.parameter_depths()
    assert list(depths) == [name for name, _ in backbone.named_parameters()]
    assert depths["body.conv_stem.weight"] == 0
    assert depths["classifier.weight"] == depths["classifier.bias"] == 1
    stages = [{value for name, value in depths.items() if f"body.blocks.{k}." in name} for k in range(4)]
    assert all(max(lower) < min(higher) for lower, higher in itertools.pairwise(stages) if lower and higher)
    assert max(value for name, value in depths.items() if name.startswith("body.")) < 1


@pytest.mark.parametrize(("share", "frozen"), [(0, set()), (1, {"conv_stem", "blocks", "conv_head", "bn1"})])
def test_freezing_all_or_no_layers(backbone, share, frozen):
    backbone.freeze(share)
    found = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert found <= frozen
    assert bool(found) == bool(frozen)
    assert backbone.classifier.weight.requires_grad


ADDRESSES = (
    "hf_hub:timm/resnet18.a1_in1k",
    "hf-hub:timm/resnet18.a1_in1k",
    "local-dir:/tmp",
    "timm/resnet18",
    "../resnet18",
    "https://example.org/resnet18",
)


@pytest.mark.parametrize("name", [*ADDRESSES, "", "resnet", "Resnet18", "resnet18.no_such_weights", "resnet18\n"])
def test_only_names_of_timm_networks_are_accepted_and_nothing_is_downloaded(name, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    for function in ("hf_hub_download", "get_hf_file_metadata", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, function, refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    for call in (lambda: Backbone(name, 2), lambda: find_weights(name)):
        with pytest.raises(gingham.ModelError, match=r"^timm has no network .*resnet18") as caught:
            call()
        assert str(caught.value).count("\n") == 0


def test_an_unknown_name_suggests_a_similar_one():
    with pytest.raises(gingham.ModelError, match="did you mean 'resnet18'"):
        Backbone("resnet_18", 2)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else found(name, *rest))
    with pytest.raises(gingham.ModelError, match=r"needs the package timm; run pip install 'gingham\[backbones\]'$"):
        build_classifier(f"timm/{TINY}", ("a", "b"), (3, 32, 32))


def test_a_network_with_a_fixed_input_size_says_so():
    with pytest.raises(gingham.ModelError, match=r"cannot take an image of 3x32x32.*224.*give images of another size"):
        build_classifier("timm/vit_tiny_patch16_224", ("a", "b"), (3, 32, 32))
    assert build_classifier("timm/test_vit", ("a", "b"), (3, 160, 160)).input_shape == (3, 160, 160)


def damage(path, kind, tiny_weights):
    """Write a file that is not the weights of the tiny network."""
    tensors = load_file(tiny_weights)
    match kind:
        case "another network":
            write_weights(path, "test_resnet")
        case "pickle":
            torch.save(tensors, path)
        case "truncated":
            path.write_bytes(tiny_weights.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "a tensor missing":
            del tensors["conv_head.weight"]
            save_file(tensors, path)
        case "a tensor more":
            save_file(tensors | {"extra": torch.zeros(1)}, path)
        case "not finite":
            tensors["conv_head.weight"][0] = float("nan")
            save_file(tensors, path)
        case "another shape":
            save_file(tensors | {"conv_head.weight": torch.zeros(2, 3)}, path)
        case "negative variance":
            tensors["bn1.running_var"].neg_()
            save_file(tensors, path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "another network",
            r"the weights are not those of timm's test_efficientnet \(bn1.weight has shape \(\d+,\), not \(\d+,\)",
        ),
        (
            "another shape",
            r"not those of .* \(conv_head.weight has shape \(2, 3\), not \(\d+, \d+, 1, 1\)\); give the file",
        ),
        ("pickle", "the pretrained weights of test_efficientnet: cannot read .*; give a safetensors file of them$"),
        ("truncated", "cannot read .*; give a safetensors file of them$"),
        ("empty", "cannot read .*; give a safetensors file of them$"),
        ("folder", r"cannot read \S+ \(it is a folder\); give a safetensors file of them$"),
        ("absent", "cannot read .*; give a safetensors file of them$"),
        ("a tensor missing", r"not those of .* \(no conv_head.weight\); give the file of that network$"),
        ("a tensor more", r"not those of .* \(also extra\); give the file of that network$"),
        ("not finite", r"\(conv_head.weight is not finite"),
        ("negative variance", r"\(conv_stem.weight is not finite, conv_stem.bias is not finite\)"),
    ],
)
def test_wrong_weights_are_refused_in_one_sentence(kind, reason, tiny_weights, tmp_path):
    path = tmp_path / "weights.safetensors"
    damage(path, kind, tiny_weights)
    network = Backbone(TINY, 2)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(gingham.ModelError, match=reason) as caught:
        network.load_pretrained(find_weights(TINY, path)[0])
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_weights_in_lower_precision_are_converted(dtype, tiny_weights):
    network = Backbone(TINY, 2)
    network.load_pretrained({name: tensor.to(dtype) for name, tensor in load_file(tiny_weights).items()})
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_weights_of_a_classifier_with_several_layers_are_left_out(tmp_path):
    file = write_weights(tmp_path / "levit.safetensors", "levit_128s")  # BatchNorm before the linear layer
    Backbone("levit_128s", 2).load_pretrained(find_weights("levit_128s", file)[0])


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and a hub that cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def unreachable(*_args, **_kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    return tmp_path / "hub"


def test_weights_come_from_the_cache_of_hugging_face_without_a_network(hub_cache, tiny_weights):
    repository = timm.get_pretrained_cfg("resnet18").hf_hub_id.replace("/", "--")
    folder = hub_cache / f"models--{repository}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(REVISION)
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(tiny_weights.read_bytes())
    said = []
    weights, checksum = find_weights("resnet18", say=said.append)
    assert said == []
    expected = load_file(tiny_weights)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert checksum == gingham.io.sha256(tiny_weights)


def test_without_a_network_one_sentence_says_which_file_is_needed(hub_cache):
    assert not hub_cache.exists()
    with pytest.raises(gingham.ModelError) as caught:
        find_weights("resnet18")
    message = str(caught.value)
    assert message.startswith("cannot download the pretrained weights of resnet18 from https://")
    assert "Network is unreachable" in message
    assert message.endswith("give their file, model.safetensors of timm/resnet18.a1_in1k (--weights FILE)")
    assert "\n" not in message


@pytest.mark.usefixtures("hub_cache")
def test_a_download_says_its_size_origin_and_licence(tiny_weights, monkeypatch):
    real, asked = huggingface_hub.hf_hub_download, []

    def download(repository, file, **options):
        if options.get("local_files_only"):
            return real(repository, file, **options)
        asked.append((repository, file))
        return str(tiny_weights)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: SimpleNamespace(size=46_800_000))
    said = []
    find_weights("resnet18", say=said.append)
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]
    endpoint = huggingface_hub.constants.ENDPOINT
    origin = f"{endpoint}/timm/resnet18.a1_in1k, licence apache-2.0"
    assert said == [f"downloading 47 MB of pretrained weights from {origin}"]


def test_a_network_without_published_weights_needs_a_file(tiny_weights):
    name = "regnetz_005"  # timm has the architecture only
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert config is None or not config.hf_hub_id
    with pytest.raises(gingham.ModelError, match=f"timm lists no pretrained weights for {name}; give a file"):
        find_weights(name)
    assert find_weights(name, tiny_weights)[0].keys() == load_file(tiny_weights).keys()


def test_real_weights_recognise_photos_of_imagenet(imagenet_weights):
    """With ImageNet's own classifier, the network knows the flower, so weights and preprocessing are right."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    backbone = Backbone("tf_efficientnet_lite0", classes=1000)
    weights = load_file(imagenet_weights)
    backbone.load_pretrained(weights)
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        pooled = backbone.features(pixels)[:, :1280]
        logits = pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert int(logits.argmax()) == 985  # daisy
