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
from gingham.training.callbacks import create_callbacks, print_line
from gingham.training.features import use_features
from gingham.training.initial_weights import copy_shared_weights, load_initial_weights
from gingham.training.optimizer import lr_at, set_learning_rate
from gingham.training.options import FitOptions
from gingham.training.result import build_run
from gingham.training.stop_request import deferred_signals
from gingham.training.trainer import Trainer
from gingham.training.validate import head_recipe, reserve_folder, resolve_recipe, validate_folder


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
    """Train a network with the settings of a recipe and return the Run.

    At the end the model's novelty score is fitted to the training split, and its temperature and thresholds to the
    validation split if there is one. If the recipe has `patience`, the validation accuracy also stops the training
    early, and the weights are those of the best evaluation.

    With a `folder`, a checkpoint is saved there every `checkpoint_seconds`, and at the end of an epoch if the last
    checkpoint is at least a second old. `resume` continues from it and gives the same weights (byte for byte on the
    same CPU and thread count). Ctrl-C and SIGTERM take effect between steps; with a `folder` the state is saved first.
    The folder is locked during training.

    Unless `progress` is False, stderr shows a progress bar on a terminal and plain lines elsewhere, and warnings of the
    issues that `training/checks.py` finds. A damaged checkpoint, and anything else that changes the result of a resumed
    run, always causes a warning. `options` has the device, a network of your own, teachers and more.

    In distributed training with torchrun, call `fit` with the same arguments in every process. Each process takes its
    shard of every batch and returns the same Run. Only process 0 writes checkpoints, and only process 0 should save the
    run.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: the split is a test split or empty, the splits are from different datasets, or a teacher was trained
            on other images.
        ModelError: the network cannot be created, or does not fit the images or the number of classes.
        RunError: the folder contains a finished run or trials, or an unfinished run, and `resume` is False or its
            recipe is different.
        GinghamError: the device is unknown, the folder is in use, or another process cannot be reached or uses a
            different recipe or different data.
        TrainingError: a loss is no longer finite, or another process failed.
        KeyboardInterrupt, Terminated: on Ctrl-C and SIGTERM, after the state was saved in the folder.
    """
    folder = None if folder is None else Path(folder)
    validate_folder(folder, resume, options.track)
    recipe = resolve_recipe(recipe, train, validation, options)  # also checks the splits and the teachers
    with init_distributed() as context, contextlib.ExitStack() as stack:
        if folder is not None and context.is_main:
            stack.enter_context(reserve_folder(folder, resume))  # no other process may write to it during training
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # the training may reduce it
        # Create the model, its optimizer and everything else that changes during training.
        trainer = Trainer(recipe, train, validation, options, folder, context)
        callbacks = create_callbacks(options, progress=progress, is_main=context.is_main)
        # Resume before the step is prepared, which may capture the optimizer's state in a CUDA graph.
        if not (context.any(resume)[0] and trainer.resume(warn=callbacks.warn)):
            if recipe.pretrained and not recipe.trains_head_only and options.start is None:
                # First only the classifier: its random weights would spoil the pretrained layers.
                start_options = FitOptions(options.device, weights=options.weights)
                head = fit(head_recipe(recipe), train, validation, progress=False, options=start_options)
                copy_shared_weights(head, trainer.model)
                trainer.origin, trainer.clock.before = head.data["origin"], head.metrics["train_seconds"]
            else:
                load_initial_weights(trainer, say=print_line)
        use_features(trainer)
        # Prepare the device and compile the step, outside the training time.
        if recipe.compile:  # like compiling, searching for the fastest kernels pays only in a long training
            stack.enter_context(cudnn_benchmark(trainer.device))
        if options.network is not None:  # it may use torch's global generator, so restore the caller's state afterwards
            stack.enter_context(torch.random.fork_rng(trainer.rng_devices))
        stack.enter_context(callbacks.running(trainer))
        train_step = trainer.create_train_step(warn=callbacks.warn)
        # From here on, Ctrl-C waits for the end of the step. A second Ctrl-C ends the process at once, except under
        # torchrun, which sends each process the same Ctrl-C again.
        with deferred_signals(ignore_repeats=context.size > 1) as trainer.stop_request:
            trainer.start_clock()
            for batch in trainer.batches():
                set_learning_rate(trainer.optimizer, lr_at(trainer.step, trainer.total_steps, recipe))
                output = train_step(batch)  # forward, loss, backward, optimizer.step()
                trainer.record(batch, output)  # counts the step; updates history, losses by image and EMA
                trainer.agree_on_stop_and_save()  # in all processes; raises a TrainingError if a loss is not finite
                callbacks.on_step_end(trainer)
                if trainer.epoch_ended:
                    with trainer.evaluation_weights():
                        trainer.evaluate()  # adds the epoch to the history, with validation results if they are due
                        callbacks.on_epoch_end(trainer)
                trainer.checkpoint_if_due()  # with the epoch's entry, and the weights that training continues with
                if trainer.should_stop:  # last step, patience, Ctrl-C or SIGTERM in any process
                    break
        trainer.raise_if_interrupted()
        run = build_run(trainer)
        if recipe.tta == "none":
            calibrate(run, trainer.inputs, trainer.validation_inputs, context)
        else:  # features do not include those of the mirror images
            calibrate(run, train, validation, context)
        return run
