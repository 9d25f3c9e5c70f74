"""The HealthMonitor: warn about problems while the network trains."""

from collections.abc import Callable, Sequence

from gingham.data.splits import Split
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.training.checks import STUCK, check_batches, check_history, check_labels, check_training
from gingham.training.history import History
from gingham.training.issue import Finding


class Watch:
    """Looks at a training as its epochs end and says once of each finding what it is."""

    def __init__(self, recipe: Recipe, model: Classifier, history: History, train: Split, say: Callable[[str], None]) -> None:
        self.recipe, self.model, self.history, self.train, self.say = recipe, model, history, train, say
        self.said: set[str] = set()
        self.tell(check_batches(recipe, len(train), model.network))

    def tell(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.finding not in self.said:
                self.said.add(finding.finding)
                self.say(f"{finding.finding}: {finding.evidence}; {finding.fix}")

    def end_epoch(self, done: int) -> None:
        """Look at the history up to step `done`, at its first end also at the model, and once nothing is learned at the labels."""
        entries = self.history.epochs
        looks = self.history.looks()
        if looks and looks[-1] is not entries[-1]:
            return  # between looks at the validation split there is little news
        losses = self.history.losses[:done].cpu()
        found = check_history(self.recipe, len(self.train), len(self.model.classes), losses, entries, over=False)
        stuck = any(finding.finding.startswith(STUCK) for finding in found)
        if len(entries) == 1 or stuck:
            steps = self.history.sampler.steps
            found = check_training(self.model, self.recipe, self.train, losses, entries, steps, over=False)
        self.tell((check_labels(self.train, None) if stuck else []) or found)
