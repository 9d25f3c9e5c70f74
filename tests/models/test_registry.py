import pytest

import gingham
from gingham import ModelError, summarize
from gingham.cli.resolve import find_network
from gingham.models.registry import build_classifier, import_network


def test_networks_that_do_not_fit_are_an_error():
    with pytest.raises(ModelError, match="unknown network 'articel'; did you mean 'article'"):
        build_classifier("articel", ["a"], (1, 28, 28))
    with pytest.raises(ModelError, match="cannot take pictures of 1x20x20"):
        build_classifier("article", ["a"], (1, 20, 20))
    with pytest.raises(ModelError, match=r"turns one picture of 1x32x32 into \(1, 90\), where \(1, 10\) logits are needed"):
        build_classifier("article", list("0123456789"), (1, 32, 32))
    with pytest.raises(ModelError, match="mean has 3 numbers for pictures of 1 channels"):
        build_classifier("article", list("0123456789"), (1, 28, 28), mean=(0.1, 0.2, 0.3))


def test_find_network_by_name_run_torchvision_and_class(small_run, tmp_path, monkeypatch):
    run, _ = small_run
    gingham.save(run, tmp_path / "run")
    assert find_network("article")[1] == (1, 28, 28)
    assert summarize(*find_network(str(tmp_path / "run"))).parameters == 48884 - 6 * 10 * 49
    assert find_network("torchvision:alexnet")[1] == (3, 224, 224)
    (tmp_path / "user_module.py").write_text(
        "import torch.nn as nn\nclass Net(nn.Conv2d):\n  def __init__(self): super().__init__(1, 2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert summarize(*find_network("user_module:Net")).parameters == 20


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
def test_missing_networks_are_an_error(model, message):
    with pytest.raises(ModelError, match=message):
        find_network(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks.py:Plain", "write its module, as in own_networks:Plain"),
        ("own_networks", "write package.module:Class"),
        ("no_such_module:Net", "No module named"),
        ("own_networks:Missing", "has no 'Missing'; known: Plain"),
        ("own_networks:NOT_CALLABLE", "is a int; name a class"),
    ],
)
def test_importing_anything_but_a_network_is_an_error(name, message):
    with pytest.raises(ModelError, match=message):
        import_network(name)


@pytest.mark.parametrize(
    ("name", "message"), [("NeedsArguments", "no arguments other than channels and classes"), ("not_a_module", "makes a int")]
)
def test_factories_that_return_no_network_are_an_error(name, message, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(ModelError, match=message):
        gingham.fit(gingham.RECIPES["article"], data.train, network=import_network(f"own_networks:{name}"), progress=False)
