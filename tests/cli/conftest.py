"""Shared fixtures: run a command and parse its JSON output, train on the quadrants, and a finished run."""

import json

import pytest


@pytest.fixture
def run_json(command):
    """Run a command with --json and return the one JSON value that it prints."""

    def run(*arguments, **options):
        done = command(*arguments, "--json", **options)
        assert done.stdout.count("\n") == 1, "exactly one JSON value"
        return json.loads(done.stdout)

    return run


@pytest.fixture
def train(command, quadrants):
    """Train the article's network on the quadrants, with further arguments."""
    return lambda *arguments, **options: command(
        "train", "--recipe", "article", "--data", quadrants, *arguments, **options
    )


@pytest.fixture
def trained(train):
    """Train for two epochs into runs/article-0, and return what train prints as JSON."""
    options = ("--epochs", 2, "--set", "batch_size=32", "--set", "validation_images=40")
    return json.loads(train(*options, "--json").stdout)
