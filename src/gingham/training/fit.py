"""fit(): the only training loop."""

import contextlib
from pathlib import Path

import torch

from gingham.data.splits import Split
from gingham.device import cudnn_benchmark
from gingham.distributed import init_distributed
from gingham.evaluation.calibrate import calibrate
from gingham.recipe import Recipe
from gingham.runs.run import Run
from gingham.training.callbacks import create_callbacks
from gingham.training.optimizer import lr_at, set_learning_rate
from gingham.training.options import FitOptions
from gingham.training.stop_request import deferred_signals
from gingham.training.trainer import Trainer
from gingham.training.validate import reserve_folder, resolve_recipe, validate_folder


def fit(
    recipe: Recipe,
    train: Split,
    validation: Split | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    options: FitOptions = FitOptions(),  # noqa: B008  # frozen
) -> Run:
    """Train a network as a recipe says and return the Run.

    With a validation split, the model's temperature and its threshold for "unsure" are fitted to it at the end. With
    the recipe's `patience` it also stops the training early, and the weights are those of the best evaluation.

    With a `folder`, a checkpoint is saved there every `checkpoint_seconds`, and at the end of an epoch if the last one
    is a second old. `resume` continues from it to the same weights (byte for byte on the same CPU and thread count).
    Ctrl-C and SIGTERM take effect between steps; with a `folder` the state is saved first. Meanwhile the folder is
    locked.

    Unless `progress` is False, stderr shows a progress bar on a terminal and plain lines elsewhere, and warnings of the
    issues that `training/checks.py` finds. A damaged checkpoint and other causes of another result are always warned
    of. `options` has the device, a network of your own, teachers and more.

    In processes started by torchrun, call `fit` with the same arguments in each. Each takes its shard of every batch
    and returns the same Run; only the first writes checkpoints, and only the first should save.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: a test split, splits of different datasets, an empty split, or a teacher that was trained on other
            images.
        ModelError: the network cannot be created, or does not fit the images or the number of classes.
        RunError: the folder holds a finished run or trials, or an unfinished run, and `resume` is False or its recipe
            is another.
        GinghamError: an unknown device, a folder in use, or another process that failed or trains something else.
        TrainingError: a loss that is no longer finite.
        KeyboardInterrupt, Terminated: on Ctrl-C and SIGTERM, after the state was saved in the folder.
    """
    folder = None if folder is None else Path(folder)
    validate_folder(folder, resume, options.track)
    recipe = resolve_recipe(recipe, train, validation, options)  # also checks the splits and the teachers
    with init_distributed() as context, contextlib.ExitStack() as stack:
        if folder is not None and context.is_main:
            stack.enter_context(reserve_folder(folder, resume))  # no other training may write to it meanwhile
        # Build the model, its optimizer and everything else that changes while it trains.
        trainer = Trainer(recipe, train, validation, options, folder, context)
        callbacks = create_callbacks(options, progress=progress, is_main=context.is_main)
        # Before the step is prepared, which may capture the optimizer's state in a CUDA graph.
        if context.any(resume)[0]:
            trainer.resume(warn=callbacks.warn)
        # Prepare the device and compile the step, outside the training time.
        stack.enter_context(cudnn_benchmark(trainer.device))
        if options.network is not None:  # it may draw from torch's global generator; the caller's state is restored
            stack.enter_context(torch.random.fork_rng(trainer.rng_devices))
        stack.enter_context(callbacks.running(trainer))
        train_step = trainer.create_train_step(warn=callbacks.warn)
        # From here on Ctrl-C waits for the end of a step. A second one ends the process at once, except under torchrun,
        # which sends each process the same Ctrl-C again.
        with deferred_signals(ignore_repeats=context.size > 1) as trainer.stop_request:
            trainer.start_clock()
            for batch in trainer.batches():
                set_learning_rate(trainer.optimizer, lr_at(trainer.step, trainer.total_steps, recipe))
                output = train_step(batch)  # forward, loss, backward, optimizer.step()
                trainer.record(batch, output)  # counts the step; history, losses by image, EMA
                trainer.agree_on_stop_and_save()  # in all processes; raises an error if a loss is not finite
                callbacks.on_step_end(trainer)
                if trainer.epoch_ended:
                    with trainer.evaluation_weights():
                        trainer.evaluate()  # adds the epoch to the history, with validation results if due
                        callbacks.on_epoch_end(trainer)
                trainer.checkpoint_if_due()  # has the epoch's entry, and the weights that training continues with
                if trainer.should_stop:  # last step, patience, Ctrl-C or SIGTERM in any process
                    break
        trainer.raise_if_interrupted()
        run = trainer.finish()
        if validation is not None:
            calibrate(run, validation, context)
        return run
