import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import DataError, GinghamError, RunError, Split
from gingham.data.sampler import Sampler
from gingham.device import choose_device, choose_precision
from gingham.runs.checkpoint import load_checkpoint, save_checkpoint
from helpers import ROOT, make_dataset, reference_article

GOLDEN = ROOT / "tests/golden"
ARTICLE = gingham.RECIPES["article"]
FAST = gingham.RECIPES["fast"]
EVERYTHING = FAST.replace(
    network="tiny", flip="random", shift_pixels=2, cutout_pixels=5, ema_decay=0.9
)  # what has a state or draw
MIXED = EVERYTHING.replace(hard_share=1.0, cutmix=0.5)  # which hard pictures exclude


def fit(recipe, data, **options):
    return gingham.fit(recipe, data.train, data.validation, progress=False, **options)


def weights(run):
    return {name: tensor for name, tensor in run.model.state_dict().items() if name.startswith("network.")}


def test_the_loop_is_the_articles(fashion_mnist):
    """Forty steps beside the article's own: to tensor, normalise, zero, forward, NLL, backward, step."""
    few = Split("train", *(x[: 64 * 20 + 32] for x in (fashion_mnist.train.images, fashion_mnist.train.labels)),
                fashion_mnist.classes, "few", "")  # fmt: skip
    recipe = ARTICLE.replace(epochs=2, seed=3)
    run = gingham.fit(recipe, few, progress=False)

    torch.manual_seed(3)
    network = reference_article().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for order in Sampler(recipe, len(few)).batches(0, 42):
        images = (few.images[order].float() / 255 - 0.5) / 0.5
        optimizer.zero_grad()
        loss = F.nll_loss(network(images), few.labels[order])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = [entry["loss"] for entry in run.history if "learning_rate" in entry]
    assert ours == pytest.approx(losses, abs=2e-4)
    for mine, theirs in zip(weights(run).values(), network.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_the_first_losses_are_golden(tmp_path):
    # The numerics of init, order, normalisation, loss and SGD at once; a change of theirs must be meant.
    data = gingham.load_data(str(make_dataset(tmp_path / "quadrants")), validation=40)
    recipe = ARTICLE.replace(epochs=1, batch_size=16, learning_rate=0.05, validation_images=40)
    run = fit(recipe, data)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry][:10]
    assert losses == pytest.approx(json.loads((GOLDEN / "run-0.1" / "expected.json").read_text())["first_losses"], abs=1e-4)


def test_it_learns(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=6, batch_size=16, learning_rate=0.05), data)
    assert run.metrics["validation_accuracy"] > 0.9


def test_a_seed_decides_everything(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=1, batch_size=32)
    torch.manual_seed(1)
    first = fit(recipe, data)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    second = fit(recipe, data)
    assert torch.equal(torch.rand(1), expected), "the caller's random stream stays where it was"
    other = fit(recipe.replace(seed=1), data)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert not torch.equal(weights(first)["network.conv1.weight"], weights(other)["network.conv1.weight"])


def test_a_run_says_what_was_held_out_not_what_was_meant(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=0.1, validation_images=5000)
    assert fit(recipe, data).recipe.validation_images == 40
    assert gingham.fit(recipe, data.train, progress=False).recipe.validation_images == 0


def test_metrics_and_history(small_run):
    run, data = small_run
    assert run.metrics["steps"] == 9  # 260 pictures in batches of 32
    assert run.metrics["epochs"] == 1
    assert run.metrics["train_images"] == 260
    assert (run.metrics["device"], run.metrics["precision"]) == (str(choose_device("auto")), "float32")
    assert run.metrics["train_seconds"] > 0
    steps = [entry for entry in run.history if "learning_rate" in entry]
    (epoch,) = [entry for entry in run.history if "epoch" in entry]
    sizes = [32] * 8 + [4]
    assert epoch["train_accuracy"] == pytest.approx(sum(s["accuracy"] * n for s, n in zip(steps, sizes, strict=True)) / 260)
    assert epoch["train_loss"] == pytest.approx(sum(s["loss"] * n for s, n in zip(steps, sizes, strict=True)) / 260)
    measured = gingham.evaluate(run, data.validation)
    assert epoch["validation_accuracy"] == run.metrics["validation_accuracy"] == measured.accuracy
    run.model.temperature.fill_(1.0)  # the history's losses are those of the raw network
    assert epoch["validation_loss"] == pytest.approx(gingham.evaluate(run, data.validation).loss)


def test_nothing_held_out_gives_no_validation_figure(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    run = gingham.fit(ARTICLE.replace(epochs=0.1), data.train, progress=False)
    assert run.metrics["validation_accuracy"] is None
    assert run.metrics["train_images"] == 300


@pytest.mark.parametrize("epochs", [0.001, 0.5, 1, 1.5, 2])
def test_fractions_of_epochs(quadrants, epochs):
    data = gingham.load_data(str(quadrants), validation=0)
    seen = []
    recipe = ARTICLE.replace(epochs=epochs, batch_size=30)
    run = gingham.fit(recipe, data.train, progress=False, on_epoch=lambda model, epoch: seen.append(epoch))
    assert run.metrics["steps"] == max(1, round(epochs * 10))
    assert seen == list(range(1, int(epochs) + 1))
    assert [entry["step"] for entry in run.history if "epoch" in entry][-1] == run.metrics["steps"]


def test_bfloat16_trains_too(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=1, precision="bfloat16", batch_size=32), data)
    exact = fit(ARTICLE.replace(epochs=1, precision="float32", batch_size=32), data)
    assert (run.metrics["precision"], exact.metrics["precision"]) == ("bfloat16", "float32")
    difference = abs(run.history[0]["loss"] - exact.history[0]["loss"])
    assert 0 < difference < 0.01, "coarser, but not by much"
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


def test_label_smoothing_and_schedules_reach_the_loop(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    base = ARTICLE.replace(epochs=1, batch_size=50)
    runs = {
        "plain": base, "smooth": base.replace(label_smoothing=0.2), "linear": base.replace(schedule="linear"),
        "nesterov": base.replace(nesterov=True), "decay": base.replace(weight_decay=0.1),
    }  # fmt: skip
    last = {
        name: weights(gingham.fit(recipe, data.train, progress=False))["network.conv8.weight"] for name, recipe in runs.items()
    }
    for name in ("smooth", "linear", "nesterov", "decay"):
        assert not torch.equal(last[name], last["plain"]), name
    rates = [
        e["learning_rate"] for e in gingham.fit(runs["linear"], data.train, progress=False).history if "learning_rate" in e
    ]
    assert rates == pytest.approx([0.01 * (1 - k / 6) for k in range(6)])


# The quadrants' classes are each other's mirror images: what mirrors cannot learn them.
STRAIGHT = FAST.replace(network="tiny", flip="none", tta="none")


def test_fast_learns(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    assert fit(STRAIGHT.replace(epochs=8, batch_size=16), data).metrics["validation_accuracy"] > 0.95


def test_later_epochs_are_of_the_hardest_pictures(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(FAST.replace(network="tiny", epochs=3, batch_size=32, hard_share=0.2, easy_share=0.125), data)
    # 260 pictures are 9 steps; later epochs have 52 hard ones and an eighth of the other 208, 3 steps.
    assert (run.metrics["steps"], run.metrics["images_seen"]) == (9 + 3 + 3, 260 + 78 + 78)
    assert [entry["step"] for entry in run.history if "epoch" in entry] == [9, 12, 15]
    ends = [entry for entry in run.history if "epoch" in entry]
    assert [entry["epoch"] for entry in ends] == [1, 2, 3]
    # 78 pictures after the last measurement are no reason for another; the end is.
    assert [entry["validation_accuracy"] is not None for entry in ends] == [True, False, True]
    assert ends[-1]["validation_accuracy"] == run.metrics["validation_accuracy"]


def test_the_warm_up_leaves_no_trace(quadrants, monkeypatch):
    data = gingham.load_data(str(quadrants), validation=0)
    recipe = EVERYTHING.replace(epochs=1, batch_size=32)
    warm = gingham.fit(recipe, data.train, progress=False)
    monkeypatch.setattr("gingham.training.fit.warm_up", lambda *_: None)
    cold = gingham.fit(recipe, data.train, progress=False)
    assert all(
        torch.equal(a, b) for a, b in zip(warm.model.state_dict().values(), cold.model.state_dict().values(), strict=True)
    )


def test_bfloat16_trains_and_answers_in_float32(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(STRAIGHT.replace(epochs=4, batch_size=16, precision="bfloat16"), data)
    assert run.metrics["precision"] == "bfloat16"
    assert run.metrics["validation_accuracy"] > 0.9
    assert {tensor.dtype for tensor in weights(run).values() if tensor.is_floating_point()} == {torch.float32}
    assert run.model.logits(data.validation.images).dtype == torch.float32


# --- the test split stays shut


def test_fit_refuses_the_test_split(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(DataError, match="fit got the test split as training data"):
        gingham.fit(ARTICLE, data.test)
    with pytest.raises(DataError, match="fit got the test split as validation data"):
        gingham.fit(ARTICLE, data.train, data.test)


def test_splits_of_two_datasets_are_refused(quadrants, fashion_mnist):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(DataError, match="cut both from one dataset"):
        gingham.fit(ARTICLE, data.train, fashion_mnist.validation)
    make_dataset(quadrants, seed=9)
    with pytest.raises(DataError, match="or of another state of it; cut both from one dataset"):
        gingham.fit(ARTICLE, data.train, gingham.load_data(str(quadrants), validation=40).validation)


# --- resume


@pytest.fixture
def short_epochs(monkeypatch):
    """Epochs of milliseconds end in a checkpoint too, so that there is one soon."""
    monkeypatch.setattr("gingham.training.fit.MIN_CHECKPOINT_SECONDS", 0.0)


class Stop(Exception):  # noqa: N818  # not an error of anyone's
    pass


@pytest.mark.parametrize("checkpoint_seconds", [0, 1e9])
@pytest.mark.parametrize("base", [ARTICLE, EVERYTHING, MIXED], ids=["article", "everything", "mixed"])
@pytest.mark.usefixtures("short_epochs")
def test_resuming_ends_with_the_same_bytes(quadrants, tmp_path, base, checkpoint_seconds):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = base.replace(epochs=3, batch_size=32, checkpoint_seconds=checkpoint_seconds)
    whole = gingham.save(fit(recipe, data), tmp_path / "whole")

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, data, folder=tmp_path / "halves", on_epoch=stop)
    run = fit(recipe, data, folder=tmp_path / "halves", resume=True)
    # It stopped in the second epoch's last step, whose checkpoint was not written yet; hard epochs are 3 steps long, not 9.
    second = 9 if base.hard_share == 1 else 3
    assert run.metrics["resumed_from_step"] == (9 + second - 1 if checkpoint_seconds == 0 else 9)
    halves = gingham.save(run, tmp_path / "halves")
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (halves / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    assert not (halves / "checkpoint").exists()


@pytest.mark.slow
def test_killed_and_resumed(command, quadrants, tmp_path):
    settings = ["--data", quadrants, "--epochs", 12, "--set", "batch_size=16", "--set", "checkpoint_seconds=0"]
    settings += ["--set", "validation_images=40", "--set", "network=tiny"]
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "gingham", "train", *map(str, settings), "--out", str(out)]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoint/step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoint/step-*.json"))
    assert not (out / "model.json").exists()
    refused = command("train", *settings, "--out", out, code=2)
    assert "holds a run that was interrupted; go on with --resume" in refused.stderr
    resumed = command("train", *settings, "--out", out, "--resume", "--json")
    assert json.loads(resumed.stdout)["resumed_from_step"] > 0
    whole = command("train", *settings, "--out", tmp_path / "whole", "--json")
    assert json.loads(whole.stdout)["resumed_from_step"] is None
    for file in ("model.safetensors", "history.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def interrupted(quadrants, folder):
    """A recipe and data whose training was stopped in the second epoch of three, with its checkpoint in a folder."""
    data = gingham.load_data(str(quadrants), validation=40)

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    recipe = ARTICLE.replace(epochs=3, batch_size=32)
    with pytest.raises(Stop):
        fit(recipe, data, folder=folder, on_epoch=stop)
    return recipe, data


@pytest.mark.usefixtures("short_epochs")
def test_a_checkpoint_of_other_settings_is_refused(quadrants, tmp_path):
    recipe, data = interrupted(quadrants, tmp_path)
    with pytest.raises(RunError, match=r"made with learning_rate 0.01, not 0.1; resume with the same settings"):
        fit(recipe.replace(learning_rate=0.1), data, folder=tmp_path, resume=True)
    with pytest.raises(RunError, match="train_images 260, not 300"):
        gingham.fit(recipe, gingham.load_data(str(quadrants), validation=0).train, folder=tmp_path, resume=True, progress=False)


SENSELESS = {
    "a recipe that is none": lambda tensors, metadata: metadata.update(recipe=3),
    "no step": lambda tensors, metadata: metadata.update(step=None),
    "a step beyond": lambda tensors, metadata: metadata.update(step=10**9),
    "epochs that are none": lambda tensors, metadata: metadata.update(epochs=[{"epoch": 1}]),
    "an epoch of text": lambda tensors, metadata: metadata["epochs"][0].update(train_loss="low"),
    "an epoch beyond": lambda tensors, metadata: metadata["epochs"][0].update(step=10**6),
    "pictures that there are not": lambda tensors, metadata: tensors["sampler.order"].fill_(300),
    "a short order": lambda tensors, metadata: tensors.update({"sampler.order": tensors["sampler.order"][:9]}),
    "losses of one step": lambda tensors, metadata: tensors.update({"history.losses": tensors["history.losses"][:1]}),
    "a momentum for another": lambda tensors, metadata: tensors.update({"optimizer.0.momentum_buffer": torch.zeros(1)}),
}


@pytest.mark.usefixtures("short_epochs")
@pytest.mark.parametrize("name", SENSELESS)
def test_a_whole_checkpoint_that_makes_no_sense_is_refused(quadrants, tmp_path, name):
    recipe, data = interrupted(quadrants, tmp_path)
    kept = load_checkpoint(tmp_path)
    SENSELESS[name](kept.tensors, kept.metadata)
    save_checkpoint(tmp_path, 99, kept.tensors, kept.metadata)
    with pytest.raises(RunError, match=r"does not fit \(|was made with"):
        fit(recipe, data, folder=tmp_path, resume=True)


# --- errors and devices


def test_a_loss_that_explodes_names_the_step_and_the_way_out(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    with pytest.raises(GinghamError, match=r"no longer finite since step \d+ .*--set learning_rate=1000"):
        gingham.fit(ARTICLE.replace(learning_rate=1e4), data.train, progress=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:1:2"])
def test_unknown_devices(device):
    with pytest.raises(GinghamError, match="allowed: auto, cpu"):
        choose_device(device)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"


def test_precision_is_what_the_hardware_has(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == "float32"
    for tile, avx, expected in ((True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tile=tile: tile)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert choose_precision("auto", cpu) == expected


def test_progress_in_plain_lines_when_piped(quadrants, capsys):
    data = gingham.load_data(str(quadrants), validation=40)
    gingham.fit(ARTICLE.replace(epochs=2, batch_size=32), data.train, data.validation)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("loss" in line and "accuracy" in line and "validation" in line for line in lines)


def test_a_bar_on_a_terminal(quadrants, monkeypatch, capsys):
    data = gingham.load_data(str(quadrants), validation=0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gingham.fit(ARTICLE.replace(epochs=1, batch_size=32), data.train)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss " in shown
    assert "accuracy " in shown


@pytest.mark.slow
@pytest.mark.parametrize(("name", "low"), [("fast-85", 0.84), ("fast-90", 0.885), ("fast-92", 0.91)])
def test_the_ladder_learns_fashion_mnist(fashion_mnist, name, low):
    run = fit(gingham.RECIPES[name], fashion_mnist)
    assert low < run.metrics["validation_accuracy"] < low + 0.05


@pytest.mark.slow
def test_the_article_learns_fashion_mnist(fashion_mnist_folder):
    """One epoch of the real thing, all 60,000 pictures: far above the single look of a broken loop."""
    data = gingham.load_data("fashion-mnist", validation=0)
    run = gingham.fit(ARTICLE.replace(epochs=1), data.train, progress=False)
    assert run.metrics["steps"] == 938
    assert 0.72 < gingham.evaluate(run, data.test).accuracy < 0.86  # ten seeds: 77.0 to 80.2 %


def test_patience_stops_and_keeps_the_best(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=40, batch_size=16, learning_rate=0.05, patience=3)
    run = fit(recipe, data)
    evaluations = [entry for entry in run.history if "epoch" in entry]
    accuracies = [entry["validation_accuracy"] for entry in evaluations]
    best = accuracies.index(max(accuracies))
    assert len(evaluations) == best + 4 < 40
    assert run.metrics["steps"] == evaluations[-1]["step"] == len([entry for entry in run.history if "learning_rate" in entry])
    assert run.metrics["chosen_epoch"] == evaluations[best]["epoch"]
    assert run.metrics["validation_accuracy"] == accuracies[best]
    assert gingham.evaluate(run, data.validation).accuracy == accuracies[best]


@pytest.mark.slow
def test_patience_resumes_to_the_same_weights(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=40, batch_size=16, learning_rate=0.05, patience=3, checkpoint_seconds=0)
    whole = fit(recipe, data)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, data, folder=tmp_path, on_epoch=stop)
    resumed = fit(recipe, data, folder=tmp_path, resume=True)
    assert resumed.metrics["resumed_from_step"]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    again = fit(recipe, data, folder=tmp_path, resume=True)  # killed after the last checkpoint, before the run was saved
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))
    assert again.metrics["steps"] == whole.metrics["steps"]


def test_patience_needs_something_to_look_at(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    with pytest.raises(GinghamError, match="patience is 3, and no validation split is held out"):
        gingham.fit(ARTICLE.replace(patience=3), data.train, progress=False)


def test_the_history_for_tensorboard(quadrants, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=2, batch_size=32), data, folder=tmp_path, track="tensorboard")
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [entry for entry in run.history if "learning_rate" in entry]
    for name, key in (("train/loss", "loss"), ("train/accuracy", "accuracy"), ("learning_rate", "learning_rate")):
        assert [event.step for event in events.Scalars(name)] == [entry["step"] for entry in steps]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([entry[key] for entry in steps])
    evaluations = [entry["validation_accuracy"] for entry in run.history if "epoch" in entry]
    assert [event.value for event in events.Scalars("validation/accuracy")] == pytest.approx(evaluations)
    with pytest.raises(GinghamError, match="--track got 'wandb'; allowed: tensorboard"):
        fit(ARTICLE.replace(epochs=0.1), data, folder=tmp_path, track="wandb")
