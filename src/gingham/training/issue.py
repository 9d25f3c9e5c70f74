"""Issue: a problem with a run or a dataset, with its evidence and a fix."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Issue:
    """A problem with a run or a dataset.

    `code` identifies the kind of issue, such as "dead-relus". It never changes, so programs should compare it and not
    the text. `title` is the problem, `evidence` the observation that shows it, and `fix` one thing to do. `images` has
    the affected images, if any, as groups of (split name, index), such as the members of a group of duplicates.
    """

    code: str
    title: str
    evidence: str
    fix: str
    images: tuple[tuple[tuple[str, int], ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the issue as JSON values. The key for `images` is `pictures`."""
        groups = [[list(image) for image in group] for group in self.images]
        return {"code": self.code, "title": self.title, "evidence": self.evidence, "fix": self.fix, "pictures": groups}

    def __str__(self) -> str:
        return f"{self.title}\n  evidence  {self.evidence}\n  fix       {self.fix}"
