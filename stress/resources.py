"""Train with too little disk, memory, permissions, threads or time: the command must fail with one message or succeed.

Each case runs `gingham` in its own folder with a small dataset. It survives if the process exits with 2, one message on
stderr after its progress, no traceback and earlier files intact; or with 0 and the same bytes as an undisturbed run.
If space is freed later, `--resume` must give those bytes too.

Cases that mount file systems or need another user are skipped where that is not possible; the figures name them, and
they do not count as tried.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stress.outcomes import Check, Outcome

TIMEOUT_SECONDS = 120  # against hangs
WEIGHTS_FILE, METADATA_FILE, LOCK_FILE = "model.safetensors", "model.json", ".lock"
SETTINGS = ("--recipe", "fast-85", "--epochs", "4", "--set", "batch_size=50", "--set", "validation_images=40")
SETTINGS += ("--set", "patience=0", "--set", "checkpoint_seconds=0")
# The child limits itself, then runs gingham. Background processes ignore Ctrl-C and their children inherit that, so it
# is set back.
CHILD_SCRIPT = """
import os, resource, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_NPROC"):
    if name in os.environ:
        resource.setrlimit(getattr(resource, name), (int(os.environ[name]),) * 2)
exec(os.environ.get("BEFORE", ""))
sys.argv[0] = "gingham"
runpy.run_module("gingham", run_name="__main__", alter_sys=True)
"""


class LostError(Exception):
    """Raised by a case that is lost, with the reason."""


class NotTriedError(Exception):
    """Raised by a case that cannot be tried here, with the reason."""


@dataclass
class ProcessResult:
    """The exit code and output of a process."""

    code: int
    stdout: str
    stderr: str

    def require_error(self, *words: str) -> None:
        """Require exit code 2 and one error message at the end, with one of these words in it."""
        self.require_no_traceback()
        lines = [line for line in self.stderr.splitlines() if line.startswith("gingham: ")]
        if self.code != 2 or len(lines) != 1 or self.stderr.splitlines()[-1:] != lines:
            raise LostError(f"ended with {self.code} and {self.stderr[-600:]!r}, not with 2 and one sentence")
        if words and not any(word in lines[0] for word in words):
            raise LostError(f"said {lines[0]!r}, and nothing of {' or '.join(words)}")

    def require_success(self) -> None:
        self.require_no_traceback()
        if self.code != 0:
            raise LostError(f"ended with {self.code} and {self.stderr[-600:]!r}")

    def require_no_traceback(self) -> None:
        if "Traceback" in self.stderr:
            raise LostError(f"ended with {self.code} and a traceback: {self.stderr[-600:]!r}")


def require(holds: bool, message: str) -> None:
    if not holds:
        raise LostError(message)


@dataclass
class Bench:
    """A folder with a dataset, an undisturbed run on it and the checksum of its weights."""

    folder: Path
    mounts: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the figures
    weights: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def undisturbed(self) -> Path:
        return self.folder / "undisturbed"

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", CHILD_SCRIPT, *map(str, arguments)]

    def environment(self, **variables: object) -> dict[str, str]:
        return {
            **os.environ,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            **{name: str(value) for name, value in variables.items()},
        }

    def run(
        self,
        *arguments: object,
        prefix: Sequence[str] = (),
        stdout: int | None = None,
        cwd: Path | None = None,
        **environment: object,
    ) -> ProcessResult:
        """Run a command to its end; its stdout goes to the file descriptor `stdout`, if given."""
        process = self.start(*arguments, prefix=prefix, stdout=stdout, cwd=cwd, **environment)
        return wait_for_end(process)

    def start(
        self,
        *arguments: object,
        prefix: Sequence[str] = (),
        stdout: int | None = None,
        cwd: Path | None = None,
        **environment: object,
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*prefix, *self.command(*arguments)],
            cwd=cwd or self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, out: Path, *more: object) -> tuple[object, ...]:
        return ("train", "--data", self.data, *SETTINGS, "--out", out, *more)

    def require_result(self, out: Path) -> None:
        """Require a finished run with the same weights as the undisturbed one."""
        require((out / METADATA_FILE).exists(), f"{out.name} was not finished")
        require(sha256(out / WEIGHTS_FILE) == self.weights, f"{out.name} came to other weights than an undisturbed run")
        seconds = json.loads((out / METADATA_FILE).read_text())["metrics"]["wall_seconds"]
        require(0 < seconds < TIMEOUT_SECONDS, f"{out.name} says that it took {seconds} wall_seconds")

    def mount_tmpfs(self, megabytes: float = 64) -> Path:
        """Mount a file system in memory of this size."""
        path = Path(tempfile.mkdtemp(dir=self.folder))
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "gingham-stress", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise NotTriedError(f"file systems cannot be mounted here ({result.stderr.strip()[:80]})")
        self.mounts.append(path)
        return path

    def remount(self, path: Path, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True, capture_output=True)


def wait_for_end(process: "subprocess.Popen[str]") -> ProcessResult:
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LostError(f"did not end within {TIMEOUT_SECONDS} s") from None
    return ProcessResult(process.returncode, stdout or "", stderr or "")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in a folder."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def write_data(folder: Path, num_images: int = 300) -> None:
    """Write four IDX files of noisy images with one bright quadrant per class."""
    rng = np.random.RandomState(0)
    folder.mkdir()
    for kind, count in (("train", num_images), ("t10k", 80)):
        labels = (np.arange(count) % 4).astype(np.uint8)
        pixels = rng.randint(0, 90, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[label // 2 * 14 :, label % 2 * 14 :][:14, :14] += 140
        for array, name in ((pixels, f"{kind}-images-idx3-ubyte"), (labels, f"{kind}-labels-idx1-ubyte")):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / name).write_bytes(head + array.tobytes())


def write_image_folder(folder: Path, count: int = 120) -> None:
    """Write a folder per class, whose images are packed into the cache."""
    rng = np.random.RandomState(1)
    for k in range(count):
        class_folder = folder / f"class-{k % 2}"
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(120 * (k % 2), 120 * (k % 2) + 130, (28, 28)).astype(np.uint8)).save(
            class_folder / f"{k}.png"
        )


def checkpoints(out: Path) -> list[Path]:
    return [file for file in out.glob("checkpoint/*") if file.is_file()]


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; raise a LostError if the process ends before."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise LostError(f"ended too early, with {process.poll()}: {(process.communicate()[1] or '')[-600:]!r}")
        time.sleep(0.005)


LONG_TRAINING = ("--epochs", "400")  # long enough to disturb it


def full_disk(bench: Bench) -> None:
    """The disk is full when a checkpoint is written; then space is freed and --resume continues."""
    disk = bench.mount_tmpfs()
    probe = bench.run(*bench.train(disk / "probe"))
    probe.require_success()
    size = sum(file.stat().st_size for file in (disk / "probe").rglob("*") if file.is_file())
    shutil.rmtree(disk / "probe")
    earlier = disk / "earlier"
    shutil.copytree(bench.undisturbed, earlier)
    before = contents(earlier)
    filler = disk / "filler"
    for fraction in (
        0.02,
        0.5,
        1.2,
        2.2,
    ):  # of a run's size: no checkpoint fits, or only one, or all but the final files
        out = disk / f"run-{fraction}"
        fill(disk, filler, int(fraction * size))
        result = bench.run(*bench.train(out))
        if result.code == 0:
            result.require_success()
        else:
            result.require_error("No space left", "space", "room")
            require(
                not (out / METADATA_FILE).exists(),
                f"a run that failed for want of room looks finished (at {fraction} of its size)",
            )
        filler.unlink()
        require(contents(earlier) == before, "an earlier run was changed by another for which there was no room")
        bench.run(*bench.train(out, "--resume")).require_success()
        bench.require_result(out)
        require(not leftovers(out), f"files that were being written are left: {leftovers(out)}")


def leftovers(out: Path) -> list[str]:
    return [file.name for file in out.rglob(".*") if file.name != LOCK_FILE] + [file.name for file in checkpoints(out)]


def fill(disk: Path, filler: Path, leave: int) -> None:
    status = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))


def file_limit(bench: Bench) -> None:
    """Files are limited to less than a checkpoint's size (RLIMIT_FSIZE)."""
    out = bench.folder / "file-limit"
    for size in (1000, 60_000):
        bench.run(*bench.train(out), RLIMIT_FSIZE=size).require_error()
        require(not (out / METADATA_FILE).exists(), "a run that could not be written looks finished")
    bench.run(*bench.train(out, "--resume")).require_success()
    bench.require_result(out)


def train_on_images(bench: Bench, epochs: int, *settings: str) -> tuple[str | Path, ...]:
    """Return the arguments of a training on image files."""
    arguments: tuple[str | Path, ...] = (
        "train",
        "--data",
        bench.images,
        "--recipe",
        "fast-85",
        "--epochs",
        str(epochs),
    )
    for setting in ("validation_images=20", *settings):
        arguments += ("--set", setting)
    return arguments


def full_cache(bench: Bench) -> None:
    """The user's cache is on a full disk: training on image files is slower and gives the same weights."""
    arguments = train_on_images(bench, 2)
    bench.run(*arguments, "--out", bench.folder / "cached").require_success()
    cache = bench.mount_tmpfs(0.2)
    fill(cache, cache / "filler", 50_000)  # room for the beginning of a pack
    bench.run(*arguments, "--out", bench.folder / "uncached", XDG_CACHE_HOME=cache).require_success()
    weights = [sha256(bench.folder / name / WEIGHTS_FILE) for name in ("cached", "uncached")]
    require(weights[0] == weights[1], "with a full cache a training came to other weights")


def full_cache_beyond_memory(bench: Bench) -> None:
    """The same for images that exceed memory: they need the cache, so the command fails with a message."""
    cache = bench.mount_tmpfs(0.06)
    patch = "import gingham.data.pack_cache; gingham.data.pack_cache.free_memory = lambda: 1000"
    result = bench.run(
        "train", "--data", bench.images, "--out", bench.folder / "large", XDG_CACHE_HOME=cache, BEFORE=patch
    )
    result.require_error("free")


def read_only_out(bench: Bench) -> None:
    """--out and the working directory are on a read-only file system."""
    disk = bench.mount_tmpfs()
    bench.remount(disk, "ro")
    bench.run(*bench.train(disk / "out")).require_error("Read-only")
    bench.run("train", "--data", bench.data, *SETTINGS, cwd=disk).require_error("Read-only")
    bench.run("trials", "--data", bench.data, *SETTINGS, "--seeds", "2", "--out", disk / "trials").require_error(
        "Read-only"
    )


def read_only_cache(bench: Bench) -> None:
    """The cache is read-only."""
    cache = bench.mount_tmpfs()
    bench.remount(cache, "ro")
    out = bench.folder / "read-only-cache"
    bench.run(
        "train", "--data", bench.images, "--recipe", "fast-85", "--out", out, XDG_CACHE_HOME=cache
    ).require_success()
    require((out / METADATA_FILE).exists(), "a run with a read-only cache was not finished")


def read_only_run(bench: Bench) -> None:
    """A finished run is read-only: evaluating the test split fails, everything else works."""
    disk = bench.mount_tmpfs()
    run = disk / "run"
    shutil.copytree(bench.undisturbed, run)
    before = contents(run)
    bench.remount(disk, "ro")
    bench.run("evaluate", run, "--split", "test").require_error("Read-only")
    bench.run("evaluate", run).require_success()
    bench.run("report", run).require_error("Read-only")
    bench.run("report", run, "--out", disk / "other.html").require_error("Read-only")
    bench.run("report", run, "--out", bench.folder / "report.html").require_success()
    require(contents(run) == before, "a read-only run has changed")


def read_only_export(bench: Bench) -> None:
    """Export to a read-only file system."""
    with contextlib.suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        disk = bench.mount_tmpfs()
        bench.remount(disk, "ro")
        bench.run("export", disk / "model.onnx", "--run", bench.undisturbed).require_error("Read-only")
        return
    raise NotTriedError("the packages of the extra export are not installed")


def read_only_while_training(bench: Bench) -> None:
    """The file system becomes read-only during a training, as after a disk error; then it is writable again."""
    disk = bench.mount_tmpfs()
    out = disk / "run"
    process = bench.start(*bench.train(out, *LONG_TRAINING))
    wait_for(process, lambda: bool(checkpoints(out)))
    for _ in range(200):  # fails while a file is open for writing
        with contextlib.suppress(subprocess.CalledProcessError):
            bench.remount(disk, "ro")
            break
    else:
        process.kill()
        process.communicate()
        raise NotTriedError("the file system was never without a file open for writing")
    wait_for_end(process).require_error("Read-only")
    require(bool(checkpoints(out)), "the last checkpoint is gone")
    bench.remount(disk, "rw")
    reference = bench.folder / "long"
    bench.run(*bench.train(reference, "--epochs", "6")).require_success()
    shutil.rmtree(out)
    bench.run(*bench.train(out, "--epochs", "6")).require_success()
    require(
        sha256(out / WEIGHTS_FILE) == sha256(reference / WEIGHTS_FILE),
        "after it was read-only a folder came to other weights",
    )


def another_user(bench: Bench) -> None:
    """Another user's training loses write permission while it runs."""
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        raise NotTriedError("only root can start a process as another user")
    try:
        probe = subprocess.run(
            [*prefix, sys.executable, "-c", "import torch, gingham"],
            capture_output=True,
            check=False,
            timeout=60,
            cwd="/",
        )
    except OSError as error:
        raise NotTriedError(f"a process cannot be started as another user ({error.strerror})") from None
    if probe.returncode:
        raise NotTriedError("Python is not readable to another user")
    folder = Path(tempfile.mkdtemp())
    try:
        write_data(folder / "data")
        folder.chmod(0o755)
        for writable in (folder / "cache", folder / "run"):
            writable.mkdir()
            os.chown(writable, 65534, 65534)
        arguments = ("train", "--data", folder / "data", *SETTINGS, "--out", folder / "run")
        process = bench.start(
            *arguments, *LONG_TRAINING, prefix=prefix, cwd=folder, XDG_CACHE_HOME=folder / "cache", HOME=folder
        )
        wait_for(process, lambda: bool(checkpoints(folder / "run")))
        for writable in (folder / "run" / "checkpoint", folder / "run"):
            writable.chmod(0o555)
            os.chown(writable, 0, 0)
        wait_for_end(process).require_error("Permission denied")
        require(bool(checkpoints(folder / "run")), "the last checkpoint is gone")
    finally:
        shutil.rmtree(folder)


def memory_limit(bench: Bench) -> None:
    """A batch does not fit into memory (RLIMIT_AS, RLIMIT_DATA)."""
    data = bench.folder / "many"
    if not data.exists():
        write_data(data, 20_000)
    arguments = (
        "train",
        "--data",
        data,
        "--recipe",
        "fast-85",
        "--set",
        "network=huge",
        "--set",
        "batch_size=15000",
        "--out",
        bench.folder / "memory",
    )
    used = int(re.search(r"VmPeak:\s+(\d+)", status_after_imports(bench))[1]) * 1024  # type: ignore[index]
    for limits in ({"RLIMIT_AS": used + (600 << 20)}, {"RLIMIT_DATA": 1200 << 20}):
        bench.run(*arguments, **limits).require_error("memory")
    require(not (bench.folder / "memory" / METADATA_FILE).exists(), "a run without memory looks finished")


def status_after_imports(bench: Bench) -> str:
    """Return /proc/self/status of a process that only imported what a training needs."""
    script = "import gingham.cli.app, gingham.training.fit, gingham.plots; print(open('/proc/self/status').read())"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=bench.environment()
    ).stdout


def memory_limit_in_any_library(bench: Bench) -> None:
    """There is little more memory than the libraries need, so any allocation may fail.

    A library may end the process itself (OpenBLAS and oneDNN do) or fail to import, without a message; the files must
    be intact all the same, and --resume must give the same weights. A traceback that ends in gingham's own code counts
    as lost.
    """
    used = int(re.search(r"VmPeak:\s+(\d+)", status_after_imports(bench))[1]) * 1024  # type: ignore[index]
    ended_by_libraries = 0
    for extra in (20, 120):
        out = bench.folder / f"memory-{extra}"
        result = bench.run(*bench.train(out), RLIMIT_AS=used + (extra << 20))
        frames = re.findall(r'File "(.*?)"', result.stderr.partition("Traceback")[2])
        if frames and "gingham" in Path(frames[-1]).parts[-2:]:
            result.require_no_traceback()
        if result.code == 2:
            result.require_error("memory")
        elif result.code:
            ended_by_libraries += 1
        if result.code:
            require(
                not (out / METADATA_FILE).exists() or sha256(out / WEIGHTS_FILE) == bench.weights,
                "a run without memory looks finished, and is wrong",
            )
            bench.run(*bench.train(out, "--resume")).require_success()
        bench.require_result(out)
    if ended_by_libraries:
        bench.notes.append(f"out of memory, a library ended {ended_by_libraries} of 2 processes by itself")


def no_threads(bench: Bench) -> None:
    """No more threads can be started."""
    patch = (
        "import threading\n"
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = refuse\n"
    )
    result = bench.run(
        "train",
        "--data",
        bench.images,
        "--out",
        bench.folder / "no-threads",
        BEFORE=patch,
        XDG_CACHE_HOME=bench.folder / "no-cache",
    )
    result.require_error("thread")


def cache_deleted(bench: Bench) -> None:
    """The cache is deleted during a training on image files, and again before it resumes."""
    cache = bench.folder / "deleted-cache"
    arguments = train_on_images(bench, 300, "checkpoint_seconds=0", "patience=0", "batch_size=50")
    reference, out = bench.folder / "reference", bench.folder / "without-cache"
    bench.run(*arguments, "--out", reference, XDG_CACHE_HOME=cache).require_success()
    process = bench.start(*arguments, "--out", out, XDG_CACHE_HOME=cache)
    wait_for(process, lambda: bool(checkpoints(out)))
    shutil.rmtree(cache)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    result = wait_for_end(process)
    require(
        result.code in (0, 130) and "Traceback" not in result.stderr,
        f"ended with {result.code}: {result.stderr[-600:]!r}",
    )
    shutil.rmtree(cache, ignore_errors=True)
    bench.run(*arguments, "--out", out, "--resume", XDG_CACHE_HOME=cache).require_success()
    require(
        sha256(reference / WEIGHTS_FILE) == sha256(out / WEIGHTS_FILE),
        "with its cache deleted a training came to other weights",
    )


def two_at_once(bench: Bench) -> None:
    """Two trainings start in one folder: one fails with a message, the other finishes."""
    out = bench.folder / "two"
    both = [bench.start(*bench.train(out)) for _ in range(2)]
    require_one_winner(bench, [wait_for_end(process) for process in both], out)


def require_one_winner(bench: Bench, both: list[ProcessResult], out: Path) -> None:
    codes = sorted(result.code for result in both)
    require(
        codes == [0, 2],
        f"of two at once one must win; they ended with {codes}: {[result.stderr[-200:] for result in both]}",
    )
    for result in both:
        result.require_success() if result.code == 0 else result.require_error(
            "another gingham", "already", "interrupted"
        )
    bench.require_result(out)
    require(not checkpoints(out), "a checkpoint is left in a finished run")


def two_shifted(bench: Bench) -> None:
    """The second checks the folder first and is still reading its data when the first finishes."""
    out = bench.folder / "shifted"
    patch = (
        "import gingham.data.load_data as d, time, pathlib\n"
        "load = d.load_data\n"
        "def slowly(*a, **k):\n"
        "    found = load(*a, **k)\n"
        f"    while not pathlib.Path({str(out / METADATA_FILE)!r}).exists(): time.sleep(0.01)\n"
        "    time.sleep(1)\n"
        "    return found\n"
        "d.load_data = slowly"
    )
    second = bench.start(*bench.train(out), BEFORE=patch)
    first = bench.run(*bench.train(out))
    require_one_winner(bench, [first, wait_for_end(second)], out)


def trials_and_train(bench: Bench) -> None:
    """A training starts in the folder of a seed that trials are training."""
    out = bench.folder / "trials"
    arguments = [part for part in SETTINGS if part not in ("--epochs", "4")]
    trials = bench.start("trials", "--data", bench.data, *arguments, "--epochs", "600", "--seeds", "1", "--out", out)
    wait_for(trials, lambda: bool(checkpoints(out / "seed-0")))
    others = [bench.start(*bench.train(folder, "--epochs", "600", "--resume")) for folder in (out / "seed-0", out)]
    for other in others:
        wait_for_end(other).require_error("another gingham")
    wait_for_end(trials).require_success()
    require((out / "seed-0" / METADATA_FILE).exists(), "the trials did not finish their seed")


def folder_deleted(bench: Bench) -> None:
    """The run's folder is deleted during the training."""
    out = bench.folder / "removed"
    process = bench.start(*bench.train(out, "--epochs", "60"))
    wait_for(process, lambda: bool(checkpoints(out)))
    for _ in range(50):
        shutil.rmtree(out, ignore_errors=True)
        if not out.exists():
            break
    result = wait_for_end(process)
    if result.code == 0:
        require((out / METADATA_FILE).exists(), "it went on without its folder, and its result is nowhere")
        return
    result.require_error()
    bench.run(*bench.train(out, "--resume")).require_success()
    bench.require_result(out)


def jumping_clock(bench: Bench) -> None:
    """The system clock jumps by years, forwards and backwards, at every reading."""
    patch = (
        "import itertools, time\n"
        "real, jump = time.time, itertools.cycle([3e8, -9e8, 0, 5e9, -1.7e9])\n"
        "time.time = lambda: real() + next(jump)"
    )
    out = bench.folder / "clock"
    bench.run(*bench.train(out), BEFORE=patch).require_success()
    bench.require_result(out)
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is not None:
        out = bench.folder / "clock-of-the-system"
        bench.run(
            *bench.train(out), LD_PRELOAD=library, FAKETIME="+3000d", FAKETIME_DONT_FAKE_MONOTONIC="1"
        ).require_success()
        bench.require_result(out)


def full_stdout(bench: Bench) -> None:
    """stdout is on a full disk: the result is saved, and a message says that it could not be printed."""
    out = bench.folder / "full-stdout"
    with Path("/dev/full").open("w") as full:
        bench.run(*bench.train(out, "--json"), stdout=full.fileno()).require_error("No space left")
    bench.require_result(out)


def full_stderr(bench: Bench) -> None:
    """stderr is on a full disk: the training continues."""
    out = bench.folder / "full-stderr"
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *bench.command(*bench.train(out, "--json"))],
        cwd=bench.folder,
        env=bench.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    require(
        result.returncode == 0 and json.loads(result.stdout or "{}").get("steps", 0) > 0,
        f"ended with {result.returncode}: {result.stdout[-300:]!r}",
    )
    bench.require_result(out)


def closed_streams(bench: Bench) -> None:
    """stdin, stdout and stderr are closed, each alone and all at once."""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        out = bench.folder / f"closed-{len(closed)}-{closed[0]}"
        result = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *bench.command(*bench.train(out))],
            cwd=bench.folder,
            env=bench.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        ProcessResult(result.returncode, result.stdout, result.stderr).require_success()
        bench.require_result(out)


CASES: list[Callable[[Bench], None]] = [
    full_disk,
    file_limit,
    full_cache,
    full_cache_beyond_memory,
    read_only_out,
    read_only_cache,
    read_only_run,
    read_only_export,
    read_only_while_training,
    another_user,
    memory_limit,
    memory_limit_in_any_library,
    no_threads,
    cache_deleted,
    two_at_once,
    two_shifted,
    trials_and_train,
    folder_deleted,
    jumping_clock,
    full_stdout,
    full_stderr,
    closed_streams,
]


@contextlib.contextmanager
def open_bench() -> Iterator[Bench]:
    """Yield a Bench with an undisturbed run, and remove it with all its mounts at the end."""
    bench = Bench(Path(tempfile.mkdtemp(prefix="gingham-resources-")))
    try:
        write_data(bench.data)
        write_image_folder(bench.images)
        bench.run(*bench.train(bench.undisturbed)).require_success()
        bench.weights = sha256(bench.undisturbed / WEIGHTS_FILE)
        yield bench
    finally:
        for mount in bench.mounts:
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
        shutil.rmtree(bench.folder, ignore_errors=True)


def try_case(case: Callable[[Bench], None], bench: Bench) -> LostError | NotTriedError | None:
    """Run a case and return the reason for which it is lost or was not tried, or None."""
    try:
        case(bench)
    except (LostError, NotTriedError) as reason:
        return reason
    return None


def run_cases(size: int, cases: Sequence[Callable[[Bench], None]] = CASES) -> Outcome:
    """Run the first `size` cases."""
    outcome, not_tried = Outcome(), []
    with open_bench() as bench:
        # A case mostly waits for a process with one thread.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = list(pool.map(functools.partial(try_case, bench=bench), cases[:size]))
        for case, reason in zip(cases, reasons, strict=False):
            name = case.__name__.replace("_", " ")
            if isinstance(reason, NotTriedError):
                not_tried.append(f"{name} ({reason})")
                continue
            outcome.tried += 1
            if reason is not None:
                outcome.lost.append(f"{name}: {reason}")
    notes = [f"not tried: {', '.join(not_tried)}"] if not_tried else []
    outcome.figures = "; ".join([f"{outcome.tried} kinds of shortage", *bench.notes, *notes])
    return outcome


CHECKS = [
    Check(
        "training without enough disk, memory, permissions, files or time", run_cases, short=len(CASES), long=len(CASES)
    )
]
