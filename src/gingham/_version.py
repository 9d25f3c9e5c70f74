"""The version of Gingham."""

__version__ = "0.1.0"
