"""Training callbacks: the progress bar, TensorBoard, the health checks and the user's own function."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from gingham.models.classifier import Classifier
from gingham.training.checks import check_batches, check_labels, check_losses, check_overfitting, check_training
from gingham.training.issue import Issue
from gingham.training.optimizer import lr_at
from gingham.training.options import FitOptions
from gingham.training.trainer import Trainer

MANY_EPOCHS = 25


class Callback:
    """Base class for callbacks. They do not change the training and never communicate with other processes."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Run before the first step. The training time does not include it."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after each step, which `trainer.step` already counts."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Run after each epoch, when the history has its entry and the model has its evaluation weights."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run at the end of training, also after an error, if `on_fit_start` raised none."""


class Callbacks:
    """Runs callbacks in the order given. `warn` prints a warning in the main process."""

    def __init__(self, callbacks: Sequence[Callback], warn: Callable[[str], None]) -> None:
        self.callbacks, self.warn = callbacks, warn

    @contextlib.contextmanager
    def running(self, trainer: Trainer) -> Iterator[None]:
        """Call `on_fit_start` before the block, and `on_fit_end` after it even if the block raises."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                callback.on_fit_start(trainer)
                stack.callback(callback.on_fit_end, trainer)
            yield

    def on_step_end(self, trainer: Trainer) -> None:
        """Call `on_step_end` of every callback."""
        for callback in self.callbacks:
            callback.on_step_end(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Call `on_epoch_end` of every callback."""
        for callback in self.callbacks:
            callback.on_epoch_end(trainer)


class ProgressBar(Callback):
    """Shows progress on stderr: a line for each epoch, and a tqdm bar on a terminal or a line every ten seconds.

    If there are many epochs, there is at most one line per second.
    """

    next_line = 0.0  # when the next epoch gets a line, if there are many

    def on_fit_start(self, trainer: Trainer) -> None:
        """Show the bar, and the step at which a resumed run continues."""
        self.live = sys.stderr.isatty() or in_notebook()
        self.interval = 0.2 if self.live else 10.0  # seconds; not more often, because reading a loss waits for the GPU
        self.next_update = time.monotonic() + self.interval
        total = trainer.total_steps
        options = {"total": total, "initial": trainer.step, "unit": "step", "disable": not self.live}
        self.bar: Any = _bar_class()(**options, file=_stream(), leave=not in_notebook())
        if trainer.step:
            print_line(f"resuming from step {trainer.step} of {total}")

    def on_step_end(self, trainer: Trainer) -> None:
        """Show the loss and accuracy of the last 100 steps of the epoch, if an update is due."""
        step, total = trainer.step, trainer.total_steps
        if time.monotonic() < self.next_update and not (self.live and step == total):
            return
        self.next_update = time.monotonic() + self.interval
        _, epoch_step = trainer.sampler.position(step - 1)
        loss, accuracy = trainer.history.mean(step - 1 - min(epoch_step, 99), step)
        if self.live:
            self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            epochs = trainer.sampler.epochs(step)
            print_line(f"step {step}/{total}  epoch {epochs:.2f}  loss {loss:.4f}  accuracy {accuracy:.2%}")

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Print the results of the epoch and the seconds of training so far."""
        entry, sampler = trainer.history.epochs[-1], trainer.sampler
        last = trainer.step == trainer.total_steps
        if trainer.recipe.epochs > MANY_EPOCHS and not last and time.monotonic() < self.next_line:
            return
        self.next_line = time.monotonic() + 1
        self.next_update = time.monotonic() + self.interval
        images = sampler.epoch_size(sampler.position(entry["step"] - 1)[0])
        line = f"epoch {entry['epoch']:.3g}/{sampler.epochs(trainer.total_steps):.3g}"
        line += f"  loss {entry['train_loss']:.4f}  accuracy {entry['train_accuracy']:.2%}"
        if images < sampler.num_images:
            line += f" on {images:,} hard images"
        if entry["validation_accuracy"] is not None:
            line += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.2%}"
        print_line(f"{line}  {trainer.clock.seconds:.1f} s")

    def on_fit_end(self, trainer: Trainer) -> None:
        """Remove the bar."""
        self.bar.close()


class TensorBoardLogger(Callback):
    """Writes the history to `tensorboard/` in the run folder after each epoch, including the values of each step."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        assert trainer.folder is not None
        epochs = trainer.history.epochs
        self.written = epochs[-1]["step"] if epochs else 0  # steps that the interrupted run has written
        # Steps after the last checkpoint are repeated, so their old values are hidden.
        purge_step = self.written + 1 if trainer.step else None
        self.writer: Any = SummaryWriter(str(trainer.folder / "tensorboard"), purge_step=purge_step)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Write the steps since the last epoch, and the results of the evaluation."""
        history, span = trainer.history, slice(self.written, trainer.step)
        losses, accuracies = history.losses[span].tolist(), (history.correct / history.sizes)[span].tolist()
        for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), self.written + 1):
            self.writer.add_scalar("train/loss", loss, step)
            self.writer.add_scalar("train/accuracy", accuracy, step)
            self.writer.add_scalar("learning_rate", lr_at(step - 1, trainer.total_steps, trainer.recipe), step)
        for key in ("loss", "accuracy"):
            if (value := history.epochs[-1][f"validation_{key}"]) is not None:
                self.writer.add_scalar(f"validation/{key}", value, trainer.step)
        self.written = trainer.step
        self.writer.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the event file."""
        self.writer.close()


class HealthMonitor(Callback):
    """Prints a warning for each issue that `training/checks.py` finds, once."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Check the sizes of the batches to come."""
        self.reported: set[tuple[str, str]] = set()
        self._report(check_batches(trainer.recipe, len(trainer.train), trainer.model.network))

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Check the losses; after the first epoch also the model, and if the loss is stuck the model and the labels."""
        recipe, train, epochs = trainer.recipe, trainer.inputs, trainer.history.epochs
        evaluations = trainer.history.evaluations()
        if evaluations and evaluations[-1] is not epochs[-1]:
            return  # this epoch was not evaluated, and little changes between evaluations
        losses = trainer.history.losses[: trainer.step].cpu()
        issues = list(check_losses(recipe, train, losses, over=False))
        stuck = any(issue.code == "stuck-loss" for issue in issues)
        if len(epochs) == 1 or stuck:
            issues = check_training(trainer.model, recipe, train, losses, epochs, trainer.total_steps, over=False)
        if trainer.step == trainer.total_steps:
            issues += check_overfitting(recipe, epochs, trainer.step)
        wrong_labels = list(check_labels(trainer.train, None)) if stuck else []  # wrong labels explain all other issues
        self._report(wrong_labels or issues)

    def _report(self, issues: Iterable[Issue]) -> None:
        for issue in issues:
            if (issue.code, issue.title) not in self.reported:
                self.reported.add((issue.code, issue.title))
                print_line(f"warning: {issue.title}: {issue.evidence}; {issue.fix}")


class OnEpoch(Callback):
    """Calls the user's function after each complete epoch."""

    def __init__(self, function: Callable[[Classifier, int], None]) -> None:
        self.function = function

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Call it with the model and the number of the epoch, counted from 1."""
        epoch, epoch_step = trainer.sampler.position(trainer.step)
        if epoch_step == 0:  # the last epoch may be incomplete
            self.function(trainer.model, epoch)
            trainer.model.train()  # the function may have set evaluation mode


def print_line(line: str) -> None:
    """Print a line to stderr, above the progress bar if there is one."""
    with contextlib.suppress(OSError):  # stderr is closed or its disk is full; the training continues
        tqdm.write(line, file=_stream())


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    return "IPKernelApp" in getattr(ipython and ipython.get_ipython(), "config", ())


def _stream() -> TextIO:
    """Return stderr, or in a notebook stdout, because notebooks show stderr as errors."""
    return sys.stdout if in_notebook() else sys.stderr


def _bar_class() -> Any:
    """Return tqdm's bar for a terminal, or for a notebook if this is one: a widget if ipywidgets is installed."""
    if not in_notebook():
        return tqdm
    with warnings.catch_warnings(action="ignore"):  # that ipywidgets is not installed
        from tqdm.auto import tqdm as notebook_tqdm
    return notebook_tqdm


def create_callbacks(options: FitOptions, *, progress: bool, is_main: bool) -> Callbacks:
    """Return the callbacks of this process. `progress` controls whether progress and issues are printed."""

    def warn(line: str) -> None:
        if is_main:
            print_line(f"warning: {line}")

    callbacks: list[Callback] = []
    if progress and is_main:
        callbacks += [ProgressBar(), HealthMonitor()]
    if options.track and is_main:
        callbacks.append(TensorBoardLogger())
    if options.on_epoch is not None:
        callbacks.append(OnEpoch(options.on_epoch))
    return Callbacks(callbacks, warn)
