"""Judge one case: it must return or raise a readable GinghamError, within its limits, and write only in its folder."""

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

TIME_LIMIT_SECONDS = 10.0  # a case that takes longer counts as hanging
MEMORY_LIMIT_BYTES = 1536 << 20  # that a check may use in addition to what the process used before
MAX_MESSAGE_LENGTH = 2000  # characters
# Modules that nothing here imports. Inputs name them: an import of one means that a module's name was read from an
# input.
DECOY_MODULES = ("antigravity", "gingham_lure", "this", "turtledemo")
PROCESS_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
NETWORK_EVENTS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.bind",
    "socket.sendto",
    "urllib.Request",
    "ftplib.connect",
)
FILE_EVENTS = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copyfile",
)
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooLongError(BaseException):
    """Raised by the alarm. A BaseException, so that no reader mistakes it for a damaged file."""


class _AuditHook:
    """Collects forbidden audit events of all threads while a case runs."""

    def __init__(self) -> None:
        self.writable_folder: str | None = None  # None while no case runs
        self.violations: list[str] = []
        self.libraries: set[str] = set()  # loaded between cases, such as those of GPUs by torch
        self.thread = threading.local()

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.writable_folder is None:
            if event == "ctypes.dlopen":
                self.libraries.add(str(arguments[0]))
            return
        if getattr(self.thread, "on", False):
            return
        self.thread.on = True  # checking an event raises events of its own
        try:
            if message := self.violation(event, arguments):
                self.violations.append(message)
        finally:
            self.thread.on = False

    def violation(self, event: str, arguments: tuple[object, ...]) -> str | None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & WRITE_FLAGS
            writes = writes or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
            return self.write_outside("wrote to", path) if writes else None
        if event in FILE_EVENTS:
            paths = arguments[:2] if event in ("os.rename", "os.link", "shutil.move") else arguments[:1]
            paths = arguments[1:2] if event in ("os.symlink", "shutil.copyfile") else paths
            return next(filter(None, (self.write_outside(event, path) for path in paths)), None)
        if event in PROCESS_EVENTS or event in NETWORK_EVENTS or event == "pickle.find_class":
            return f"{event} {arguments!r:.200}"
        if event == "ctypes.dlopen" and arguments[0] is not None and str(arguments[0]) not in self.libraries:
            return f"{event} {arguments!r:.200}"
        if event == "import" and str(arguments[0]).partition(".")[0] in DECOY_MODULES:
            return f"imported {arguments[0]}"
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            # Modules have a file name; namedtuple and dataclass, which compile text, run while a module is imported.
            if name.startswith("<") and not name.startswith(("<frozen", "<unknown")) and not _is_importing():
                return f"executed {name}"
        return None

    def write_outside(self, action: str, path: object) -> str | None:
        if isinstance(path, int) or path is None or path in (os.devnull, os.fsencode(os.devnull)):
            return None
        try:
            resolved = os.path.realpath(os.fsdecode(path))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return None  # not a path: the system refuses it
        return (
            None
            if resolved == self.writable_folder or resolved.startswith(f"{self.writable_folder}{os.sep}")
            else f"{action} {resolved}"
        )


def _is_importing() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


AUDIT_HOOK = _AuditHook()
_HOOK_INSTALLED: list[
    bool
] = []  # an audit hook cannot be removed: one is installed, and it ignores events between cases


class Judge:
    """Runs cases in a folder of their own and returns why a case is lost, or None.

    A case may write to `folder`, where Gingham's cache is while the case runs, but not to `outside`, a folder next to
    it.
    """

    def __init__(self, root: Path, seconds: float = TIME_LIMIT_SECONDS, growth: int = MEMORY_LIMIT_BYTES) -> None:
        self.seconds, self.growth = seconds, growth
        self.folder, self.outside = (Path(os.path.realpath(root)) / name for name in ("folder", "outside"))
        for folder in (self.folder, self.outside):
            folder.mkdir()
        reset_peak_memory()
        self.baseline = peak_memory()

    def __call__(self, case: Callable[[], object]) -> str | None:
        AUDIT_HOOK.violations.clear()
        AUDIT_HOOK.writable_folder = str(self.folder)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            case()
            reason = None
        except GinghamError as error:
            reason = message_problem(str(error))
        except KeyboardInterrupt:
            raise
        except TooLongError:
            reason = f"took more than {self.seconds:g} s"
        except BaseException as error:  # noqa: BLE001  # any other exception is a bug
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            AUDIT_HOOK.writable_folder = None
        if AUDIT_HOOK.violations:
            return f"{AUDIT_HOOK.violations[0]} ({reason or 'and went on'})"
        if (excess := peak_memory() - self.baseline) > self.growth:
            self.baseline += excess
            return f"held {excess >> 20} MiB more than before the check"
        return reason


def message_problem(message: str) -> str | None:
    """Return why a message is not fit to be shown, or None."""
    if not message.strip():
        return "an error without a message"
    if len(message) > MAX_MESSAGE_LENGTH:
        return f"a message of {len(message)} characters: {message[:200]!r}"
    if not message.isprintable():
        return f"a message with a line break, a control sign or half a letter: {message[:300]!r}"
    return f"a traceback for a message: {message[:300]!r}" if "Traceback" in message else None


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, since `reset_peak_memory` where the system can reset it."""
    with contextlib.suppress(OSError, StopIteration, ValueError), Path("/proc/self/status").open() as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (10 if sys.platform == "linux" else 0)


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # hundreds of thousands of files are written
    root = tempfile.mkdtemp(prefix="gingham-stress-", dir=memory)
    try:
        yield Path(root)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # Python cannot remove folders nested as deeply as some here


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard stderr: the C libraries that read images report each damaged one there."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def isolated_judge(seconds: float = TIME_LIMIT_SECONDS, growth: int = MEMORY_LIMIT_BYTES) -> Iterator[Judge]:
    """Yield a Judge with its own folder, an alarm, a memory limit and the audit hook; only in the main thread."""
    if not _HOOK_INSTALLED:
        sys.addaudithook(AUDIT_HOOK)
        _HOOK_INSTALLED.append(True)

    def raise_timeout(number: int, frame: object) -> None:
        raise TooLongError

    previous_handler = signal.signal(signal.SIGALRM, raise_timeout)
    previous_limits = resource.getrlimit(resource.RLIMIT_AS)
    with _temporary_folder() as root, _silence_stderr():
        judge = Judge(root, seconds, growth)
        cache = mock.patch.object(platformdirs, "user_cache_path", lambda name: judge.folder / "cache" / name)
        # fsync would take most of the time, and surviving a power cut is not tested here.
        no_fsync = mock.patch.object(os, "fsync", return_value=None)
        with (
            contextlib.chdir(judge.folder),
            cache,
            no_fsync,
            mock.patch.dict(os.environ, GINGHAM_DATA=str(judge.folder / "data")),
        ):
            if sys.platform == "linux":  # elsewhere the mapped memory says little
                mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * growth, previous_limits[1]))
            try:
                yield judge
            finally:
                resource.setrlimit(resource.RLIMIT_AS, previous_limits)
                signal.signal(signal.SIGALRM, previous_handler)
