import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gingham
from gingham import RunError
from gingham.runs.checkpoint import save_checkpoint
from gingham.runs.run import halve
from helpers import ROOT, fit

GOLDEN = ROOT / "tests/golden"


def test_a_loaded_model_predicts_the_same_bits(saved_run):
    folder, run, data = saved_run
    loaded = gingham.load(folder)
    assert torch.equal(
        loaded.model.predict(data.test.images).probabilities, run.model.predict(data.test.images).probabilities
    )
    assert torch.equal(loaded.model.predict(data.test.images).novelty, run.model.predict(data.test.images).novelty)
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.recipe == run.recipe
    assert loaded.history == run.history
    assert loaded.metrics == run.metrics
    assert loaded.data == run.data
    assert loaded.model.classes == run.model.classes


def test_a_saved_run_consists_of_metadata_history_weights_and_image_hashes(saved_run):
    folder, run, _ = saved_run
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.jsonl",
        "images.safetensors",
        "model.json",
        "model.safetensors",
    ]
    metadata = json.loads((folder / "model.json").read_text())
    assert metadata["classes"] == ["0", "1", "2", "3"]
    assert metadata["input_shape"] == [1, 28, 28]
    assert (metadata["mean"], metadata["std"]) == ([0.5], [0.5])
    assert (metadata["temperature"], metadata["threshold"]) == (
        metadata["metrics"]["temperature"],
        metadata["metrics"]["threshold"],
    )
    assert metadata["novelty"] == run.model.novelty.metadata()
    assert metadata["novelty"]["stages"] == ["relu4", "relu5", "relu7"]
    assert metadata["data"]["fingerprint"] == run.data["fingerprint"]
    assert {"torch", "hardware", "gingham"} <= set(metadata["environment"])
    steps = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps if "learning_rate" in entry] == list(range(1, run.metrics["steps"] + 1))


class Signed(nn.Module):
    """A network with a negative parameter named scale, and one named after std that is zero."""

    def __init__(self, classes):
        super().__init__()
        self.scale, self.my_std = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.zeros(1), requires_grad=False)
        self.linear = nn.Linear(784, classes)

    def forward(self, x):
        return self.linear(x.flatten(1)) * self.scale + self.my_std


@pytest.mark.parametrize(
    "hashes",
    [
        {"other": torch.zeros(5, dtype=torch.int64)},
        {"train": torch.zeros(5)},
        {"train": torch.zeros(5, 2, dtype=torch.int64)},
    ],
)
def test_image_hashes_of_another_kind_are_an_error(hashes, saved_run):
    save_file(hashes, saved_run[0] / "images.safetensors")
    with pytest.raises(RunError, match="does not contain hashes of training images; restore it"):
        gingham.load(saved_run[0])


def test_loading_draws_no_random_numbers(saved_run):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    gingham.load(saved_run[0])
    assert torch.equal(torch.rand(3), expected)


def test_saving_over_another_run_is_an_error(saved_run):
    folder, run, _ = saved_run
    gingham.save(run, folder)  # the same run may be saved again
    other = gingham.Run(run.model, run.recipe)
    with pytest.raises(RunError, match="finished run or trials; give another folder, or load it with"):
        gingham.save(other, folder)


def change(folder, **changes):
    metadata = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**metadata, **changes}))


def remove(folder, key):
    metadata = json.loads((folder / "model.json").read_text())
    del metadata[key]
    (folder / "model.json").write_text(json.dumps(metadata))


def edit_weights(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_novelty(folder, **changes):
    change(folder, novelty={**json.loads((folder / "model.json").read_text())["novelty"], **changes})


WEIGHT, LAYER = "network.conv1.weight", "novelty.layers.1"
DAMAGE = {
    "newer format": (lambda f: change(f, format=99), "of format 99, newer than 3.*update gingham"),
    "older format": (lambda f: change(f, format=1), "of format 1, from before the release 0.1.0, .*train again"),
    "format that is no number": (
        lambda f: change(f, format="x"),
        "format is 'x', but must be a whole number of at least 1",
    ),
    "unknown network": (
        lambda f: change(f, recipe={"network": "os:system"}),
        "is a run with the network os:system, not with a built-in one; give its class as network",
    ),
    "unknown recipe field": (lambda f: change(f, recipe={"evil": 1}), "unknown recipe field 'evil'"),
    "recipe of another type": (lambda f: change(f, recipe=[1]), "does not describe a run"),
    "no classes": (
        lambda f: change(f, classes=[]),
        r"classes is \[\], but must be a list of 1 to 10000 different printable names",
    ),
    "oversized shape": (
        lambda f: change(f, input_shape=[1, 10**9, 10**9]),
        r"input_shape is \[1, 1000000000, 1000000000\]",
    ),
    "another shape": (lambda f: change(f, input_shape=[1, 20, 20]), "does not describe a run"),
    "other classes": (
        lambda f: change(f, classes=["a", "b"]),
        "does not fit the network .*size mismatch for network.conv8.weight",
    ),
    "test openings of another type": (
        lambda f: change(f, test_openings="none"),
        "test_openings is 'none', but must be a list of objects",
    ),
    "duplicate class": (
        lambda f: change(f, classes=["0", "1", "1", "3"]),
        "but must be a list of 1 to 10000 different printable names",
    ),
    "missing key": (lambda f: remove(f, "classes"), "classes is missing"),
    "not JSON": (lambda f: (f / "model.json").write_text("{"), "is not valid JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot read .*model.safetensors"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot read"),
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "cannot read",
    ),
    "random weights file": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 5000), "cannot read"),
    "missing tensor": (
        lambda f: edit_weights(f, lambda t: t.pop(WEIGHT)),
        f"does not fit the network .*Missing key.*{WEIGHT}",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({WEIGHT: torch.zeros(2)})),
        f"does not fit the network .*size mismatch for {WEIGHT}",
    ),
    "wrong type": (
        lambda f: edit_weights(f, lambda t: t.update({WEIGHT: t[WEIGHT].double()})),
        "has weights_sha256 .*, but the recipe and weights give",
    ),
    "empty temperature": (
        lambda f: edit_weights(f, lambda t: t.update(temperature=torch.zeros(0))),
        "does not fit the network",
    ),
    "extra tensor": (
        lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(2))),
        "does not fit the network .*Unexpected key.*extra",
    ),
    "NaN weights": (
        lambda f: edit_weights(f, lambda t: t[WEIGHT].fill_(float("nan"))),
        "values in .* that training cannot give",
    ),
    "flipped bit": (
        lambda f: edit_weights(f, lambda t: t[WEIGHT].view(-1)[0].mul_(-1)),
        "has weights_sha256 .*, but the recipe and weights give",
    ),
    "edited mean": (
        lambda f: change(f, mean=[0.4]),
        r"has mean \[0.4\], but the recipe and weights give \[0.5\]",
    ),
    "no temperature": (lambda f: remove(f, "temperature"), "has temperature None, but"),
    "no checksum": (
        lambda f: remove(f, "weights_sha256"),
        "has weights_sha256 .*, but the recipe and weights give",
    ),
    "lone surrogate": (lambda f: change(f, classes=["0", "1", "2", "\ud800"]), "is not valid JSON"),
    "class name with a line break": (
        lambda f: change(f, classes=["0", "1", "2", "a\nb"]),
        "different printable names",
    ),
    "too many channels": (lambda f: change(f, input_shape=[4096, 28, 28]), "up to 64 channels"),
    "NaN metric": (lambda f: change(f, metrics={"loss": float("nan")}), "NaN is not a JSON number"),
    "zero temperature": (
        lambda f: edit_weights(f, lambda t: t["temperature"].zero_()),
        ("in temperature that training cannot give"),
    ),
    "zero standard deviation": (
        lambda f: edit_weights(f, lambda t: t["std"].zero_()),
        "in std that training cannot give",
    ),
    "no novelty": (lambda f: remove(f, "novelty"), "novelty is missing"),
    "novelty of another type": (
        lambda f: change(f, novelty=["relu4"]),
        r"novelty is \['relu4'\], but must be null, or an object with the names of layers as stages",
    ),
    "novelty stages of another type": (lambda f: change_novelty(f, stages=[["relu4"]]), "names of layers as stages"),
    "novelty without stages": (lambda f: change(f, novelty={"threshold": 1.0}), "names of layers as stages"),
    "unknown novelty stage": (
        lambda f: change_novelty(f, stages=["relu4", "relu5", "nowhere.1"]),
        "does not fit the network .*no attribute `nowhere`",
    ),
    "a million novelty stages": (
        lambda f: change_novelty(f, stages=["relu4"] * 10**6),
        r"does not fit the network .*novelty\.layers\.3",
    ),
    "too few novelty stages": (
        lambda f: change_novelty(f, stages=["relu4"]),
        r"does not fit the network .*Unexpected key.*novelty\.layers\.1",
    ),
    "novelty removed": (lambda f: change(f, novelty=None), r"does not fit the network .*Unexpected key.*novelty"),
    "edited novelty threshold": (
        lambda f: change_novelty(f, threshold=99.0),
        "has novelty .*99.0.*, but the recipe and weights give",
    ),
    "edited threshold for photos": (
        lambda f: change(f, photo_threshold=0.125),
        "has photo_threshold 0.125, but the recipe and weights give",
    ),
    "no novelty tensors": (
        lambda f: edit_weights(f, lambda t: [t.pop(name) for name in list(t) if name.startswith("novelty.")]),
        r"does not fit the network \('novelty\.layers\.0",
    ),
    "missing novelty tensor": (
        lambda f: edit_weights(f, lambda t: t.pop("novelty.term_std")),
        r"does not fit the network .*Missing key.*novelty\.term_std",
    ),
    "novelty tensors of other shapes": (
        lambda f: edit_weights(f, lambda t: t.update({f"{LAYER}.shift": torch.zeros(5)})),
        r"novelty\.layers\.1 have shapes that do not fit together",
    ),
    "novelty tensor of other dimensions": (
        lambda f: edit_weights(f, lambda t: t.update({f"{LAYER}.axes": torch.zeros(5)})),
        "does not fit the network",
    ),
    "novelty without centres": (
        lambda f: edit_weights(f, lambda t: t.update({f"{LAYER}.linear": t[f"{LAYER}.linear"][:, :0].clone()})),
        r"novelty\.layers\.1 have shapes that do not fit together",
    ),
    "negative novelty scale": (
        lambda f: edit_weights(f, lambda t: t[f"{LAYER}.scale"].neg_()),
        rf"values in {LAYER}\.scale that training cannot give",
    ),
    "zero novelty deviation": (
        lambda f: edit_weights(f, lambda t: t["novelty.term_std"].zero_()),
        r"values in novelty\.term_std that training cannot give",
    ),
    "NaN in novelty": (
        lambda f: edit_weights(f, lambda t: t[f"{LAYER}.linear"].view(-1)[3:4].fill_(float("nan"))),
        rf"values in {LAYER}\.linear that training cannot give",
    ),
    "infinite novelty threshold": (
        lambda f: edit_weights(f, lambda t: t["novelty.threshold"].fill_(float("inf"))),
        r"values in novelty\.threshold that training cannot give",
    ),
    "history of other types": (lambda f: (f / "history.jsonl").write_text("{}\n[1]\n"), "line 2 is not a JSON object"),
    "malformed history": (lambda f: (f / "history.jsonl").write_text("{"), "cannot read .*history.jsonl"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_an_error_of_one_line(saved_run, name):
    folder, _, _ = saved_run
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(RunError, match=message) as caught:
        gingham.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_pipe_instead_of_a_file_does_not_block(saved_run):
    folder, _, _ = saved_run
    for name in ("history.jsonl", "model.safetensors", "model.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(RunError, match=f"cannot read .*{name} .*it is not a regular file"):
            gingham.load(folder)


def test_a_shape_larger_than_memory_allocates_no_memory(saved_run):
    folder, _, _ = saved_run
    change(folder, recipe={"network": "huge"}, input_shape=[64, 4096, 4096])
    with pytest.raises(RunError, match="does not fit the network"):
        gingham.load(folder)


def test_novelty_axes_longer_than_memory_allocate_no_memory(saved_run):
    """A tensor without elements takes no space in the file, whatever its length."""
    folder, _, _ = saved_run
    for shape in ((10**12, 0), (0, 10**12)):
        edit_weights(folder, lambda tensors, shape=shape: tensors.update({f"{LAYER}.axes": torch.zeros(shape)}))
        with pytest.raises(RunError, match="have shapes that do not fit together"):
            gingham.load(folder)


def test_a_network_with_tensors_named_scale_or_std_is_loaded(small_run, tmp_path):
    """Only the model's own std and the scales of its novelty score must be positive."""
    _, data = small_run
    run = fit(gingham.RECIPES["article"].replace(epochs=0.1, validation_images=40), data, network=Signed)
    loaded = gingham.load(gingham.save(run, tmp_path / "run"), Signed)
    assert float(loaded.model.network.scale.detach()) < 0
    assert float(loaded.model.network.my_std) == 0


def test_a_missing_run_and_an_unfinished_run_are_errors(tmp_path):
    with pytest.raises(RunError, match=r"there is no folder .*train one with gingham train --out"):
        gingham.load(tmp_path / "nowhere")
    save_checkpoint(tmp_path, 3, {"x": torch.zeros(1)}, {"step": 3})
    with pytest.raises(
        RunError, match="is not finished; continue with resume=True in fit, or with the original command"
    ):
        gingham.load(tmp_path)


def test_a_run_without_its_history_still_loads(saved_run):
    folder, _, _ = saved_run
    (folder / "history.jsonl").unlink()
    assert gingham.load(folder).history == []


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("run-*")), ids=lambda folder: folder.name)
def test_runs_of_every_release_still_load(folder, tmp_path):
    # Load a copy, so that nothing in golden/ can change.
    run = gingham.load(shutil.copytree(folder, tmp_path / "copy"))
    expected = json.loads((folder / "expected.json").read_text())
    image = torch.arange(784, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 1, 28, 28)
    predictions = run.model.predict(image)
    assert predictions.probabilities[0].tolist() == pytest.approx(expected["probabilities"], abs=1e-5)
    assert float(predictions.novelty) == pytest.approx(expected["novelty"], abs=1e-3)


def test_a_golden_run_exists():
    assert (GOLDEN / "run-0.1" / "model.json").exists()


def test_a_folder_of_runs_is_an_error_that_names_one(saved_run):
    folder, _, _ = saved_run
    with pytest.raises(RunError, match=rf"is not a run but contains runs; give one, such as {folder}"):
        gingham.load(folder.parent)
    (folder.parent / "trials.json").write_text(json.dumps({"recipe": {}}))
    with pytest.raises(
        RunError, match=rf"is a folder of trials; give one of its runs, such as {folder}, or compare it"
    ):
        gingham.load(folder.parent)
    (folder.parent / "empty").mkdir()
    with pytest.raises(RunError, match="no run in"):
        gingham.load(folder.parent / "empty")


def test_a_halved_run_predicts_the_same_bits_in_half_the_size(tmp_path, small_run):
    run, data = small_run
    full = gingham.save(run, tmp_path / "full")
    run.folder = None
    run.model.load_state_dict(halve(run.model.state_dict()))
    expected = run.model.predict(data.validation.images).probabilities
    halved = gingham.save(run, tmp_path / "halved", halved=True)
    assert torch.equal(gingham.load(halved).model.predict(data.validation.images).probabilities, expected)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, halved)]
    assert 0.5 < sizes[1] / sizes[0] < 0.55


def test_halving_changes_probabilities_by_less_than_a_hundredth(small_run):
    run, data = small_run
    before = run.model.predict(data.validation.images).probabilities
    run.model.load_state_dict(halve(run.model.state_dict()))
    after = run.model.predict(data.validation.images).probabilities
    assert 0 < float((after - before).abs().max()) < 1e-2


def test_a_run_and_its_model_are_printed_without_their_weights(small_run):
    run, _ = small_run
    assert repr(run.model) == "<Classifier: Sequential, (1, 28, 28) images, 4 classes>"
    first, trained, measured = str(run).splitlines()
    assert first == "run of article with seed 0: network article, 4 classes"
    assert re.fullmatch(r"trained on 260 images of \S+, 1 epoch, in [\d.]+ s", trained)
    assert re.fullmatch(r"[\d.]+% of the validation images right; folder: not saved", measured)
    run.metrics.clear()
    assert str(run) == f"{first}\nfolder: not saved"


def test_the_curves_of_a_run_that_was_not_trained_by_fit_can_be_drawn(small_run):
    run, _ = small_run
    run.metrics.clear()
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
