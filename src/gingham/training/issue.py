"""Issue: something wrong with a run or a dataset, with its evidence and a fix."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: what, how it shows, and one thing to do. `pictures` are places it shows at, where it does.

    `pictures` holds tuples (split, index), those that belong together side by side.
    """

    finding: str
    evidence: str
    fix: str
    pictures: tuple[tuple[tuple[str, int], ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {**vars(self), "pictures": [[list(place) for place in group] for group in self.pictures]}

    def __str__(self) -> str:
        return f"{self.finding}\n  evidence  {self.evidence}\n  fix       {self.fix}"
