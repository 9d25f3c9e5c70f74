"""Training on the features of pretrained networks, and fine-tuning them."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import gingham
from gingham.io import tensors_sha256
from gingham.models.backbones import Backbone
from gingham.models.registry import build_classifier
from gingham.training import features as features_module
from gingham.training.batches import shard_of
from gingham.training.optimizer import build_optimizer
from helpers import fit
from pretrained_files import TINY, tiny_recipe

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="session")
def photos(photo_folder):
    return gingham.load_data(str(photo_folder), 12, size=32)


@pytest.fixture
def calls(monkeypatch):
    """How many images the features were computed of, so far, as a list of batches."""
    batches, compute = [], Backbone.features

    def count(self, images):
        batches.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(Backbone, "features", count)
    return batches


def pretrained_body(weights, name=TINY):
    network = Backbone(name, 2)
    network.load_pretrained(gingham.io.read_tensors(weights)[0])
    return network.body.state_dict()


def checksum(run):
    return tensors_sha256(run.model.state_dict())


def test_frozen_keeps_every_tensor_of_the_network_and_trains_the_classifier(photos, tiny_weights):
    run = fit(tiny_recipe(epochs=20), photos, weights=tiny_weights)
    network, expected = run.model.network, pretrained_body(tiny_weights)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.body.state_dict().items())
    assert network.classifier.weight.abs().min() > 0
    images = photos.train.images.float() / 255
    with torch.no_grad():
        features = network.features(images)
        deviation = features.std(0, correction=0)
    assert torch.allclose(network.feature_mean, features.mean(0), rtol=1e-3, atol=1e-4)
    varied = deviation > 0.1 * deviation.mean()
    assert torch.allclose(network.feature_std[varied], deviation[varied], rtol=1e-3, atol=1e-4)
    assert run.data["origin"]["pretrained"] == f"timm/{TINY}"
    assert run.data["origin"]["weights_sha256"] == gingham.io.sha256(tiny_weights)
    assert run.origin_name == f"pretrained weights of timm/{TINY}"


def test_the_classifier_is_the_optimum_of_its_features(photos, tiny_weights):
    """Without decay, its loss is that of L-BFGS, and its predictions those of scikit-learn's logistic regression."""
    settings = {"epochs": 400, "weight_decay": 0.0, "batch_size": 68, "schedule": "cosine"}
    run = fit(tiny_recipe(**settings), photos, weights=tiny_weights)
    network, labels = run.model.network, photos.train.labels
    classifier = network.classifier.requires_grad_(False)

    def standardised(images):
        return (run.model.features(images) - network.feature_mean) / network.feature_std

    features, held_out = standardised(photos.train.images), standardised(photos.test.images)
    smoothing = run.recipe.label_smoothing
    assert smoothing > 0  # so that the optimum is finite
    optimum = torch.nn.Linear(features.shape[1], 2)
    optimizer = torch.optim.LBFGS(optimum.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(optimum(features), labels, label_smoothing=smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    ours = F.cross_entropy(classifier(features), labels, label_smoothing=smoothing)
    theirs = F.cross_entropy(optimum(features).detach(), labels, label_smoothing=smoothing)
    assert float(ours) == pytest.approx(float(theirs), rel=0.01)
    reference = LogisticRegression(C=1e3, max_iter=10_000).fit(features, labels)
    assert (classifier(features).argmax(1) == labels).all()
    assert (classifier(held_out).argmax(1).numpy() == reference.predict(held_out.numpy())).mean() > 0.8


def test_real_features_separate_two_kinds_of_photos_after_a_few_steps(photo_folder, imagenet_weights):
    data = gingham.load_data(str(photo_folder), 12, size=64)
    run = fit(gingham.RECIPES["frozen"].replace(epochs=10, size=64), data, weights=imagenet_weights)
    assert gingham.evaluate(run, data.test).accuracy > 0.9
    assert run.model.network.body.conv_stem.bias is not None  # BatchNorm is folded into it


def test_features_are_computed_once_and_cached(photos, tiny_weights, calls, empty_cache):
    first = fit(tiny_recipe(), photos, weights=tiny_weights)
    images = len(photos.train) + len(photos.validation)
    assert images <= sum(calls) < 2 * images  # one image more to try each network, but no second epoch
    files = sorted((empty_cache / "features").iterdir())
    assert len(files) == 2
    calls.clear()
    second = fit(tiny_recipe(seed=1), photos, weights=tiny_weights)
    assert sum(calls) <= 4
    assert checksum(first) != checksum(second)
    calls.clear()
    assert checksum(fit(tiny_recipe(), photos, weights=tiny_weights)) == checksum(first)
    assert sorted((empty_cache / "features").iterdir()) == files


@pytest.mark.parametrize("content", [b"", b"not safetensors", None, "a bit"])
def test_a_damaged_cache_file_is_computed_again(content, photos, tiny_weights, calls, empty_cache):
    first = fit(tiny_recipe(), photos, weights=tiny_weights)
    for file in (empty_cache / "features").iterdir():
        data = file.read_bytes()
        if content == "a bit":  # of the last feature
            file.write_bytes(data[:-2] + bytes([data[-2] ^ 0x40]) + data[-1:])
        else:
            file.write_bytes(data[:-50] if content is None else content)
    calls.clear()
    assert checksum(fit(tiny_recipe(), photos, weights=tiny_weights)) == checksum(first)
    assert sum(calls) >= len(photos.train) + len(photos.validation)


def test_a_cache_file_of_another_shape_is_computed_again(photos, tiny_weights, empty_cache):
    first = fit(tiny_recipe(), photos, weights=tiny_weights)
    for file in (empty_cache / "features").iterdir():
        gingham.io.write_tensors(file, {"features": torch.zeros(3, 5)})
    assert checksum(fit(tiny_recipe(), photos, weights=tiny_weights)) == checksum(first)


def test_a_changed_image_and_other_weights_are_not_found_in_the_cache(photos, tiny_weights, calls):
    fit(tiny_recipe(), photos, weights=tiny_weights)
    changed = replace(photos.train, images=photos.train.images.clone())
    changed.images[0, 0, 0, 0] ^= 1
    calls.clear()
    fit(tiny_recipe(), replace(photos, train=changed), weights=tiny_weights)
    assert len(photos.train) <= sum(calls) < len(photos.train) + 6


def test_a_cache_that_cannot_be_written_changes_nothing(photos, tiny_weights, empty_cache):
    first = fit(tiny_recipe(), photos, weights=tiny_weights)
    import shutil

    shutil.rmtree(empty_cache / "features")
    (empty_cache / "features").write_text("a file")
    assert checksum(fit(tiny_recipe(), photos, weights=tiny_weights)) == checksum(first)


def test_only_the_latest_features_are_kept(photos, tiny_weights, empty_cache, monkeypatch):
    monkeypatch.setattr(features_module, "NUM_CACHED", 3)
    for shift in range(3):
        moved = replace(photos.train, images=photos.train.images.roll(shift, 3))
        fit(tiny_recipe(epochs=1), replace(photos, train=moved), weights=tiny_weights)
    assert len(list((empty_cache / "features").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("name", ["frozen", "finetune"])
def test_the_seed_decides_the_classifier(name, photos, tiny_weights):
    first, again, other = (fit(tiny_recipe(name, seed=seed), photos, weights=tiny_weights) for seed in (0, 0, 1))
    assert checksum(first) == checksum(again)
    assert not torch.equal(first.model.network.classifier.weight, other.model.network.classifier.weight)


def test_training_leaves_the_global_generator_as_it_was(photos, tiny_weights):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(tiny_recipe("finetune", trivial_augment=True, rotation=10), photos, weights=tiny_weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_finetune_changes_later_layers_only(photos, tiny_weights):
    recipe = tiny_recipe("finetune", frozen_layers=0.5)
    run = fit(recipe, photos, weights=tiny_weights)
    network, before = run.model.network, pretrained_body(tiny_weights)
    depths = network.parameter_depths()
    assert {depth < 0.5 for depth in depths.values()} == {True, False}
    for name, parameter in network.body.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (depths[f"body.{name}"] >= 0.5), name


def test_finetune_starts_with_the_classifier_of_frozen(photos, tiny_weights):
    head = fit(tiny_recipe(epochs=30, batch_size=256), photos, weights=tiny_weights)
    # With a learning rate of 0, the start is the end.
    run = fit(tiny_recipe("finetune", learning_rate=0.0), photos, weights=tiny_weights)
    assert gingham.RECIPES["frozen"].epochs == 30
    for name, tensor in run.model.network.state_dict().items():
        assert torch.equal(tensor, head.model.network.state_dict()[name]), name
    assert run.origin_name == f"pretrained weights of timm/{TINY}"


def test_finetune_starts_with_a_given_run_without_the_weights_file(photos, tiny_weights):
    head = fit(tiny_recipe(), photos, weights=tiny_weights)
    run = fit(tiny_recipe("finetune", learning_rate=0.0), photos, start=head)
    assert torch.equal(run.model.network.classifier.weight, head.model.network.classifier.weight)


def test_learning_rates_rise_with_depth():
    recipe = tiny_recipe("finetune", frozen_layers=0.4, early_lr_scale=0.01, weight_decay=0.3)
    model = build_classifier(recipe.network, ("a", "b"), (3, 32, 32), recipe.mean, recipe.std)
    model.network.freeze(recipe.frozen_layers)
    optimizer = build_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {parameter: name for name, parameter in model.network.named_parameters()}
    depths, seen = model.network.parameter_depths(), set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.add(name := names[parameter])
            assert group["scale"] == pytest.approx(0.01 ** (1 - depths[name]))
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)
    assert seen == {name for name, depth in depths.items() if depth >= 0.4}
    assert max(group["scale"] for group in optimizer.param_groups) == 1


def test_adamw_trains_other_networks_as_torch_does(quadrants):
    data = gingham.load_data(str(quadrants), 40)
    recipe = gingham.RECIPES["article"].replace(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, epochs=2, batch_size=32, validation_images=40
    )
    assert fit(recipe, data).metrics["validation_accuracy"] > 0.9


class CrashError(Exception):
    """Ends a training at a step, as a crash would."""


def interrupted(recipe, data, folder, step, monkeypatch, **options):
    """Train until a step, with a checkpoint after every step, and stop there as a crash would."""
    from gingham.training.trainer import Trainer

    checkpoint = Trainer.checkpoint_if_due

    def stop(self):
        checkpoint(self)
        if self.folder == folder and self.step == step:
            raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint_if_due", stop)
        with pytest.raises(CrashError):
            fit(recipe, data, folder, **options)


@pytest.mark.parametrize("step", [1, 4, 7])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("frozen", {}), ("frozen", {"hard_share": 0.5, "ema_decay": 0.9}), ("finetune", {"mixup": 0.5, "ema_decay": 0.9})],
)
def test_an_interrupted_training_resumes_to_the_same_bytes_without_the_weights_file(
    name, changes, step, photos, tiny_weights, tmp_path, monkeypatch, empty_cache
):
    import shutil

    recipe = tiny_recipe(name, checkpoint_seconds=0, epochs=3 if "hard_share" not in changes else 5, **changes)
    folder = tmp_path / "run"
    interrupted(recipe, photos, folder, step, monkeypatch, weights=tiny_weights)
    if step == 4:  # the cache may be emptied in between
        shutil.rmtree(empty_cache / "features")
    resumed = fit(recipe, photos, folder, resume=True)
    assert resumed.metrics["resumed_from_step"] == step
    whole = fit(recipe, photos, weights=tiny_weights)
    assert checksum(resumed) == checksum(whole)
    assert resumed.data["origin"] == whole.data["origin"]
    losses = [[entry["loss"] for entry in run.history if "learning_rate" in entry] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_resume_without_a_checkpoint_starts_with_pretrained_weights(photos, tiny_weights, tmp_path):
    run = fit(tiny_recipe(), photos, tmp_path / "run", resume=True, weights=tiny_weights)
    assert run.origin_name


CHANGING = {
    "crop_scale": 0.5,
    "crop_size": 24,
    "rotation": 5,
    "color_jitter": 0.1,
    "trivial_augment": True,
    "mixup": 0.5,
    "cutmix": 0.5,
    "flip": "random",
    "shift_pixels": 1,
    "photo_share": 0.5,
}


@pytest.mark.parametrize(("field", "value"), CHANGING.items())
def test_a_frozen_network_cannot_be_trained_on_changed_images(field, value):
    with pytest.raises(
        gingham.RecipeError, match=f"{field} is .* with frozen_layers 1, .*set {field}=.*, or train more"
    ):
        tiny_recipe(**{field: value})


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        (
            {"network": "small"},
            {},
            "pretrained is set, but the network is small; only networks of timm have pretrained",
        ),
        ({"network": "small", "pretrained": False}, {}, "frozen_layers is set, but the network is small"),
        ({"pretrained": False}, {"weights": True}, "weights are given, but the recipe is not pretrained"),
        ({"network": "timm/resnet_18"}, {}, "timm has no network 'resnet_18'"),
        ({"network": "timm/vit_tiny_patch16_224"}, {"weights": True}, "cannot take an image of 3x32x32"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_sentence(changes, options, reason, photos, tiny_weights):
    recipe = tiny_recipe().replace(**changes)
    with pytest.raises(gingham.GinghamError, match=reason) as caught:
        fit(recipe, photos, weights=tiny_weights if options else None)
    assert "\n" not in str(caught.value)


def test_a_network_of_one_size_cannot_be_trained_on_smaller_crops(photo_folder):
    data = gingham.load_data(str(photo_folder), 12, size=224)
    recipe = tiny_recipe("finetune", network="vit_tiny_patch16_224", size=224, crop_size=144, pretrained=False)
    with pytest.raises(gingham.ModelError, match=r"cannot be trained on images of 144x144 pixels .*or crop_size=0"):
        fit(recipe, data)


def test_teachers_need_images_of_their_own_size(photos, tiny_weights):
    teacher = fit(tiny_recipe(epochs=1), photos, weights=tiny_weights)
    for recipe, reason in (
        (
            tiny_recipe(distillation_weight=0.5),
            "frozen_layers is 1, .*choose another recipe, or leave the teachers out",
        ),
        (
            tiny_recipe("finetune", crop_size=24, distillation_weight=0.5),
            "crop_size is set, .*set crop_size=0, or leave",
        ),
    ):
        with pytest.raises(gingham.GinghamError, match=reason):
            fit(recipe, photos, weights=tiny_weights, teachers=[teacher])
    student = gingham.RECIPES["fast"].replace(epochs=1, distillation_weight=0.5, validation_images=12)
    assert fit(student, photos, teachers=[teacher]).data["teachers"]


@pytest.mark.parametrize("name", ["frozen", "finetune"])
@pytest.mark.parametrize("shape", [(60, 32, 32), (60, 32, 32, 3), (60, 32, 48, 3)])
def test_arrays_of_grey_and_colour_images(name, shape, tmp_path, tiny_weights):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = random.integers(0, 60, shape) + 150 * labels.reshape(-1, *[1] * (len(shape) - 1))
    np.savez(tmp_path / "data.npz", images=images.astype(np.uint8), labels=labels)
    data = gingham.load_data(str(tmp_path / "data.npz"), 12)
    changes = {"trivial_augment": True, "rotation": 10, "crop_size": 0} if name == "finetune" else {}
    run = fit(tiny_recipe(name, size=0, epochs=8, **changes), data, weights=tiny_weights)
    assert run.model.input_shape == data.train.image_shape
    assert run.metrics["validation_accuracy"] > 0.9


def test_mean_and_standard_deviation_of_the_recipe_are_used(photos, tiny_weights):
    plain, scaled = (
        fit(tiny_recipe(**changes), photos, weights=tiny_weights)
        for changes in ({}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})
    )
    images = photos.test.images[:4]
    pixels = (images.float() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[
        :, None, None
    ]
    with torch.no_grad():
        assert torch.allclose(scaled.model.features(images), plain.model.network.features(pixels), rtol=1e-3, atol=1e-3)


def test_a_network_of_timm_can_be_trained_from_scratch(photos):
    recipe = tiny_recipe("finetune", pretrained=False, frozen_layers=0.0, early_lr_scale=1.0)
    run = fit(recipe, photos)
    assert run.origin_name == ""
    assert "origin" not in run.data


def test_adamw_state_survives_a_checkpoint(photos, tiny_weights, tmp_path, monkeypatch):
    recipe = tiny_recipe(checkpoint_seconds=0)
    interrupted(recipe, photos, tmp_path / "run", 3, monkeypatch, weights=tiny_weights)
    from gingham.runs.checkpoint import load_checkpoint

    tensors = load_checkpoint(tmp_path / "run").tensors
    state = {
        name.removeprefix("optimizer."): tensor for name, tensor in tensors.items() if name.startswith("optimizer.")
    }
    assert {name.split(".")[1] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(float(tensor) == 3 for name, tensor in state.items() if name.endswith(".step"))


def test_the_state_of_adamw_is_created_before_a_graph_is_captured():
    from gingham.training.step import make_capturable

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": list(layer.parameters()), "scale": 1.0}], 0.1)
    reference = copy.deepcopy(layer)
    make_capturable(optimizer)
    assert all(torch.is_tensor(group["lr"]) for group in optimizer.param_groups)
    assert all(set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in layer.parameters())
    plain = torch.optim.AdamW(reference.parameters(), 0.1)
    for network, steps in ((layer, optimizer), (reference, plain)):
        for _ in range(2):
            steps.zero_grad()
            network(torch.ones(1, 3)).sum().backward()
            steps.step()
    assert torch.allclose(layer.weight, reference.weight)


@pytest.mark.parametrize("name", ["frozen", "finetune"])
def test_health_checks_do_not_warn_of_a_normal_pretrained_training(name, photos, tiny_weights, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gingham.fit(
            tiny_recipe(name, epochs=12),
            photos.train,
            photos.validation,
            options=gingham.FitOptions(weights=tiny_weights),
        )
    assert "warning" not in capsys.readouterr().err


def test_features_of_the_shards_are_those_of_the_whole(photos, tiny_weights):
    model = fit(tiny_recipe(), photos, weights=tiny_weights).model
    whole = model.features(photos.train.images)
    count = len(photos.train)
    for rank in range(2):
        shard = shard_of(count, rank, 2)
        assert torch.allclose(model.features(photos.train.images[shard]), whole[shard], rtol=1e-3, atol=1e-4)
    assert model.features(photos.train.images[:0]).shape == (0, whole.shape[1])
    assert torch.allclose(model.logits(whole), model.logits(photos.train.images), atol=1e-3)


@pytest.mark.parametrize("name", ["frozen", "finetune"])
@pytest.mark.parametrize("changes", [{"tta": "flip"}, {"tta": "none", "patience": 2, "ema_decay": 0.9}])
def test_validation_and_calibration_are_those_of_the_images(name, changes, photos, tiny_weights):
    run = fit(tiny_recipe(name, epochs=4, **changes), photos, weights=tiny_weights)
    result = gingham.evaluate(run, photos.validation)
    assert run.metrics["temperature"] == result.temperature
    if changes["tta"] == "none" or name == "finetune":
        assert result.accuracy == pytest.approx(run.metrics["validation_accuracy"])
    other = copy.deepcopy(run)
    gingham.evaluation.calibrate.calibrate(other, photos.validation)
    assert float(other.model.temperature) == pytest.approx(result.temperature, rel=0.01)


@pytest.mark.parametrize("name", ["frozen", "finetune"])
def test_without_held_out_images(name, photo_folder, tiny_weights):
    data = gingham.load_data(str(photo_folder), 0, size=32)
    run = fit(tiny_recipe(name, epochs=2, validation_images=0), data, weights=str(tiny_weights))
    assert run.metrics["validation_accuracy"] is None
    assert run.metrics["train_images"] == len(data.train)


def test_an_interruption_while_the_classifier_is_trained_leaves_a_folder_that_can_be_resumed(
    photos, tiny_weights, tmp_path, monkeypatch
):
    from gingham.training.trainer import Trainer

    checkpoint = Trainer.checkpoint_if_due

    def stop(self):
        checkpoint(self)
        if self.recipe.name == "frozen" and self.step == 2:
            raise KeyboardInterrupt

    recipe = tiny_recipe("finetune")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint_if_due", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, photos, tmp_path / "run", weights=tiny_weights)
    resumed = fit(recipe, photos, tmp_path / "run", resume=True, weights=tiny_weights)
    assert checksum(resumed) == checksum(fit(recipe, photos, weights=tiny_weights))
