"""`gingham train` and `gingham trials` with pretrained networks, and the recipe that is chosen for the images."""

import json

import pytest
from safetensors.torch import load_file

import gingham
from gingham.training import auto
from pretrained_files import TINY, tiny_recipe

pytestmark = pytest.mark.usefixtures("empty_cache")
FEW = ("--epochs", 3, "--set", "batch_size=16", "--set", "size=32")


@pytest.fixture
def pretrained(photo_folder, tiny_weights):
    """The arguments for a tiny pretrained network on small photos."""
    return ("--data", photo_folder, "--backbone", TINY, "--weights", tiny_weights, *FEW)


@pytest.fixture
def tiny_frozen(monkeypatch, tiny_weights):
    """The recipe for photos is that of a tiny network whose weights are at hand."""
    import functools

    from gingham.models import backbones
    from gingham.training import initial_weights

    recipes = {**gingham.RECIPES, "frozen": tiny_recipe("frozen")}
    monkeypatch.setattr(auto, "RECIPES", recipes)
    found = functools.partial(backbones.find_weights, file=tiny_weights)
    monkeypatch.setattr(auto, "find_weights", lambda name, file, say: found(name))
    monkeypatch.setattr(initial_weights, "find_weights", lambda name, file, say: found(name))


def stored(folder):
    return json.loads((folder / "model.json").read_text())


@pytest.mark.usefixtures("tiny_frozen")
def test_train_says_which_recipe_it_chose_and_stores_it(command, photo_folder):
    done = command("train", "--data", photo_folder)
    chosen = [line for line in done.stderr.splitlines() if "recipe" in line]
    assert chosen[0] == (
        f"80 colour images of about 96x72 pixels are photos: recipe frozen, a classifier on the features of {TINY}, "
        "which was trained on ImageNet (--finetune: slower and more accurate)"
    )
    assert f"pretrained weights of timm/{TINY}" in done.stdout
    metadata = stored(command.folder / "runs/auto-0")
    assert metadata["network"] == metadata["recipe"]["network"] == f"timm/{TINY}"
    assert metadata["recipe"]["name"] == "frozen"
    again = command("train", "--data", photo_folder, code=2)
    assert "already contains a finished run" in again.stderr


@pytest.mark.usefixtures("tiny_frozen")
def test_resume_uses_the_stored_recipe_whatever_would_be_chosen_now(command, photo_folder, monkeypatch):
    from gingham.training.trainer import Trainer

    checkpoint = Trainer.checkpoint_if_due

    def stop(self):
        checkpoint(self)
        if self.step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint_if_due", stop)
        command("train", "--data", photo_folder, *FEW, "--set", "checkpoint_seconds=0", code=130)

    def fail(*_args, **_kwargs):
        raise gingham.ModelError("no weights; none")

    monkeypatch.setattr(auto, "find_weights", fail)
    done = command("train", "--data", photo_folder, *FEW, "--set", "checkpoint_seconds=0", "--resume")
    assert stored(command.folder / "runs/auto-0")["recipe"]["name"] == "frozen"
    assert "resumed" in done.stderr + done.stdout
    assert "already finished" in command("train", "--data", photo_folder, "--resume").stderr


def test_small_images_are_trained_from_scratch(command, tmp_path):
    from dataset_files import make_image_folder

    folder = make_image_folder(tmp_path / "digits", {"a": 30, "b": 30})
    done = command("train", "--data", folder, "--epochs", 1)
    assert "60 grey images of about 28x28 pixels: recipe fast, a small network from scratch" in done.stderr
    assert stored(command.folder / "runs/auto-0")["recipe"]["name"] == "fast"


def test_photos_without_weights_are_trained_from_scratch(command, photo_folder, monkeypatch):
    def fail(*_args):
        raise gingham.ModelError("cannot download the pretrained weights of X (no network); connect")

    monkeypatch.setattr(auto, "find_weights", fail)
    done = command("train", "--data", photo_folder, "--epochs", 1, "--json")
    assert "but cannot download the pretrained weights of X (no network): recipe fast" in done.stderr
    assert json.loads(done.stdout)["recipe"] == "fast"
    assert gingham.load(command.folder / "runs/auto-0").model.input_shape == (3, 64, 64)


def test_an_error_of_the_data_is_one_sentence(command, tmp_path):
    command("train", "--data", tmp_path / "nowhere", code=2)
    (tmp_path / "empty").mkdir()
    command("train", "--data", tmp_path / "empty", code=2)
    command("trials", "--data", tmp_path / "nowhere", code=2)


def test_backbone_and_weights_train_a_classifier_on_features(command, pretrained, tiny_weights):
    done = command("train", *pretrained, "--json")
    metrics = json.loads(done.stdout)
    assert metrics["recipe"] == "frozen"
    run = command.folder / metrics["run"]
    assert run.name == "frozen-0"
    assert stored(run)["data"]["origin"] == {
        "pretrained": f"timm/{TINY}",
        "weights_sha256": gingham.io.sha256(tiny_weights),
    }
    assert "already finished" in command("train", *pretrained, "--resume").stderr


def test_finetune_trains_the_later_layers(command, pretrained):
    command("train", *pretrained, "--out", "frozen")
    command("train", *pretrained, "--finetune", "--set", "crop_size=32", "--out", "tuned")
    before, after = (load_file(command.folder / name / "model.safetensors") for name in ("frozen", "tuned"))
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert any(name.startswith("network.body.blocks") for name in changed)
    assert "network.body.conv_stem.weight" not in changed
    assert stored(command.folder / "tuned")["recipe"]["name"] == "finetune"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--recipe", "fast", "--finetune"), "are for pretrained networks, not for the recipe fast; leave them out"),
        (("--recipe", "fast", "--backbone", TINY), "are for pretrained networks, not for the recipe fast"),
        (("--recipe", "fast", "--weights", "w"), "are for pretrained networks, not for the recipe fast"),
        (("--backbone", TINY, "--model", "own:Net"), "not for a network of your own or teachers; leave them out"),
        (("--finetune", "--teacher", "packaged"), "not for a network of your own or teachers"),
        (("--backbone", TINY, "--set", "network=timm/resnet18"), "network got two values, by --backbone and by --set"),
        (("--backbone", "resnet_18"), "timm has no network 'resnet_18'; did you mean 'resnet18'"),
        (("--backbone", "hf_hub:a/b"), "timm has no network 'hf_hub:a/b'"),
        (("--backbone", TINY, "--weights", "missing"), "cannot read missing"),
        (("--backbone", TINY, "--set", "flip=random"), "flip is random with frozen_layers 1"),
        (("--recipe", "frozen", "--set", "network=small"), "only networks of timm have pretrained weights"),
        (("--recipe", "fast", "--set", "pretrained=true"), "only networks of timm have pretrained weights"),
        (("--recipe", "fast", "--set", "optimizer=adam"), "optimizer got 'adam'; allowed: one of sgd, muon, adamw"),
    ],
)
@pytest.mark.parametrize("name", ["train", "trials"])
def test_options_that_do_not_fit_together_are_refused(name, arguments, reason, command, photo_folder):
    done = command.call(name, "--data", photo_folder, *FEW, *arguments)
    assert done.code == 2
    assert reason in done.stderr.splitlines()[-1]
    assert not list(command.folder.glob("runs/*/model.json"))


def test_trials_of_a_pretrained_network(command, pretrained):
    done = command("trials", *pretrained, "--seeds", 2)
    assert "frozen: " in done.stdout
    runs = sorted(path.parent for path in command.folder.glob("runs/frozen-trials/*/model.json"))
    assert [run.name for run in runs] == ["seed-0", "seed-1"]
    first, second = (load_file(run / "model.safetensors") for run in runs)
    assert not first["network.classifier.weight"].equal(second["network.classifier.weight"])
    assert first["network.body.conv_stem.weight"].equal(second["network.body.conv_stem.weight"])
    compared = command("compare", runs[0], runs[1])
    assert compared.stdout


@pytest.mark.usefixtures("tiny_frozen")
def test_trials_choose_the_recipe_for_the_images(command, photo_folder):
    done = command("trials", "--data", photo_folder, "--seeds", 1)
    assert "are photos: recipe frozen" in done.stderr
    assert (command.folder / "runs/auto-trials/seed-0/model.json").exists()


def test_a_network_that_is_given_decides_whether_pretrained_weights_are_used(command, photo_folder, tiny_weights):
    arguments = ("train", "--data", photo_folder, "--epochs", 0.1)
    done = command(*arguments, "--set", "network=tiny", "--set", "size=28", "--out", "scratch")
    assert "are photos" not in done.stderr
    assert gingham.load(command.folder / "scratch").recipe.name == "fast"
    tiny = ("--set", "network=timm/test_efficientnet", "--weights", tiny_weights, "--set", "size=32")
    command(*arguments, *tiny, "--out", "pretrained")
    assert gingham.load(command.folder / "pretrained").recipe.name == "frozen"


def test_a_frozen_run_can_be_fine_tuned(command, photo_folder, tiny_weights):
    train = ("train", "--data", photo_folder, "--epochs", 0.5)
    network = ("--backbone", "test_efficientnet", "--weights", tiny_weights, "--set", "size=40")
    command(*train, *network, "--out", "frozen")
    done = command(*train, "--from", "frozen", "--finetune", "--set", "crop_size=32", "--out", "finetuned")
    assert "cannot be found" not in done.stderr
    run = gingham.load(command.folder / "finetuned")
    assert (run.recipe.name, run.recipe.network, run.recipe.size) == ("finetune", "timm/test_efficientnet", 40)
    assert run.data["origin"]["run"] == "frozen"
