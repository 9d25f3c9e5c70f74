"""Tests of the verdicts: each kind of bad behaviour makes a case lost."""

import ctypes
import mmap
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

from gingham.errors import DataError
from stress.verdicts import isolated_judge, message_problem

pytestmark = pytest.mark.slow


def raise_error(error):
    raise error


class Unpickled:
    def __reduce__(self):
        return (os.getcwd, ())


def connect(port):
    with socket.socket() as client:
        client.settimeout(1)
        client.connect_ex(("127.0.0.1", port))


def run_in_thread(case):
    thread = threading.Thread(target=case)
    thread.start()
    thread.join()


def touch_new_memory(size):
    # From the system, because malloc may have this much memory left over from other tests.
    with mmap.mmap(-1, size) as memory:
        memory[::4096] = bytes(size // 4096)


LOST_CASES = {
    "another error": (
        lambda judge: raise_error(ValueError("what is this")),
        r"ValueError: what is this \(test_verdicts.py:",
    ),
    "a failed assert": (lambda judge: raise_error(AssertionError("no")), "AssertionError: no"),
    "no memory": (lambda judge: np.empty(1 << 50, np.uint8), "Unable to allocate|MemoryError"),
    "a hang": (lambda judge: time.sleep(60), "took more than 0.3 s"),
    "a hang in silence": (lambda judge: sum(0 for _ in iter(int, 1)), "took more than 0.3 s"),
    "much memory": (lambda judge: touch_new_memory(40 << 20), "held .* MiB more than before"),
    "a file outside": (lambda judge: (judge.outside / "a").write_text("x"), r"wrote to .*outside/a"),
    "a file by a link": (
        lambda judge: ((judge.folder / "l").symlink_to(judge.outside), (judge.folder / "l/b").open("wb").close()),
        r"wrote to .*outside/b",
    ),
    "a file from a thread": (
        lambda judge: run_in_thread(lambda: (judge.outside / "c").write_text("x")),
        r"wrote to .*outside/c",
    ),
    "a folder outside": (lambda judge: (judge.folder / ".." / "outside" / "d").mkdir(), "os.mkdir .*outside/d"),
    "a file removed": (lambda judge: (judge.outside / "gone").unlink(missing_ok=True), "os.remove .*outside/gone"),
    "a file moved out": (
        lambda judge: ((judge.folder / "x").touch(), (judge.folder / "x").rename(judge.outside / "x")),
        "os.rename .*outside/x",
    ),
    "text evaluated": (lambda judge: eval("1 + 1"), "executed <string>"),
    "text executed": (lambda judge: exec("a = 1"), "executed <string>"),
    "a pickle": (lambda judge: pickle.loads(pickle.dumps(Unpickled())), "pickle.find_class"),
    "a program": (lambda judge: subprocess.run(["true"], check=True), "subprocess.Popen"),
    "a shell": (lambda judge: os.system("true"), "os.system"),
    "a connection": (lambda judge: connect(9), "socket.connect"),
    "a library": (lambda judge: ctypes.CDLL(str(judge.folder / "evil.so")), "ctypes.dlopen .*evil.so"),
    "a module by its name": (lambda judge: __import__("gingham_lure"), "imported gingham_lure"),
    "no message": (lambda judge: raise_error(DataError(" ")), "an error without a message"),
    "a traceback": (
        lambda judge: raise_error(DataError("Traceback (most recent call last): x")),
        "a traceback for a message",
    ),
}


@pytest.mark.parametrize("name", LOST_CASES)
def test_forbidden_behaviour_is_lost(name):
    case, pattern = LOST_CASES[name]
    with isolated_judge(0.3, 32 << 20) as judge:
        reason = judge(lambda: case(judge))
    assert reason is not None
    assert re.search(pattern, reason), reason


ACCEPTED_CASES = {
    "a result": lambda judge: 3,
    "a sentence": lambda judge: raise_error(DataError("the file is cut short; take it from its source again")),
    "its own files": lambda judge: (
        (judge.folder / "a").write_text("x"),
        (judge.folder / "a").unlink(),
        (judge.folder / "b").mkdir(),
    ),
    "a file that is read": lambda judge: Path(__file__).read_bytes(),
    "nowhere": lambda judge: Path(os.devnull).write_bytes(b"x"),
}


@pytest.mark.parametrize("name", ACCEPTED_CASES)
def test_allowed_behaviour_is_not_lost(name):
    with isolated_judge(2) as judge:
        assert judge(lambda: ACCEPTED_CASES[name](judge)) is None


@pytest.mark.parametrize("message", ["", "two\nlines", "\x1b[2J", "x" * 2001, "\ud800"])
def test_unreadable_message_is_a_problem(message):
    assert message_problem(message)
    assert message_problem("one sentence; and what to do") is None


def test_file_written_between_cases_is_not_lost(tmp_path):
    with isolated_judge() as judge:
        (tmp_path / "a").write_text("x")
        assert judge(lambda: None) is None
    assert "gingham_lure" not in sys.modules
