"""Gingham on Windows, as far as another system can show it: without the modules and functions that Windows lacks, with
files that cannot be replaced while they are open, with folders that cannot be opened, and with a console in cp1252."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import make_dataset

SIMULATION = r"""
import importlib.abc, os, pathlib, shutil, signal, sys, time

MISSING = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Finder())
for name in MISSING:
    sys.modules.pop(name, None)
for module, names in {
    os: "posix_fallocate sched_getaffinity fchmod mkfifo killpg getloadavg statvfs".split(),
    time: "clock_gettime CLOCK_BOOTTIME CLOCK_MONOTONIC clock_settime tzset".split(),
    signal: "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD pthread_sigmask setitimer".split(),
}.items():
    for name in names:
        delattr(module, name)
shutil._use_fd_functions = False

opened = {}  # descriptor: whether it can be written to
plain_open, plain_fsync, plain_replace, plain_unlink, plain_rename = os.open, os.fsync, os.replace, os.unlink, os.rename


def open_file(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    descriptor = plain_open(path, flags, *rest, **options)
    opened[descriptor] = bool(flags & (os.O_WRONLY | os.O_RDWR))
    return descriptor


def fsync(descriptor):
    if not opened.get(descriptor, True):
        raise OSError(9, "Bad file descriptor")
    plain_fsync(descriptor)


def require_closed(path):
    path = os.path.realpath(path)
    if path.endswith(".lock"):  # filelock has an implementation for Windows, which is not used here
        return
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass
    with open("/proc/self/maps") as maps:
        names += [line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")]
    if path in names:
        raise PermissionError(32, "The process cannot access the file because it is being used", path)


def replace(source, target, **options):
    require_closed(source)
    require_closed(target)
    plain_replace(source, target, **options)


def rename(source, target, **options):
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", str(target))
    require_closed(source)
    plain_rename(source, target, **options)


def unlink(path, **options):
    require_closed(path)
    plain_unlink(path, **options)


os.open, os.fsync, os.replace, os.rename, os.unlink, os.remove = open_file, fsync, replace, rename, unlink, unlink
"""

RUN = SIMULATION + "\nfrom gingham.cli.app import run\nrun()\n"


def write_images(folder, names):
    """Write 40 noisy images for each class, in which another half is bright."""
    random = np.random.default_rng(0)
    for side, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 90, (28, 28)).astype(np.uint8)
            pixels[:, 14 * side : 14 * side + 14] += 140
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def windows(tmp_path):
    """Return a function that runs a command of Gingham in the simulation and returns what it prints."""

    def start(*arguments, code=0):
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONWARNDEFAULTENCODING": "1"}
        command = [sys.executable, "-W", "error::EncodingWarning:gingham", "-c", RUN, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr.decode("cp1252")
        return done.stdout.decode("cp1252")

    return start


def test_a_folder_of_images_becomes_a_model(windows, tmp_path):
    data = tmp_path / "photos"
    write_images(data, ["Größe 犬", "other"])
    options = ("--data", data, "--recipe", "fast-85", "--epochs", "4", "--out", "runs/one")
    text = windows("train", *options)
    assert re.search(r"run +runs.one", text)
    assert (tmp_path / "runs/one/curves.png").exists()
    again = json.loads(windows("train", *options, "--resume", "--json"))
    assert again["epochs"] >= 4
    result = json.loads(windows("evaluate", "runs/one", "--split", "test", "--json"))
    assert "Größe 犬" in result["per_class"], "JSON keeps the letters that the console lacks"
    assert "class" in windows("evaluate", "runs/one")
    image = next((data / "Größe 犬").iterdir())
    (prediction,) = json.loads(windows("predict", image, "--run", "runs/one", "--json"))
    assert set(prediction["probabilities"]) == set(result["per_class"])
    windows("predict", data, "--run", "runs/one", "--csv", "answers.csv", "--sort-into", "sorted")
    assert "犬" in (tmp_path / "answers.csv").read_text(encoding="utf-8-sig")
    assert any((tmp_path / "sorted").rglob("*.png"))
    windows("report", "runs/one")
    windows("diagnose", "runs/one")
    windows("show", data)


def test_a_training_continues_after_it_was_stopped(windows, tmp_path):
    data = make_dataset(tmp_path / "quadrants")
    script = SIMULATION + (
        "import gingham\n"
        "data = gingham.load_data('quadrants', validation=40)\n"
        "recipe = gingham.RECIPES['fast-85'].replace(epochs=6, checkpoint_seconds=0.01)\n"
        "def stop(model, epoch):\n"
        "    if epoch == 3: raise KeyboardInterrupt\n"
        "try:\n"
        "    gingham.fit(recipe, data.train, data.validation, folder='run',\n"
        "                options=gingham.FitOptions(on_epoch=stop))\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "run = gingham.fit(recipe, data.train, data.validation, folder='run', resume=True)\n"
        "gingham.save(run, 'run')\n"
        "again = gingham.load('run')\n"
        "gingham.save(again, 'run')\n"
        "print(run.metrics['resumed_from_step'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0
    assert data.exists()
    assert not (tmp_path / "run/checkpoint").exists()


def test_an_image_that_cannot_be_read_is_an_error_in_a_sentence(windows, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    windows("predict", "black.png", "bad.png", code=2)
