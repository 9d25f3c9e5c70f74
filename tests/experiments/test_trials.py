import dataclasses
import json
import shutil

import pytest
import scipy.stats
import torch

import gingham
from gingham import GinghamError, RunError
from gingham.experiments.trials import TrialOptions
from helpers import fit, locked_by_another
from own_networks import InfiniteWithSeedOne, UnbuiltWithSeedOne


def test_trials_agree_with_single_trainings(trial_pair, recipe, data):
    good, _ = trial_pair
    for seed, accuracy in zip(good.seeds, good.accuracies, strict=True):
        run = gingham.load(good.folder / f"seed-{seed}")
        assert run.metrics["validation_accuracy"] == pytest.approx(accuracy)
        single = gingham.fit(recipe.replace(seed=seed), data.train, data.validation, progress=False)
        assert gingham.evaluate(single, data.validation).accuracy == pytest.approx(accuracy)
    values = json.loads(json.dumps(good.to_dict(), allow_nan=False))
    assert {"accuracies", "mean", "std", "interval"} <= set(values)
    assert values["mean"] == pytest.approx(sum(good.accuracies) / 3)
    low, high = scipy.stats.t.interval(0.95, 2, values["mean"], values["std"] / 3**0.5)
    assert values["interval"] == pytest.approx([low, min(high, 1)])
    assert values["best"]["accuracy"] == max(good.accuracies)
    assert "3 seeds (0 to 2)" in str(good)
    assert good.dead == ()


def test_equal_accuracies_have_no_interval(trial_pair):
    good, _ = trial_pair
    equal = dataclasses.replace(good, accuracies=(0.9, 0.9, 0.9))
    assert equal.interval is None
    assert equal.to_dict()["interval"] is None
    assert "interval  unknown, as all seeds have the same accuracy" in str(equal)
    differing = dataclasses.replace(good, accuracies=(0.8, 0.9, 0.9))
    assert differing.interval[0] < differing.mean < differing.interval[1] == 1


def test_seeds_that_learn_nothing_are_dead(trial_pair):
    _, bad = trial_pair
    at_chance = [
        scipy.stats.binomtest(round(60 * accuracy), 60).proportion_ci(method="wilson").low <= 0.25
        for accuracy in bad.accuracies
    ]
    assert bad.dead == tuple(seed for seed, is_dead in zip(bad.seeds, at_chance, strict=True) if is_dead)
    assert bad.dead
    assert "no better than always predicting the commonest class" in str(bad)


def test_a_seed_that_another_process_trains_is_an_error(recipe, data, tmp_path):
    (tmp_path / "seed-0").mkdir()
    with (
        locked_by_another(tmp_path / "seed-0"),
        pytest.raises(GinghamError, match=r"another gingham is writing to .*seed-0"),
    ):
        gingham.trials(recipe, data, [0], tmp_path, progress=False)
    assert gingham.trials(recipe, data, [0], tmp_path, progress=False).seeds == (0,)


def test_finished_seeds_are_loaded_and_new_ones_trained(trial_pair, recipe, data, tmp_path):
    good, _ = trial_pair
    folder = shutil.copytree(good.folder, tmp_path / "copy")
    before = {seed: (folder / f"seed-{seed}/model.safetensors").stat().st_mtime_ns for seed in good.seeds}
    calls = []
    more = gingham.trials(
        recipe,
        data,
        range(4),
        folder,
        progress=False,
        options=TrialOptions(on_seed=lambda seed, run, was_finished: calls.append((seed, was_finished))),
    )
    assert calls == [(0, True), (1, True), (2, True), (3, False)]
    assert more.accuracies[:3] == good.accuracies
    assert {seed: (folder / f"seed-{seed}/model.safetensors").stat().st_mtime_ns for seed in good.seeds} == before


def test_an_interrupted_seed_resumes_to_the_same_weights(recipe, data, tmp_path):
    def interrupt(model, epoch):
        raise KeyboardInterrupt

    uninterrupted = gingham.trials(recipe, data, [5], tmp_path / "uninterrupted", progress=False)
    folder = tmp_path / "interrupted" / "seed-5"
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(
            recipe.replace(seed=5, checkpoint_seconds=0),
            data.train,
            data.validation,
            folder=folder,
            progress=False,
            options=gingham.FitOptions(on_epoch=interrupt),
        )
    assert (folder / "checkpoint").exists()
    resumed = gingham.trials(recipe, data, [5], tmp_path / "interrupted", progress=False)
    assert (folder / "model.safetensors").read_bytes() == (
        uninterrupted.folder / "seed-5/model.safetensors"
    ).read_bytes()
    assert resumed.accuracies == uninterrupted.accuracies


def test_trials_use_the_test_split_once_per_run_and_only_if_requested(recipe, data, tmp_path):
    on_validation = gingham.trials(recipe, data, [0, 1], tmp_path, progress=False)
    assert gingham.load(on_validation.folder / "seed-0").test_openings == []
    for _ in range(2):  # the second time from cached predictions
        on_test = gingham.trials(recipe, data, [0, 1], tmp_path, split="test", progress=False)
        assert [len(gingham.load(on_test.folder / f"seed-{seed}").test_openings) for seed in (0, 1)] == [1, 1]
    expected = (
        (gingham.load(tmp_path / "seed-1").model.predict(data.test.images).labels == data.test.labels).double().mean()
    )
    assert on_test.accuracies[1] == pytest.approx(float(expected))


def test_trials_of_another_recipe_or_without_validation_images_are_errors(trial_pair, recipe, data):
    good, _ = trial_pair
    with pytest.raises(GinghamError, match=r"contains trials with learning_rate 1.0, not 0.1; give another folder"):
        gingham.trials(recipe.replace(learning_rate=0.1), data, range(1), good.folder, progress=False)
    without_validation = gingham.DataSplits(
        data.name, data.train, None, data.test, data.classes, data.fingerprint, data.source
    )
    with pytest.raises(GinghamError, match="no images are held out"):
        gingham.trials(recipe, without_validation, range(1), good.folder, progress=False)


def test_a_folder_contains_either_a_run_or_trials(trial_pair, recipe, data, tmp_path):
    def stop(model, epoch):
        raise KeyboardInterrupt

    good, _ = trial_pair
    files = {*good.folder.iterdir()}
    with pytest.raises(RunError, match="contains trials; give another folder"):
        fit(recipe, data, good.folder)
    with pytest.raises(RunError, match="contains trials; give another folder"):
        fit(recipe, data, good.folder, resume=True)
    with pytest.raises(RunError, match="already contains a finished run or trials; give another folder"):
        gingham.save(gingham.load(good.folder / "seed-0"), good.folder)
    assert {*good.folder.iterdir()} == files
    with pytest.raises(KeyboardInterrupt):
        fit(recipe.replace(checkpoint_seconds=0), data, tmp_path / "unfinished", on_epoch=stop)
    gingham.save(fit(recipe.replace(epochs=0.1), data), tmp_path / "finished")
    for name in ("unfinished", "finished"):
        with pytest.raises(GinghamError, match=f"{name} contains runs but no trials; give another folder"):
            gingham.trials(recipe, data, [0], tmp_path / name, progress=False)
        assert not (tmp_path / name / "trials.json").exists()


def test_trials_whose_seeds_all_diverge_are_an_error(data, tmp_path):
    recipe = gingham.RECIPES["article"].replace(learning_rate=1e4, epochs=1, batch_size=32, validation_images=60)
    with pytest.raises(GinghamError, match="all trainings failed \\(2 seeds: "):
        gingham.trials(recipe, data, range(2), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(InfiniteWithSeedOne, "the loss has not been finite since step 1"), (UnbuiltWithSeedOne, "no seed 1, please")],
)
def test_a_seed_that_fails_is_named_and_the_others_are_trained(data, tmp_path, network, reason):
    recipe = gingham.RECIPES["article"].replace(epochs=0.3, batch_size=32, validation_images=60)
    options = TrialOptions(network=network)
    torch.manual_seed(0)  # not the seed for which the network cannot be created, also where it is loaded
    for seeds in (range(3), range(4)):  # again and with one seed more, in the same folder
        result = gingham.trials(recipe, data, seeds, tmp_path, progress=False, options=options)
        assert result.seeds == tuple(seed for seed in seeds if seed != 1)
        assert len(result.accuracies) == len(seeds) - 1
        assert list(result.failed) == [1]
        assert reason in result.failed[1]
        assert "failed    seed 1, not in the mean: " in str(result)
        assert reason in json.loads(json.dumps(result.to_dict(), allow_nan=False))["failed"]["1"]
        assert not (tmp_path / "seed-1" / "model.json").exists()
    comparison = gingham.compare(tmp_path, tmp_path, lambda run: data.validation, networks=[network])
    assert "3 and 3 seeds" in comparison.verdict


def test_a_run_of_another_seed_or_recipe_among_trials_is_an_error(trial_pair, recipe, data, tmp_path):
    good, _ = trial_pair
    copy = shutil.copytree(good.folder, tmp_path / "copy")
    shutil.copytree(copy / "seed-0", copy / "seed-7")
    with pytest.raises(GinghamError, match="seed-7 contains a run with seed 0, not 7; move it"):
        gingham.trials(recipe, data, [0, 7], copy, progress=False)
    shutil.rmtree(copy / "seed-7")
    gingham.save(fit(recipe.replace(seed=7, batch_size=20), data), copy / "seed-7")
    with pytest.raises(GinghamError, match=f"contains a run with batch_size 20, not {recipe.batch_size}; move it"):
        gingham.trials(recipe, data, [0, 7], copy, progress=False)


def test_a_manifest_of_another_format_is_an_error(trial_pair, recipe, data, tmp_path):
    good, _ = trial_pair
    manifest = shutil.copytree(good.folder, tmp_path / "copy") / "trials.json"
    written = json.loads(manifest.read_text())
    assert written.pop("format") == 3

    def again(values):
        manifest.write_text(json.dumps(values))
        return gingham.trials(recipe, data, good.seeds, manifest.parent, progress=False)

    before_first_release = {**written, "recipe": {**written["recipe"], "views": "none", "averaging": 0.0}}
    with pytest.raises(RunError, match=r"trials.json is of format 1, from before .*; give another folder"):
        again(before_first_release)
    with pytest.raises(RunError, match=r"trials.json is of format 4, newer than 3"):
        again({**written, "format": 4})
    assert again(written).accuracies == good.accuracies, "written before the format had a number"
