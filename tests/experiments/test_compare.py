import itertools
import json
import shutil

import pytest
import scipy.stats
import torch

import gingham
from gingham import GinghamError, RunError
from gingham.evaluation.evaluate import correct_predictions
from gingham.experiments.compare import _bootstrap_variance, _compare_runs, _compare_trials


def test_trials_with_different_learning_rates_differ_significantly(trial_pair, data):
    good, bad = trial_pair
    comparison = gingham.compare(good.folder, bad.folder, lambda run: data.validation)
    assert comparison.p_value < 0.05
    assert comparison.difference < -0.5
    assert comparison.interval[0] < comparison.difference < comparison.interval[1] < 0
    assert f"{good.folder} (A) is better by" in comparison.verdict
    assert comparison.more_seeds is None
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_trials_do_not_differ_from_themselves(trial_pair, data):
    good, _ = trial_pair
    comparison = gingham.compare(good.folder, good.folder, lambda run: data.validation)
    assert comparison.difference == 0
    assert "No evidence of a difference" in comparison.verdict


def test_runs_are_compared_with_mcnemars_test(trial_pair, data):
    good, bad = trial_pair
    a, b = good.folder / "seed-0", bad.folder / "seed-0"
    comparison = gingham.compare(a, b, lambda run: data.validation)
    first, second = (correct_predictions(gingham.load(folder), data.validation) for folder in (a, b))
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    assert comparison.p_value == pytest.approx(scipy.stats.binomtest(only_b, only_a + only_b).pvalue)
    assert comparison.difference == pytest.approx((only_b - only_a) / 60)
    assert "McNemar" in comparison.verdict


def test_comparing_runs_with_trials_or_on_different_images_is_an_error(trial_pair, data, tmp_path):
    good, _ = trial_pair
    with pytest.raises(GinghamError, match="is a single run and"):
        gingham.compare(good.folder / "seed-0", good.folder, lambda run: data.validation)
    with pytest.raises(RunError, match="no run in"):
        gingham.compare(tmp_path, tmp_path, lambda run: data.validation)
    splits = itertools.cycle([data.validation, data.train])
    with pytest.raises(GinghamError, match="were not evaluated on the same images"):
        gingham.compare(good.folder / "seed-0", good.folder / "seed-1", lambda run: next(splits))


@pytest.mark.parametrize("images", [40, 1000])
def test_verdict_p_value_and_interval_of_two_runs_agree(images):
    for only_a, only_b in itertools.product(range(20), repeat=2):
        a, b = torch.ones(2, images, dtype=torch.bool)
        a[:only_b], b[only_b : only_b + only_a] = False, False
        comparison = _compare_runs(a, b, ["a", "b"], "validation")
        low, high = comparison.interval
        assert (comparison.p_value < 0.05) == (not low <= 0 <= high) == ("is better" in comparison.verdict)
        assert low <= comparison.difference <= high
        assert low < high


def test_verdict_p_value_and_interval_of_trials_agree():
    generator = torch.Generator().manual_seed(4)
    verdicts = set()
    for accuracy in torch.linspace(0.91, 0.95, 40).tolist():
        difficulty = torch.randn(1000, generator=generator)
        a, b = (simulate_correct(3, difficulty, share, generator) for share in (0.93, accuracy))
        comparison = _compare_trials(a, b, ["a", "b"], "validation")
        low, high = comparison.interval
        verdicts.add(is_better := "is better" in comparison.verdict)
        assert (comparison.p_value < 0.05) == (not low <= 0 <= high) == is_better
    assert verdicts == {True, False}


def test_the_verdict_warns_if_all_seeds_have_the_same_accuracy(trial_pair, data, tmp_path):
    good, _ = trial_pair
    copies = shutil.copytree(good.folder, tmp_path / "copies")
    for seed in ("seed-1", "seed-2"):
        shutil.rmtree(copies / seed)
        shutil.copytree(copies / "seed-0", copies / seed)
    comparison = gingham.compare(copies, good.folder, lambda run: data.validation)
    assert f"All seeds of {copies} (A)" in comparison.verdict
    assert "have the same accuracy, so their spread is unknown" in comparison.verdict
    generator = torch.Generator().manual_seed(5)
    a, b = (simulate_correct(3, torch.randn(500, generator=generator), 0.9, generator, 0.02) for _ in range(2))
    assert "same accuracy" not in _compare_trials(a, b, ["a", "b"], "validation").verdict


def simulate_correct(seeds, difficulty, accuracy, generator, spread=0.002):
    """Return which images networks get right, bool (S, N): all find the same ones difficult, and differ by seed."""
    rows = []
    for _ in range(seeds):
        seed_accuracy = accuracy + spread * float(torch.randn(1, generator=generator))
        score = 0.9 * difficulty + 0.45 * torch.randn(len(difficulty), generator=generator)
        rows.append(score <= score.quantile(seed_accuracy))
    return torch.stack(rows)


@pytest.mark.slow
def test_the_bootstrap_has_few_false_positives_and_high_power():
    """Of 20 comparisons, at most 2 of equal recipes are significant, and at least 18 of one a point worse."""
    generator = torch.Generator().manual_seed(1)
    false_positives = true_positives = 0
    for _ in range(20):
        difficulty = torch.randn(5000, generator=generator)
        a, b = (simulate_correct(5, difficulty, 0.93, generator) for _ in range(2))
        worse = simulate_correct(5, difficulty, 0.92, generator)
        false_positives += _compare_trials(a, b, ["a", "b"], "validation").p_value < 0.05
        true_positives += _compare_trials(a, worse, ["a", "b"], "validation").p_value < 0.05
    assert false_positives <= 2
    assert true_positives >= 18


def test_more_seeds_is_the_smallest_number_that_makes_the_difference_significant():
    generator = torch.Generator().manual_seed(3)
    difficulty = torch.randn(20_000, generator=generator)
    a, b = (simulate_correct(3, difficulty, accuracy, generator, spread=0.004) for accuracy in (0.930, 0.934))
    comparison = _compare_trials(a, b, ["a", "b"], "validation")
    assert comparison.p_value > 0.05
    variance, more_seeds = _bootstrap_variance(a, b), comparison.more_seeds
    assert variance.half_width(more_seeds) < abs(comparison.difference)
    assert variance.half_width(more_seeds - 1) >= abs(comparison.difference)
    assert f"about {more_seeds} more seed" in comparison.verdict


def test_comparing_runs_says_how_many_images_are_needed():
    a = torch.ones(1000, dtype=torch.bool)
    b = a.clone()
    a[:10], b[10:24] = False, False
    comparison = _compare_runs(a, b, ["a", "b"], "validation")
    assert comparison.p_value == pytest.approx(scipy.stats.binomtest(10, 24).pvalue)
    assert "about 5,763 images would show it" in comparison.verdict
    same = _compare_runs(a, a, ["a", "a"], "validation")
    assert (same.difference, same.p_value) == (0, 1)
