"""Show results in notebooks and interactive sessions."""

import base64
from abc import ABC, abstractmethod
from html import escape
from typing import Any


class Displayable(ABC):
    """Base class of results that a notebook shows as their text and their figure, and a terminal as their text.

    A subclass defines `__str__` and `plot`.
    """

    def __repr__(self) -> str:
        return str(self)

    @abstractmethod
    def plot(self) -> Any:
        """Return a matplotlib figure, which notebooks show."""

    def _repr_html_(self) -> str:
        png = base64.b64encode(self.plot()._repr_png_()).decode()  # the notebooks' own protocol
        return f'{html_text(str(self))}<img alt="" style="max-width: 100%" src="data:image/png;base64,{png}">'


def html_text(text: str) -> str:
    """Return text as HTML that keeps its lines and columns."""
    return f'<pre style="font-family: monospace; line-height: 1.25; overflow-x: auto">{escape(text)}</pre>'
