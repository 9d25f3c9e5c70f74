"""Tests that lost cases of the resource checks are counted."""

import pytest

from stress.resources import LostError, NotTriedError, ProcessResult, require, run_cases

pytestmark = pytest.mark.slow


def survives(bench):
    bench.require_result(bench.undisturbed)


def is_damaged(bench):
    file = bench.undisturbed / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    bench.require_result(bench.undisturbed)


def cannot_be_tried(bench):
    raise NotTriedError("there is no moon")


def test_lost_and_untried_cases_are_counted():
    outcome = run_cases(3, [survives, is_damaged, cannot_be_tried, survives])
    assert outcome.tried == 2
    assert outcome.lost == ["is damaged: undisturbed came to other weights than an undisturbed run"]
    assert outcome.figures == "2 kinds of shortage; not tried: cannot be tried (there is no moon)"


@pytest.mark.parametrize(
    "result",
    [
        ProcessResult(1, "", "Traceback (most recent call last):\nKeyError: 'x'"),
        ProcessResult(2, "", "Traceback (most recent call last):\nKeyError: 'x'\ngingham: it failed"),
        ProcessResult(-7, "", ""),
        ProcessResult(2, "", ""),
        ProcessResult(0, "", "gingham: it failed"),
        ProcessResult(2, "", "gingham: it failed\ngingham: and again"),
        ProcessResult(2, "", "gingham: it failed\nand said more"),
    ],
)
def test_process_without_one_error_message_is_lost(result):
    with pytest.raises(LostError):
        result.require_error()


def test_error_message_must_contain_the_expected_words():
    result = ProcessResult(2, "", "epoch 1\ngingham: cannot write x (No space left on device); free some disk space")
    result.require_error("No space")
    with pytest.raises(LostError):
        result.require_error("Read-only")
    with pytest.raises(LostError):
        result.require_success()
    with pytest.raises(LostError):
        require(holds=False, message="no")
