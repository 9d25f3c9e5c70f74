import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gingham.models.conv_arithmetic import Field, Window, output_size, read_windows

windows = st.builds(Window, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))


@given(st.integers(1, 40), windows)
def test_output_size_matches_conv1d(size, window):
    layer = torch.nn.Conv1d(1, 1, window.kernel, window.stride, window.padding, window.dilation)
    try:
        expected = layer(torch.zeros(1, 1, size)).shape[-1]
    except RuntimeError:
        assert output_size(size, window) < 1
    else:
        assert output_size(size, window) == expected


@given(st.integers(1, 40), windows, st.booleans())
def test_output_size_matches_max_pool1d(size, window, ceil_mode):
    if window.padding > window.kernel // 2:
        return
    layer = torch.nn.MaxPool1d(window.kernel, window.stride, window.padding, window.dilation, ceil_mode=ceil_mode)
    try:
        expected = layer(torch.zeros(1, 1, size)).shape[-1]
    except RuntimeError:
        return
    if size + 2 * window.padding >= window.span:
        assert output_size(size, dataclasses.replace(window, ceil_mode=ceil_mode)) == expected


@given(st.lists(windows, min_size=1, max_size=4))
def test_receptive_field_covers_exactly_the_inputs_with_gradient(stack):
    field = Field()
    for window in stack:
        field = field.through(Window(window.kernel, window.stride, 0, window.dilation))
    pixels = torch.zeros(1, 1, field.size, requires_grad=True)
    x = pixels
    for window in stack:
        x = torch.nn.functional.conv1d(
            x, torch.ones(1, 1, window.kernel), stride=window.stride, dilation=window.dilation
        )
    assert x.shape[-1] == 1, "the input has exactly the size of one field"
    x.sum().backward()
    indices = pixels.grad.flatten().nonzero().flatten()
    assert (int(indices.min()), int(indices.max())) == (0, field.size - 1)


def test_sizes_and_fields_of_the_article_network():
    sizes, fields = [28], [Field()]
    for kernel, stride in ((3, 1), (3, 1), (3, 1), (2, 2), (1, 1), (3, 1), (3, 1), (1, 1), (7, 1)):
        sizes.append(output_size(sizes[-1], Window(kernel, stride)))
        fields.append(fields[-1].through(Window(kernel, stride)))
    assert sizes[1:] == [26, 24, 22, 11, 11, 9, 7, 7, 1]
    assert [field.size for field in fields[1:]] == [3, 5, 7, 8, 8, 12, 16, 16, 28]
    assert [field.jump for field in fields[1:]] == [1, 1, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("layer", "height", "width"),
    [
        (nn.Conv2d(1, 1, 3), Window(3), Window(3)),
        (nn.Conv2d(1, 1, (5, 2), (1, 2), (2, 0), (3, 1)), Window(5, 1, 2, 3), Window(2, 2, 0, 1)),
        (nn.Conv2d(1, 1, 3, padding="same"), Window(3, 1, 1), Window(3, 1, 1)),
        (nn.MaxPool2d(2), Window(2, 2), Window(2, 2)),
        (nn.MaxPool2d((3, 4), 1, 1, 2), Window(3, 1, 1, 2), Window(4, 1, 1, 2)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), Window(3, 2, ceil_mode=True), Window(3, 2, ceil_mode=True)),
        (nn.AvgPool2d((3, 2)), Window(3, 3), Window(2, 2)),
        (nn.AvgPool2d(3, (2, 1), 1, True, False), Window(3, 2, 1, 1, True), Window(3, 1, 1, 1, True)),
    ],
)
def test_windows_are_read_from_the_operation_of_a_layer(layer, height, width):
    read = []

    class Reader(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            read.extend(read_windows(func.overloadpacket.__name__, args))
            return func(*args, **kwargs or {})

    with torch.no_grad(), Reader():
        layer(torch.zeros(1, 1, 40, 40))
    assert read == [height, width]


def test_one_dimensional_convolutions_have_no_windows():
    assert read_windows("convolution", [torch.zeros(1, 1, 9), torch.zeros(1, 1, 3)]) == []
