"""Compare the accuracy and training time of other libraries with Gingham's, on this machine.

    pip install --group peers
    python benchmarks/peers.py                    # all of them; names a peer that is not installed and skips it
    python benchmarks/peers.py article fast       # some
    python benchmarks/peers.py --rounds 3 --minutes 5 article skorch fast-85 fast-90

Each peer follows its own documentation, with its documented defaults and, where possible, the images in memory. It
trains on all 60,000 images for the documented number of epochs, or until PATIENCE evaluations in a row were no better,
and for about --minutes at most. It is evaluated on the test images after each epoch, with the clock stopped; its best
epoch counts, which favours it. The seconds of Ultralytics include reading the files and a last validation, about a
minute. Gingham's recipes hold 5,000 images out and are evaluated once, at the end. Each runs in its own process, one
after the other, --rounds times in turn, but only once if its training takes longer than QUICK seconds. Finished ones
are saved in --work, so the same command continues after an interruption. Writes
benchmarks/results/peers-<hardware>-<date>.md, .json and .png.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.io import read_json, write_json

RECIPES = ("fast-85", "fast-90", "fast-92", "fast")
PATIENCE = 3
QUICK = 240.0  # seconds; a longer training is not repeated
Point = dict[str, float]  # epochs, train_seconds, test_accuracy


class Finished(Exception):  # noqa: N818 - not an error
    """Raised in a peer's training when it has converged or its minutes are over."""


def arrays() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Fashion-MNIST as uint8: 60,000 training images (N, 28, 28) and labels, and 10,000 for test."""
    data = gingham.load_data("fashion-mnist", validation=0)
    return data.train.images[:, 0], data.train.labels, data.test.images[:, 0], data.test.labels


class Clock:
    """Counts training seconds, but not those of evaluations, and adds the result of each evaluation to `points`."""

    limit = 600.0  # seconds

    def __init__(self, points: list[Point]) -> None:
        self.points, self.seconds, self.started = points, 0.0, time.perf_counter()

    def lap(self, epochs: float, accuracy: Callable[[], float]) -> None:
        """Evaluate after some epochs.

        Raises
            Finished: the minutes are over, or the last evaluations were no better than the best.
        """
        self.seconds += time.perf_counter() - self.started
        self.points.append({"epochs": epochs, "train_seconds": self.seconds, "test_accuracy": accuracy()})
        accuracies = [point["test_accuracy"] for point in self.points]
        converged = len(accuracies) - 1 - accuracies.index(max(accuracies)) >= PATIENCE
        if converged or self.seconds + self.seconds / len(accuracies) > self.limit:
            raise Finished
        self.started = time.perf_counter()


def torch_accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(dim=1) for part in torch.split(images, 1000)])
    model.train()
    return float((predicted == labels).double().mean())


def doubling(points: list[Point]) -> Iterator[int]:
    """Yield 1, 2, 4... epochs for separate runs of a peer whose schedule depends on their number.

    A run has its own clock. There is another one if it should end within the minutes, and the last one was better.
    """
    epochs = 1
    while True:
        yield epochs
        accuracies = [point["test_accuracy"] for point in points]
        if 2 * points[-1]["train_seconds"] > Clock.limit or accuracies.index(max(accuracies)) < len(accuracies) - 1:
            return
        epochs *= 2


class ImageDataset(Dataset[tuple[torch.Tensor, int]]):
    """Transforms one PIL image at a time, as torchvision.datasets.FashionMNIST does."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Any) -> None:
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_epochs(
    points: list[Point],
    network: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    accuracy: Callable[[], float],
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Train with the loop of PyTorch's examples."""
    clock = Clock(points)
    for epoch in range(1, epochs + 1):
        for images, targets in loader:
            optimizer.zero_grad()
            F.nll_loss(network(images), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if schedule is not None:
            schedule.step()
        clock.lap(epoch, accuracy)


def article(points: list[Point]) -> None:
    """The article's code: torchvision transforms, DataLoader, SGD, batches of 64, three epochs."""
    from torchvision import transforms

    images, labels, test_images, test_labels = arrays()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    loader = DataLoader(ImageDataset(images, labels, transform), batch_size=64, shuffle=True)
    network = gingham.NETWORKS["article"](1, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    test_inputs = (test_images[:, None].float() / 255 - 0.5) / 0.5
    plain_epochs(points, network, loader, optimizer, 3, lambda: torch_accuracy(network, test_inputs, test_labels))


class ExamplesNet(nn.Module):
    """The network of pytorch/examples' mnist: two convolutions, one pooling, dropout, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1), nn.Conv2d(32, 64, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout1(F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)).flatten(1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


def pytorch_examples(points: list[Point]) -> None:
    """pytorch/examples' mnist/main.py: Adadelta at 1.0, times 0.7 an epoch, batches of 64, 14 epochs."""
    images, labels, test_images, test_labels = arrays()
    # In memory and normalised once, which favours it: the example reads PIL images one by one.
    inputs, test_inputs = ((x[:, None].float() / 255 - 0.1307) / 0.3081 for x in (images, test_images))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
    network = ExamplesNet()
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    plain_epochs(
        points, network, loader, optimizer, 14, lambda: torch_accuracy(network, test_inputs, test_labels), schedule
    )


def keras(points: list[Point]) -> None:
    """Keras 3's "Simple MNIST convnet", on the jax backend: Adam, batches of 128, 15 epochs."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras as k

    images, labels, test_images, test_labels = (x.numpy() for x in arrays())
    x_train, x_test = (np.expand_dims(x.astype("float32") / 255, -1) for x in (images, test_images))
    y_train = k.utils.to_categorical(labels, 10)
    model = k.Sequential(
        [
            k.Input((28, 28, 1)),
            k.layers.Conv2D(32, 3, activation="relu"),
            k.layers.MaxPooling2D(2),
            k.layers.Conv2D(64, 3, activation="relu"),
            k.layers.MaxPooling2D(2),
            k.layers.Flatten(),
            k.layers.Dropout(0.5),
            k.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    clock = Clock(points)

    class Evaluate(k.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            def accuracy() -> float:
                return float((model.predict(x_test, batch_size=1000, verbose=0).argmax(axis=1) == test_labels).mean())

            clock.lap(epoch + 1, accuracy)

    model.fit(x_train, y_train, batch_size=128, epochs=15, verbose=0, callbacks=[Evaluate()])


def lightning(points: list[Point]) -> None:
    """Lightning: a LightningModule around the same network, Adam at 1e-3 as its documentation has it, batches of 64, to convergence."""
    import lightning as pl

    images, labels, test_images, test_labels = arrays()
    clock = Clock(points)

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = ExamplesNet()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            inputs, targets = batch
            return F.nll_loss(self.network(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_epoch_end(self) -> None:
            clock.lap(
                self.current_epoch + 1, lambda: torch_accuracy(self.network, test_images[:, None] / 255, test_labels)
            )

    loader = DataLoader(TensorDataset(images[:, None] / 255, labels), batch_size=64, shuffle=True)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=1000, accelerator="auto", **quiet)
    clock = Clock(points)
    trainer.fit(Module(), loader)


def fastai(points: list[Point]) -> None:
    """fastai: a Learner with xresnet18 from scratch and fit_one_cycle, batches of 64; separate runs of 1, 2, 4... epochs."""
    from fastai.callback.schedule import Learner  # importing it patches fit_one_cycle in
    from fastai.data.core import DataLoaders
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.models.xresnet import xresnet18

    images, labels, test_images, test_labels = arrays()
    for epochs in doubling(points):
        train = TensorDataset(images[:, None] / 255, labels)
        # It needs a validation loader and runs it after every epoch: one batch of 64 takes almost no time.
        loaders = DataLoaders(
            DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(Subset(train, range(64)), 64)
        )
        learn = Learner(loaders, xresnet18(c_in=1, n_out=10), loss_func=CrossEntropyLossFlat())
        started = time.perf_counter()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, 1e-2)
        seconds = time.perf_counter() - started
        accuracy = torch_accuracy(learn.model, test_images[:, None] / 255, test_labels)
        points.append({"epochs": epochs, "train_seconds": seconds, "test_accuracy": accuracy})


def skorch(points: list[Point]) -> None:
    """skorch: NeuralNetClassifier around its MNIST notebook's Cnn, Adam at 0.002, batches of 128, to convergence."""
    import skorch as sk

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
            self.conv2_drop, self.fc1_drop = nn.Dropout2d(0.5), nn.Dropout(0.5)
            self.fc1, self.fc2 = nn.Linear(1600, 100), nn.Linear(100, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(F.max_pool2d(self.conv1(x), 2))
            x = torch.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2)).flatten(1)
            return torch.softmax(self.fc2(torch.relu(self.fc1_drop(self.fc1(x)))), dim=-1)

    images, labels, test_images, test_labels = arrays()
    inputs, test_inputs = (x[:, None].float().numpy() / 255 for x in (images, test_images))
    net = sk.NeuralNetClassifier(
        Cnn, max_epochs=1, lr=0.002, optimizer=torch.optim.Adam, batch_size=128, train_split=None, verbose=0,
        iterator_train__shuffle=True,
    )  # fmt: skip
    clock = Clock(points)
    for epoch in itertools.count(1):
        net.partial_fit(inputs, labels.numpy())
        clock.lap(epoch, lambda: float((net.predict(test_inputs) == test_labels.numpy()).mean()))


def scikit_learn(points: list[Point]) -> None:
    """scikit-learn: HistGradientBoostingClassifier on the 784 pixels, from 10 to 1000 iterations (its default is 100)."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    images, labels, test_images, test_labels = (x.numpy() for x in arrays())
    model = HistGradientBoostingClassifier(max_iter=10, warm_start=True, early_stopping=False, random_state=0)
    clock = Clock(points)
    for iterations in (10, 30, *range(100, 1001, 100)):
        model.set_params(max_iter=iterations)
        model.fit(images.reshape(-1, 784), labels)
        clock.lap(iterations, lambda: float(model.score(test_images.reshape(-1, 784), test_labels)))


def ultralytics(points: list[Point]) -> None:
    """Ultralytics: YOLO11n-cls from its yaml (no download), 32-pixel PNG files cached in memory; separate runs of 1, 2, 4... epochs, timed with reading the files and a last validation."""
    from PIL import Image
    from ultralytics import YOLO

    images, labels, test_images, test_labels = arrays()
    with tempfile.TemporaryDirectory() as folder:
        for split, split_images, targets in (("train", images, labels), ("test", test_images, test_labels)):
            for index, (image, label) in enumerate(zip(split_images.numpy(), targets.tolist(), strict=True)):
                file = Path(folder, "data", split, str(label), f"{index}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
        for epochs in doubling(points):
            model = YOLO("yolo11n-cls.yaml")
            started = time.perf_counter()
            quiet = {"verbose": False, "plots": False, "save": False, "val": False, "project": folder}
            model.train(data=f"{folder}/data", epochs=epochs, imgsz=32, batch=64, cache="ram", workers=2, **quiet)
            seconds = time.perf_counter() - started
            accuracy = float(model.val(split="test", verbose=False, plots=False, project=folder).top1)
            points.append({"epochs": epochs, "train_seconds": seconds, "test_accuracy": accuracy})


# The package of each peer, and what trains it and adds its evaluations to a list.
PEERS: dict[str, tuple[str, Callable[[list[Point]], None]]] = {
    "article": ("torch", article),
    "pytorch-examples": ("torch", pytorch_examples),
    "keras": ("keras", keras),
    "lightning": ("lightning", lightning),
    "fastai": ("fastai", fastai),
    "skorch": ("skorch", skorch),
    "scikit-learn": ("sklearn", scikit_learn),
    "ultralytics": ("ultralytics", ultralytics),
}


def gingham_recipe(name: str, seed: int) -> list[Point]:
    data = gingham.load_data("fashion-mnist")
    retain_freed_memory()  # as gingham train does
    run = gingham.fit(gingham.RECIPES[name].replace(seed=seed), data.train, data.validation, progress=False)
    accuracy = gingham.evaluate(run, data.test).accuracy
    return [{"epochs": run.metrics["epochs"], "train_seconds": run.metrics["train_seconds"], "test_accuracy": accuracy}]


def version(module: str) -> str:
    from importlib.metadata import packages_distributions, version

    return version(packages_distributions()[module][0])


def best(points: list[Point]) -> Point:
    return max(points, key=lambda point: point["test_accuracy"])


def table(outcomes: dict[str, list[list[Point]]], versions: dict[str, str]) -> str:
    lines = [
        (
            "| name | version | accuracy: best evaluation of each round | epochs | train_seconds, median | fastest "
            "recipe as accurate | ratio |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    recipes = {name: rounds for name, rounds in outcomes.items() if name in RECIPES}
    results = {
        name: (
            statistics.mean(r[0]["test_accuracy"] for r in rounds),
            statistics.median(r[0]["train_seconds"] for r in rounds),
        )
        for name, rounds in recipes.items()
    }
    for name, rounds in outcomes.items():
        tops = [best(points) for points in rounds]
        mean, seconds = (
            statistics.mean(p["test_accuracy"] for p in tops),
            statistics.median(p["train_seconds"] for p in tops),
        )
        faster = sorted((quicker, recipe) for recipe, (accuracy, quicker) in results.items() if accuracy >= mean)
        comparison = (
            [f"`{faster[0][1]}`, {faster[0][0]:.1f} s", f"{seconds / faster[0][0]:.0f}"]
            if faster and name not in recipes
            else ["-", "-"]
        )
        epochs = "/".join(f"{p['epochs']:.3g}" for p in tops)
        label = f"gingham `{name}`" if name in recipes else name
        lines.append(
            f"| {label} | {versions[name]} | {mean:.2%} | {epochs} | {seconds:.1f} | {' | '.join(comparison)} |"
        )
    return "\n".join(lines)


def time_table(outcomes: dict[str, list[list[Point]]]) -> str:
    recipes = {name: rounds for name, rounds in outcomes.items() if name in RECIPES}
    accuracies = {name: statistics.mean(r[0]["test_accuracy"] for r in rounds) for name, rounds in recipes.items()}
    seconds = {name: statistics.median(r[0]["train_seconds"] for r in rounds) for name, rounds in recipes.items()}
    lines = [
        f"| name | {' | '.join(f'`{name}`: {accuracies[name]:.2%} in {seconds[name]:.1f} s' for name in recipes)} |"
    ]
    lines.append(f"| --- {'| ---: ' * len(recipes)}|")
    for name, rounds in outcomes.items():
        if name in recipes:
            continue
        cells = []
        for recipe, accuracy in accuracies.items():
            first = [next((p["train_seconds"] for p in r if p["test_accuracy"] >= accuracy), None) for r in rounds]
            found = [value for value in first if value is not None]
            count = f" ({len(found)} of {len(rounds)})" if len(found) < len(rounds) else ""
            time_taken = statistics.median(found) if found else 0.0
            cells.append(f"{time_taken:.0f} s, {time_taken / seconds[recipe]:.0f} times{count}" if found else "never")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(outcomes: dict[str, list[list[Point]]], file: Path, hardware: str) -> None:
    """Draw accuracy against seconds: of the peers each evaluation of the first round, of recipes means and medians."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    peers = {name: rounds[0] for name, rounds in outcomes.items() if name not in RECIPES}
    ends = []
    for name, points in peers.items():
        x, y = [point["train_seconds"] for point in points], [100 * point["test_accuracy"] for point in points]
        axes.plot(x, y, marker="o", ms=3, lw=1.2, color="#8a949b")
        ends.append((y[-1], x[-1], name))
    # Labels of lines that end close to each other are moved apart.
    placed: list[tuple[float, float]] = []
    for accuracy, seconds, name in sorted(ends):
        beside = [height + 0.75 for height, other in placed if 0.5 < seconds / other < 2]
        placed.append((max([accuracy, *beside]), seconds))
        label = axes.text(seconds * 1.08, placed[-1][0], name, va="center", fontsize=9, color="#5c666d")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 0.5})
    recipes = {name: rounds for name, rounds in outcomes.items() if name in RECIPES}
    x = [statistics.median(r[0]["train_seconds"] for r in rounds) for rounds in recipes.values()]
    y = [100 * statistics.mean(r[0]["test_accuracy"] for r in rounds) for rounds in recipes.values()]
    axes.plot(x, y, marker="s", ms=7, lw=2.5, color="#16384a")
    for seconds, accuracy, name in zip(x, y, recipes, strict=True):
        axes.annotate(
            f"gingham {name}",
            (seconds, accuracy),
            (9, -5),
            textcoords="offset points",
            va="top",
            color="#16384a",
        )
    ticks = {1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 180: "3 min", 600: "10 min"}
    axes.set(
        xscale="log",
        xlabel="training time",
        ylabel="test accuracy (%)",
        xlim=(0.8, max([600, *(1.05 * seconds for _, seconds, _ in ends)])),
    )
    axes.set_ylim(top=max([*y, *(accuracy for accuracy, _, _ in ends)]) + 1.2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_title(f"Fashion-MNIST on {hardware}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "names", nargs="*", choices=[*RECIPES, *PEERS, []], metavar="NAME", help=", ".join([*RECIPES, *PEERS])
    )
    parser.add_argument(
        "--rounds",
        type=records.positive,
        default=1,
        help=f"how often each is run, with another seed each time; once if it trains for over {QUICK:g} seconds",
    )
    parser.add_argument("--minutes", type=float, default=10, help="about the longest training of a peer (default: 10)")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="where finished results are saved")
    parser.add_argument("--redraw", type=Path, help="only redraw the figure of a results file (.json)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.names or [*RECIPES, *PEERS]
    if options.redraw is not None:
        results = read_json(options.redraw)
        draw(results["outcomes"], options.redraw.with_suffix(".png"), results["environment"]["hardware"])
        return
    Clock.limit = 60 * options.minutes
    if options.worker is not None:
        (name,) = names
        torch.manual_seed(options.seed)
        points: list[Point] = []
        if name in RECIPES:
            points = gingham_recipe(name, options.seed)
        else:
            with contextlib.suppress(Finished):
                PEERS[name][1](points)
        write_json(options.worker, {"points": points})
        return
    commit = records.clean_commit()
    missing = [name for name in names if name in PEERS and importlib.util.find_spec(PEERS[name][0]) is None]
    for name in missing:
        print(f"{name} is not installed and is skipped (pip install --group peers)", file=sys.stderr)
    names = [name for name in names if name not in missing]
    outcomes: dict[str, list[list[Point]]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            if turn > 0 and outcomes[name][0][-1]["train_seconds"] > QUICK:
                continue
            file = (options.work / commit[:12] / f"{name}-{turn}-{options.minutes:g}-minutes.json").resolve()
            if not file.exists():
                print(f"{name}, round {turn + 1} of {options.rounds}", file=sys.stderr)
                command_line = [sys.executable, __file__, name, "--worker", str(file), "--seed", str(turn)]
                command_line += ["--minutes", str(options.minutes)]
                subprocess.run(command_line, check=True, stdout=subprocess.DEVNULL)
            outcomes[name].append(read_json(file)["points"])
    versions = {name: version(PEERS[name][0]) if name in PEERS else gingham.__version__ for name in names}
    environment = describe_environment(choose_device("auto"))
    words = [*options.names, "--rounds", options.rounds, "--minutes", f"{options.minutes:g}"]
    command = f"python benchmarks/peers.py {' '.join(map(str, words))}"
    text = f"""# Peers

Command: `{command}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; rounds: {options.rounds}, each with another seed; only one for those whose whole training took over {QUICK:g} seconds.
Skipped because not installed: {", ".join(missing) or "none"}.
Accuracy on the 10,000 test images: for the peers after the best epoch that was evaluated, for Gingham after the only evaluation, at the end.
The ratio is the training time of the peer divided by that of the fastest recipe of Gingham that is at least as accurate in this run.
The figure shows the first round of each peer, and of Gingham's recipes the mean accuracies and median seconds.

{table(outcomes, versions)}

The seconds until the first evaluation of a peer that is at least as accurate as a recipe (median of the rounds that had one), and their ratio to those of the recipe:

{time_table(outcomes)}

What each peer is:

{chr(10).join(f"- {name}: {(PEERS[name][1].__doc__ or '').partition(': ')[2]}" for name in outcomes if name in PEERS)}

All evaluations:

| name | round | epochs | train_seconds | test accuracy |
| --- | ---: | ---: | ---: | ---: |
"""
    for name, rounds in outcomes.items():
        for turn, points in enumerate(rounds, 1):
            for point in points:
                seconds, accuracy = f"{point['train_seconds']:.1f}", f"{point['test_accuracy']:.2%}"
                text += f"| {name} | {turn} | {point['epochs']:.3g} | {seconds} | {accuracy} |\n"
    path = records.write_result("peers", environment, text)
    write_json(
        path.with_suffix(".json"),
        {"command": command, "commit": commit, "environment": environment, "outcomes": outcomes},
    )
    draw(outcomes, path.with_suffix(".png"), environment["hardware"])
    print(json.dumps(str(path)))
    print(text)


if __name__ == "__main__":
    records.run(main)
