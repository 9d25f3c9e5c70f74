"""ExportResult models against the models they were made from: the same answers, or no file."""

import inspect
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import gingham
from gingham.cli.export import export as export_command
from gingham.deploy.page import model_metadata
from gingham.inference.neighbours import GALLERY_SIZE, features
from gingham.models.networks import NETWORKS
from gingham.models.registry import build_classifier
from helpers import ROOT, drawn, make_dataset


def answer(file, images):
    """What ONNX Runtime says, as a program without gingham would ask it."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (images_in,) = session.get_inputs()
    assert (images_in.name, images_in.type) == ("images", "tensor(uint8)")
    return session.run(["probabilities"], {"images": images})[0]


def metadata(file):
    return {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}


def fitted(data, **changes):
    recipe = gingham.RECIPES["article"].replace(**{"epochs": 0.5, "batch_size": 32, "validation_images": 40} | changes)
    return gingham.fit(recipe, data.train, data.validation, progress=False)


def test_the_file_answers_as_the_model_does_whatever_the_batch(small_run, tmp_path):
    run, data = small_run
    exported = gingham.export(run, tmp_path / "model.onnx", data)
    assert exported.file.stat().st_size == exported.bytes
    assert (exported.agreement, exported.pictures, exported.split, exported.opset) == (1.0, 40, "validation", 18)
    assert exported.max_difference < 1e-5
    random = np.random.RandomState(0).randint(256, size=(300, 1, 28, 28)).astype(np.uint8)
    for images in (random[:1], random[:3], random, data.train.images.numpy()):
        said = answer(exported.file, images)
        assert said.dtype == np.float32
        assert np.abs(said - run.model.predict(images).probabilities.numpy()).max() < 1e-4
        assert np.allclose(said.sum(axis=1), 1, atol=1e-5)
    assert list(tmp_path.glob("*.onnx*")) == [exported.file], "nothing lies beside it"


def test_the_file_says_what_it_needs_to_be_used(small_run, tmp_path):
    run, data = small_run
    entries = metadata(gingham.export(run, tmp_path / "model.onnx", data).file)
    assert json.loads(entries["classes"]) == list(run.model.classes)
    assert float(entries["threshold"]) == float(run.model.threshold)
    assert float(entries["temperature"]) == float(run.model.temperature)
    assert json.loads(entries["input_shape"]) == [1, 28, 28]
    assert (entries["network"], entries["gingham"]) == ("article", gingham.__version__)
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in content, "no path of the machine it was made on"
    assert b".py" not in content


def test_both_views_and_the_temperature_are_inside(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fitted(data, network="tiny", tta="flip")
    run.model.temperature.fill_(2.5)
    file = gingham.export(run, tmp_path / "model.onnx", data).file
    images = data.train.images[:64].numpy()
    said = answer(file, images)
    model = run.model.eval()
    with torch.no_grad():
        pixels = (torch.tensor(images).float() / 255 - model.mean) / model.std
        expected = ((model.network(pixels) + model.network(pixels.flip(3))) / 2 / 2.5).softmax(1).numpy()
    assert np.abs(said - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "wrn-28-10"])  # wrn-16-4's layers, for minutes
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28)])
def test_every_network_has_an_onnx_form(network, channels, side, tmp_path):
    images = torch.randint(256, (60, channels, side, side), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    np.savez(tmp_path / "data.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    data = gingham.load_data(str(tmp_path / "data.npz"), validation=20)
    exported = gingham.export(fitted(data, network=network, epochs=0.1, validation_images=20), tmp_path / "model.onnx", data)
    assert exported.agreement == 1


@pytest.mark.slow
def test_the_packaged_model_on_a_thousand_real_pictures(fashion_mnist, tmp_path):
    run = gingham.load_packaged()
    exported = gingham.export(run, tmp_path / "model.onnx")
    assert (exported.pictures, exported.agreement) == (1000, 1.0)
    images = fashion_mnist.train.images[:1000].numpy()
    expected = run.model.predict(images)
    said = answer(exported.file, images)
    assert np.abs(said - expected.probabilities.numpy()).max() < 1e-4
    assert (said.argmax(1) == expected.labels.numpy()).all()
    assert run.test_openings == gingham.load_packaged().test_openings, "the test pictures stayed shut"


@pytest.mark.slow
def test_int8_says_what_it_costs(fashion_mnist, tmp_path):
    run = gingham.load_packaged()
    whole = gingham.export(run, tmp_path / "whole.onnx")
    small = gingham.export(run, tmp_path / "small.onnx", int8=True)
    assert small.bytes < whole.bytes / 3
    assert metadata(small.file) == metadata(whole.file)
    images, labels = fashion_mnist.validation.images.numpy(), fashion_mnist.validation.labels.numpy()
    assert small.measured == len(labels)
    assert small.accuracy == pytest.approx((run.model.predict(images).labels.numpy() == labels).mean())
    assert small.accuracy_int8 == pytest.approx((answer(small.file, images).argmax(1) == labels).mean())
    assert small.interval[0] <= small.accuracy - small.accuracy_int8 <= small.interval[1]
    assert small.accuracy - small.accuracy_int8 < 0.01
    kinds = {tensor.data_type for tensor in onnx.load(str(small.file)).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds


def test_int8_of_a_small_run(small_run, tmp_path):
    run, data = small_run
    exported = gingham.export(run, tmp_path / "small.onnx", data, int8=True)
    assert exported.measured == 40
    assert answer(exported.file, data.train.images[:5].numpy()).shape == (5, 4)


class OtherwiseExported(torch.nn.Module):
    """Answers differently where it is exported."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(784, classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(-x if torch.compiler.is_exporting() else x)


class OnePictureOnly(OtherwiseExported):
    """Depends on the number of pictures."""

    def forward(self, x):
        return self.linear(x.flatten(1)) * (1 if len(x) == 2 else 3)


class WithoutForm(OtherwiseExported):
    """Decides by what it sees."""

    def forward(self, x):
        return self.linear(x.flatten(1)) if float(x.mean()) > 0.5 else self.linear(-x.flatten(1))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (OtherwiseExported, r"answers .* of 40 pictures differently, by up to .* nothing was written"),
        (OnePictureOnly, r"has no ONNX form \(it depends on the number of pictures\)"),
        (WithoutForm, r"WithoutForm has no ONNX form .*; use operations"),
    ],
)
def test_what_does_not_answer_the_same_is_not_written(quadrants, tmp_path, network, said):
    data = gingham.load_data(str(quadrants), validation=40)
    run = gingham.Run(
        build_classifier("own", data.classes, (1, 28, 28), factory=network),
        gingham.RECIPES["article"].replace(network=f"tests:{network.__name__}", validation_images=40),
    )
    file = tmp_path / "model.onnx"
    file.write_text("an export of gingham before")
    with pytest.raises(gingham.GinghamError, match=said) as caught:
        gingham.export(run, file, data)
    assert "\n" not in str(caught.value)
    assert file.read_text() == "an export of gingham before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_held_out_pictures_the_training_pictures_are_compared(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=0)
    run = gingham.fit(gingham.RECIPES["article"].replace(epochs=0.2, validation_images=0), data.train, progress=False)
    exported = gingham.export(run, tmp_path / "model.onnx", data)
    assert (exported.split, exported.pictures) == ("train", 300)


def test_the_features_that_find_neighbours(small_run):
    from gingham.deploy.onnx import to_onnx

    run, data = small_run
    session = onnxruntime.InferenceSession(to_onnx(run, with_features=True).SerializeToString())
    images = data.train.images[:9]
    said = session.run(["features"], {"images": images.numpy()})[0]
    assert np.allclose(said, features(run.model, images), atol=1e-4)


def test_export_as_a_command(quadrants, command):
    command(
        "train", "--recipe", "article", "--data", quadrants, "--epochs", 0.5, "--set", "validation_images=40", "--out", "run"
    )
    done = command("export", "model.onnx", "--run", "run")
    assert done.stdout.startswith("model.onnx: ")
    assert "answers 40 of 40 validation pictures as the model does" in done.stdout
    said = json.loads(command("export", "small.onnx", "--run", "run", "--int8", "--json").stdout)
    assert {"file", "opset", "max_difference", "agreement", "accuracy", "accuracy_int8", "interval"} <= set(said)
    assert "neighbours" not in said
    done = command("export", "small.onnx", "--run", "run", "--int8")
    assert "8 bits cost " in done.stdout
    assert len(json.loads(command("evaluate", "run", "--json").stdout)["test_openings"]) == 0
    make_dataset(quadrants, seed=5)
    assert "has changed since run was trained on it" in command("export", "other.onnx", "--run", "run", code=2).stderr
    assert not (command.folder / "other.onnx").exists()
    command("export", "other.onnx", "--run", "run", "--data", quadrants)


def test_the_example_answers_as_predict_does_without_torch(tmp_path, fashion_mnist):
    run = gingham.load_packaged()
    gingham.export(run, tmp_path / "model.onnx", fashion_mnist)
    drawn((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    drawn((200, 40, 40), (150, 150, 150), texture=6)[0].save(tmp_path / "other.jpg")
    Image.fromarray(fashion_mnist.train.images[0, 0].numpy()).save(tmp_path / "own.png")
    files = ["shirt.png", "other.jpg", "own.png"]
    script = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    example = ROOT / "examples" / "onnx_answers.py"
    done = subprocess.run(
        [sys.executable, "-c", script, example, "model.onnx", *files], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = gingham.predict(run, [tmp_path / name for name in files])
    assert done.stdout.splitlines() == [
        f"{name}: {'not sure, perhaps ' if said.unsure else ''}{said.label} ({said.confidence:.1%})"
        for name, said in zip(files, expected, strict=True)
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.pt"], "model.pt ends in .pt; allowed: .onnx, .html; name it model.onnx or page.html"),
        (["model"], "model ends in nothing; allowed: .onnx, .html"),
        (["page.html", "--int8"], "int8 is for .onnx files"),
        (["model.onnx", "--run", "nowhere"], "there is no folder nowhere"),
        (["model.onnx", "--model", "a:B"], "--model is for a run of your own network; give --run too"),
        (["page.html", "--neighbours", "-1"], "--neighbours"),
    ],
)
def test_what_export_cannot_do_it_says(command, arguments, said):
    assert said in command("export", *arguments, code=2).stderr
    assert not list(command.folder.iterdir())


def test_a_file_of_the_user_s_is_not_overwritten(command):
    (command.folder / "notes.html").write_text("my own")
    assert "notes.html is there already and is no export of gingham's" in command("export", "notes.html", code=2).stderr
    assert (command.folder / "notes.html").read_text() == "my own"


def test_no_place_of_this_machine_is_told(quadrants, command):
    command(
        "train", "--recipe", "article", "--data", quadrants, "--epochs", 0.2, "--set", "validation_images=40", "--out", "run"
    )
    command("export", "model.onnx", "--run", "run")
    assert metadata(command.folder / "model.onnx")["dataset"] == "quadrants"
    assert str(quadrants.parent).encode() not in (command.folder / "model.onnx").read_bytes()
    assert model_metadata(gingham.load(command.folder / "run"))["dataset"] == "quadrants"
    quadrants.rename(quadrants.parent / "moved")
    said = command("export", "model.onnx", "--run", "run", code=2).stderr
    assert (
        "which run was trained on, is not there any more; put it back (evaluate and export take another place with --data)"
        in said
    )
    command("export", "model.onnx", "--run", "run", "--data", quadrants.parent / "moved")


def test_data_of_another_shape_is_refused(small_run, tmp_path):
    run, _ = small_run
    other = gingham.load_data(str(make_dataset(tmp_path / "other", side=20)), validation=10)
    with pytest.raises(gingham.DataError, match="has pictures of 1x20x20, the model takes 1x28x28"):
        gingham.export(run, tmp_path / "model.onnx", other)


def test_the_command_and_the_function_put_as_many_pictures_into_a_page():
    given = [inspect.signature(export).parameters["neighbours"].default for export in (gingham.export, export_command)]
    assert given == [GALLERY_SIZE, GALLERY_SIZE]


def test_missing_packages_are_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = command("export", "model.onnx", code=2).stderr
    assert said == "gingham: exporting needs the package onnxscript; pip install 'gingham[export]'\n"
