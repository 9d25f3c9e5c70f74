"""Own photographs answered: by files, in the library and by the command; and the model that comes in the package."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import features
from gingham.inference.packaged_model import PACKAGED
from gingham.inference.predict import mean_probabilities, preprocess
from gingham.models.registry import build_classifier
from helpers import drawn, make_dataset


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


def product(picture, colour=(0.6, 0.8, 1.0)):
    """A picture of the dataset as a catalogue shows it: positive, coloured, on white, framed."""
    large = np.asarray(Image.fromarray(picture).resize((280, 280), Image.Resampling.BICUBIC)).astype(float)
    there = np.asarray(Image.fromarray(picture).resize((280, 280), Image.Resampling.BICUBIC)) > 10
    photo = np.full((340, 400, 3), 255.0)
    photo[30:310, 60:340][there] = ((255 - large)[..., None] * np.array(colour))[there]
    return Image.fromarray(photo.astype(np.uint8))


def test_the_packaged_model_is_of_the_recipe_photo_and_small(packaged):
    assert packaged.recipe == gingham.RECIPES["photo"].replace(seed=0)
    assert packaged.data["name"] == "fashion-mnist"
    assert sum(file.stat().st_size for file in PACKAGED.iterdir()) < 1_000_000
    assert len(packaged.test_openings) == 1, "measured once, when it came in"
    assert 0 < float(packaged.model.threshold) < 1


def test_the_packaged_model_is_as_good_as_its_file_says(packaged, fashion_mnist):
    report = gingham.evaluate(packaged, fashion_mnist.validation)
    assert abs(report.accuracy - packaged.metrics["validation_accuracy"]) < 0.003  # its filters were rounded since
    assert report.accuracy > 0.92
    assert report.sure_error <= packaged.recipe.risk


@pytest.mark.slow
def test_catalogue_photographs_are_recognised(packaged, fashion_mnist):
    split = fashion_mnist.validation
    chosen = torch.cat([(split.labels == k).nonzero().flatten()[:10] for k in range(10)])
    answers = gingham.predict(packaged, [product(split.images[k, 0].numpy()) for k in chosen])
    right = [answer.label == split.classes[int(split.labels[k])] for answer, k in zip(answers, chosen, strict=True)]
    assert np.mean(right) > 0.75
    sure = [good for good, answer in zip(right, answers, strict=True) if not answer.unsure]
    assert np.mean(sure) > np.mean(right), "it is not sure of the harder ones"


def test_a_picture_of_the_dataset_is_answered_as_it_is(tmp_path, packaged, fashion_mnist):
    """None of the preparation touches what is in the model's form already: the command agrees with the model."""
    images = fashion_mnist.validation.images[:5]
    expected = packaged.model.predict(images)
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{k}.png")
    answers = gingham.predict(packaged, [tmp_path / f"{k}.png" for k in range(5)])
    assert [answer.label for answer in answers] == expected.names
    got = torch.tensor([list(answer.probabilities.values()) for answer in answers])
    assert torch.allclose(got, expected.probabilities, atol=1e-6)
    assert [answer.unsure for answer in answers] == expected.unsure.tolist()
    assert answers[0].prepared.notes == ["taken as it is"]


def test_a_photo_is_answered_by_the_mean_over_its_framings(packaged):
    photo, _ = drawn((40, 60, 120), (255, 255, 255))
    answer = gingham.predict(packaged, [photo])[0]
    framings = torch.from_numpy(answer.prepared.framings)
    mean = packaged.model.predict(framings).probabilities.mean(dim=0)
    assert torch.allclose(torch.tensor(list(answer.probabilities.values())), mean, atol=1e-6)
    assert answer.confidence == pytest.approx(float(mean.max()))
    assert answer.unsure == (answer.confidence < float(packaged.model.threshold))
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_many_photos_get_the_answers_they_get_alone(packaged):
    photos = [drawn((20 * k, 60, 120), (255, 255, 255 - 30 * k))[0] for k in range(5)]
    together = gingham.predict(packaged, photos)
    for photo, answer in zip(photos, together, strict=True):
        alone = gingham.predict(packaged, [photo])[0]
        assert alone.label == answer.label
        assert list(alone.probabilities.values()) == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
    assert mean_probabilities(packaged.model, []).shape == (0, 10)


def test_prepare_none_only_shrinks(packaged):
    photo, _ = drawn((40, 60, 120), (255, 255, 255))
    prepared = preprocess(packaged, photo, "none")
    expected = np.asarray(photo.convert("L").resize((28, 28), Image.Resampling.BOX))
    assert np.array_equal(prepared.image[0], expected)
    small = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
    assert np.array_equal(preprocess(packaged, small, "auto").image[0], np.asarray(small))
    assert len(preprocess(packaged, small, "photo").framings) == 2
    coloured = Image.new("RGB", (28, 28), "red")
    assert len(preprocess(packaged, coloured, "auto").framings) == 2, "of the model's size, but not of its colours"
    with pytest.raises(gingham.GinghamError, match="--prepare got 'all'; allowed: auto, none, photo"):
        gingham.predict(packaged, [photo], "all")


def test_occlusion_finds_what_the_answer_rests_on():
    """A network that looks at one pixel alone: hiding it moves the answer, hiding others does not."""

    class OnePixel(torch.nn.Module):
        def forward(self, x):
            return torch.stack([8 * x[:, 0, 5, 9], torch.zeros(len(x))], dim=1)

    model = gingham.Classifier(OnePixel(), ("lit", "dark"), (1, 28, 28), mean=(0.0,), std=(1.0,))
    picture = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    moved = occlusion(model, picture, 0, side=5)
    assert moved.shape == (28, 28)
    expected = torch.zeros(28, 28)
    expected[3:8, 7:12] = torch.sigmoid(torch.tensor(8.0)) - 0.5
    assert torch.allclose(moved, expected, atol=1e-6)
    assert torch.equal(occlusion(model, picture, 0, side=5, stride=3), moved[::3, ::3]), "fewer places, the same answers"


def test_predict_prints_a_line_a_picture_and_what_it_did(command):
    drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.jpg")
    done = command("predict", "shirt.jpg")
    first, *notes = done.stdout.splitlines()
    assert first.startswith("shirt.jpg: ")
    assert len(notes) == 7
    assert "garment found" in notes[1]
    done = command("predict", *["shirt.jpg"] * 5)
    assert len(done.stdout.splitlines()) == 5


def test_predict_as_json(command):
    drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (entry,) = json.loads(command("predict", "shirt.png", "--json").stdout)
    assert {"image", "label", "confidence", "probabilities", "unsure"} <= set(entry)
    assert entry["image"] == "shirt.png"
    assert list(entry["probabilities"]) == list(gingham.load_packaged().model.classes)
    assert entry["confidence"] == max(entry["probabilities"].values()) == entry["probabilities"][entry["label"]]
    assert isinstance(entry["unsure"], bool)


def test_an_unreadable_picture_gets_an_error_and_the_others_an_answer(command):
    drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (command.folder / "text.png").write_text("no picture")
    done = command.call("predict", "text.png", "shirt.png", "gone.png", "--json")
    assert done.code == 2
    bad, good, gone = json.loads(done.stdout)
    assert set(bad) == {"image", "error"}
    assert "cannot read text.png as a picture" in bad["error"]
    assert good["label"]
    assert "there is no file gone.png" in gone["error"]
    assert done.stderr.startswith("gingham: 2 of 3 pictures were not answered: ")
    assert done.stderr.count("\n") == 1
    command("predict", "text.png", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prepare", "much"), "--prepare got 'much'; allowed: auto, none, photo"),
        (("--run", "nowhere"), "there is no folder nowhere"),
        (("--out", "figures"), "--out is for the figures of --explain"),
        (("--model", "a.b:C"), "give --run too"),
    ],
)
def test_predict_wrongly_asked_says_what_is_right(command, arguments, message):
    drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    assert message in command("predict", "shirt.png", *arguments, code=2).stderr


def test_an_explanation_is_drawn(command):
    for folder in ("one", "two"):
        (command.folder / folder).mkdir()
        drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / folder / "shirt.png")
    done = command("predict", "one/shirt.png", "two/shirt.png", "--explain", "--out", "why", "--json")
    files = [entry["file"] for entry in json.loads(done.stdout)]
    assert files == ["why/shirt-explained.png", "why/shirt-explained-2.png"]
    for file in files:
        with Image.open(command.folder / file) as image:
            assert image.width > 1000


def test_a_run_of_other_pictures_answers_about_whole_ones(command, tmp_path):
    """A model of one's own colour pictures: a photo of another size is read as the folder was."""
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for k in range(30):
            pixels = np.array(colour) + random.normal(0, 25, (20, 20, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "colours" / name / f"{k}.png")
    train = ("train", "--data", tmp_path / "colours", "--recipe", "fast-85", "--epochs", 20, "--set", "batch_size=8")
    command(*train, "--out", "run")
    Image.new("RGB", (300, 200), (190, 40, 40)).save(command.folder / "photo.jpg")
    (entry,) = json.loads(command("predict", "photo.jpg", "--run", "run", "--json").stdout)
    assert entry["label"] == "red"
    assert [step["step"] for step in entry["steps"]] == ["size"]
    report = json.loads(command("evaluate", "run", "--data", tmp_path / "colours", "--json").stdout)
    assert report["split"] == "validation", "its own data is no folder of photographs"


def photographs(folder, packaged, counts, *, nested=""):
    """Folders of drawn photographs, named as people would, and what the model says of each."""
    for number, (name, count) in enumerate(counts.items()):
        place = folder / nested / name
        place.mkdir(parents=True)
        for k in range(count):
            drawn((40 + 30 * number, 60, 20 * k), (255, 255, 255))[0].save(place / f"{k}.png")
    return folder


def test_a_folder_of_photographs_is_measured(command, tmp_path, packaged):
    counts = {"T-SHIRT_top": 3, "dress": 1, "ankle boot": 2}
    folder = photographs(tmp_path / "mine", packaged, counts)
    command("train", "--recipe", "fast-85", "--epochs", 0.02, "--out", "run")
    run = gingham.load(command.folder / "run")
    report = json.loads(command("evaluate", "run", "--data", folder, "--json").stdout)
    assert (report["split"], report["total"]) == ("photographs", 6)
    recalls = []
    for name, label in (("T-SHIRT_top", "T-shirt/top"), ("dress", "Dress"), ("ankle boot", "Ankle boot")):
        said = gingham.predict(run, sorted((folder / name).iterdir()))
        right = sum(answer.label == label for answer in said)
        assert report["per_class"][label]["correct"] == right
        assert report["per_class"][label]["total"] == counts[name]
        recalls.append(right / counts[name])
    assert report["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert report["per_class"]["Bag"]["accuracy"] is None
    assert report["test_openings"] == [], "photographs are not the dataset's test split"
    said = command("evaluate", "run", "--data", folder).stdout
    assert "of 6 photographs right" in said
    assert "balanced accuracy" in said


def test_the_packaged_model_is_measured_on_photographs_alone(command, tmp_path, packaged):
    folder = photographs(tmp_path / "mine", packaged, {"bag": 2, "coat": 1})
    report = json.loads(command("evaluate", "packaged", "--data", folder, "--json").stdout)
    assert (report["total"], report["file"]) == (3, "confusion-photographs.png")
    assert "give --data FOLDER" in command("evaluate", "packaged", "--split", "test", code=2).stderr
    assert {file.name for file in PACKAGED.iterdir()} == {"model.json", "model.safetensors"}, "nothing is written there"


def test_a_batch_of_the_recipe_photo_can_be_looked_at(command, fashion_mnist_folder):
    plain = json.loads(command("show", "--batch", 64, "--recipe", "fast-94", "--out", "plain.png", "--json").stdout)["batch"]
    made = json.loads(command("show", "--batch", 64, "--recipe", "photo", "--out", "made.png", "--json").stdout)["batch"]
    assert plain["labels"] == made["labels"]
    assert (command.folder / "plain.png").read_bytes() != (command.folder / "made.png").read_bytes()


def test_a_split_of_photographs_alone_may_be_asked_for(tmp_path, packaged):
    folder = photographs(tmp_path / "mine", packaged, {"bag": 2}, nested="test")
    assert gingham.evaluate_photographs(packaged, folder)[0].total == 2
    assert gingham.evaluate_photographs(packaged, folder, "test")[0].total == 2
    with pytest.raises(gingham.DataError, match="holds no photographs of the split validation"):
        gingham.evaluate_photographs(packaged, folder, "validation")


def test_photographs_of_no_class_or_of_no_kind_are_named(tmp_path, packaged):
    folder = photographs(tmp_path / "mine", packaged, {"bag": 1, "hat": 1})
    with pytest.raises(gingham.DataError, match=r"has the class hat, which is none of the model's \(T-shirt/top, "):
        gingham.evaluate_photographs(packaged, folder)
    (folder / "hat").rename(folder / "coat")
    (folder / "coat" / "torn.jpg").write_text("no picture")
    report, bad = gingham.evaluate_photographs(packaged, folder)
    assert report.total == 2
    assert [one.image for one in bad] == [str(folder / "coat" / "torn.jpg")]


def test_data_of_one_s_own_is_no_folder_of_photographs(tmp_path, command):
    """IDX files stay what they were for evaluate."""
    make_dataset(tmp_path / "quadrants")
    command("train", "--recipe", "article", "--data", tmp_path / "quadrants", "--epochs", 0.2, "--out", "run")
    report = json.loads(command("evaluate", "run", "--data", tmp_path / "quadrants", "--split", "test", "--json").stdout)
    assert report["split"] == "test"


@pytest.mark.parametrize(("network", "tta", "width"), [("tiny", "flip", 64), ("tiny", "none", 64), ("article", "none", 10)])
def test_pictures_are_compared_as_the_network_sees_them(network, tta, width):
    """By what goes into its last linear layer, of the picture and not of its mirror image; by its logits without one."""
    model = build_classifier(network, [str(k) for k in range(10)], (1, 28, 28), tta=tta)
    images = torch.randint(256, (1203, 1, 28, 28), dtype=torch.uint8)
    seen = features(model, images)
    assert seen.shape == (1203, width)
    model.eval()
    alone = [features(model, image[None])[0] for image in images[[0, 700, 1202]]]
    assert torch.allclose(seen[[0, 700, 1202]], torch.stack(alone), atol=1e-4)
    if network == "tiny":
        with torch.no_grad():
            pixels = (images[:5].float() / 255 - model.mean) / model.std
            expected = model.network[:-1](pixels)
        assert torch.allclose(seen[:5], expected, atol=1e-4)


def test_a_figure_that_cannot_be_drawn_does_not_cost_the_answer(command):
    drawn((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (command.folder / "shirt-explained.png").write_text("the user's own")
    done = command("predict", "shirt.png", "--explain")
    assert done.stdout.startswith("shirt.png: ")
    assert "is not one of gingham's figures and stays as it is" in done.stderr
    assert (command.folder / "shirt-explained.png").read_text() == "the user's own"


def test_a_batch_in_colour_is_not_photographed(command, tmp_path):
    np.savez(tmp_path / "colours.npz", images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.arange(40) % 2)
    assert "3 channels" in command("show", tmp_path / "colours.npz", "--batch", 8, "--recipe", "photo", code=2).stderr


def test_what_is_no_folder_of_photographs_is_named(command):
    assert "nowhere is no folder of photographs" in command("evaluate", "packaged", "--data", "nowhere", code=2).stderr
