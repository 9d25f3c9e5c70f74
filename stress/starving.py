"""A training that is starved of disk, memory, permissions, files, time: it ends in one sentence, or goes on unharmed.

Each case is a real `gingham`, in a folder of its own with a small dataset. It is survived if the process exits with 2 and one line on stderr after
its lines of progress, no traceback and what was there before intact; or with 0 and the result of an undisturbed run, byte for byte. Where
room is made again, `--resume` must come to those bytes too.

Cases that need to mount file systems are not tried where that is not allowed, nor that of another user where Python is not readable to one; they are
named in the figures, and are not counted as tried.
"""

import contextlib
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stress.outcomes import Check, Outcome

LIMIT_SECONDS = 120  # against hangs
WEIGHTS_FILE, METADATA_FILE = "model.safetensors", "model.json"
SETTINGS = ("--recipe", "fast-85", "--epochs", "4", "--set", "batch_size=50", "--set", "validation_images=40")
SETTINGS += ("--set", "patience=0", "--set", "checkpoint_seconds=0")
# Run in the child: limits on itself, then gingham. Where this runs in the background, Ctrl-C is ignored, and would be in there.
LIMITED = """
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
    """A case that was not survived, in a sentence."""


class NotTriedError(Exception):
    """A case that cannot be tried here, and why."""


@dataclass
class Done:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str

    def refused(self, *said: str) -> None:
        """Require exit code 2 and one sentence at the end, which has one of some words in it."""
        self.no_traceback()
        lines = [line for line in self.stderr.splitlines() if line.startswith("gingham: ")]
        if self.code != 2 or len(lines) != 1 or self.stderr.splitlines()[-1:] != lines:
            raise LostError(f"ended with {self.code} and {self.stderr[-600:]!r}, not with 2 and one sentence")
        if said and not any(one in lines[0] for one in said):
            raise LostError(f"said {lines[0]!r}, and nothing of {' or '.join(said)}")

    def went_well(self) -> None:
        self.no_traceback()
        if self.code != 0:
            raise LostError(f"ended with {self.code} and {self.stderr[-600:]!r}")

    def no_traceback(self) -> None:
        if "Traceback" in self.stderr:
            raise LostError(f"ended with {self.code} and a traceback: {self.stderr[-600:]!r}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LostError(otherwise)


@dataclass
class Bench:
    """A folder to starve things in: a dataset, an undisturbed run of it and that run's weights."""

    folder: Path
    mounts: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the figures
    weights: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def undisturbed(self) -> Path:
        return self.folder / "undisturbed"

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", LIMITED, *map(str, arguments)]

    def environment(self, **more: object) -> dict[str, str]:
        return {
            **os.environ,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            **{name: str(value) for name, value in more.items()},
        }

    def run(
        self,
        *arguments: object,
        prefix: Sequence[str] = (),
        stdout: int | None = None,
        cwd: Path | None = None,
        **environment: object,
    ) -> Done:
        """Run a command to its end. stdout goes to a file descriptor where one is given."""
        started = self.start(*arguments, prefix=prefix, stdout=stdout, cwd=cwd, **environment)
        return ended(started)

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
        """Require a finished run with the bytes of the undisturbed one."""
        require((out / METADATA_FILE).exists(), f"{out.name} was not finished")
        require(sha256(out / WEIGHTS_FILE) == self.weights, f"{out.name} came to other weights than an undisturbed run")
        seconds = json.loads((out / METADATA_FILE).read_text())["metrics"]["wall_seconds"]
        require(0 < seconds < LIMIT_SECONDS, f"{out.name} says that it took {seconds} wall_seconds")

    def mounted(self, megabytes: float = 64) -> Path:
        """A file system of its own, in memory, of so much room."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "gingham-starving", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotTriedError(f"file systems cannot be mounted here ({done.stderr.strip()[:80]})")
        self.mounts.append(place)
        return place

    def remount(self, place: Path, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


def ended(process: "subprocess.Popen[str]") -> Done:
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LostError(f"did not end within {LIMIT_SECONDS} s") from None
    return Done(process.returncode, stdout or "", stderr or "")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """All files in a folder, by their checksums."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def write_data(folder: Path, images: int = 300) -> None:
    """Four IDX files of noisy pictures with one bright quadrant a class."""
    chance = np.random.RandomState(0)
    folder.mkdir()
    for kind, count in (("train", images), ("t10k", 80)):
        labels = (np.arange(count) % 4).astype(np.uint8)
        pixels = chance.randint(0, 90, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[label // 2 * 14 :, label % 2 * 14 :][:14, :14] += 140
        for array, name in ((pixels, f"{kind}-images-idx3-ubyte"), (labels, f"{kind}-labels-idx1-ubyte")):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / name).write_bytes(head + array.tobytes())


def write_pictures(folder: Path, images: int = 120) -> None:
    """A folder of class folders, whose pictures are packed into the cache."""
    chance = np.random.RandomState(1)
    for k in range(images):
        place = folder / f"class-{k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.randint(120 * (k % 2), 120 * (k % 2) + 130, (28, 28)).astype(np.uint8)).save(place / f"{k}.png")


def checkpoints(out: Path) -> list[Path]:
    return [file for file in out.glob("checkpoint/*") if file.is_file()]


def wait_for(process: "subprocess.Popen[str]", what: Callable[[], bool]) -> None:
    """Wait until something has come about; a LostError if the process ends before."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not what():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise LostError(f"ended too early, with {process.poll()}: {(process.communicate()[1] or '')[-600:]!r}")
        time.sleep(0.005)


LONG = ("--epochs", "400")  # far longer than it takes to do something to it


def full_disk(bench: Bench) -> None:
    """The disk is full when a checkpoint is written; room is made, and --resume goes on."""
    place = bench.mounted()
    first = bench.run(*bench.train(place / "probe"))
    first.went_well()
    size = sum(file.stat().st_size for file in (place / "probe").rglob("*") if file.is_file())
    shutil.rmtree(place / "probe")
    kept = place / "earlier"
    shutil.copytree(bench.undisturbed, kept)
    before = contents(kept)
    filler = place / "filler"
    for share in (
        0.02,
        0.5,
        1.2,
        2.2,
    ):  # of what a run holds: no checkpoint fits, or one and no other, or all but the final files
        out = place / f"run-{share}"
        fill(place, filler, int(share * size))
        done = bench.run(*bench.train(out))
        if done.code == 0:
            done.went_well()
        else:
            done.refused("No space left", "space", "room")
            require(
                not (out / METADATA_FILE).exists(),
                f"a run that failed for want of room looks finished (at {share} of its size)",
            )
        filler.unlink()
        require(contents(kept) == before, "an earlier run was changed by another for which there was no room")
        bench.run(*bench.train(out, "--resume")).went_well()
        bench.require_result(out)
        require(not leftovers(out), f"files that were being written are left: {leftovers(out)}")


def leftovers(out: Path) -> list[str]:
    return [file.name for file in out.rglob(".*")] + [file.name for file in checkpoints(out)]


def fill(place: Path, filler: Path, leave: int) -> None:
    status = os.statvfs(place)
    with filler.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))


def file_limit(bench: Bench) -> None:
    """No file may be larger than what a checkpoint needs (RLIMIT_FSIZE)."""
    out = bench.folder / "file-limit"
    for size in (1000, 60_000):
        bench.run(*bench.train(out), RLIMIT_FSIZE=size).refused()
        require(not (out / METADATA_FILE).exists(), "a run that could not be written looks finished")
    bench.run(*bench.train(out, "--resume")).went_well()
    bench.require_result(out)


def full_cache(bench: Bench) -> None:
    """The user's cache is on a disk that is full: a training on files costs time, and comes to the same."""
    pictures = bench.folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    line = ("train", "--data", pictures, "--recipe", "fast-85", "--epochs", "2", "--set", "validation_images=20")
    bench.run(*line, "--out", bench.folder / "cached").went_well()
    cache = bench.mounted(0.2)
    fill(cache, cache / "filler", 50_000)  # for the beginning of a pack
    bench.run(*line, "--out", bench.folder / "uncached", XDG_CACHE_HOME=cache).went_well()
    weights = [sha256(bench.folder / name / WEIGHTS_FILE) for name in ("cached", "uncached")]
    require(weights[0] == weights[1], "with a full cache a training came to other weights")


def full_cache_beyond_memory(bench: Bench) -> None:
    """The same, for pictures that do not fit into memory: they need the cache, and that is said; no signal ends the process."""
    pictures = bench.folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    cache = bench.mounted(0.06)
    few = "import gingham.data.pack_cache; gingham.data.pack_cache.free_memory = lambda: 1000"
    done = bench.run("train", "--data", pictures, "--out", bench.folder / "large", XDG_CACHE_HOME=cache, BEFORE=few)
    done.refused("free")


def read_only_out(bench: Bench) -> None:
    """--out, and runs/ in the folder worked in, on a read-only file system."""
    place = bench.mounted()
    bench.remount(place, "ro")
    bench.run(*bench.train(place / "out")).refused("Read-only")
    bench.run("train", "--data", bench.data, *SETTINGS, cwd=place).refused("Read-only")
    bench.run("trials", "--data", bench.data, *SETTINGS, "--seeds", "2", "--out", place / "trials").refused("Read-only")


def read_only_cache(bench: Bench) -> None:
    """The cache cannot be written to."""
    pictures = bench.folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    cache = bench.mounted()
    bench.remount(cache, "ro")
    out = bench.folder / "read-only-cache"
    bench.run("train", "--data", pictures, "--recipe", "fast-85", "--out", out, XDG_CACHE_HOME=cache).went_well()
    require((out / METADATA_FILE).exists(), "a run with a read-only cache was not finished")


def read_only_run(bench: Bench) -> None:
    """A finished run that cannot be written to: the test split stays shut, everything else is answered."""
    place = bench.mounted()
    run = place / "run"
    shutil.copytree(bench.undisturbed, run)
    before = contents(run)
    bench.remount(place, "ro")
    bench.run("evaluate", run, "--split", "test").refused("Read-only")
    bench.run("evaluate", run).went_well()
    bench.run("report", run).refused("Read-only")
    bench.run("report", run, "--out", place / "other.html").refused("Read-only")
    bench.run("report", run, "--out", bench.folder / "report.html").went_well()
    require(contents(run) == before, "a read-only run has changed")


def read_only_export(bench: Bench) -> None:
    """An export to a place that cannot be written to."""
    with contextlib.suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        place = bench.mounted()
        bench.remount(place, "ro")
        bench.run("export", place / "model.onnx", "--run", bench.undisturbed).refused("Read-only")
        return
    raise NotTriedError("the packages of the extra export are not installed")


def read_only_on_the_way(bench: Bench) -> None:
    """The file system becomes read-only while a training runs, as after an error of the disk; then it is writable again."""
    place = bench.mounted()
    out = place / "run"
    process = bench.start(*bench.train(out, *LONG))
    wait_for(process, lambda: bool(checkpoints(out)))
    for _ in range(200):  # refused while a file is open for writing
        with contextlib.suppress(subprocess.CalledProcessError):
            bench.remount(place, "ro")
            break
    else:
        process.kill()
        process.communicate()
        raise NotTriedError("the file system was never without a file open for writing")
    ended(process).refused("Read-only")
    require(bool(checkpoints(out)), "the last checkpoint is gone")
    bench.remount(place, "rw")
    finished = bench.folder / "long"
    bench.run(*bench.train(finished, "--epochs", "6")).went_well()
    shutil.rmtree(out)
    bench.run(*bench.train(out, "--epochs", "6")).went_well()
    require(
        sha256(out / WEIGHTS_FILE) == sha256(finished / WEIGHTS_FILE), "after it was read-only a folder came to other weights"
    )


def another_user(bench: Bench) -> None:
    """Another user's training loses the permission to write while it runs, and gets it back."""
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        raise NotTriedError("only root can start a process as another user")
    try:
        able = subprocess.run(
            [*prefix, sys.executable, "-c", "import torch, gingham"], capture_output=True, check=False, timeout=60, cwd="/"
        )
    except OSError as error:
        raise NotTriedError(f"a process cannot be started as another user ({error.strerror})") from None
    if able.returncode:
        raise NotTriedError("Python is not readable to another user")
    place = Path(tempfile.mkdtemp())
    try:
        write_data(place / "data")
        place.chmod(0o755)
        for folder in (place / "cache", place / "run"):
            folder.mkdir()
            os.chown(folder, 65534, 65534)
        line = ("train", "--data", place / "data", *SETTINGS, "--out", place / "run")
        process = bench.start(*line, *LONG, prefix=prefix, cwd=place, XDG_CACHE_HOME=place / "cache", HOME=place)
        wait_for(process, lambda: bool(checkpoints(place / "run")))
        for folder in (place / "run" / "checkpoint", place / "run"):
            folder.chmod(0o555)
            os.chown(folder, 0, 0)
        ended(process).refused("Permission denied")
        require(bool(checkpoints(place / "run")), "the last checkpoint is gone")
    finally:
        shutil.rmtree(place)


def memory_limit(bench: Bench) -> None:
    """A batch that does not fit into memory (RLIMIT_AS, RLIMIT_DATA), and a size of pictures that does not."""
    data = bench.folder / "many"
    if not data.exists():
        write_data(data, 20_000)
    line = (
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
    used = int(re.search(r"VmPeak:\s+(\d+)", importing(bench))[1]) * 1024  # type: ignore[index]
    for limits in ({"RLIMIT_AS": used + (600 << 20)}, {"RLIMIT_DATA": 1200 << 20}):
        bench.run(*line, **limits).refused("memory")
    require(not (bench.folder / "memory" / METADATA_FILE).exists(), "a run without memory looks finished")


def importing(bench: Bench) -> str:
    """What the system says of a process that has done nothing but import what a training needs."""
    script = "import gingham.cli.app, gingham.training.fit, gingham.plots; print(open('/proc/self/status').read())"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=bench.environment()
    ).stdout


def memory_at_every_place(bench: Bench) -> None:
    """Little more memory than the libraries take, and what asks for more first is anything.

    Where a library ends the process by itself (OpenBLAS and oneDNN do), or breaks while it is imported, nothing can be said; but what is there
    is whole, and --resume comes to the same. A traceback that ends in gingham's own code is lost.
    """
    used = int(re.search(r"VmPeak:\s+(\d+)", importing(bench))[1]) * 1024  # type: ignore[index]
    ended_by_libraries = 0
    for more in (20, 120):
        out = bench.folder / f"memory-{more}"
        done = bench.run(*bench.train(out), RLIMIT_AS=used + (more << 20))
        frames = re.findall(r'File "(.*?)"', done.stderr.partition("Traceback")[2])
        if frames and "gingham" in Path(frames[-1]).parts[-2:]:
            done.no_traceback()
        if done.code == 2:
            done.refused("memory")
        elif done.code:
            ended_by_libraries += 1
        if done.code:
            require(
                not (out / METADATA_FILE).exists() or sha256(out / WEIGHTS_FILE) == bench.weights,
                "a run without memory looks finished, and is wrong",
            )
            bench.run(*bench.train(out, "--resume")).went_well()
        bench.require_result(out)
    if ended_by_libraries:
        bench.notes.append(f"out of memory, a library ended {ended_by_libraries} of 2 processes by itself")


def no_threads(bench: Bench) -> None:
    """No further thread can be started."""
    failing = (
        'import threading\ndef refuse(*_): raise RuntimeError("can\'t start new thread")\nthreading.Thread.start = refuse\n'
    )
    pictures = bench.folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    done = bench.run(
        "train",
        "--data",
        pictures,
        "--out",
        bench.folder / "no-threads",
        BEFORE=failing,
        XDG_CACHE_HOME=bench.folder / "no-cache",
    )
    done.refused("thread")


def cache_deleted(bench: Bench) -> None:
    """The cache is deleted while a training on files runs, and again before it goes on."""
    pictures, cache = bench.folder / "pictures", bench.folder / "deleted-cache"
    if not pictures.exists():
        write_pictures(pictures)
    line = (
        "train",
        "--data",
        pictures,
        "--recipe",
        "fast-85",
        "--epochs",
        "300",
        "--set",
        "validation_images=20",
        "--set",
        "checkpoint_seconds=0",
    )
    line += ("--set", "patience=0", "--set", "batch_size=50")
    whole, out = bench.folder / "whole", bench.folder / "without-cache"
    bench.run(*line, "--out", whole, XDG_CACHE_HOME=cache).went_well()
    process = bench.start(*line, "--out", out, XDG_CACHE_HOME=cache)
    wait_for(process, lambda: bool(checkpoints(out)))
    shutil.rmtree(cache)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    require(done.code in (0, 130) and "Traceback" not in done.stderr, f"ended with {done.code}: {done.stderr[-600:]!r}")
    shutil.rmtree(cache, ignore_errors=True)
    bench.run(*line, "--out", out, "--resume", XDG_CACHE_HOME=cache).went_well()
    require(
        sha256(whole / WEIGHTS_FILE) == sha256(out / WEIGHTS_FILE), "with its cache deleted a training came to other weights"
    )


def two_at_once(bench: Bench) -> None:
    """Two trainings started into one folder: one is told so, the other comes to its result."""
    out = bench.folder / "two"
    both = [bench.start(*bench.train(out)) for _ in range(2)]
    one_of(bench, [ended(process) for process in both], out)


def one_of(bench: Bench, both: list[Done], out: Path) -> None:
    codes = sorted(done.code for done in both)
    require(codes == [0, 2], f"of two at once one must win; they ended with {codes}: {[done.stderr[-200:] for done in both]}")
    for done in both:
        done.went_well() if done.code == 0 else done.refused("another gingham", "already holds", "interrupted")
    bench.require_result(out)
    require(not checkpoints(out), "a checkpoint is left in a finished run")


def two_shifted(bench: Bench) -> None:
    """The second has looked into the folder, and reads its data, while the first finishes."""
    out = bench.folder / "shifted"
    slow = "import gingham.data.load_data as d, time, pathlib\nload = d.load_data\ndef slowly(*a, **k):\n    found = load(*a, **k)\n"
    slow += f"    while not pathlib.Path({str(out / METADATA_FILE)!r}).exists(): time.sleep(0.01)\n    time.sleep(1)\n    return found\nd.load_data = slowly"
    second = bench.start(*bench.train(out), BEFORE=slow)
    first = bench.run(*bench.train(out))
    one_of(bench, [first, ended(second)], out)


def trials_and_train(bench: Bench) -> None:
    """A training started into the folder of a seed that trials are training."""
    out = bench.folder / "trials"
    line = [part for part in SETTINGS if part not in ("--epochs", "4")]
    trials = bench.start("trials", "--data", bench.data, *line, "--epochs", "600", "--seeds", "1", "--out", out)
    wait_for(trials, lambda: bool(checkpoints(out / "seed-0")))
    others = [bench.start(*bench.train(place, "--epochs", "600", "--resume")) for place in (out / "seed-0", out)]
    for other in others:
        ended(other).refused("another gingham")
    ended(trials).went_well()
    require((out / "seed-0" / METADATA_FILE).exists(), "the trials did not finish their seed")


def folder_deleted(bench: Bench) -> None:
    """The run's folder is deleted while the training runs."""
    out = bench.folder / "removed"
    process = bench.start(*bench.train(out, "--epochs", "60"))
    wait_for(process, lambda: bool(checkpoints(out)))
    for _ in range(50):
        shutil.rmtree(out, ignore_errors=True)
        if not out.exists():
            break
    done = ended(process)
    if done.code == 0:
        require((out / METADATA_FILE).exists(), "it went on without its folder, and its result is nowhere")
        return
    done.refused()
    bench.run(*bench.train(out, "--resume")).went_well()
    bench.require_result(out)


def jumping_clock(bench: Bench) -> None:
    """The time of day jumps by years, to and fro, with every look at it."""
    jumps = "import itertools, time\nreal, jump = time.time, itertools.cycle([3e8, -9e8, 0, 5e9, -1.7e9])\ntime.time = lambda: real() + next(jump)"
    out = bench.folder / "clock"
    bench.run(*bench.train(out), BEFORE=jumps).went_well()
    bench.require_result(out)
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is not None:
        out = bench.folder / "clock-of-the-system"
        bench.run(*bench.train(out), LD_PRELOAD=library, FAKETIME="+3000d", FAKETIME_DONT_FAKE_MONOTONIC="1").went_well()
        bench.require_result(out)


def full_stdout(bench: Bench) -> None:
    """What is printed goes to a full disk: the result is kept, and it is said that it could not be printed."""
    out = bench.folder / "full-stdout"
    with Path("/dev/full").open("w") as full:
        bench.run(*bench.train(out, "--json"), stdout=full.fileno()).refused("No space left")
    bench.require_result(out)


def full_stderr(bench: Bench) -> None:
    """Nothing can be said: the training goes on without."""
    out = bench.folder / "full-stderr"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *bench.command(*bench.train(out, "--json"))],
        cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    require(
        done.returncode == 0 and json.loads(done.stdout or "{}").get("steps", 0) > 0,
        f"ended with {done.returncode}: {done.stdout[-300:]!r}",
    )
    bench.require_result(out)


def closed_streams(bench: Bench) -> None:
    """stdin, stdout and stderr are closed, one alone and all at once."""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        out = bench.folder / f"closed-{len(closed)}-{closed[0]}"
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *bench.command(*bench.train(out))],
            cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS,
        )  # fmt: skip
        Done(done.returncode, done.stdout, done.stderr).went_well()
        bench.require_result(out)


CASES: list[Callable[[Bench], None]] = [
    full_disk, file_limit, full_cache, full_cache_beyond_memory, read_only_out, read_only_cache, read_only_run, read_only_export, read_only_on_the_way,
    another_user, memory_limit, memory_at_every_place, no_threads, cache_deleted, two_at_once, two_shifted, trials_and_train, folder_deleted,
    jumping_clock, full_stdout, full_stderr, closed_streams,
]  # fmt: skip


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A folder with a dataset and an undisturbed run; taken away at the end, with all that was mounted in it."""
    place = Bench(Path(tempfile.mkdtemp(prefix="gingham-starving-")))
    try:
        write_data(place.data)
        place.run(*place.train(place.undisturbed)).went_well()
        place.weights = sha256(place.undisturbed / WEIGHTS_FILE)
        yield place
    finally:
        for mount in place.mounts:
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
        shutil.rmtree(place.folder, ignore_errors=True)


def starve(size: int, cases: Sequence[Callable[[Bench], None]] = CASES) -> Outcome:
    """Try the first so many cases."""
    outcome, not_tried = Outcome(), []
    with bench() as place:
        for case in cases[:size]:
            name = case.__name__.replace("_", " ")
            try:
                case(place)
            except NotTriedError as reason:
                not_tried.append(f"{name} ({reason})")
                continue
            except LostError as reason:
                outcome.lost.append(f"{name}: {reason}")
            outcome.tried += 1
    unable = [f"not tried: {', '.join(not_tried)}"] if not_tried else []
    outcome.figures = "; ".join([f"{outcome.tried} kinds of want", *place.notes, *unable])
    return outcome


CHECKS = [Check("trainings starved of room, memory, permission, files and time", starve, short=len(CASES), long=len(CASES))]
