"""What one case came to: a result or one sentence of a GinghamError, or why it is lost; whatever it did outside its folder counts."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import platformdirs

from gingham.errors import GinghamError

SECONDS = 10.0  # a case that takes longer hangs
GROWTH = 1536 << 20  # bytes that a check may hold at most, beside what the process held before it
LONGEST = 2000  # characters of a sentence
# Modules that nothing here imports: inputs name them, and whoever imports one has taken a module's name from a file.
LURES = ("antigravity", "gingham_lure", "this", "turtledemo")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
REACHES = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request", "ftplib.connect")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
           "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooLongError(BaseException):
    """Raised by the alarm; no BaseException of a reader's own, so that none of them takes it for damage."""


class _Watch:
    """Collects what audit events tell of while a case runs, in all threads."""

    def __init__(self) -> None:
        self.allowed: str | None = None  # the one folder that may be written to; None while no case runs
        self.seen: list[str] = []
        self.libraries: set[str] = set()  # that were asked for between cases, as torch asks for those of GPUs
        self.looking = threading.local()

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.allowed is None:
            if event == "ctypes.dlopen":
                self.libraries.add(str(arguments[0]))
            return
        if getattr(self.looking, "on", False):
            return
        self.looking.on = True  # finding out must not be found out about
        try:
            if found := self.judged(event, arguments):
                self.seen.append(found)
        finally:
            self.looking.on = False

    def judged(self, event: str, arguments: tuple[object, ...]) -> str | None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & WRITING
            writes = writes or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
            return self.outside("wrote to", path) if writes else None
        if event in CHANGES:
            paths = arguments[:2] if event in ("os.rename", "os.link", "shutil.move") else arguments[:1]
            paths = arguments[1:2] if event in ("os.symlink", "shutil.copyfile") else paths
            return next(filter(None, (self.outside(event, path) for path in paths)), None)
        if event in STARTS or event in REACHES or event == "pickle.find_class":
            return f"{event} {arguments!r:.200}"
        if event == "ctypes.dlopen" and arguments[0] is not None and str(arguments[0]) not in self.libraries:
            return f"{event} {arguments!r:.200}"
        if event == "import" and str(arguments[0]).partition(".")[0] in LURES:
            return f"imported {arguments[0]}"
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            # Code of modules has a file; namedtuple and dataclass, which make code from text, run while one is imported.
            if name.startswith("<") and not name.startswith(("<frozen", "<unknown")) and not _importing():
                return f"executed {name}"
        return None

    def outside(self, what: str, path: object) -> str | None:
        if isinstance(path, int) or path is None or path in (os.devnull, os.fsencode(os.devnull)):
            return None
        try:
            real = os.path.realpath(os.fsdecode(path))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return None  # no path at all: the system refuses it
        return None if real == self.allowed or real.startswith(f"{self.allowed}{os.sep}") else f"{what} {real}"


def _importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


WATCH = _Watch()
_HOOKED: list[bool] = []  # a hook cannot be taken back: there is one, and it rests between cases


class Judge:
    """Runs cases in a folder of their own and says of each why it is lost, or None.

    `place` is where a case may write, and where the cache of Gingham lies meanwhile; `beside` is a folder next to it that it may not.
    """

    def __init__(self, root: Path, seconds: float = SECONDS, growth: int = GROWTH) -> None:
        self.seconds, self.growth = seconds, growth
        self.place, self.beside = (Path(os.path.realpath(root)) / name for name in ("place", "beside"))
        for folder in (self.place, self.beside):
            folder.mkdir()
        forget_peak()
        self.before = peak_bytes()

    def __call__(self, act: Callable[[], object]) -> str | None:
        WATCH.seen.clear()
        WATCH.allowed = str(self.place)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            act()
            reason = None
        except GinghamError as error:
            reason = badly_said(str(error))
        except KeyboardInterrupt:
            raise
        except TooLongError:
            reason = f"took more than {self.seconds:g} s"
        except BaseException as error:  # noqa: BLE001  # any other one is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            WATCH.allowed = None
        if WATCH.seen:
            return f"{WATCH.seen[0]} ({reason or 'and went on'})"
        if (grown := peak_bytes() - self.before) > self.growth:
            self.before += grown
            return f"held {grown >> 20} MiB more than before the check"
        return reason


def badly_said(message: str) -> str | None:
    """Why a message is no sentence to show, or None."""
    if not message.strip():
        return "an error without a message"
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters: {message[:200]!r}"
    if not message.isprintable():
        return f"a message with a line break, a control sign or half a letter: {message[:300]!r}"
    return f"a traceback for a message: {message[:300]!r}" if "Traceback" in message else None


def peak_bytes() -> int:
    """The most memory this process has held at once, since `forget_peak` where the system can forget it."""
    with contextlib.suppress(OSError, StopIteration, ValueError), Path("/proc/self/status").open() as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (10 if sys.platform == "linux" else 0)


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # hundreds of thousands of files are written
    root = tempfile.mkdtemp(prefix="gingham-stress-", dir=memory)
    try:
        yield Path(root)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # Python removes no folders that lie as deep in each other as some here


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Say nothing on stderr: the libraries that read pictures complain there of each that is damaged, in C."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def judging(seconds: float = SECONDS, growth: int = GROWTH) -> Iterator[Judge]:
    """Yield a Judge with a folder of its own, an alarm, a limit to memory and the audit hook; only in the main thread."""
    if not _HOOKED:
        sys.addaudithook(WATCH)
        _HOOKED.append(True)

    def ring(number: int, frame: object) -> None:
        raise TooLongError

    heard = signal.signal(signal.SIGALRM, ring)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with _folder() as root, _silent():
        judge = Judge(root, seconds, growth)
        cache = mock.patch.object(platformdirs, "user_cache_path", lambda name: judge.place / "cache" / name)
        # What survives a power cut is another check's business, and to wait for the disk would take most of the time here.
        unsynced = mock.patch.object(os, "fsync", return_value=None)
        with (
            contextlib.chdir(judge.place),
            cache,
            unsynced,
            mock.patch.dict(os.environ, GINGHAM_DATA=str(judge.place / "data")),
        ):
            if sys.platform == "linux":  # elsewhere what a process has mapped says little
                mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * growth, limits[1]))
            try:
                yield judge
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
                signal.signal(signal.SIGALRM, heard)
