import pytest


def test_summary_prints_layers_and_receptive_fields(command, run_json):
    table = run_json("summary", "article")
    assert (table["parameters"], table["receptive_field"]) == (48884, 28)
    convolutions = [layer for layer in table["layers"] if layer["kind"] == "Conv2d"]
    assert [layer["output_shape"][-1] for layer in convolutions] == [26, 24, 22, 11, 9, 7, 7, 1]
    stdout = command("summary", "article").stdout
    assert "conv8  out floor((7 + 0 − 1·6 − 1) / 1) + 1 = 1" in stdout
    assert max(map(len, stdout.splitlines()[:20])) <= 80
    assert "= 8 + 1·(3 − 1) × 2 = 12 of 28 pixels" in command("summary", "article", "--explain", "conv5").stdout


@pytest.mark.parametrize(("name", "field"), [("alexnet", 195), ("vgg16", 212)])
def test_receptive_fields_of_torchvision_models_are_the_published_ones(run_json, name, field):
    assert run_json("summary", f"torchvision:{name}")["receptive_field"] == field


def test_summary_accepts_a_run_or_an_own_class(command, run_json, trained):
    assert run_json("summary", "runs/article-0")["parameters"] == trained["parameters"]
    (command.folder / "mine.py").write_text(
        "from torch import nn\nclass Net(nn.Conv2d):\n  def __init__(self): super().__init__(1, 2, 3)\n"
    )
    assert run_json("summary", "mine:Net", "--input", "1x9x9")["layers"][0]["output_shape"] == [2, 7, 7]


def test_the_packaged_model_has_a_summary_and_a_report(command, run_json, fashion_mnist_folder):
    assert run_json("summary", "packaged")["parameters"] == run_json("summary", "broad")["parameters"]
    assert "report: report.html" in command("report", "packaged").stdout
    assert [path.name for path in command.folder.iterdir()] == ["report.html"]
    stderr = command("summary", "packaged", "--model", "a:B", code=2).stderr
    assert "--model is for a run with a network of your own" in stderr


def test_a_python_file_suggests_its_form_as_a_module(command):
    stderr = command("summary", "mynet.py", code=2).stderr
    assert stderr == "gingham: got 'mynet.py' as a network; write package.module:Class, such as mynet:Net\n"


def test_summary_accepts_a_network_of_timm(command, run_json):
    table = run_json("summary", "timm/test_vit")
    assert (table["name"], table["input_shape"]) == ("timm/test_vit", [3, 160, 160])
    stderr = command("summary", "timm/hf-hub:a/b", code=2).stderr
    assert stderr.startswith("gingham: timm has no network 'hf-hub:a/b'; known: ")


@pytest.mark.parametrize("model", ["article", "torchvision:alexnet", "own_networks:Plain"])
def test_a_class_for_a_model_that_is_not_a_run_is_an_error(command, model):
    stderr = command("summary", model, "--model", "own_networks:Plain", code=2).stderr
    assert stderr == f"gingham: --model is for a run; {model} is not one; leave it out\n"
