"""Shared fixtures: run a command and parse its JSON output, train on the quadrants, and a finished run."""

import json
import shutil

import pytest

from helpers import Command, make_dataset


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


@pytest.fixture(scope="session")
def shared_training(tmp_path_factory):
    """A folder with a dataset and a run of two epochs on it, and what train printed as JSON."""
    folder = tmp_path_factory.mktemp("trained")
    options = ("--epochs", 2, "--set", "batch_size=32", "--set", "validation_images=40")
    data = make_dataset(folder / "quadrants")
    done = Command(folder)("train", "--recipe", "article", "--data", data, *options, "--json")
    return folder, done.stdout


@pytest.fixture
def trained(shared_training, command, quadrants):
    """A run of two epochs on the quadrants in runs/article-0, and what train printed as JSON."""
    folder, stdout = shared_training
    shutil.copytree(folder / "runs", command.folder / "runs")
    metadata = command.folder / "runs/article-0/model.json"
    metadata.write_text(metadata.read_text().replace(str(folder / "quadrants"), str(quadrants)))
    return json.loads(stdout)
