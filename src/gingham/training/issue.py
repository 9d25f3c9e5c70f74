"""Issue: something wrong with a run or a dataset, with its evidence and a fix."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Issue:
    """Something wrong with a run or a dataset.

    `code` names the kind of issue and never changes, so programs compare it and not the text, such as "dead-relus".
    `title` says what is wrong, `evidence` how it shows, `fix` one thing to do. `images` are the images it shows in, if
    any: groups of (split name, index), those of one group belong together.
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
