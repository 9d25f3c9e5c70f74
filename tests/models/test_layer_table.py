import pytest
from torch import nn

import gingham
from gingham import ModelError, summarize
from gingham.models.conv_arithmetic import Field, Window


def test_table_says_whether_the_field_covers_the_image():
    linear = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    assert "3 pixels, less than the image; the classifier sees all of it" in summarize(linear, (1, 28, 28)).table()
    article = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).table()
    assert "28 pixels, which covers the image (image: 1x28x28)" in article


def test_explain_shows_the_arithmetic_of_a_layer():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28))
    text = summary.explain("conv5")
    assert "floor((11 + 2·0 − 1·(3 − 1) − 1) / 1) + 1 = 9" in text
    assert "8 + 1·(3 − 1) × 2 = 12 of 28 pixels" in text
    assert "32 filters × 32 channels × 3×3, no bias = 9,216" in text
    assert "2 × 9,216 weights × 81 positions = 1,492,992" in text
    assert summary.explain("all").count("output size") == 9 * 1
    with pytest.raises(ModelError, match=r"no layer 'conv9'.*did you mean 'conv8'"):
        summary.explain("conv9")


def test_uneven_windows_are_explained_by_axis():
    network = nn.Sequential(
        nn.Conv2d(2, 3, (1, 7), stride=(1, 2), padding=(0, 3)), nn.Conv2d(3, 3, (3, 1), stride=(3, 1))
    )
    text = summarize(network, (2, 64, 48)).explain("0")
    assert "  height\n" in text
    assert "floor((48 + 2·3 − 1·(7 − 1) − 1) / 2) + 1 = 24" in text


def test_to_dict_has_the_documented_keys():
    values = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).to_dict()
    assert {"parameters", "trainable_parameters", "receptive_field", "flops", "memory_bytes", "layers"} <= set(values)
    for layer in values["layers"]:
        assert {"name", "kind", "output_shape", "parameters", "receptive_field", "jump", "flops"} <= set(layer)


def test_rows_match_the_arithmetic_of_fields():
    field = Field()
    for layer in summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28)).layers:
        if layer.slides:
            window = layer.slides[0].window
            field = field.through(Window(window.kernel, window.stride, window.padding, window.dilation))
            assert (field.size, field.jump) == (layer.receptive_field, layer.jump)
