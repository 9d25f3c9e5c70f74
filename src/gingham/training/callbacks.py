"""What watches a training: the progress bar and the TensorBoard logger."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tqdm import tqdm

from gingham.errors import GinghamError
from gingham.training.history import History
from gingham.training.optimizer import lr_at


class TensorBoardLogger:
    """Writes the history for TensorBoard at the end of each epoch: loss, accuracy and learning rate of each step, validation results."""

    def __init__(self, history: History, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise GinghamError(
                "--track tensorboard needs the package tensorboard; install it with pip install 'gingham[track]'"
            ) from error
        # Steps that a killed training wrote after its last checkpoint are written again, so the old ones are hidden.
        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self.history, self.written = history, start

    def on_epoch_end(self, done: int) -> None:
        """Write everything up to step `done`."""
        history = self.history
        span = slice(self.written, done)
        for step, (loss, accuracy) in enumerate(
            zip(history.losses[span].tolist(), (history.correct / history.sizes)[span].tolist(), strict=True),
            self.written + 1,
        ):
            self._add("train/loss", loss, step)
            self._add("train/accuracy", accuracy, step)
            self._add("learning_rate", lr_at(step - 1, history.sampler.steps, history.recipe), step)
        for key in ("loss", "accuracy"):
            if (value := history.epochs[-1][f"validation_{key}"]) is not None:
                self._add(f"validation/{key}", value, done)
        self.written = done
        self.writer.flush()

    def _add(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class ProgressBar:
    """Shows progress on stderr: a tqdm bar on a terminal, else a line for each epoch and one every ten seconds."""

    def __init__(self, history: History, start: int, shown: bool, notes: Sequence[str] = ()) -> None:
        self.history, self.sampler, self.shown = history, history.sampler, shown
        self.live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=self.sampler.steps, initial=start, unit="step", file=sys.stderr, disable=not self.live)
        self.interval = 0.2 if self.live else 10.0  # seconds; reading a loss waits for the GPU, so not more often
        self.next_update = time.monotonic() + self.interval
        for note in notes:
            self.warn(note)
        if start:
            self._print(f"going on from step {start} of {self.sampler.steps}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def on_step_end(self, done: int) -> None:
        """Show the state after `done` steps, if it is time to."""
        steps = self.sampler.steps
        if not self.shown or (time.monotonic() < self.next_update and not (self.live and done == steps)):
            return
        self.next_update = time.monotonic() + self.interval
        _, epoch_step = self.sampler.position(done - 1)
        loss, accuracy = self.history.mean(done - 1 - min(epoch_step, 99), done)
        if self.live:
            self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
            self.bar.update(done - self.bar.n)
        else:
            self._print(
                f"step {done}/{steps}  epoch {self.sampler.epochs(done):.2f}  loss {loss:.4f}  accuracy {accuracy:.2%}"
            )

    def on_epoch_end(self, seconds: float) -> None:
        """Print the results of the epoch that has just ended, and the seconds of training so far."""
        entry, epochs = self.history.epochs[-1], self.sampler.epochs(self.sampler.steps)
        self.next_update = time.monotonic() + self.interval
        images = self.sampler.epoch_size(self.sampler.position(entry["step"] - 1)[0])
        line = f"epoch {entry['epoch']:.3g}/{epochs:.3g}  loss {entry['train_loss']:.4f}  accuracy {entry['train_accuracy']:.2%}"
        if images < self.sampler.num_images:
            line += f" of {images:,} hard pictures"
        if entry["validation_accuracy"] is not None:
            line += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.2%}"
        self._print(f"{line}  {seconds:.1f} s")

    def warn(self, line: str) -> None:
        """Print a warning between the other lines."""
        self._print(f"warning: {line}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # stderr is closed or its disk is full; the training continues
            if self.live:
                tqdm.write(line, file=sys.stderr)
            elif self.shown:
                print(line, file=sys.stderr, flush=True)


def validate_tracker(track: str | None) -> None:
    """Raise a GinghamError for anything but "tensorboard" and None."""
    if track not in (None, "tensorboard"):
        raise GinghamError(f"--track got {track!r}; allowed: tensorboard")


def create_tensorboard_logger(
    track: str | None, history: History, folder: str | Path | None, start: int
) -> TensorBoardLogger | None:
    """Return the logger that `track` names, writing to `tensorboard/` in the folder; None for None."""
    validate_tracker(track)
    if track is None:
        return None
    if folder is None:
        raise GinghamError("track is tensorboard, and there is no folder to write to; give folder=")
    return TensorBoardLogger(history, Path(folder) / "tensorboard", start)
