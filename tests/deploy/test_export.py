"""Exported files give the same predictions as the models they were made from, or are not written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import gingham
from gingham.deploy import export as export_module
from gingham.deploy.onnx import novelty_nodes, session_outputs, to_onnx
from gingham.deploy.page import model_metadata
from gingham.models.networks import NETWORKS
from gingham.models.registry import build_classifier
from helpers import ROOT, draw_garment_photo, make_dataset, train_arguments


def predict_onnx(file, images, output="probabilities"):
    """Return an output of ONNX Runtime, as a program without gingham gets it."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (image_input,) = session.get_inputs()
    assert (image_input.name, image_input.type) == ("images", "tensor(uint8)")
    return session.run([output], {"images": images})[0]


def read_metadata(file):
    return {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}


def fit_article(data, **changes):
    recipe = gingham.RECIPES["article"].replace(**{"epochs": 0.5, "batch_size": 32, "validation_images": 40} | changes)
    return gingham.fit(recipe, data.train, data.validation, progress=False)


def test_the_file_predicts_as_the_model_does_for_any_batch_size_and_has_what_a_program_needs(small_run, tmp_path):
    run, data = small_run
    exported = gingham.export(run, tmp_path / "model.onnx", data)
    assert exported.file.stat().st_size == exported.bytes
    assert (exported.agreement, exported.pictures, exported.split, exported.opset) == (1.0, 40, "validation", 18)
    assert exported.max_difference < 1e-5
    assert exported.novelty_agreement == 1
    assert exported.novelty_difference < 0.01
    random = np.random.RandomState(0).randint(256, size=(300, 1, 28, 28)).astype(np.uint8)
    for images in (random[:1], random[:3], random, data.train.images.numpy()):
        probabilities, expected = predict_onnx(exported.file, images), run.model.predict(images)
        assert probabilities.dtype == np.float32
        assert np.abs(probabilities - expected.probabilities.numpy()).max() < 1e-4
        assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        novelty = predict_onnx(exported.file, images, "novelty")
        assert (novelty.shape, novelty.dtype) == ((len(images),), np.float32)
        assert np.abs(novelty - expected.novelty.numpy()).max() < 0.02
    assert list(tmp_path.glob("*.onnx*")) == [exported.file], "no other file is written"
    entries = read_metadata(exported.file)
    assert json.loads(entries["classes"]) == list(run.model.classes)
    for prefix, thresholds in (("", run.model.thresholds()), ("photo_", run.model.thresholds(for_photos=True))):
        names = (f"{prefix}threshold", f"{prefix}novelty_threshold")
        assert tuple(json.loads(entries[name]) for name in names) == thresholds
    assert float(entries["temperature"]) == float(run.model.temperature)
    assert json.loads(entries["input_shape"]) == [1, 28, 28]
    assert (entries["network"], entries["gingham"]) == ("article", gingham.__version__)
    content = exported.file.read_bytes()
    assert b"site-packages" not in content, "no path of this machine"
    assert b".py" not in content


def test_the_graph_includes_flip_augmentation_and_temperature(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit_article(data, network="tiny", tta="flip")
    run.model.temperature.fill_(2.5)
    file = gingham.export(run, tmp_path / "model.onnx", data).file
    images = data.train.images[:64].numpy()
    actual = predict_onnx(file, images)
    model = run.model.eval()
    with torch.no_grad():
        pixels = (torch.tensor(images).float() / 255 - model.mean) / model.std
        expected = ((model.network(pixels) + model.network(pixels.flip(3))) / 2 / 2.5).softmax(1).numpy()
    assert np.abs(actual - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [name for name in NETWORKS if name != "wrn-28-10"]
)  # has the layers of wrn-16-4 and takes minutes
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28)])
def test_all_networks_can_be_exported(network, channels, side, tmp_path):
    images = torch.randint(256, (60, channels, side, side), dtype=torch.uint8)
    labels = torch.arange(60) % 3
    np.savez(tmp_path / "data.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    data = gingham.load_data(str(tmp_path / "data.npz"), validation=20)
    exported = gingham.export(
        fit_article(data, network=network, epochs=0.1, validation_images=20), tmp_path / "model.onnx", data
    )
    assert exported.agreement == 1


@pytest.mark.slow
def test_the_packaged_model_agrees_on_a_thousand_images(fashion_mnist, tmp_path):
    run = gingham.load_packaged()
    exported = gingham.export(run, tmp_path / "model.onnx")
    assert (exported.pictures, exported.agreement) == (1000, 1.0)
    images = fashion_mnist.train.images[:1000].numpy()
    expected = run.model.predict(images)
    actual = predict_onnx(exported.file, images)
    assert np.abs(actual - expected.probabilities.numpy()).max() < 1e-4
    assert (actual.argmax(1) == expected.labels.numpy()).all()
    assert run.test_openings == gingham.load_packaged().test_openings, "the test split was not used"


@pytest.mark.slow
def test_int8_measures_its_loss_of_accuracy(fashion_mnist, tmp_path):
    run = gingham.load_packaged()
    exported = gingham.export(run, tmp_path / "float32.onnx")
    small = gingham.export(run, tmp_path / "small.onnx", int8=True)
    # The novelty score stays in float32.
    novelty_bytes = sum(4 * buffer.numel() for buffer in run.model.novelty.buffers())
    assert small.bytes - novelty_bytes < (exported.bytes - novelty_bytes) / 3
    assert read_metadata(small.file) == read_metadata(exported.file)
    images, labels = fashion_mnist.validation.images.numpy(), fashion_mnist.validation.labels.numpy()
    assert small.measured == len(labels)
    assert small.accuracy == pytest.approx((run.model.predict(images).labels.numpy() == labels).mean())
    assert small.accuracy_int8 == pytest.approx((predict_onnx(small.file, images).argmax(1) == labels).mean())
    assert small.interval[0] <= small.accuracy - small.accuracy_int8 <= small.interval[1]
    assert small.accuracy - small.accuracy_int8 < 0.01
    expected, novelty = run.model.predict(images), predict_onnx(small.file, images, "novelty")
    flags = novelty > run.model.thresholds()[1]
    assert (flags == expected.novel.numpy()).mean() > 0.997
    assert small.novelty_agreement > 0.997
    assert np.corrcoef(novelty, expected.novelty.numpy())[0, 1] > 0.995
    negatives = 255 - images[:500]
    novel = predict_onnx(small.file, negatives, "novelty") > run.model.thresholds()[1]
    assert (novel == run.model.predict(negatives).novel.numpy()).all()
    types = {tensor.data_type for tensor in onnx.load(str(small.file)).graph.initializer}
    assert onnx.TensorProto.INT8 in types


def test_int8_works_for_a_small_run(small_run, tmp_path):
    run, data = small_run
    exported = gingham.export(run, tmp_path / "small.onnx", data, int8=True)
    assert exported.measured == 40
    assert predict_onnx(exported.file, data.train.images[:5].numpy()).shape == (5, 4)


def test_int8_keeps_the_flags_of_a_model_of_digits(digit_run, digit_files, tmp_path):
    run, data = digit_run
    exported = gingham.export(run, tmp_path / "small.onnx", data, int8=True)
    images = np.concatenate([prediction.prepared.framings for prediction in gingham.predict(run, digit_files)])
    novelty, threshold = predict_onnx(exported.file, images, "novelty"), run.model.thresholds()[1]
    expected = run.model.predict(images)
    clear = np.abs(expected.novelty.numpy() - threshold) > 1
    assert clear.mean() > 0.8
    assert (novelty > threshold)[clear].tolist() == expected.novel.numpy()[clear].tolist()
    assert exported.novelty_agreement > 0.95


def test_only_the_nodes_of_the_novelty_score_stay_in_float32(small_run):
    graph = to_onnx(small_run[0])
    names = novelty_nodes(graph)
    types = [node.op_type for node in graph.graph.node if node.name in names]
    assert "Conv" not in types
    assert types.count("Log") == 3
    small_run[0].model.novelty = None
    without = to_onnx(small_run[0])
    rest = [node.op_type for node in graph.graph.node if node.name not in names]
    shared = [node.op_type for node in without.graph.node if node.name not in novelty_nodes(without)]
    assert rest == shared


class DifferentIfExported(torch.nn.Module):
    """Gives other logits while it is exported."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(784, classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(-x if torch.compiler.is_exporting() else x)


class DependsOnBatchSize(DifferentIfExported):
    """Gives other logits for a batch of two."""

    def forward(self, x):
        return self.linear(x.flatten(1)) * (1 if len(x) == 2 else 3)


class DependsOnValues(DifferentIfExported):
    """Branches on the values of the images, which ONNX export does not support."""

    def forward(self, x):
        return self.linear(x.flatten(1)) if float(x.mean()) > 0.5 else self.linear(-x.flatten(1))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            DifferentIfExported,
            r"classifies .* of 40 images differently, with probabilities off by up to .* nothing was written",
        ),
        (DependsOnBatchSize, r"cannot be converted to ONNX \(it depends on the number of images\)"),
        (DependsOnValues, r"DependsOnValues cannot be converted to ONNX .*; use operations"),
    ],
)
def test_a_file_that_would_predict_differently_is_not_written(quadrants, tmp_path, network, message):
    data = gingham.load_data(str(quadrants), validation=40)
    run = gingham.Run(
        build_classifier("own", data.classes, (1, 28, 28), factory=network),
        gingham.RECIPES["article"].replace(network=f"tests:{network.__name__}", validation_images=40),
    )
    file = tmp_path / "model.onnx"
    file.write_text("an export of gingham before")
    with pytest.raises(gingham.GinghamError, match=message) as caught:
        gingham.export(run, file, data)
    assert "\n" not in str(caught.value)
    assert file.read_text() == "an export of gingham before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_with_other_novelty_scores_is_not_written(small_run, tmp_path, monkeypatch):
    run, data = small_run

    def off_by_a_little(session, images):
        probabilities, novelty = session_outputs(session, images)
        return [probabilities, novelty + 0.1]

    monkeypatch.setattr(export_module, "session_outputs", off_by_a_little)
    message = (
        r"novelty scores of the exported model are off by up to 1.0e-01 \(0\.0.* is allowed\); nothing was written"
    )
    with pytest.raises(gingham.GinghamError, match=message):
        gingham.export(run, tmp_path / "model.onnx", data)
    assert not list(tmp_path.glob("*.onnx"))


def test_without_held_out_images_the_training_images_are_compared(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=0)
    run = gingham.fit(gingham.RECIPES["article"].replace(epochs=0.2, validation_images=0), data.train, progress=False)
    exported = gingham.export(run, tmp_path / "model.onnx", data)
    assert (exported.split, exported.pictures) == ("train", 300)


def run_example(folder, files):
    """Return the lines that the example prints for a folder's model.onnx and files, without torch."""
    script = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    line = [sys.executable, "-c", script, ROOT / "examples" / "onnx_predict.py", "model.onnx", *files]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def expected_lines(files, predictions):
    lines = []
    for name, prediction in zip(files, predictions, strict=True):
        doubt = "not sure, perhaps " if prediction.unsure else ""
        doubt = "unlike anything it was trained on, nearest class " if prediction.novel else doubt
        lines.append(f"{name}: {doubt}{prediction.label} ({prediction.confidence:.1%})")
    return lines


def test_the_example_predicts_as_the_library_does_without_torch(tmp_path, packaged_onnx, fashion_mnist):
    run = gingham.load_packaged()
    shutil.copy(packaged_onnx, tmp_path / "model.onnx")
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    draw_garment_photo((200, 40, 40), (150, 150, 150), texture=6)[0].save(tmp_path / "other.jpg")
    Image.fromarray(fashion_mnist.train.images[0, 0].numpy()).save(tmp_path / "own.png")
    Image.fromarray(255 - fashion_mnist.train.images[0, 0].numpy()).save(tmp_path / "negative.png")
    files = ["shirt.png", "other.jpg", "own.png", "negative.png"]
    expected = gingham.predict(run, [tmp_path / name for name in files])
    assert run_example(tmp_path, files) == expected_lines(files, expected)
    assert "inverted" in expected[-1].prepared.notes


def test_the_example_chooses_the_preparation_of_digits_as_the_library_does(tmp_path, digit_run, digit_files):
    run, data = digit_run
    gingham.export(run, tmp_path / "model.onnx", data)
    expected = gingham.predict(run, digit_files)
    assert run_example(tmp_path, digit_files) == expected_lines(digit_files, expected)


def test_the_file_contains_no_path_of_this_machine(quadrants, command):
    command(*train_arguments(quadrants, 0.2))
    done = command("export", "model.onnx", "--run", "run")
    assert done.stdout.startswith("model.onnx: ")
    assert "classifies 40 of 40 validation images as the model does" in done.stdout
    assert read_metadata(command.folder / "model.onnx")["dataset"] == "quadrants"
    assert str(quadrants.parent).encode() not in (command.folder / "model.onnx").read_bytes()
    assert model_metadata(gingham.load(command.folder / "run"))["dataset"] == "quadrants"
    quadrants.rename(quadrants.parent / "moved")
    stderr = command("export", "model.onnx", "--run", "run", code=2).stderr
    assert "which run was trained on, is missing; restore it, or give other data" in stderr
    command("export", "model.onnx", "--run", "run", "--data", quadrants.parent / "moved")


def test_data_of_another_shape_is_an_error(small_run, tmp_path):
    run, _ = small_run
    other = gingham.load_data(str(make_dataset(tmp_path / "other", side=20)), validation=10)
    with pytest.raises(gingham.DataError, match="has images of 1x20x20, but the model takes 1x28x28"):
        gingham.export(run, tmp_path / "model.onnx", other)
