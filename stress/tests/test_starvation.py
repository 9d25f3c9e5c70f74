"""That a starved training that is lost is counted so."""

import pytest

from stress.starving import Done, LostError, NotTriedError, require, starve

pytestmark = pytest.mark.slow


def survives(bench):
    bench.require_result(bench.undisturbed)


def is_damaged(bench):
    file = bench.undisturbed / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    bench.require_result(bench.undisturbed)


def cannot_be_tried(bench):
    raise NotTriedError("there is no moon")


def test_cases_are_counted_as_what_they_are():
    outcome = starve(3, [survives, is_damaged, cannot_be_tried, survives])
    assert outcome.tried == 2
    assert outcome.lost == ["is damaged: undisturbed came to other weights than an undisturbed run"]
    assert outcome.figures == "2 kinds of want; not tried: cannot be tried (there is no moon)"


@pytest.mark.parametrize(
    "done",
    [
        Done(1, "", "Traceback (most recent call last):\nKeyError: 'x'"),
        Done(2, "", "Traceback (most recent call last):\nKeyError: 'x'\ngingham: it failed"),
        Done(-7, "", ""),
        Done(2, "", ""),
        Done(0, "", "gingham: it failed"),
        Done(2, "", "gingham: it failed\ngingham: and again"),
        Done(2, "", "gingham: it failed\nand said more"),
    ],
)
def test_an_end_that_is_no_sentence_is_lost(done):
    with pytest.raises(LostError):
        done.refused()


def test_a_sentence_must_be_about_it():
    done = Done(2, "", "epoch 1\ngingham: cannot write x (No space left on device); free some room")
    done.refused("No space")
    with pytest.raises(LostError):
        done.refused("Read-only")
    with pytest.raises(LostError):
        done.went_well()
    with pytest.raises(LostError):
        require(holds=False, otherwise="no")
