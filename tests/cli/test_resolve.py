"""Networks and runs are found by the names that users give."""

import pytest

import gingham
from gingham import ModelError, summarize
from gingham.cli.resolve import find_network


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
        (
            "articel",
            r"unknown model 'articel'; did you mean 'article'\? \(known: .*\), packaged, a run folder",
        ),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean 'resnet1"),
        ("nosuchmodule:Net", "No module named 'nosuchmodule'"),
        ("", "unknown model"),
        ("mine/net.py:Net", "got 'mine/net.py:Net' as a network; write package.module:Class, such as mine.net:Net"),
        ("torch.nn:Conv2d", "missing 3 required positional arguments"),
        ("torch.nn:NoSuch", "has no class or function 'NoSuch'"),
        ("json:JSONDecoder", "creates a JSONDecoder; it must create a torch.nn.Module"),
    ],
)
def test_missing_networks_are_an_error(model, message):
    with pytest.raises(ModelError, match=message):
        find_network(model)
