"""Traced receptive fields against the input pixels that have a gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gingham
from gingham import summarize


def gradient_field(network, shape, layer=None):
    """Return height and width of the box of input pixels that affect the centre of a feature map, by the gradient.

    Weights are made positive and max-pooling averages, so that no path is hidden by a sign or by another pixel's
    maximum.
    """
    torch.manual_seed(0)
    network = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Averages with almost no bias, because a ReLU6 cuts off large values.
            scale = 1e-3 if name.endswith("bias") else 1 / parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_((torch.rand_like(parameter) + 0.5) * scale)
    maps = []
    if layer is not None:
        network.get_submodule(layer).register_forward_hook(lambda _module, _args, out: maps.append(out))
    pixels = (torch.rand(1, *shape, dtype=torch.float64) * 1e-3).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "max_pool2d", average_pool)
        out = network(pixels)
    feature_map = maps[-1] if layer is not None else out
    feature_map[0, :, feature_map.shape[2] // 2, feature_map.shape[3] // 2].sum().backward()
    positions = pixels.grad[0].abs().sum(dim=0).nonzero()
    (top, left), (bottom, right) = positions.min(dim=0).values.tolist(), positions.max(dim=0).values.tolist()
    clipped = [top == 0 or bottom == shape[1] - 1, left == 0 or right == shape[2] - 1]
    return (bottom - top + 1, right - left + 1), clipped


def average_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
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
    """Turn blocks of 2x2 pixels into channels (YOLOv5's stem)."""

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
    """Apply a Linear to the channels of a (N, H, W, C) view, as ConvNeXt does."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 4)

    def forward(self, x):
        return self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Mix windows from Tensor.unfold by a matrix."""

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


class Parts(nn.Module):
    """Take a map apart and put it together again, without its first rows."""

    def forward(self, x):
        first, second = x.split([4, x.shape[2] - 4], dim=2)[1].split(1, dim=1)
        return torch.stack([first.squeeze(1), second.unbind(1)[0]], dim=1)


EXAMPLES = {
    "stack": nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 5, stride=2), nn.AvgPool2d(2), nn.Conv2d(3, 3, 3)),
    "dilation": nn.Sequential(nn.Conv2d(2, 3, 3, dilation=3, padding=1), nn.Conv2d(3, 3, 3, dilation=2)),
    "uneven": nn.Sequential(
        nn.Conv2d(2, 3, (1, 7), stride=(1, 2), padding=(0, 3)), nn.Conv2d(3, 3, (3, 1), stride=(3, 1))
    ),
    "same padding": nn.Sequential(nn.Conv2d(2, 2, 4, padding="same"), nn.Conv2d(2, 2, 3, padding="same", dilation=2)),
    "groups": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 4, 5, groups=4), Shuffle(), nn.Conv2d(4, 8, 1)),
    "ceil": nn.Sequential(
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(2, 3, 3), nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    ),
    "residual": nn.Sequential(
        nn.Conv2d(2, 4, 3), Residual(nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU(inplace=True)))
    ),
    "branches": nn.Sequential(
        Branches(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=5, dilation=5)),
        nn.Conv2d(6, 2, 3),
    ),
    "lopsided branches": Branches(
        nn.Conv2d(2, 2, 2), nn.Sequential(nn.ZeroPad2d((0, 0, 1, 1)), nn.Conv2d(2, 2, (4, 2)))
    ),
    "focus": nn.Sequential(Focus(), nn.Conv2d(8, 4, 3, padding=1)),
    "space to depth": nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(4, 4, 1)),
    "channels last": nn.Sequential(nn.Conv2d(2, 2, 3), ChannelsLast(), nn.Conv2d(4, 2, 3)),
    "adaptive": nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(16), nn.Conv2d(3, 3, 3)),
    "patches": nn.Sequential(nn.Conv2d(2, 2, 3), Patches()),
    "parts": nn.Sequential(nn.Conv2d(2, 2, 3, stride=2), Parts(), nn.Conv2d(2, 3, 3)),
    "mirrored": nn.Sequential(Mirrored(), nn.Conv2d(3, 2, 3)),
    "norms": nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.GELU(), nn.Conv2d(4, 2, 3)),
    "transposed": nn.Sequential(nn.Conv2d(2, 4, 3, stride=4), nn.ConvTranspose2d(4, 2, 2, stride=2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", EXAMPLES)
def test_receptive_field_matches_the_gradient(name):
    network = EXAMPLES[name]
    summary = summarize(network, (2, 64, 48))
    measured, clipped = gradient_field(network, (2, 64, 48))
    assert clipped == [False, False]
    assert as_pair(summary.layers[-1].receptive_field) == measured


def test_u_net_receptive_field_is_within_a_step_of_the_gradient():
    # With interpolation neighbouring positions have fields of different sizes; the largest is reported.
    summary = summarize(UNet(), (2, 64, 64))
    (height, width), _ = gradient_field(UNet(), (2, 64, 64))
    assert 0 <= as_pair(summary.layers[-1].receptive_field)[0] - height <= 2
    assert height == width


def as_pair(field):
    return tuple(field) if isinstance(field, list) else (field, field)


# The module whose output enters the classifier's pooling or flattening, and the receptive field that Araujo, Norris &
# Sim (2019) published for this architecture, if any.
TORCHVISION = {
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


FAST = ("alexnet", "resnet18", "shufflenet_v2_x1_0")


def torchvision_network(name):
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TORCHVISION]
)
@pytest.mark.parametrize("vertical", [True, False], ids=["height", "width"])
def test_torchvision_receptive_fields_match_the_gradient(name, vertical):
    layer, published = TORCHVISION[name]
    network = torchvision_network(name)
    field = summarize(network, (3, 224, 224)).receptive_field
    if published is not None:
        assert field == published
    # A long and thin image covers the field along one axis at a fraction of the cost of a square one.
    long, thin = field + 160, 96
    measured, clipped = gradient_field(network, (3, long, thin) if vertical else (3, thin, long), layer)
    axis = 0 if vertical else 1
    assert not clipped[axis]
    assert measured[axis] == field


@pytest.mark.slow
def test_global_side_branches_are_left_out_and_flagged():
    for name in ("efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"):
        summary = summarize(torchvision_network(name), (3, 224, 224), name)
        assert isinstance(summary.receptive_field, int)
        assert any(layer.beside_global for layer in summary.layers)
        assert "without a side branch that sees the whole image" in summary.table()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        x = self.conv(x)
        return self.head(x * self.gate(x))


def test_gate_is_left_out_and_later_layers_see_all():
    summary = summarize(Gated(), (1, 28, 28))
    rows = {layer.name: layer for layer in summary.layers}
    assert summary.receptive_field == 3
    assert (rows["mul"].receptive_field, rows["mul"].beside_global) == (3, True)
    assert rows["gate.1"].receptive_field == rows["head.2"].receptive_field == "all"
    assert not rows["conv"].beside_global


def test_statistic_over_positions_is_flagged():
    summary = summarize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)), (1, 9, 9))
    assert [layer.beside_global for layer in summary.layers] == [False, True, True]
    assert summary.receptive_field == 5


def test_attention_sees_all_of_the_image():
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


def test_mean_along_one_axis_sees_it_from_end_to_end():
    class Rows(nn.Module):
        def forward(self, x):
            return x * x.mean(dim=3, keepdim=True)

    summary = summarize(nn.Sequential(nn.Conv2d(1, 2, 3), Rows()), (1, 9, 12))
    assert summary.receptive_field == [3, 12]


def test_one_position_of_a_map_sees_no_more_than_it_did_there():
    class Centre(nn.Module):
        def forward(self, x):
            return x.flatten(2)[:, :, 24]

    assert summarize(nn.Sequential(nn.Conv2d(1, 2, 3), Centre()), (1, 9, 9)).receptive_field == 3


def test_operations_that_change_the_shape_in_place_are_traced():
    class Columns(nn.Module):
        def forward(self, x):
            return x[:, :, :1].clone().squeeze_(2).transpose_(1, 2)

    assert summarize(nn.Sequential(nn.Conv2d(1, 2, 3), Columns()), (1, 9, 9)).receptive_field == 3


def test_untraceable_operations_have_no_receptive_field():
    class Rolled(nn.Module):
        def forward(self, x):
            return torch.roll(x, 3, dims=2).relu()

    assert summarize(nn.Sequential(nn.Conv2d(1, 2, 3), Rolled()), (1, 8, 8)).layers[-1].receptive_field is None
    assert summarize(Rolled(), (1, 8, 8)).receptive_field is None


def test_pooling_a_whole_map_counts_as_global_pooling():
    # As in many small ResNets: F.avg_pool2d(x, 4) on a 4x4 map, or MaxPool2d(3) on a 3x3 map.
    for pool in (nn.AvgPool2d(26), nn.MaxPool2d(26), nn.AdaptiveMaxPool2d(1)):
        summary = summarize(nn.Sequential(nn.Conv2d(1, 4, 3), pool, nn.Flatten(), nn.Linear(4, 10)), (1, 28, 28))
        assert summary.receptive_field == 3
        assert summary.layers[1].receptive_field == "all"


def test_article_network_has_the_published_sizes_and_fields():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28), "article")
    assert (summary.parameters, summary.trainable_parameters, summary.receptive_field) == (48884, 48884, 28)
    windows = [layer for layer in summary.layers if layer.kind in ("Conv2d", "MaxPool2d")]
    assert [layer.output_shape[-1] for layer in windows] == [26, 24, 22, 11, 11, 9, 7, 7, 1]
    assert [layer.receptive_field for layer in windows] == [3, 5, 7, 8, 8, 12, 16, 16, 28]
    assert [layer.jump for layer in windows] == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [layer.output_shape for layer in summary.layers][-1] == [10]
    measured, _ = gradient_field(nn.Sequential(*list(gingham.NETWORKS["article"](1, 10))[:-2]), (1, 28, 28))
    assert measured == (28, 28)


def test_window_arithmetic_matches_traced_fields():
    for network, shape in (
        (EXAMPLES["stack"], (2, 64, 48)),
        (EXAMPLES["uneven"], (2, 64, 48)),
        (EXAMPLES["dilation"], (2, 64, 48)),
    ):
        for layer in summarize(network, shape).layers:
            if layer.slides:
                fields = tuple(slide.before.through(slide.window).size for slide in layer.slides)
                assert fields == as_pair(layer.receptive_field)


class ShuffledSinglePosition(nn.Module):
    def __init__(self, *, shuffle):
        super().__init__()
        self.first, self.second, self.shuffle = nn.Conv2d(1, 8, 28), nn.Conv2d(8, 8, 3, padding=1), shuffle

    def forward(self, x):
        x = self.first(x)
        if self.shuffle:
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.second(x)


def test_shuffled_channels_of_a_single_position_keep_the_jump():
    fields = [summarize(ShuffledSinglePosition(shuffle=shuffle)).receptive_field for shuffle in (False, True)]
    assert fields == [30, 30]
    shuffle_net = torchvision_network("shufflenet_v2_x0_5")
    assert summarize(shuffle_net, (3, 32, 32)).receptive_field == summarize(shuffle_net, (3, 64, 64)).receptive_field
