import itertools
import json

import pytest
import scipy.stats
import torch

import gingham
from gingham import GinghamError, RunError
from gingham.evaluation.evaluate import correct_predictions
from gingham.experiments.compare import _compare_runs, _compare_trials, _spread
from gingham.io import locked
from helpers import make_dataset

TINY = gingham.RECIPES["fast-90"].replace(epochs=1.2, batch_size=64, validation_images=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_dataset(tmp_path_factory.mktemp("data") / "quadrants", train=300)
    return gingham.load_data(str(folder), validation=60)


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory):
    """Two trial sets: a recipe and one with a learning rate that learns nothing."""
    place = tmp_path_factory.mktemp("trials")
    good = gingham.trials(TINY, data, range(3), place / "good", progress=False)
    bad = gingham.trials(TINY.replace(learning_rate=1e-9), data, range(3), place / "bad", progress=False)
    return good, bad


def test_trials_against_single_runs(pair, data):
    good, _ = pair
    for seed, accuracy in zip(good.seeds, good.accuracies, strict=True):
        run = gingham.load(good.folder / f"seed-{seed}")
        assert run.metrics["validation_accuracy"] == pytest.approx(accuracy)
        alone = gingham.fit(TINY.replace(seed=seed), data.train, data.validation, progress=False)
        assert gingham.evaluate(alone, data.validation).accuracy == pytest.approx(accuracy)
    values = json.loads(json.dumps(good.to_dict(), allow_nan=False))
    assert {"accuracies", "mean", "std", "interval"} <= set(values)
    assert values["mean"] == pytest.approx(sum(good.accuracies) / 3)
    expected = scipy.stats.t.interval(0.95, 2, values["mean"], values["std"] / 3**0.5)
    assert values["interval"] == pytest.approx(expected)
    assert values["best"]["accuracy"] == max(good.accuracies)
    assert "3 seeds (0 to 2)" in str(good)
    assert good.dead == ()


def test_a_recipe_that_learns_nothing_is_dead(pair):
    _, bad = pair
    by_chance = [
        scipy.stats.binomtest(round(60 * accuracy), 60).proportion_ci(method="wilson").low <= 0.25
        for accuracy in bad.accuracies
    ]
    assert bad.dead == tuple(seed for seed, dead in zip(bad.seeds, by_chance, strict=True) if dead)
    assert bad.dead
    assert "no better than always naming the commonest class" in str(bad)


def test_a_seed_that_another_gingham_trains_is_left_to_it(data, tmp_path):
    (tmp_path / "seed-0").mkdir()
    with (
        locked(tmp_path / "seed-0", wait=False),
        pytest.raises(GinghamError, match=r"another gingham is writing into .*seed-0"),
    ):
        gingham.trials(TINY, data, [0], tmp_path, progress=False)
    assert gingham.trials(TINY, data, [0], tmp_path, progress=False).seeds == (0,)


def test_finished_seeds_are_kept_and_more_can_be_added(pair, data, monkeypatch):
    good, _ = pair
    before = {seed: (good.folder / f"seed-{seed}/model.safetensors").stat().st_mtime_ns for seed in good.seeds}
    seen = []
    more = gingham.trials(
        TINY, data, range(4), good.folder, progress=False, on_seed=lambda seed, run, kept: seen.append((seed, kept))
    )
    assert seen == [(0, True), (1, True), (2, True), (3, False)]
    assert more.accuracies[:3] == good.accuracies
    assert {seed: (good.folder / f"seed-{seed}/model.safetensors").stat().st_mtime_ns for seed in good.seeds} == before


def test_an_interrupted_seed_goes_on_to_the_same_weights(data, tmp_path):
    def stop(model, epoch):
        raise KeyboardInterrupt

    whole = gingham.trials(TINY, data, [5], tmp_path / "whole", progress=False)
    folder = tmp_path / "torn" / "seed-5"
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(TINY.replace(seed=5, checkpoint_seconds=0), data.train, data.validation, folder=folder, progress=False,
                    on_epoch=stop)  # fmt: skip
    assert (folder / "checkpoint").exists()
    again = gingham.trials(TINY, data, [5], tmp_path / "torn", progress=False)
    assert (folder / "model.safetensors").read_bytes() == (whole.folder / "seed-5/model.safetensors").read_bytes()
    assert again.accuracies == whole.accuracies


def test_trials_open_the_test_split_once_a_run_and_only_when_asked(data, tmp_path):
    shut = gingham.trials(TINY, data, [0, 1], tmp_path, progress=False)
    assert gingham.load(shut.folder / "seed-0").test_openings == []
    for _ in range(2):  # the second time from the predictions that are kept
        opened = gingham.trials(TINY, data, [0, 1], tmp_path, split="test", progress=False)
        assert [len(gingham.load(opened.folder / f"seed-{seed}").test_openings) for seed in (0, 1)] == [1, 1]
    expected = (gingham.load(tmp_path / "seed-1").model.predict(data.test.images).labels == data.test.labels).double().mean()
    assert opened.accuracies[1] == pytest.approx(float(expected))


def test_other_settings_are_not_mixed_in(pair, data):
    good, _ = pair
    with pytest.raises(GinghamError, match=r"holds trials with learning_rate 1.0, not 0.1; give another --out"):
        gingham.trials(TINY.replace(learning_rate=0.1), data, range(1), good.folder, progress=False)
    empty = gingham.DataSplits(data.name, data.train, None, data.test, data.classes, data.fingerprint, data.source)
    with pytest.raises(GinghamError, match="no pictures out"):
        gingham.trials(TINY, empty, range(1), good.folder, progress=False)


def test_a_seed_that_diverges_is_named_and_not_in_the_mean(data, tmp_path):
    recipe = gingham.RECIPES["article"].replace(learning_rate=1e4, epochs=1, batch_size=32, validation_images=60)
    with pytest.raises(GinghamError, match="not one of 2 seeds could be trained"):
        gingham.trials(recipe, data, range(2), tmp_path, progress=False)


def test_comparing_trials_finds_what_is_there(pair, data):
    good, bad = pair
    found = gingham.compare(good.folder, bad.folder, lambda run: data.validation)
    assert found.p_value < 0.05
    assert found.difference < -0.5
    assert found.interval[0] < found.difference < found.interval[1] < 0
    assert f"{good.folder} (A) is better by" in found.verdict
    assert found.more_seeds is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_comparing_with_itself_finds_nothing(pair, data):
    good, _ = pair
    found = gingham.compare(good.folder, good.folder, lambda run: data.validation)
    assert found.difference == 0
    assert "No evidence of a difference" in found.verdict


def test_comparing_runs_is_mcnemar(pair, data):
    good, bad = pair
    a, b = good.folder / "seed-0", bad.folder / "seed-0"
    found = gingham.compare(a, b, lambda run: data.validation)
    first, second = (correct_predictions(gingham.load(place), data.validation) for place in (a, b))
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    assert found.p_value == pytest.approx(scipy.stats.binomtest(only_b, only_a + only_b).pvalue)
    assert found.difference == pytest.approx((only_b - only_a) / 60)
    assert "McNemar" in found.verdict


def test_unlike_things_are_not_compared(pair, data, tmp_path):
    good, _ = pair
    with pytest.raises(GinghamError, match="is a single run and"):
        gingham.compare(good.folder / "seed-0", good.folder, lambda run: data.validation)
    with pytest.raises(RunError, match="no run in"):
        gingham.compare(tmp_path, tmp_path, lambda run: data.validation)
    splits = itertools.cycle([data.validation, data.train])
    with pytest.raises(GinghamError, match="were not measured on the same pictures"):
        gingham.compare(good.folder / "seed-0", good.folder / "seed-1", lambda run: next(splits))


def made(seeds, pictures, accuracy, generator, spread=0.002, shared=None):
    """Answers of networks that share which pictures are hard, and differ by seed: bool (S, N)."""
    hard = shared if shared is not None else torch.randn(pictures, generator=generator)
    rows = []
    for _ in range(seeds):
        own = accuracy + spread * float(torch.randn(1, generator=generator))
        score = 0.9 * hard + 0.45 * torch.randn(pictures, generator=generator)
        rows.append(score <= score.quantile(own))
    return torch.stack(rows)


@pytest.mark.slow
def test_the_bootstrap_is_honest():
    """Twenty tries of a recipe against itself find something in at most two, against one a point worse in at least eighteen."""
    generator = torch.Generator().manual_seed(1)
    alarms = found = 0
    for _ in range(20):
        hard = torch.randn(5000, generator=generator)
        a, b = (made(5, 5000, 0.93, generator, shared=hard) for _ in range(2))
        worse = made(5, 5000, 0.92, generator, shared=hard)
        alarms += _compare_trials(a, b, ["a", "b"], "validation").p_value < 0.05
        found += _compare_trials(a, worse, ["a", "b"], "validation").p_value < 0.05
    assert alarms <= 2
    assert found >= 18


def test_the_seeds_that_are_missing_are_about_right():
    generator = torch.Generator().manual_seed(3)
    hard = torch.randn(20_000, generator=generator)
    a, b = (made(3, 20_000, accuracy, generator, spread=0.004, shared=hard) for accuracy in (0.930, 0.934))
    found = _compare_trials(a, b, ["a", "b"], "validation")
    assert found.p_value > 0.05
    spread = _spread(a, b)
    assert spread.with_more(found.more_seeds).reach < abs(found.difference) <= spread.with_more(found.more_seeds - 1).reach
    assert f"about {found.more_seeds} more seed" in found.verdict


def test_a_pair_of_runs_says_how_many_pictures_it_would_take():
    a = torch.ones(1000, dtype=torch.bool)
    b = a.clone()
    a[:10], b[10:24] = False, False
    found = _compare_runs(a, b, ["a", "b"], "validation")
    assert found.p_value == pytest.approx(scipy.stats.binomtest(10, 24).pvalue)
    assert "about 5,763 pictures would show it" in found.verdict
    same = _compare_runs(a, a, ["a", "a"], "validation")
    assert (same.difference, same.p_value) == (0, 1)
