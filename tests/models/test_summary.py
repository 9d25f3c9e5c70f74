"""The layer table: theory against the gradient, totals against parameters(), and what it says of networks that do not fit."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gingham
from gingham import ModelError, summarize
from gingham.cli.resolve import find_network
from gingham.models.conv_arithmetic import Field, Window


def gradient_field(network, shape, layer=None):
    """The height and width of the box of input pixels whose change moves the centre of a map: no theory in it.

    Weights are made positive and max-pooling averages, so that no path is hidden by a sign or by another pixel's maximum.
    """
    torch.manual_seed(0)
    network = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Averages, and next to no bias: what grows would be cut off by a ReLU6.
            scale = 1e-3 if name.endswith("bias") else 1 / parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_((torch.rand_like(parameter) + 0.5) * scale)
    maps = []
    if layer is not None:
        network.get_submodule(layer).register_forward_hook(lambda _module, _args, out: maps.append(out))
    pixels = (torch.rand(1, *shape, dtype=torch.float64) * 1e-3).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "max_pool2d", ema_decay)
        out = network(pixels)
    feature_map = maps[-1] if layer is not None else out
    feature_map[0, :, feature_map.shape[2] // 2, feature_map.shape[3] // 2].sum().backward()
    touched = pixels.grad[0].abs().sum(dim=0).nonzero()
    (top, left), (bottom, right) = touched.min(dim=0).values.tolist(), touched.max(dim=0).values.tolist()
    clipped = [top == 0 or bottom == shape[1] - 1, left == 0 or right == shape[2] - 1]
    return (bottom - top + 1, right - left + 1), clipped


def ema_decay(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    assert dilation in (1, (1, 1))
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Branches(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Focus(nn.Module):
    """Every second pixel, four ways, as channels (YOLOv5's stem)."""

    def forward(self, x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        return self.out(torch.cat([x, F.interpolate(self.deep(self.down(x)), scale_factor=2)], dim=1))


class Shuffle(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ChannelsLast(nn.Module):
    """A Linear over the channels of a (N, H, W, C) view, as ConvNeXt does."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 4)

    def forward(self, x):
        return self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Windows cut by Tensor.unfold and mixed by a matrix."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2 * 5 * 3, 4)

    def forward(self, x):
        windows = x.unfold(2, 5, 2).unfold(3, 3, 2)  # (N, C, H', W', 5, 3)
        return self.mix(windows.permute(0, 2, 3, 1, 4, 5).flatten(3)).permute(0, 3, 1, 2)


class Mirrored(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (3, 2), stride=2)

    def forward(self, x):
        return self.conv(x.flip(-1)).flip(-1)


HANDMADE = {
    "stack": nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 5, stride=2), nn.AvgPool2d(2), nn.Conv2d(3, 3, 3)),
    "dilation": nn.Sequential(nn.Conv2d(2, 3, 3, dilation=3, padding=1), nn.Conv2d(3, 3, 3, dilation=2)),
    "uneven": nn.Sequential(nn.Conv2d(2, 3, (1, 7), stride=(1, 2), padding=(0, 3)), nn.Conv2d(3, 3, (3, 1), stride=(3, 1))),
    "same padding": nn.Sequential(nn.Conv2d(2, 2, 4, padding="same"), nn.Conv2d(2, 2, 3, padding="same", dilation=2)),
    "groups": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 4, 5, groups=4), Shuffle(), nn.Conv2d(4, 8, 1)),
    "ceil": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(2, 3, 3), nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "residual": nn.Sequential(nn.Conv2d(2, 4, 3), Residual(nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU(inplace=True)))),
    "branches": nn.Sequential(
        Branches(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=5, dilation=5)), nn.Conv2d(6, 2, 3)
    ),
    "lopsided branches": Branches(nn.Conv2d(2, 2, 2), nn.Sequential(nn.ZeroPad2d((0, 0, 1, 1)), nn.Conv2d(2, 2, (4, 2)))),
    "focus": nn.Sequential(Focus(), nn.Conv2d(8, 4, 3, padding=1)),
    "space to depth": nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(4, 4, 1)),
    "channels last": nn.Sequential(nn.Conv2d(2, 2, 3), ChannelsLast(), nn.Conv2d(4, 2, 3)),
    "adaptive": nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(16), nn.Conv2d(3, 3, 3)),
    "patches": nn.Sequential(nn.Conv2d(2, 2, 3), Patches()),
    "mirrored": nn.Sequential(Mirrored(), nn.Conv2d(3, 2, 3)),
    "norms": nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.GELU(), nn.Conv2d(4, 2, 3)),
    "transposed": nn.Sequential(nn.Conv2d(2, 4, 3, stride=4), nn.ConvTranspose2d(4, 2, 2, stride=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDMADE)
def test_the_field_is_what_the_gradient_touches(name):
    network = HANDMADE[name]
    summary = summarize(network, (2, 64, 48))
    measured, clipped = gradient_field(network, (2, 64, 48))
    assert clipped == [False, False]
    assert as_pair(summary.layers[-1].receptive_field) == measured


def test_the_field_of_a_u_net_is_within_a_step_of_the_gradients():
    # Interpolation has phases: neighbouring positions see fields of different sizes; the largest is reported.
    summary = summarize(UNet(), (2, 64, 64))
    (height, width), _ = gradient_field(UNet(), (2, 64, 64))
    assert 0 <= as_pair(summary.layers[-1].receptive_field)[0] - height <= 2
    assert height == width


def as_pair(field):
    return tuple(field) if isinstance(field, list) else (field, field)


# The module whose output enters the classifier's pooling or flattening, and the number of pixels published or computed
# by others (Araujo, Norris & Sim 2019) where there is one for this very architecture.
ZOO = {
    "alexnet": ("features", 195),
    "vgg11": ("features", None),
    "vgg16": ("features", 212),
    "resnet18": ("layer4", 435),
    "resnet50": ("layer4", 427),
    "resnext50_32x4d": ("layer4", None),
    "densenet121": ("features", None),
    "squeezenet1_0": ("classifier.2", None),
    "googlenet": ("inception5b", None),
    "inception_v3": ("Mixed_7c", 1311),
    "mobilenet_v2": ("features", None),
    "mnasnet1_0": ("layers", None),
    "shufflenet_v2_x1_0": ("conv5", None),
    "regnet_x_400mf": ("trunk_output", None),
    "convnext_tiny": ("features", None),
}
QUICK = ("alexnet", "resnet18", "shufflenet_v2_x1_0")


def zoo_network(name):
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO])
@pytest.mark.parametrize("upright", [True, False], ids=["height", "width"])
def test_the_zoos_fields_are_what_the_gradient_touches(name, upright):
    layer, published = ZOO[name]
    network = zoo_network(name)
    field = summarize(network, (3, 224, 224)).receptive_field
    if published is not None:
        assert field == published
    # Long and thin: one axis is seen whole at a fraction of the cost of a square that large.
    long, thin = field + 160, 96
    measured, clipped = gradient_field(network, (3, long, thin) if upright else (3, thin, long), layer)
    axis = 0 if upright else 1
    assert not clipped[axis]
    assert measured[axis] == field


@pytest.mark.slow
def test_global_side_branches_are_left_out_and_flagged():
    for name in ("efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"):
        summary = summarize(zoo_network(name), (3, 224, 224), name)
        assert isinstance(summary.receptive_field, int)
        assert any(layer.beside_global for layer in summary.layers)
        assert "beside a global side branch" in summary.table()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        x = self.conv(x)
        return self.head(x * self.gate(x))


def test_a_gate_is_left_out_and_later_layers_see_all():
    summary = summarize(Gated(), (1, 28, 28))
    rows = {layer.name: layer for layer in summary.layers}
    assert summary.receptive_field == 3
    assert (rows["mul"].receptive_field, rows["mul"].beside_global) == (3, True)
    assert rows["gate.1"].receptive_field == rows["head.2"].receptive_field == "all"
    assert not rows["conv"].beside_global


def test_the_table_says_who_sees_the_picture():
    linear = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    assert "3 pixels, less than the picture; the classifier behind sees all of it" in summarize(linear, (1, 28, 28)).table()
    article = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).table()
    assert "28 pixels, which covers the picture (the picture: 1x28x28)" in article


def test_a_statistic_over_positions_is_flagged():
    summary = summarize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)), (1, 9, 9))
    assert [layer.beside_global for layer in summary.layers] == [False, True, True]
    assert summary.receptive_field == 5


def test_attention_sees_all():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(1, 8, 4, stride=4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            return self.head((tokens + self.attention(tokens, tokens, tokens)[0])[:, 0])

    summary = summarize(Tokens(), (1, 28, 28))
    assert summary.receptive_field == "all"
    assert [layer.receptive_field for layer in summary.layers if layer.name == "patch"] == [4]
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters


def test_what_cannot_be_followed_is_said_to_be_unknown():
    class Rolled(nn.Module):
        def forward(self, x):
            return torch.roll(x, 3, dims=2).relu()

    assert summarize(nn.Sequential(nn.Conv2d(1, 2, 3), Rolled()), (1, 8, 8)).layers[-1].receptive_field is None
    assert summarize(Rolled(), (1, 8, 8)).receptive_field is None


def test_pooling_a_whole_map_is_the_classifiers_pooling():
    # As in many small ResNets: F.avg_pool2d(x, 4) on a 4x4 map, or a MaxPool2d(3) on a 3x3 one.
    for pool in (nn.AvgPool2d(26), nn.MaxPool2d(26), nn.AdaptiveMaxPool2d(1)):
        summary = summarize(nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.Flatten(), nn.Linear(4, 10)), (1, 28, 28))
        assert summary.receptive_field == 3
        assert summary.layers[1].receptive_field == "all"


# --- the article's network


def test_the_articles_table():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28), "article")
    assert (summary.parameters, summary.trainable_parameters, summary.receptive_field) == (48884, 48884, 28)
    windows = [layer for layer in summary.layers if layer.kind in ("Conv2d", "MaxPool2d")]
    assert [layer.output_shape[-1] for layer in windows] == [26, 24, 22, 11, 11, 9, 7, 7, 1]
    assert [layer.receptive_field for layer in windows] == [3, 5, 7, 8, 8, 12, 16, 16, 28]
    assert [layer.jump for layer in windows] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [layer.output_shape for layer in summary.layers][-1] == [10]
    measured, _ = gradient_field(nn.Sequential(*list(gingham.NETWORKS["article"](1, 10))[:-2]), (1, 28, 28))
    assert measured == (28, 28)


def test_the_articles_totals_by_hand():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28))
    by_hand = 2 * (
        26**2 * 16 * 9 + 24**2 * 32 * 16 * 9 + 22**2 * 64 * 32 * 9 + 11**2 * 32 * 64 + 9**2 * 32 * 32 * 9
        + 7**2 * 32 * 32 * 9 + 7**2 * 10 * 32 + 10 * 10 * 49
    )  # fmt: skip
    assert summary.flops == by_hand == sum(layer.flops for layer in summary.layers)
    assert summary.parameter_bytes == 4 * 48884
    assert summary.input_bytes == 4 * 784
    floats = sum(
        2 * math.prod(s) for s in ((16, 26, 26), (32, 24, 24), (64, 22, 22), (32, 11, 11), (32, 9, 9), (32, 7, 7), (10, 7, 7))
    )
    assert summary.activation_bytes == 4 * (floats + 64 * 11 * 11 + 10 + 10)
    assert summary.memory_bytes == summary.input_bytes + summary.activation_bytes + summary.parameter_bytes


def test_the_worked_numbers_of_a_layer():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28))
    text = summary.explain("conv5")
    assert "floor((11 + 2·0 − 1·(3 − 1) − 1) / 1) + 1 = 9" in text
    assert "8 + 1·(3 − 1) × 2 = 12 of 28 pixels" in text
    assert "32 filters × 32 channels × 3×3, no bias = 9,216" in text
    assert "2 × 9,216 weights × 81 positions = 1,492,992" in text
    assert summary.explain("all").count("output size") == 9 * 1
    with pytest.raises(ModelError, match=r"no layer 'conv9'.*did you mean 'conv8'"):
        summary.explain("conv9")


def test_the_worked_numbers_agree_with_the_followed_ones():
    for network, shape in (
        (HANDMADE["stack"], (2, 64, 48)),
        (HANDMADE["uneven"], (2, 64, 48)),
        (HANDMADE["dilation"], (2, 64, 48)),
    ):
        for layer in summarize(network, shape).layers:
            if layer.slides:
                fields = tuple(slide.before.through(slide.window).size for slide in layer.slides)
                assert fields == as_pair(layer.receptive_field)


def test_padding_uneven_windows_are_explained_by_axis():
    text = summarize(HANDMADE["uneven"], (2, 64, 48)).explain("0")
    assert "  height\n" in text
    assert "floor((48 + 2·3 − 1·(7 − 1) − 1) / 2) + 1 = 24" in text


# --- totals


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.tied = nn.Conv2d(2, 2, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.tied(self.conv(self.conv(x))) * self.scale


def test_shared_weights_count_once():
    summary = summarize(Shared(), (2, 8, 8))
    assert summary.parameters == sum(p.numel() for p in Shared().parameters()) == 36 + 2 + 2 + 2 + 12
    assert [layer.parameters for layer in summary.layers] == [38, 0, 2, 2]
    assert [layer.name for layer in summary.layers] == ["conv", "conv#2", "tied", "mul"]
    assert "12 of them not used by this pass" in summary.table()
    assert summary.receptive_field == 7


def test_frozen_parameters_are_told_apart():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    network[0].requires_grad_(False)
    summary = summarize(network, (1, 8, 8))
    assert summary.trainable_parameters == 38
    assert [layer.trainable_parameters for layer in summary.layers] == [0, 38]


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = copy.deepcopy(network.state_dict())
    summarize(network, (1, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


# --- what does not fit


def test_an_input_too_small_names_the_layer_where_it_ran_out():
    with pytest.raises(ModelError, match=r"1x20x20 is too small: it ran out at conv8 \(Conv2d\), which got 10x3x3"):
        summarize(gingham.NETWORKS["article"](1, 10), (1, 20, 20))
    pools = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(4), nn.MaxPool2d(4))
    with pytest.raises(ModelError, match=r"1x8x8 is too small: it ran out at 2 \(MaxPool2d\), which got 2x1x1"):
        summarize(pools, (1, 8, 8))


def test_a_wrong_linear_size_is_answered_with_the_right_one():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(100, 10))
    with pytest.raises(ModelError, match=r"reaches 2 \(Linear\) with 2704 features, it takes 100; .*Linear\(2704, 10\)"):
        summarize(network, (1, 28, 28))


def test_wrong_channels_are_answered_with_the_right_ones():
    with pytest.raises(
        ModelError,
        match=r"reaches conv1 \(Conv2d\) with 3 channels, it takes 1; make it Conv2d\(3, 16, ...\), or give pictures of 1x28x28",
    ):
        summarize(gingham.NETWORKS["article"](1, 10), (3, 28, 28))


def test_a_network_that_fails_is_named():
    class Broken(nn.Module):
        def forward(self, _):
            raise RuntimeError("no\nluck")

    with pytest.raises(ModelError, match=r"failed \(no luck\)"):
        summarize(nn.Sequential(Broken()), (1, 8, 8))


# --- finding networks


def test_networks_are_found_by_name_run_zoo_and_class(small_run, tmp_path, monkeypatch):
    run, _ = small_run
    gingham.save(run, tmp_path / "run")
    assert find_network("article")[1] == (1, 28, 28)
    assert summarize(*find_network(str(tmp_path / "run"))).parameters == 48884 - 6 * 10 * 49
    assert find_network("torchvision:alexnet")[1] == (3, 224, 224)
    (tmp_path / "beside_me.py").write_text(
        "import torch.nn as nn\nclass Net(nn.Conv2d):\n  def __init__(self): super().__init__(1, 2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert summarize(*find_network("beside_me:Net")).parameters == 20


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("articel", r"unknown model 'articel'; did you mean 'article'\? \(known: .*\), a run folder, torchvision:NAME"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean 'resnet1"),
        ("nosuchmodule:Net", "No module named 'nosuchmodule'"),
        ("", "unknown model"),
        ("mine/net.py:Net", "got the file mine/net.py; write its module, as in mine.net:Net"),
        ("torch.nn:Conv2d", "missing 3 required positional arguments"),
        ("torch.nn:NoSuch", "has no 'NoSuch'"),
        ("json:JSONDecoder", "makes a JSONDecoder; a torch.nn.Module is needed"),
    ],
)
def test_networks_that_are_not_there(model, message):
    with pytest.raises(ModelError, match=message):
        find_network(model)


def test_json_holds_what_the_contract_says():
    values = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).to_dict()
    assert {"parameters", "trainable_parameters", "receptive_field", "flops", "memory_bytes", "layers"} <= set(values)
    for layer in values["layers"]:
        assert {"name", "kind", "output_shape", "parameters", "receptive_field", "jump", "flops"} <= set(layer)


def test_geometry_is_the_same_arithmetic():
    field = Field()
    for layer in summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).layers:
        if layer.slides:
            window = layer.slides[0].window
            field = field.through(Window(window.kernel, window.stride, window.padding, window.dilation))
            assert (field.size, field.jump) == (layer.receptive_field, layer.jump)
