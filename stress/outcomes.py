"""The checks of the stress tests and their outcomes."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """The number of cases tried, a sentence for each case lost, and figures to print beside them."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    figures: str = ""

    def survived(self) -> int:
        return self.tried - len(self.lost)


@dataclass(frozen=True)
class Check:
    """A check under its name in the table; `run(size)` gets the size `short` in CI and `long` in `make stress`.

    The size is the number of cases or kills or, for the server, of seconds. `unit` names what is counted as tried.
    """

    name: str
    run: Callable[[int], Outcome]
    short: int
    long: int
    unit: str = "cases"
