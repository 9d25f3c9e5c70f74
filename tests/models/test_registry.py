import pytest
from torch import nn

import gingham
from gingham import ModelError
from gingham.models.registry import build_classifier, import_network


def test_networks_that_do_not_fit_are_an_error():
    with pytest.raises(ModelError, match="unknown network 'articel'; did you mean 'article'"):
        build_classifier("articel", ["a"], (1, 28, 28))
    with pytest.raises(ModelError, match=r"1x20x20 is too small for conv8 \(Conv2d\)"):
        build_classifier("article", ["a"], (1, 20, 20))
    with pytest.raises(
        ModelError, match=r"turns one image of 1x32x32 into an output of shape \(1, 90\), but logits of shape \(1, 10\)"
    ):
        build_classifier("article", list("0123456789"), (1, 32, 32))
    with pytest.raises(ModelError, match="mean got 3 values for images of shape"):
        build_classifier("article", list("0123456789"), (1, 28, 28), mean=(0.1, 0.2, 0.3))


def test_outputs_other_than_a_tensor_are_an_error():
    class Listed(nn.Flatten):
        def forward(self, x):
            return [super().forward(x)]

    with pytest.raises(ModelError, match="the network 'listed' cannot take images of 1x2x2"):
        build_classifier("listed", list("abcd"), (1, 2, 2), factory=Listed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks.py:Plain", "write package.module:Class, such as own_networks:Plain"),
        ("own_networks", "write package.module:Class"),
        ("no_such_module:Net", "No module named"),
        ("own_networks:Missing", "has no class or function 'Missing'; known: Plain"),
        ("own_networks:tied", "has no class or function 'tied'"),
        ("own_networks:NOT_CALLABLE", "has no class or function 'NOT_CALLABLE'"),
    ],
)
def test_importing_anything_but_a_network_is_an_error(name, message):
    with pytest.raises(ModelError, match=message):
        import_network(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("NeedsArguments", "no arguments other than channels and classes"), ("not_a_module", "creates a int")],
)
def test_factories_that_return_no_network_are_an_error(name, message, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(ModelError, match=message):
        gingham.fit(
            gingham.RECIPES["article"],
            data.train,
            progress=False,
            options=gingham.FitOptions(network=import_network(f"own_networks:{name}")),
        )
