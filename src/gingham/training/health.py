"""The HealthMonitor: warn about problems while the network trains."""

from collections.abc import Callable, Sequence

from gingham.data.splits import Split
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.training.checks import check_batches, check_history, check_labels, check_training
from gingham.training.history import History
from gingham.training.issue import Issue


class HealthMonitor:
    """Runs the checks of `training/checks.py` at the end of an epoch, and reports each issue once.

    `warn` is called with one line for each issue.
    """

    def __init__(
        self, recipe: Recipe, model: Classifier, history: History, train: Split, warn: Callable[[str], None]
    ) -> None:
        self.recipe, self.model, self.history, self.train, self.warn = recipe, model, history, train, warn
        self.reported: set[tuple[str, str]] = set()
        self.report(check_batches(recipe, len(train), model.network))

    def report(self, issues: Sequence[Issue]) -> None:
        """Warn of the issues that were not reported before."""
        for issue in issues:
            if (issue.code, issue.title) not in self.reported:
                self.reported.add((issue.code, issue.title))
                self.warn(f"{issue.title}: {issue.evidence}; {issue.fix}")

    def on_epoch_end(self, done: int) -> None:
        """Check the history up to step `done`; after the first epoch also the model, and the labels if nothing is learned."""
        epochs = self.history.epochs
        evaluations = self.history.evaluations()
        if evaluations and evaluations[-1] is not epochs[-1]:
            return  # little changes between two evaluations
        losses = self.history.losses[:done].cpu()
        issues = check_history(self.recipe, len(self.train), len(self.model.classes), losses, epochs, over=False)
        stuck = any(issue.code == "stuck-loss" for issue in issues)
        if len(epochs) == 1 or stuck:
            steps = self.history.sampler.steps
            issues = check_training(self.model, self.recipe, self.train, losses, epochs, steps, over=False)
        self.report((check_labels(self.train, None) if stuck else []) or issues)
