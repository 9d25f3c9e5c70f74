"""Proof that the oracle of the fuzzing can say that a case is lost."""

import ctypes
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from gingham.errors import DataError
from stress import fuzzing
from stress.fuzzing import CHECKS, TARGETS, by_bytes, by_properties
from stress.verdicts import badly_said, judging

pytestmark = pytest.mark.slow


def test_every_target_is_fuzzed_in_both_ways():
    assert len(CHECKS) == 2 * len(TARGETS) == 18
    assert {check.long for check in CHECKS} == {10_000}


def raises(error):
    raise error


class Unpickled:
    def __reduce__(self):
        return (os.getcwd, ())


def ask(port):
    with socket.socket() as there:
        there.settimeout(1)
        there.connect_ex(("127.0.0.1", port))


def in_a_thread(act):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


BAD = {
    "another error": (lambda judge: raises(ValueError("what is this")), r"ValueError: what is this \(test_fuzzing.py:"),
    "a failed assert": (lambda judge: raises(AssertionError("no")), "AssertionError: no"),
    "no memory": (lambda judge: np.empty(1 << 50, np.uint8), "Unable to allocate|MemoryError"),
    "a hang": (lambda judge: time.sleep(60), "took more than 0.3 s"),
    "a hang in silence": (lambda judge: sum(0 for _ in iter(int, 1)), "took more than 0.3 s"),
    "much memory": (lambda judge: np.ones(40 << 20, np.uint8).sum(), "held .* MiB more than before"),
    "a file beside": (lambda judge: (judge.beside / "a").write_text("x"), r"wrote to .*beside/a"),
    "a file by a link": (lambda judge: ((judge.place / "l").symlink_to(judge.beside), (judge.place / "l/b").open("wb").close()), r"wrote to .*beside/b"),
    "a file from a thread": (lambda judge: in_a_thread(lambda: (judge.beside / "c").write_text("x")), r"wrote to .*beside/c"),
    "a folder beside": (lambda judge: (judge.place / ".." / "beside" / "d").mkdir(), "os.mkdir .*beside/d"),
    "a file removed": (lambda judge: (judge.beside / "gone").unlink(missing_ok=True), "os.remove .*beside/gone"),
    "a file moved out": (lambda judge: ((judge.place / "x").touch(), (judge.place / "x").rename(judge.beside / "x")), "os.rename .*beside/x"),
    "text evaluated": (lambda judge: eval("1 + 1"), "executed <string>"),
    "text executed": (lambda judge: exec("a = 1"), "executed <string>"),
    "a pickle": (lambda judge: pickle.loads(pickle.dumps(Unpickled())), "pickle.find_class"),
    "a program": (lambda judge: subprocess.run(["true"], check=True), "subprocess.Popen"),
    "a shell": (lambda judge: os.system("true"), "os.system"),
    "a connection": (lambda judge: ask(9), "socket.connect"),
    "a library": (lambda judge: ctypes.CDLL(str(judge.place / "evil.so")), "ctypes.dlopen .*evil.so"),
    "a module by its name": (lambda judge: __import__("gingham_lure"), "imported gingham_lure"),
    "no message": (lambda judge: raises(DataError(" ")), "an error without a message"),
    "a traceback": (lambda judge: raises(DataError("Traceback (most recent call last): x")), "a traceback for a message"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reader_is_lost(name):
    act, why = BAD[name]
    with judging(0.3, 32 << 20) as judge:
        reason = judge(lambda: act(judge))
    assert reason is not None
    assert re.search(why, reason), reason


GOOD = {
    "a result": lambda judge: 3,
    "a sentence": lambda judge: raises(DataError("the file is cut short; take it from its source again")),
    "its own files": lambda judge: (
        (judge.place / "a").write_text("x"),
        (judge.place / "a").unlink(),
        (judge.place / "b").mkdir(),
    ),
    "a file that is read": lambda judge: Path(__file__).read_bytes(),
    "nowhere": lambda judge: Path(os.devnull).write_bytes(b"x"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_reader_is_not_lost(name):
    with judging(2) as judge:
        assert judge(lambda: GOOD[name](judge)) is None


@pytest.mark.parametrize("message", ["", "two\nlines", "\x1b[2J", "x" * 2001, "\ud800"])
def test_what_is_no_sentence(message):
    assert badly_said(message)
    assert badly_said("one sentence; and what to do") is None


class Fragile:
    """Reads a number, and fails for a few."""

    examples = st.integers(0, 1000)

    def __init__(self, judge):
        self.place = judge.place

    def spoilt(self, random):
        return self.built(random.randrange(1000))

    def built(self, example):
        return lambda: raises(KeyError("x")) if example >= 700 else None


def test_a_case_by_bytes_is_found_and_run_again(monkeypatch):
    monkeypatch.setitem(TARGETS, "fragile", Fragile)
    outcome = by_bytes("fragile, by bytes", Fragile)(50)
    assert 5 < len(outcome.lost) <= 20
    number = int(outcome.lost[0].partition("number ")[2].partition(":")[0])
    assert "KeyError" in fuzzing.replay("fragile, by bytes", number)
    assert by_bytes("fragile, by bytes", Fragile)(50) == outcome


def test_a_case_by_properties_is_found_and_shrunk():
    outcome = by_properties("fragile, by properties", Fragile)(100)
    assert len(outcome.lost) == 5
    assert "from 700" in outcome.lost[0]
    assert by_properties("fragile, by properties", Fragile)(100).lost == outcome.lost


def test_outside_of_cases_nothing_is_watched(tmp_path):
    with judging() as judge:
        (tmp_path / "a").write_text("x")
        assert judge(lambda: None) is None
    assert "gingham_lure" not in sys.modules
