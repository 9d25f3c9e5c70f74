import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from dataset_files import add_unreadable_files, encode_heic, make_image_folder, save_image
from gingham import DataError, load_data
from gingham.data.load_data import load_unchecked

pytestmark = pytest.mark.usefixtures("pack_folder")


def test_classes_are_in_natural_order(tmp_path):
    names = ["10", "2", "1", "B", "a", "é", "b10", "b9"]
    data = load_data(str(make_image_folder(tmp_path / "d", dict.fromkeys(names, 4))))
    assert data.classes == ("1", "2", "10", "B", "a", "b9", "b10", "é")


def test_more_than_255_classes_are_loaded(tmp_path):
    data = load_data(
        str(make_image_folder(tmp_path / "d", {str(k): 3 for k in range(300)}, shape=(8, 8))), validation=0
    )
    assert data.classes[:3] == ("0", "1", "2")
    assert (int(data.train.labels.max()), data.train.images.shape) == (299, (900, 1, 8, 8))


def test_a_common_small_size_is_kept_and_others_become_28(tmp_path):
    for name, shape, side in (("a", (20, 20), 20), ("b", (65, 65), 28), ("c", (20, 24), 28)):
        folder = make_image_folder(tmp_path / name, {"x": 4, "y": 4}, shape=shape)
        assert load_data(str(folder)).train.images.shape[1:] == (1, side, side)
    save_image(tmp_path / "a" / "x" / "other.png", shape=(21, 21))
    assert load_data(str(tmp_path / "a")).train.images.shape[1:] == (1, 28, 28)
    assert load_data(str(tmp_path / "a"), size=40).train.images.shape[1:] == (1, 40, 40)


@pytest.mark.parametrize("in_memory", [True, False])
def test_one_image_of_another_size_among_many_is_noticed(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("gingham.data.pack_cache.free_memory", lambda: 10_000)
    make_image_folder(tmp_path / "d", {"x": 150, "y": 150}, shape=(8, 8))
    save_image(tmp_path / "d" / "x" / "130.png", shape=(9, 9))
    for _ in range(2):
        assert load_data(str(tmp_path / "d")).train.images.shape[1:] == (1, 28, 28)


def test_grey_images_among_colour_ones_get_three_channels(tmp_path):
    make_image_folder(tmp_path / "d", {"x": 4, "y": 4})
    grey = load_data(str(tmp_path / "d"), validation=0)
    Image.new("RGB", (28, 28), (250, 10, 10)).save(tmp_path / "d" / "x" / "red.png")
    data = load_data(str(tmp_path / "d"), validation=0)
    assert data.train.images.shape[1:] == (3, 28, 28)
    index, grey_index = data.train.files.index("y/1.png"), grey.train.files.index("y/1.png")
    assert torch.equal(data.train.images[index], grey.train.images[grey_index].expand(3, -1, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif", "avif"])
def test_each_image_format_is_read(tmp_path, suffix):
    for name, value in (("dark", 20), ("light", 230)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (16, 16), value + k).save(tmp_path / "d" / name / f"{k}.{suffix}")
    data = load_data(str(tmp_path / "d"), validation=0)
    assert data.train.images.shape == (6, 1, 16, 16)
    assert (data.train.images[data.train.labels == 1] > 200).all()


def test_photos_of_phones_are_read_and_cached(tmp_path):
    for k, (name, colour) in enumerate((("blue", "navy"), ("red", "maroon"))):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (40 + number, 30), colour)
            (tmp_path / "d" / name / f"IMG_{number}.HEIC").write_bytes(encode_heic(image))
            image.save(tmp_path / "d" / name / f"IMG_{number + 4}.avif")
        expected = 128 * np.array([[0, 0, 1], [1, 0, 0]][k])
        data = load_data(str(tmp_path / "d"), validation=0, size=16) if k else None
    pixels = data.train.images[data.train.labels == 1].permute(0, 2, 3, 1).numpy().astype(int)
    assert abs(pixels - expected).max() <= 6
    _, issues = load_unchecked(str(tmp_path / "d"))
    assert issues == []
    again = load_data(str(tmp_path / "d"), validation=0, size=16)
    assert torch.equal(again.train.images, data.train.images)


def test_a_heic_file_is_read_after_pi_heif_is_installed(tmp_path, monkeypatch):
    make_image_folder(tmp_path / "d", {"x": 4, "y": 4})
    (tmp_path / "d" / "x" / "new.heic").write_bytes(encode_heic(Image.new("L", (28, 28), 99)))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pi_heif", None)
        with pytest.raises(DataError, match=r"x/new.heic \(HEIC files need the package pi-heif"):
            load_data(str(tmp_path / "d"))
    data = load_data(str(tmp_path / "d"), validation=0)
    assert "x/new.heic" in (*data.train.files, *data.test.files)


def test_unreadable_files_are_an_error_or_left_out(shoes):
    original = load_data(str(shoes))
    unreadable = add_unreadable_files(shoes)
    with pytest.raises(
        DataError, match=r"8 of the 48 files of .* cannot be read as images .*: boot/bomb.bmp \(.*and 5 more; "
    ) as caught:
        load_data(str(shoes))
    assert "--skip-unreadable" in str(caught.value)
    data = load_data(str(shoes), skip_unreadable=True)
    assert data.fingerprint == original.fingerprint
    assert data.test.files == original.test.files
    assert any(
        "8 of the 48 files are left out (.png 5, .bmp 1, .tif 1, .jpg 1): boot/bomb.bmp" in note for note in data.notes
    )
    assert not any(name in file for name in unreadable for file in data.train.files)
    _, issues = load_unchecked(str(shoes))
    reasons = {name.removeprefix("boot/"): reason for name, reason in issues}
    assert set(reasons) == unreadable
    assert reasons["empty.png"] == "cannot be read: it is empty"
    assert reasons["pipe.png"] == "cannot be read: it is not a regular file"
    assert reasons["dangling.png"] == "cannot be read: No such file or directory"


def test_damaged_files_are_left_out_and_nothing_is_printed(tmp_path, capfd):
    random = np.random.RandomState(0)
    noise = Image.fromarray(random.randint(0, 256, (40, 50, 3)).astype(np.uint8))
    make_image_folder(tmp_path / "d", {"a": 9, "b": 9})
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        noise.save(tmp_path / f"intact.{suffix}")
        content = (tmp_path / f"intact.{suffix}").read_bytes()
        for k in range(40):
            damaged = bytearray(content)
            reach = min(len(content), [40, 200, len(content)][k % 3])
            damaged[random.randint(reach)] = random.randint(256)
            (tmp_path / "d" / "a" / f"{suffix}{k}.{suffix}").write_bytes(
                damaged[: random.randint(len(content)) if k % 5 == 0 else None]
            )
    data = load_data(str(tmp_path / "d"), validation=0, skip_unreadable=True)
    left_out = int(data.notes[-1].split()[0])
    assert 50 < left_out < 240
    assert len(data.train) + len(data.test) == 258 - left_out
    assert capfd.readouterr() == ("", "")


def test_a_class_without_readable_files_is_an_error(shoes):
    for file in (shoes / "boot").iterdir():
        file.write_text("no")
    with pytest.raises(DataError, match="has no image of boot"):
        load_data(str(shoes), skip_unreadable=True)
    for file in (shoes / "sandal").iterdir():
        file.write_text("no")
    with pytest.raises(DataError, match="has no readable file; give PNG"):
        load_data(str(shoes), skip_unreadable=True)


def parse_json(result):
    return json.loads(result.stdout)


def test_every_command_accepts_a_folder_and_a_run_on_it(command, shoes):
    add_unreadable_files(shoes)
    failed = command("train", "--recipe", "fast", "--data", shoes, code=2)
    assert "8 of the 48 files of" in failed.stderr
    trained = command(
        "train",
        "--recipe",
        "fast-90",
        "--data",
        shoes,
        "--skip-unreadable",
        "--set",
        "size=24",
        "--epochs",
        2,
        "--json",
    )
    assert "8 of the 48 files are left out" in trained.stderr
    held_out = "6 of the 34 training images are held out for validation (at most a fifth; validation_images is 5000)"
    assert held_out in trained.stderr
    run = gingham.load(command.folder / "runs/fast-90-0")
    assert (run.recipe.size, run.recipe.validation_images, run.data["skip_unreadable"]) == (24, 6, True)
    assert run.model.input_shape == (1, 24, 24)
    data = load_data(str(shoes), 6, size=24, skip_unreadable=True)
    assert data.fingerprint == run.data["fingerprint"]
    evaluation = parse_json(command("evaluate", "runs/fast-90-0", "--json"))
    assert (evaluation["total"], evaluation["accuracy"]) == (6, parse_json(trained)["validation_accuracy"])
    assert parse_json(command("evaluate", "runs/fast-90-0", "--split", "test", "--json"))["total"] == 6
    command("report", "runs/fast-90-0")
    command("diagnose", "runs/fast-90-0", "--split", "validation")
    statistics = parse_json(command("show", shoes, "--skip-unreadable", "--json"))
    assert (statistics["images"], statistics["classes"], statistics["shape"]) == (40, ["boot", "sandal"], [1, 28, 28])
    assert "8 files are not readable as images" in command("diagnose", shoes).stdout
    save_image(shoes / "boot" / "0.png", seed=123)
    assert "has changed since" in command("evaluate", "runs/fast-90-0", code=2).stderr


def test_a_run_is_evaluated_on_another_folder(command, shoes, tmp_path):
    command("train", "--recipe", "fast-90", "--data", shoes, "--epochs", 2)
    other = make_image_folder(tmp_path / "other", {"sandal": 4, "boot": 4}, shape=(300, 200))
    evaluation = parse_json(command("evaluate", "runs/fast-90-0", "--data", other, "--json"))
    assert (evaluation["split"], evaluation["total"]) == ("photographs", 8)
    failed = command("evaluate", "runs/fast-90-0", "--split", "test", "--data", other, code=2)
    assert "has no splits to choose test from" in failed.stderr
    unknown = make_image_folder(tmp_path / "unknown", {"sandal": 4, "clog": 4})
    failed = command("evaluate", "runs/fast-90-0", "--data", unknown, code=2)
    assert "has the class clog, which is not a class of the model (boot, sandal)" in failed.stderr


def test_trials_and_compare_accept_a_folder(command, shoes):
    for out in ("a", "b"):
        command(
            "trials",
            "--recipe",
            "fast-90",
            "--data",
            shoes,
            "--seeds",
            2,
            "--epochs",
            2,
            "--set",
            "size=24",
            "--out",
            out,
        )
    command(
        "trials", "--recipe", "fast-90", "--data", shoes, "--seeds", 2, "--epochs", 2, "--set", "size=24", "--out", "a"
    )
    assert parse_json(command("compare", "a", "b", "--json"))["difference"] == 0


@pytest.mark.slow
def test_twenty_images_per_class_train_without_a_warning(command, tmp_path, fashion_mnist):
    for label, name in enumerate(fashion_mnist.classes):
        folder = tmp_path / "clothes" / name.replace("/", " or ")
        folder.mkdir(parents=True)
        for k, row in enumerate((fashion_mnist.train.labels == label).nonzero().flatten()[:20].tolist()):
            Image.fromarray(fashion_mnist.train.images[row, 0].numpy()).save(folder / f"{k}.png")
    trained = command("train", "--data", tmp_path / "clothes", process=True)
    assert "warning" not in trained.stderr.lower()
    lines = [line for line in trained.stderr.splitlines() if not line.startswith("epoch ")]
    assert lines[0] == "200 grey images of about 28x28 pixels: recipe fast, a small network from scratch"
    assert lines[1].startswith("read 200 images of ")
    assert lines[2:] == [
        "34 of the 170 training images are held out for validation (at most a fifth; validation_images is 5000)",
        (
            "136 training images are few for fast: batch_size 17, epochs 63, hard_share 1 instead of 256, 21, 0.3 "
            "(set any of these to keep the recipe's own values)"
        ),
    ]
    assert parse_json(command("evaluate", "runs/auto-0", "--split", "test", "--json"))["accuracy"] > 0.5


@pytest.mark.slow
def test_colour_images_train_with_the_same_recipe(command, tmp_path):
    for channel, name in enumerate(("red", "green", "blue")):
        for k in range(30):
            pixels = np.random.RandomState(100 * channel + k).randint(0, 120, (32, 32, 3)).astype(np.uint8)
            pixels[..., channel] += 60
            file = tmp_path / "d" / name / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    trained = command("train", "--data", tmp_path / "d", "--json")
    assert "warning" not in trained.stderr.lower()
    run = gingham.load(command.folder / "runs/auto-0")
    assert run.model.input_shape == (3, 32, 32)
    assert parse_json(command("evaluate", "runs/auto-0", "--split", "test", "--json"))["accuracy"] > 0.9


def test_diagnose_reports_empty_and_missing_classes(command, tmp_path):
    make_image_folder(tmp_path / "d" / "train", {"a": 12, "b": 12})
    make_image_folder(tmp_path / "d" / "test", {"a": 4})
    (tmp_path / "d" / "test" / "b").mkdir()
    output = command("diagnose", tmp_path / "d").stdout
    assert "the test split lacks 1 of 2 classes" in output
    assert "test/b is a class folder without images" in output


def make_deep_grey(folder, scale, classes=("x", "y")):
    """Write 16-bit images of ten values up to 9 * `scale`, and one dark image, and return the folder."""
    for label, name in enumerate(classes):
        for k in range(6):
            values = np.full((8, 8), label, np.uint16)
            values[k % 8] = np.arange(8) + (2 if k else 0)
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values * np.uint16(scale)).save(folder / name / f"{k}.png")
    return folder


@pytest.mark.parametrize(("scale", "bits"), [(100, 10), (400, 12), (1500, 14), (7000, 16)])
def test_16_bit_images_are_scaled_by_the_largest_value_of_all_files(tmp_path, command, scale, bits):
    folder = make_deep_grey(tmp_path / "d", scale)
    data = load_data(str(folder), validation=0)
    again = load_data(str(folder), validation=0)  # from the pack
    for loaded in (data, again):
        images = torch.cat([loaded.train.images, loaded.test.images])
        assert sorted(set(images.flatten().tolist())) == [k * scale >> (bits - 8) for k in range(10)]
        notes = [note for note in loaded.notes if "16-bit" in note]
        assert notes == (
            [f"the 16-bit images of {folder} use {bits} bits: {(1 << bits) - 1} is white, also for predict"]
            if bits < 16
            else []
        )
    assert data.fingerprint == again.fingerprint
    run = gingham.fit(
        gingham.RECIPES["fast"].replace(network="tiny", epochs=1, batch_size=4), data.train, progress=False
    )
    assert run.data.get("grey_bits") == (bits if bits < 16 else None)
    run = gingham.load(gingham.save(run, tmp_path / "run"))
    file = folder / data.train.files[0]
    Image.open(file).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    for prepare, images in (("auto", [file, Image.open(file)]), ("none", [tmp_path / "large.png"])):
        for prediction in gingham.predict(run, images, prepare):
            assert np.array_equal(prediction.prepared.image, data.train.images[0].numpy())


def test_8_bit_images_beside_16_bit_ones_keep_their_values(tmp_path):
    folder = make_deep_grey(tmp_path / "d", 400)
    Image.new("L", (8, 8), 200).save(folder / "x" / "bright.png")
    data = load_data(str(folder), validation=0)
    images = torch.cat([data.train.images, data.test.images])
    files = (*data.train.files, *data.test.files)
    assert set(images[files.index("x/bright.png")].flatten().tolist()) == {200}
    assert int(images[files.index("y/1.png")].max()) == 9 * 400 >> 4
