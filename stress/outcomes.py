"""What a check of the stress tests comes to, and the table of all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How many cases a check tried, a sentence for each that was lost, and the figures worth showing beside them."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    figures: str = ""

    def survived(self) -> int:
        return self.tried - len(self.lost)


@dataclass(frozen=True)
class Check:
    """A check under the name the table has for it; `run(size)` takes one of two sizes: what CI has time for, and `make stress`.

    A size is what grows with the patience for it: cases, kills or, of the server, seconds. `unit` is what is counted as tried.
    """

    name: str
    run: Callable[[int], Outcome]
    short: int
    long: int
    unit: str = "cases"
