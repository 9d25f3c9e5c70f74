import json
import shutil

import pytest

import gingham
from gingham import ModelError, RunError
from helpers import ROOT, fit
from own_networks import Frozen, Lazy, LazyUncalled, NoParameters, Norms, Plain, Tied, WrongLinear, WrongOutputs


@pytest.fixture
def command_with_network(command):
    """Return the command line in a folder with a user's networks in mynets.py."""
    shutil.copy(ROOT / "tests/own_networks.py", command.folder / "mynets.py")
    return command


SMALL = ("--epochs", 1, "--set", "batch_size=32", "--set", "validation_images=40")


@pytest.mark.parametrize("recipe", ["article", "fast", "fast-90"])
def test_own_network_trains_with_any_recipe(command_with_network, quadrants, recipe):
    model_option = ("--model", "mynets:Plain")
    values = json.loads(
        command_with_network("train", "--recipe", recipe, *model_option, "--data", quadrants, *SMALL, "--json").stdout
    )
    run = f"runs/{recipe}-Plain-0"
    assert values["run"] == run
    message = command_with_network("evaluate", run, code=2).stderr
    assert "is a run with the network mynets:Plain, not with a built-in one; give its class as network" in message
    assert "(--model mynets:Plain)" in message
    result = json.loads(command_with_network("evaluate", run, *model_option, "--json").stdout)
    assert result["accuracy"] == values["validation_accuracy"]
    assert "fc1" in command_with_network("summary", run, *model_option).stdout
    assert command_with_network("report", run, *model_option).stdout.startswith("report: ")
    assert isinstance(json.loads(command_with_network("diagnose", run, *model_option, "--json").stdout), list)


def test_trials_and_compare_with_an_own_network(command_with_network, quadrants):
    model_option = ("--model", "mynets:Plain")
    for out, seed in (("a", 0), ("b", 5)):
        seeds = ("--seeds", 2, "--first-seed", seed)
        options = ("--recipe", "article", *model_option, "--data", quadrants, *SMALL, *seeds, "--out", out, "--json")
        done = command_with_network("trials", *options)
        assert len(json.loads(done.stdout)["accuracies"]) == 2
    assert "verdict" in json.loads(command_with_network("compare", "a", "b", *model_option, "--json").stdout)


def test_resumed_training_repeats_the_dropout(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=2, batch_size=32)

    def stop(model, epoch):
        raise KeyboardInterrupt

    whole = gingham.fit(recipe, data.train, data.validation, progress=False, options=gingham.FitOptions(network=Plain))
    first_recipe = recipe.replace(checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(
            first_recipe,
            data.train,
            data.validation,
            folder=tmp_path,
            progress=False,
            options=gingham.FitOptions(network=Plain, on_epoch=stop),
        )
    resumed = gingham.fit(
        recipe,
        data.train,
        data.validation,
        folder=tmp_path,
        resume=True,
        progress=False,
        options=gingham.FitOptions(network=Plain),
    )
    assert resumed.metrics["resumed_from_step"]
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name


def test_wrong_linear_size_is_an_error_with_the_right_number(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(ModelError, match=r"with 4608 features, but the layer takes 1000; make it Linear\(4608, 64\)"):
        gingham.fit(
            gingham.RECIPES["article"], data.train, progress=False, options=gingham.FitOptions(network=WrongLinear)
        )
    with pytest.raises(ModelError, match=r"into an output of shape \(1, 7\), but logits of shape \(1, 4\) are needed"):
        gingham.fit(
            gingham.RECIPES["article"], data.train, progress=False, options=gingham.FitOptions(network=WrongOutputs)
        )


def test_run_loads_only_with_its_own_network(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=0.2, batch_size=32)
    run = gingham.fit(recipe, data.train, data.validation, progress=False, options=gingham.FitOptions(network=Plain))
    assert run.recipe.network == "own_networks:Plain"
    gingham.save(run, tmp_path / "run")
    loaded = gingham.load(tmp_path / "run", Plain)
    assert loaded.model.predict(data.test.images).probabilities.equal(run.model.predict(data.test.images).probabilities)
    with pytest.raises(RunError, match="is a run with the network own_networks:Plain, not with a built-in one"):
        gingham.load(tmp_path / "run")
    with pytest.raises(RunError, match=r"not with own_networks:Norms; give its class as network"):
        gingham.load(tmp_path / "run", Norms)
    article_run = gingham.fit(recipe, data.train, data.validation, progress=False)
    gingham.save(article_run, tmp_path / "plain")
    with pytest.raises(RunError, match="leave network out"):
        gingham.load(tmp_path / "plain", Plain)


def test_tied_weights_train_and_load(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(gingham.RECIPES["fast-90"].replace(epochs=0.5, batch_size=32), data, network=Tied)
    gingham.save(run, tmp_path / "run")
    loaded = gingham.load(tmp_path / "run", Tied)
    assert loaded.model.network.first.weight is loaded.model.network.second.weight
    assert loaded.model.predict(data.test.images).probabilities.equal(run.model.predict(data.test.images).probabilities)


@pytest.mark.parametrize("recipe", ["article", "fast-90"])
def test_lazy_layers_train_and_load(quadrants, tmp_path, recipe):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES[recipe].replace(epochs=0.5, batch_size=32)
    runs = [fit(recipe, data, network=Lazy) for _ in range(2)]
    gingham.save(runs[0], tmp_path / "run")
    runs.append(gingham.load(tmp_path / "run", Lazy))
    first, *others = (run.model.predict(data.test.images).probabilities for run in runs)
    assert all(other.equal(first) for other in others), "the weights are drawn from the seed"
    assert runs[0].metrics["parameters"] == 4 * 9 + 4 + 4 * 13 * 13 * 4 + 4


@pytest.mark.parametrize("recipe", ["article", "fast-90"])
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (NoParameters, "the network own_networks:NoParameters has no trainable parameter"),
        (Frozen, "the network own_networks:Frozen has no trainable parameter"),
        (LazyUncalled, r"own_networks:LazyUncalled never calls the layer of spare.weight"),
    ],
)
def test_a_network_with_nothing_to_train_is_an_error(quadrants, recipe, network, reason):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(ModelError, match=reason):
        fit(gingham.RECIPES[recipe], data, network=network)


def test_a_teacher_with_an_own_network_is_an_error_that_says_what_works(command_with_network, quadrants):
    settings = ("--data", quadrants, "--epochs", 0.2, "--set", "validation_images=40")
    command_with_network("train", *settings, "--model", "mynets:Plain", "--out", "teacher")
    stderr = command_with_network("train", *settings, "--out", "pupil", "--teacher", "teacher", code=2).stderr
    assert stderr.startswith(
        "gingham: --teacher: teacher is a run with the network mynets:Plain, not with a built-in one; "
    )
    assert stderr.endswith("works in Python: FitOptions(teachers=[gingham.load(RUN, CLASS)])\n")
