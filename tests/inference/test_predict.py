import copy
import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham.inference.predict import preprocess, score_prepared
from gingham.inference.prediction_files import folder_names
from helpers import draw_garment_photo


def catalogue_photo(image, colour=(0.6, 0.8, 1.0)):
    """Return a dataset image as a photo in a catalogue: positive, coloured, on white, with a margin."""
    large = np.asarray(Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC)).astype(float)
    mask = np.asarray(Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC)) > 10
    photo = np.full((340, 400, 3), 255.0)
    photo[30:310, 60:340][mask] = ((255 - large)[..., None] * np.array(colour))[mask]
    return Image.fromarray(photo.astype(np.uint8))


@pytest.mark.slow
def test_catalogue_photos_are_classified_correctly(packaged, fashion_mnist):
    split = fashion_mnist.validation
    indices = torch.cat([(split.labels == k).nonzero().flatten()[:10] for k in range(10)])
    predictions = gingham.predict(packaged, [catalogue_photo(split.images[k, 0].numpy()) for k in indices])
    labels = [split.classes[int(split.labels[k])] for k in indices]
    correct = [prediction.label == label for prediction, label in zip(predictions, labels, strict=True)]
    assert np.mean(correct) > 0.75
    sure = [is_correct for is_correct, prediction in zip(correct, predictions, strict=True) if not prediction.unsure]
    assert np.mean(sure) > np.mean(correct), "it is unsure of the harder ones"


def test_an_image_of_the_dataset_is_predicted_without_preprocessing(tmp_path, packaged, fashion_mnist):
    images = fashion_mnist.validation.images[:5]
    expected = packaged.model.predict(images)
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{k}.png")
    predictions = gingham.predict(packaged, [tmp_path / f"{k}.png" for k in range(5)])
    assert [prediction.label for prediction in predictions] == expected.names
    probabilities = torch.tensor([list(prediction.probabilities.values()) for prediction in predictions])
    assert torch.allclose(probabilities, expected.probabilities, atol=1e-6)
    assert [prediction.unsure for prediction in predictions] == expected.unsure.tolist()
    assert [prediction.novel for prediction in predictions] == expected.novel.tolist()
    assert [prediction.novelty for prediction in predictions] == pytest.approx(expected.novelty.tolist(), abs=1e-4)
    assert predictions[0].prepared.notes == ["used unchanged"]


def test_the_probabilities_of_a_photo_are_the_mean_over_its_framings(packaged):
    photo, _ = draw_garment_photo((40, 60, 120), (255, 255, 255))
    prediction = gingham.predict(packaged, [photo])[0]
    framings = torch.from_numpy(prediction.prepared.framings)
    mean = packaged.model.predict(framings).probabilities.mean(dim=0)
    assert torch.allclose(torch.tensor(list(prediction.probabilities.values())), mean, atol=1e-6)
    assert prediction.confidence == pytest.approx(float(mean.max()))
    threshold, novelty_threshold = packaged.model.thresholds(for_photos=prediction.prepared.is_photo)
    assert prediction.unsure == (prediction.confidence < threshold)
    assert prediction.novelty == pytest.approx(float(packaged.model.predict(framings).novelty.mean()), abs=1e-4)
    assert prediction.novel == (prediction.novelty > novelty_threshold)
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_photos_get_the_same_predictions_together_and_alone(packaged):
    photos = [draw_garment_photo((20 * k, 60, 120), (255, 255, 255 - 30 * k))[0] for k in range(5)]
    together = gingham.predict(packaged, photos)
    for photo, prediction in zip(photos, together, strict=True):
        alone = gingham.predict(packaged, [photo])[0]
        assert alone.label == prediction.label
        assert list(alone.probabilities.values()) == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)
        assert alone.novelty == pytest.approx(prediction.novelty, abs=1e-3)
        without_steps = gingham.predict(packaged, [photo], keep_steps=False)[0]
        assert without_steps.probabilities == alone.probabilities
        assert (without_steps.unsure, without_steps.novel) == (alone.unsure, alone.novel)
        assert without_steps.to_dict()["steps"] == []
    assert score_prepared(packaged.model, []).shape == (0, 11)


def test_prepare_none_only_resizes_and_auto_keeps_model_inputs(packaged):
    photo, _ = draw_garment_photo((40, 60, 120), (255, 255, 255))
    prepared = preprocess(packaged, photo, "none")
    expected = np.asarray(photo.convert("L").resize((28, 28), Image.Resampling.BOX))
    assert np.array_equal(prepared.image[0], expected)
    small = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
    assert np.array_equal(preprocess(packaged, small, "auto").image[0], np.asarray(small))
    assert len(preprocess(packaged, small, "photo").framings) == 2
    coloured = Image.new("RGB", (28, 28), "red")
    assert len(preprocess(packaged, coloured, "auto").framings) == 2, "of the model's size, but not of its colours"
    with pytest.raises(gingham.GinghamError, match="prepare got 'all'; allowed: auto, none, photo"):
        gingham.predict(packaged, [photo], "all")


def test_the_command_prints_each_prediction_and_the_steps_of_a_few(command):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.jpg")
    done = command("predict", "shirt.jpg")
    first, *notes = done.stdout.splitlines()
    assert first.startswith("shirt.jpg: ")
    assert len(notes) == 7
    assert "garment found" in notes[1]
    done = command("predict", *["shirt.jpg"] * 5)
    assert len(done.stdout.splitlines()) == 5


def test_the_command_prints_predictions_as_json(command):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (entry,) = json.loads(command("predict", "shirt.png", "--json").stdout)
    assert {"image", "label", "confidence", "probabilities", "unsure", "novel", "novelty"} <= set(entry)
    assert entry["image"] == "shirt.png"
    assert list(entry["probabilities"]) == list(gingham.load_packaged().model.classes)
    assert entry["confidence"] == max(entry["probabilities"].values()) == entry["probabilities"][entry["label"]]
    assert isinstance(entry["unsure"], bool)
    assert isinstance(entry["novel"], bool)
    assert isinstance(entry["novelty"], float)


def test_an_unreadable_image_gets_an_error_and_the_others_a_prediction(command):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (command.folder / "text.png").write_text("not an image")
    done = command.call("predict", "text.png", "shirt.png", "gone.png", "--json")
    assert done.code == 2
    unreadable, good, missing = json.loads(done.stdout)
    assert set(unreadable) == {"image", "error"}
    assert "cannot read text.png as an image" in unreadable["error"]
    assert good["label"]
    assert "there is no file gone.png" in missing["error"]
    assert done.stderr.startswith("gingham: no prediction for 2 of 3 images: ")
    assert done.stderr.count("\n") == 1
    command("predict", "text.png", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prepare", "much"), "prepare got 'much'; allowed: auto, none, photo"),
        (("--run", "nowhere"), "there is no folder nowhere"),
        (("--out", "figures"), "--out is for the figures of --explain"),
        (("--model", "a.b:C"), "give --run too"),
        (("https://a.org/shirt.jpg",), "there is no file https:/a.org/shirt.jpg; download it first"),
        (("empty",), "empty is a folder; give images in it of the formats PNG"),
    ],
)
def test_invalid_options_are_errors(command, arguments, message):
    (command.folder / "empty").mkdir()
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    done = command.call("predict", "shirt.png", *arguments)
    assert done.code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_is_replaced_by_all_images_in_it_in_natural_order(command):
    folder = command.folder / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "more/deep").mkdir()
    for name in ("10.png", "2.JPG", "more/3.png", "more/deep/1.png"):
        draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(folder / name)
    for name in ("notes.txt", "2-explained.png", ".hidden.png", "9.png"):
        (folder / name).write_text("not an image")
    done = command.call("predict", "photos", "photos/more/3.png", "--json")
    entries = json.loads(done.stdout)
    assert [entry["image"] for entry in entries] == [
        f"photos/{name}" for name in ("2.JPG", "9.png", "10.png", "more/3.png", "more/deep/1.png", "more/3.png")
    ]
    assert ["error" in entry for entry in entries] == [False, True, False, False, False, False]
    skipped, error = done.stderr.splitlines()
    assert skipped == "2 of 7 files in photos skipped: not photos by their names"
    assert error.startswith("gingham: no prediction for 1 of 6 images: cannot read photos/9.png")
    assert done.code == 2


@pytest.mark.usefixtures("small_gallery")
@pytest.mark.parametrize(
    ("threshold", "reason", "limit"),
    [
        (0.999, "below 0.9990", "top probability below 0.9990"),
        (2.0, "this model is never sure", "no threshold is safe"),
    ],
)
def test_not_sure_names_the_threshold(command, tmp_path, threshold, reason, limit):
    """A threshold of 2 means that no threshold keeps the share of errors within the recipe's risk."""
    run = gingham.load_packaged()
    run.model.threshold.fill_(threshold)
    run.model.photo_threshold.fill_(threshold)
    run.model.novelty.threshold.fill_(1e9)  # nothing is novel
    gingham.save(run, command.folder / "run")
    photos = command.folder / "photos/bag"
    photos.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(photos / "noise.png")
    stdout = command("predict", photos / "noise.png", "--run", "run", "--explain").stdout
    assert f"noise.png: not sure ({reason}); " in stdout
    stdout = command("evaluate", "run", "--data", "photos").stdout
    assert f"not sure ({limit}) of 100.00%" in stdout
    assert " of 1 photograph right" in stdout


def test_a_model_of_colour_images_gets_whole_photos(command, tmp_path):
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        class_folder = tmp_path / "colours" / name
        class_folder.mkdir(parents=True)
        for k in range(30):
            pixels = np.array(colour) + random.normal(0, 25, (20, 20, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(class_folder / f"{k}.png")
    train = ("train", "--data", tmp_path / "colours", "--recipe", "fast-85", "--epochs", 20, "--set", "batch_size=8")
    command(*train, "--out", "run")
    Image.new("RGB", (300, 200), (190, 40, 40)).save(command.folder / "photo.jpg")
    (entry,) = json.loads(command("predict", "photo.jpg", "--run", "run", "--json").stdout)
    assert entry["label"] == "red"
    assert [step["step"] for step in entry["steps"]] == ["size"]
    result = json.loads(command("evaluate", "run", "--data", tmp_path / "colours", "--json").stdout)
    assert result["split"] == "validation", "the run's own data are not treated as photos"


@pytest.fixture
def novel_photos(command):
    """Images of a garment and of noise, a run in which one of them is novel, and the label of the other."""
    run = gingham.load_packaged()
    photo = draw_garment_photo((40, 60, 120), (255, 255, 255))[0]
    shirt = Image.fromarray(preprocess(run, photo).image[0])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    (command.folder / "photos").mkdir()
    for name, image in (("noise", noise), ("shirt", shirt)):
        image.save(command.folder / f"photos/{name}.png")
    scores = [prediction.novelty for prediction in gingham.predict(run, [noise, shirt])]
    assert scores[0] > scores[1] + 1
    run.model.novelty.threshold.fill_(sum(scores) / 2)
    run.model.novelty.photo_threshold.fill_(sum(scores) / 2)
    run.model.threshold.fill_(0)
    gingham.save(run, command.folder / "run")
    return scores


@pytest.mark.usefixtures("small_gallery")
def test_the_command_says_that_an_image_is_unlike_the_training_images(command, novel_photos):
    done = command("predict", "photos", "--run", "run")
    noise, *_ = (line for line in done.stdout.splitlines() if line.startswith("photos/noise.png"))
    shirt, *_ = (line for line in done.stdout.splitlines() if line.startswith("photos/shirt.png"))
    assert noise.startswith("photos/noise.png: unlike anything it was trained on; ")
    assert noise.count("%") == 3
    assert "unlike" not in shirt
    assert "not sure" not in shirt
    entries = json.loads(command("predict", "photos", "--run", "run", "--json").stdout)
    assert [entry["novel"] for entry in entries] == [True, False]
    assert [entry["novelty"] for entry in entries] == pytest.approx(novel_photos, abs=1e-3)
    done = command("predict", "photos/noise.png", "--run", "run", "--explain")
    assert "unlike anything it was trained on" in done.stdout
    assert (command.folder / "noise-explained.png").stat().st_size > 1000


def test_novel_images_are_marked_in_the_table_and_sorted_into_their_own_folder(command, novel_photos):
    command("predict", "photos", "--run", "run", "--csv", "table.csv", "--sort-into", "sorted")
    with (command.folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["novel"], row["unsure"]) for row in rows] == [
        ("photos/noise.png", "true", "false"),
        ("photos/shirt.png", "false", "false"),
    ]
    files = sorted(file.relative_to(command.folder / "sorted") for file in (command.folder / "sorted").rglob("*.png"))
    assert (command.folder / "sorted/novel/noise.png").exists()
    assert len(files) == 2
    assert {file.parent.name for file in files} == {"novel", rows[1]["label"].replace("/", "-")}


def test_an_image_that_is_both_novel_and_not_sure_is_novel(command, novel_photos):
    run = gingham.load(command.folder / "run")
    run.model.threshold.fill_(2.0)
    gingham.save(run, run.folder)
    stdout = command("predict", "photos", "--run", "run").stdout
    assert "noise.png: unlike anything it was trained on; " in stdout
    assert "shirt.png: not sure (this model is never sure); " in stdout
    command("predict", "photos", "--run", "run", "--sort-into", "sorted")
    assert {path.name for path in (command.folder / "sorted").iterdir()} == {"novel", "unsure"}


def test_a_class_named_novel_gets_another_folder_than_novel_images():
    assert folder_names(["novel", "Novel", "unsure"]) == ["novel-2", "Novel-3", "unsure-2"]


def test_the_thresholds_for_photos_apply_to_prepared_garments_only(packaged):
    run = copy.deepcopy(packaged)
    run.model.threshold.fill_(0.0)
    run.model.photo_threshold.fill_(2.0)
    run.model.novelty.threshold.fill_(1e9)
    run.model.novelty.photo_threshold.fill_(-1e9)
    photo = draw_garment_photo((40, 60, 120), (255, 255, 255))[0]
    (prepared,) = gingham.predict(run, [photo])
    (same,) = gingham.predict(run, [photo], keep_steps=False)
    (image,) = gingham.predict(run, [Image.fromarray(prepared.prepared.image[0])])
    flags = [(prediction.unsure, prediction.novel) for prediction in (prepared, same, image)]
    assert flags == [(True, True), (True, True), (False, False)]
