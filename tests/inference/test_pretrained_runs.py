"""What comes after a training works for a pretrained network as for any other."""

import importlib.util
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham.data.splits import Split
from gingham.inference.explain import occlusion, occlusion_stride
from gingham.inference.neighbours import GALLERY_PIXELS, gallery
from gingham.io import tensors_sha256
from helpers import Command, fit
from pretrained_files import tiny_recipe, write_photos


@pytest.fixture(scope="session")
def shared_pretrained(tmp_path_factory, photo_folder, tiny_weights):
    """A folder with the runs `frozen` and `finetune` of a tiny pretrained network."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = gingham.load_data(str(photo_folder), 12, size=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("frozen", "finetune"):
            run = fit(tiny_recipe(name, size=48, epochs=8), data, weights=tiny_weights)
            gingham.save(run, folder / name)
    return folder


@pytest.fixture(params=["frozen", "finetune"])
def run_folder(request, shared_pretrained, command):
    shutil.copytree(shared_pretrained / request.param, command.folder / "run")
    return command.folder / "run"


@pytest.fixture
def data(photo_folder):
    return gingham.load_data(str(photo_folder), 12, size=48)


def test_a_loaded_run_predicts_the_same_bits(run_folder, shared_pretrained, data):
    first, second = gingham.load(run_folder), gingham.load(run_folder)
    images = data.test.images
    assert torch.equal(first.model.predict(images).probabilities, second.model.predict(images).probabilities)
    assert first.origin_name.startswith("pretrained weights of timm/")
    gingham.save(first, run_folder.parent / "copy")
    copied = gingham.load(run_folder.parent / "copy")
    assert tensors_sha256(copied.model.state_dict()) == tensors_sha256(first.model.state_dict())
    names = ("model.safetensors", "history.jsonl")
    assert all((run_folder / name).read_bytes() == (run_folder.parent / "copy" / name).read_bytes() for name in names)


def test_a_network_that_is_larger_than_its_file_is_not_created(run_folder):
    path = run_folder / "model.json"
    path.write_text(path.read_text().replace("timm/test_efficientnet", "timm/vit_giant_patch14_224"))
    with pytest.raises(
        gingham.RunError, match=r"vit_giant_patch14_224 with 1,\S+ parameters, but model.safetensors has"
    ):
        gingham.load(run_folder)


def test_loading_needs_neither_weights_nor_a_network(run_folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    assert gingham.load(run_folder).recipe.pretrained


@pytest.mark.parametrize("name", ["timm/hf_hub:a/b", "timm/local-dir:/tmp", "timm/nothing", "timm/"])
def test_a_run_that_names_another_network_is_refused(name, run_folder, command):
    path = run_folder / "model.json"
    metadata = json.loads(path.read_text())
    metadata["network"] = metadata["recipe"]["network"] = name
    path.write_text(json.dumps(metadata))
    assert "timm has no network" in command("evaluate", "run", code=2).stderr


def test_without_timm_a_run_says_what_to_install(run_folder, command, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else found(name, *rest))
    done = command("evaluate", "run", code=2)
    assert done.stderr.endswith("needs the package timm; run pip install 'gingham[backbones]'\n")


def test_evaluation_predicts_and_is_calibrated(run_folder, data):
    run = gingham.load(run_folder)
    result = gingham.evaluate(run, data.validation)
    assert result.accuracy == pytest.approx(run.metrics["validation_accuracy"])
    assert result.temperature == run.metrics["temperature"] > 0
    probabilities = run.model.predict(data.validation.images).probabilities
    picked = probabilities[torch.arange(len(data.validation)), data.validation.labels]
    assert result.loss == pytest.approx(float(-picked.log().mean()), rel=1e-4)


def test_wrong_images_are_refused_in_one_sentence(run_folder):
    model = gingham.load(run_folder).model
    for images in (
        torch.rand(2, 3, 48, 48),
        torch.rand(2, 5),
        torch.rand(2),
        torch.zeros(3, dtype=torch.uint8),
        torch.zeros(2, 3, 47, 48, dtype=torch.uint8),
        torch.zeros(2, 1, 48, 48, dtype=torch.uint8),
    ):
        with pytest.raises(gingham.ModelError, match="it takes uint8 of shape"):
            model.predict(images)
    assert len(model.predict(torch.zeros(0, 3, 48, 48, dtype=torch.uint8)).labels) == 0


def test_predict_and_explain(run_folder, command, photo_folder):
    for name, kind in (("a.jpg", "china"), ("b.jpg", "flower")):
        shutil.copy(photo_folder / kind / "3.jpg", command.folder / name)
    done = command("predict", "--run", "run", "a.jpg", "b.jpg", "--json")
    assert done.stdout
    command("predict", "--run", "run", "a.jpg", "--explain")
    with Image.open(command.folder / "a-explained.png") as image:
        assert image.width > 800


def test_summary_report_diagnosis_and_evaluation(run_folder, command):
    summary = command("summary", "run").stdout
    assert "image: 3x48x48" in summary
    assert "classifier" in summary
    assert "no problems found" in command("diagnose", "run").stdout
    assert "validation images right" in command("evaluate", "run").stdout
    write_photos(command.folder / "others", count=5, size=(120, 90))
    assert "of 10 photographs right" in command("evaluate", "run", "--data", "others").stdout
    command("report", "run", "--out", "report.html")
    assert "pretrained" in (command.folder / "report.html").read_text()


def test_onnx_makes_the_same_predictions(run_folder, data, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = gingham.load(run_folder)
    result = gingham.export(run, tmp_path / "model.onnx", data)
    assert result.agreement == 1
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (probabilities,) = session.run(["probabilities"], {"images": data.test.images.numpy()})
    assert np.abs(probabilities - run.model.predict(data.test.images).probabilities.numpy()).max() < 1e-4


def test_the_page_is_refused_before_the_data_is_read(run_folder, command, photo_folder):
    metadata = json.loads((run_folder / "model.json").read_text())
    metadata["data"]["name"] = str(command.folder / "missing")
    (run_folder / "model.json").write_text(json.dumps(metadata))
    done = command("export", "page.html", "--run", "run", code=2)
    assert "not for the pretrained network timm/" in done.stderr
    assert "images of 48 pixels; export FILE.onnx" in done.stderr
    assert not (command.folder / "page.html").exists()


def test_the_server_predicts_and_explains(run_folder, photo_folder, data):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from gingham.deploy.server import create_app

    run = gingham.load(run_folder)
    content = (photo_folder / "flower/5.jpg").read_bytes()
    with TestClient(create_app(run, lambda: data.train)) as client:
        files = {"images": ("flower.jpg", content, "image/jpeg")}
        answer = client.post("/predict", files=files, params={"explain": "true"})
        assert answer.status_code == 200, answer.text
        assert client.get("/").status_code == 200
        (entry,) = answer.json()["predictions"]
        (expected,) = gingham.predict(run, [photo_folder / "flower/5.jpg"])
        assert entry["label"] == expected.label
        assert entry["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
        assert len(entry["explanation"]["moved"]) == 16  # 48 pixels with a stride of 3


def test_compare_runs(shared_pretrained, photo_folder):
    done = Command(shared_pretrained)("compare", "frozen", "finetune")
    assert "frozen" in done.stdout


@pytest.mark.parametrize(
    ("side", "stride"), [(5, 1), (28, 1), (32, 1), (40, 1), (41, 1), (43, 2), (64, 2), (128, 5), (224, 8), (512, 18)]
)
def test_occlusion_maps_of_large_images_take_as_many_predictions_as_of_small_ones(side, stride):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)

    model = gingham.Classifier(Mean(), ("lit", "dark"), (1, side, side), mean=(0.0,), std=(0.02,))
    image = torch.full((1, side, side), 10, dtype=torch.uint8)
    assert occlusion_stride(image) == stride
    drops = occlusion(model, image, 0)
    assert drops.shape == (math.ceil(side / stride),) * 2
    assert drops.numel() <= 1700
    assert torch.equal(drops, occlusion(model, image, 0, side=5 * stride, stride=stride))
    if side >= 28:
        black = 2 * (5 * stride // 2) + 1
        centre = drops[len(drops) // 2, len(drops) // 2]
        share = 1 - black**2 / side**2
        expected = torch.sigmoid(torch.tensor(10 / 255 / 0.02)) - torch.sigmoid(torch.tensor(10 / 255 / 0.02 * share))
        assert float(centre) == pytest.approx(float(expected), abs=1e-4)


class Colours(torch.nn.Module):
    """A network whose logits are the mean colours, for images of any size."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.classifier = torch.nn.Linear(3, 2)

    def forward(self, x):
        self.largest = max(self.largest, x.numel())
        return self.classifier(x.mean((2, 3)))


@pytest.fixture
def large_images():
    """A model and 400 images of 224x224 that take no memory of their own, of one colour each."""
    network = Colours()
    model = gingham.Classifier(network, ("a", "b"), (3, 224, 224), mean=(0.5,), std=(0.5,))
    colours = torch.randint(256, (3000, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = colours.expand(-1, -1, 224, 224)
    labels = torch.arange(3000) % 2
    return model, Split("train", images, labels, ("a", "b"), "large", "fingerprint")


def test_large_images_are_predicted_in_small_batches(large_images):
    model, split = large_images
    model.predict(split.images[:100])
    assert model.network.largest <= 3 << 20
    small = gingham.Classifier(Colours(), ("a", "b"), (3, 28, 28), mean=(0.5,), std=(0.5,))
    small.predict(torch.zeros(1200, 3, 28, 28, dtype=torch.uint8))
    assert small.network.largest == 500 * 3 * 28 * 28


def test_fewer_large_images_are_sampled_and_searched(large_images):
    model, split = large_images
    assert len(split.sample(500)[0]) == 83
    found = gallery(model, split, 2000)
    assert len(found.images) == GALLERY_PIXELS // 224**2
    small = Split("train", torch.zeros(9000, 1, 28, 28, dtype=torch.uint8), torch.zeros(9000), ("a",), "small", "")
    assert [len(small.sample(count)[0]) for count in (500, 5000)] == [500, 5000]
    assert len(small.sample(8000, 1 << 26)[0]) == 8000
    empty = Split("train", split.images[:0], split.labels[:0], ("a",), "empty", "")
    assert len(empty.sample(500)[0]) == 0


def test_checks_of_labels_use_bounded_memory(large_images):
    from gingham.training.checks import check_labels

    _, split = large_images
    largest = [0]
    real = torch.Tensor.float

    def count(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        largest[0] = max(largest[0], result.nbytes)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", count)
        list(check_labels(split, None))
    assert 0 < largest[0] <= 64 << 20
