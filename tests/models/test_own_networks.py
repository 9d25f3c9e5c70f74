import json
import shutil

import pytest

import gingham
from gingham import ModelError, RunError
from gingham.models.registry import import_network
from helpers import ROOT
from own_networks import Norms, Plain, WrongLinear, WrongOutputs


@pytest.fixture
def own(command):
    """The user's folder, with their network in it."""
    shutil.copy(ROOT / "tests/own_networks.py", command.folder / "mynets.py")
    return command


SMALL = ("--epochs", 1, "--set", "batch_size=32", "--set", "validation_images=40")


@pytest.mark.parametrize("recipe", ["article", "fast", "fast-90"])
def test_an_own_network_in_any_recipe(own, quadrants, recipe):
    net = ("--model", "mynets:Plain")
    values = json.loads(own("train", "--recipe", recipe, *net, "--data", quadrants, *SMALL, "--json").stdout)
    run = f"runs/{recipe}-Plain-0"
    assert values["run"] == run
    refused = own("evaluate", run, code=2).stderr
    assert "is a run of your own network mynets:Plain; give it again with --model mynets:Plain" in refused
    report = json.loads(own("evaluate", run, *net, "--json").stdout)
    assert report["accuracy"] == values["validation_accuracy"]
    assert "fc1" in own("summary", run, *net).stdout
    assert own("report", run, *net).stdout.startswith("report: ")
    assert isinstance(json.loads(own("diagnose", run, *net, "--json").stdout), list)


def test_trials_and_comparison_of_an_own_network(own, quadrants):
    net = ("--model", "mynets:Plain")
    for out, seed in (("a", 0), ("b", 5)):
        done = own("trials", "--recipe", "article", *net, "--data", quadrants, *SMALL, "--seeds", 2, "--first-seed", seed,
                   "--out", out, "--json")  # fmt: skip
        assert len(json.loads(done.stdout)["accuracies"]) == 2
    assert "verdict" in json.loads(own("compare", "a", "b", *net, "--json").stdout)


def test_own_networks_resume_with_their_dropout(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=2, batch_size=32)

    def stop(model, epoch):
        raise KeyboardInterrupt

    whole = gingham.fit(recipe, data.train, data.validation, network=Plain, progress=False)
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(recipe.replace(checkpoint_seconds=0), data.train, data.validation, network=Plain, folder=tmp_path, on_epoch=stop,
                    progress=False)  # fmt: skip
    resumed = gingham.fit(recipe, data.train, data.validation, network=Plain, folder=tmp_path, resume=True, progress=False)
    assert resumed.metrics["resumed_from_step"]
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name


def test_a_wrong_linear_is_answered_with_the_right_number(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(
        ModelError, match=r"reaches fc1 \(Linear\) with 4608 features, it takes 1000; make it Linear\(4608, 64\)"
    ):
        gingham.fit(gingham.RECIPES["article"], data.train, network=WrongLinear, progress=False)
    with pytest.raises(ModelError, match=r"into \(1, 7\), where \(1, 4\) logits are needed"):
        gingham.fit(gingham.RECIPES["article"], data.train, network=WrongOutputs, progress=False)


def test_a_run_keeps_the_name_and_takes_no_other(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=0.2, batch_size=32)
    run = gingham.fit(recipe, data.train, data.validation, network=Plain, progress=False)
    assert run.recipe.network == "own_networks:Plain"
    gingham.save(run, tmp_path / "run")
    again = gingham.load(tmp_path / "run", Plain)
    assert again.model.predict(data.test.images).probabilities.equal(run.model.predict(data.test.images).probabilities)
    with pytest.raises(RunError, match="is a run of your own network own_networks:Plain"):
        gingham.load(tmp_path / "run")
    with pytest.raises(RunError, match="not of own_networks:Norms; give --model own_networks:Plain"):
        gingham.load(tmp_path / "run", Norms)
    plain = gingham.fit(recipe, data.train, data.validation, progress=False)
    gingham.save(plain, tmp_path / "plain")
    with pytest.raises(RunError, match="leave --model out"):
        gingham.load(tmp_path / "plain", Plain)


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
def test_what_is_no_network(name, message):
    with pytest.raises(ModelError, match=message):
        import_network(name)


@pytest.mark.parametrize(
    ("name", "message"), [("NeedsArguments", "no arguments other than channels and classes"), ("not_a_module", "makes a int")]
)
def test_what_makes_no_network(name, message, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(ModelError, match=message):
        gingham.fit(gingham.RECIPES["article"], data.train, network=import_network(f"own_networks:{name}"), progress=False)
