"""Files in, prepared pictures, answers out: one's own photographs, by a run or by the model that comes in the package."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gingham.datasets import Split
from gingham.errors import DataError, GinghamError
from gingham.evaluation import Report, measure
from gingham.folders import list_pictures
from gingham.models import Classifier
from gingham.neighbours import nearest
from gingham.photos import Prepared, Step, is_grey, on_white, open_photo, prepare_garment, prepare_plain
from gingham.pictures import quiet
from gingham.published import NAMED
from gingham.sampling import evenly
from gingham.storage import Run, load

PACKAGED = Path(__file__).parent / "packaged"
GARMENTS = set(NAMED["fashion-mnist"].classes)
WAYS = ("auto", "none", "photo")
GALLERY, ALIKE = 2000, 6  # training pictures that a page or a server compares with, and how many of them are shown


@dataclass(frozen=True)
class Answer:
    """What a model says of one image file: `label` is its top class, `confidence` that class's probability, `probabilities`
    all of them by class name, and `unsure` whether the confidence is below the model's threshold. `prepared` is the
    picture that the model saw, with the steps that led to it. For a file that cannot be read `error` says why, and the
    rest is empty.
    """

    image: str
    label: str = ""
    confidence: float = 0.0
    probabilities: dict[str, float] | None = None
    unsure: bool = False
    prepared: Prepared | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return `image label confidence probabilities unsure steps`, or `image error`, as plain JSON values."""
        if self.error is not None or self.prepared is None:
            return {"image": self.image, "error": self.error}
        return {
            "image": self.image,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            "unsure": self.unsure,
            "steps": [{"step": step.name, "note": step.note} for step in self.prepared.steps],
        }


def load_packaged() -> Run:
    """Return the run of the model that comes in the package: trained on Fashion-MNIST by the recipe `photo`, seed 0.

    It has no folder: nothing is ever written beside what was installed.

        load_packaged().model.classes        # ('T-shirt/top', 'Trouser', ...)
    """
    run = load(PACKAGED)
    run.folder = None
    return run


def predict(run: Run, images: Sequence[str | Path | Image.Image], prepare: str = "auto") -> list[Answer]:
    """Return what a run's model says of images: files, or pictures opened with Pillow; an answer each, in order.

    `prepare` "auto" leaves a picture of the model's own size and colours alone and prepares anything else as the pictures
    were that the model has learned; "photo" prepares every one; "none" shrinks only, without keeping proportions.

        for answer in gingham.predict(gingham.load_packaged(), ["shirt.jpg"]):
            print(answer.label, answer.confidence, answer.unsure)

    Raises
        GinghamError: another `prepare`. A file that cannot be read gets an answer with its `error`.
    """
    if prepare not in WAYS:
        raise GinghamError(f"--prepare got {prepare!r}; allowed: {', '.join(WAYS)}")
    names = [str(image) if isinstance(image, (str, Path)) else f"picture {number}" for number, image in enumerate(images, 1)]
    results = _prepare_all(run, images, prepare)
    read = [result for result in results if isinstance(result, Prepared)]
    return answers(run.model, names, results, average(run.model, read))


def answers(
    model: Classifier, names: Sequence[str], results: Sequence[Prepared | DataError], probabilities: torch.Tensor
) -> list[Answer]:
    """Return an answer for each name: from the probabilities (M, K) of the M results that could be prepared, in their order."""
    top, labels = probabilities.max(dim=1) if len(probabilities) else (torch.empty(0), torch.empty(0))
    unsure = top < model.threshold.cpu()
    said = zip(probabilities.tolist(), top.tolist(), labels.tolist(), unsure.tolist(), strict=True)
    found = []
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, Prepared):
            found.append(Answer(name, error=str(result)))
            continue
        shares, confidence, label, doubt = next(said)
        by_name = dict(zip(model.classes, shares, strict=True))
        found.append(Answer(name, model.classes[label], confidence, by_name, doubt, result))
    return found


def average(model: Classifier, prepared: Sequence[Prepared]) -> torch.Tensor:
    """Return a model's probabilities for prepared photographs, float32 (N, K): the mean over the framings of each."""
    if not prepared:
        return torch.empty(0, len(model.classes))
    said = model.predict(np.concatenate([one.framings for one in prepared])).probabilities
    if len(said) == len(prepared):
        return said
    parts = torch.split(said, [len(one.framings) for one in prepared])
    return torch.stack([part.mean(dim=0) for part in parts])


def _prepare_all(
    run: Run, images: Sequence[str | Path | Image.Image], way: str, *, steps: bool = True
) -> list[Prepared | DataError]:
    def one(image: str | Path | Image.Image) -> Prepared | DataError:
        try:
            prepared = prepare_for(run, image if isinstance(image, Image.Image) else open_photo(Path(image)), way)
        except DataError as error:
            return error
        return prepared if steps else Prepared(prepared.framings, ())  # the steps of thousands would fill the memory

    with quiet():
        if len(images) == 1:
            return [one(images[0])]
        with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
            return list(pool.map(one, images))


def prepare_for(run: Run, photo: Image.Image, way: str = "auto") -> Prepared:
    """Return a photograph as a run's model takes it: as the pictures were made that it was trained on, each step kept.

    `photo` is what `open_photo` gives. A model of Fashion-MNIST is shown the garment, cut out, on black; any other one the
    whole picture in a square.
    """
    channels, height, width = run.model.input_shape
    grey = channels == 1
    if way == "none" or (way == "auto" and photo.size == (width, height) and is_grey(photo) == grey):
        note = "taken as it is" if photo.size == (width, height) else f"shrunk to {width}x{height}, and nothing else"
        small = on_white(photo).convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(small)
        picture = pixels[None] if grey else pixels.transpose(2, 0, 1)
        return Prepared(np.ascontiguousarray(picture)[None], (Step("size", note, np.asarray(small.convert("RGB"))),))
    if takes_garments(run):
        return prepare_garment(photo, run.model.input_shape)
    background = run.data.get("background")
    return prepare_plain(photo, run.model.input_shape, background if isinstance(background, (int, float)) else None)


def takes_garments(run: Run) -> bool:
    """Return whether a run's model knows garments, light on black, as Fashion-MNIST has them."""
    named = run.data.get("name") == "fashion-mnist" or set(run.model.classes) == GARMENTS
    return run.model.input_shape[0] == 1 and named


def evaluate_photographs(run: Run, folder: str | Path, split: str | None = None) -> tuple[Report, list[Answer]]:
    """Return how a run does on a folder of photographs, each prepared as `predict` does, and the files that cannot be read.

    The folder has a folder of photographs for each class, or is a `.csv` of paths and labels. Their names are matched to
    the model's classes without regard to case and punctuation ("t-shirt-top" is "T-shirt/top"); classes may be missing. With
    train, validation and test folders `split` says which one; all photographs are taken without it, or without such folders. Nothing is trained, so
    nothing is opened: this is not the dataset's test split.

        report, unreadable = gingham.evaluate_photographs(gingham.load_packaged(), "photographs")
        report.balanced_accuracy        # the mean over the classes that are there

    Raises
        DataError: a folder that no class is called like, no photographs, or none that can be read.
    """
    place = Path(folder)
    entries = list_pictures(place, training=False).entries
    if split is not None and {entry.split for entry in entries} != {"train"}:
        entries = tuple(entry for entry in entries if entry.split == split)
    known = {bare_name(name): k for k, name in enumerate(run.model.classes)}
    for entry in entries:
        if bare_name(entry.label) not in known:
            raise DataError(
                f"{place} has the class {entry.label}, which is none of the model's ({', '.join(run.model.classes[:20])}); rename it, "
                "or take it out"
            )
    if not entries:
        raise DataError(f"{place} holds no photographs of the split {split}; leave --split out to take all there are")
    results = _prepare_all(run, [entry.file for entry in entries], "auto", steps=False)
    read = [(entry, result) for entry, result in zip(entries, results, strict=True) if isinstance(result, Prepared)]
    bad = [Answer(str(entry.file), error=str(result)) for entry, result in zip(entries, results, strict=True)
           if not isinstance(result, Prepared)]  # fmt: skip
    if not read:
        raise DataError(f"{place} holds no picture that can be read ({bad[0].error}); give photographs")
    labels = torch.tensor([known[bare_name(entry.label)] for entry, _ in read])
    pictures = torch.from_numpy(np.stack([result.picture for _, result in read]))
    files = tuple(str(entry.file) for entry, _ in read)
    photographs = Split("photographs", pictures, labels, run.model.classes, str(place), "", files=files)
    logits = average(run.model, [result for _, result in read]).clamp(min=1e-30).log()
    temperature, threshold = float(run.model.temperature), float(run.model.threshold)
    return measure(logits, photographs, list(run.test_openings), temperature, threshold), bad


def bare_name(name: str) -> str:
    """Return a class's name as folders are matched to it, without case and punctuation.

    >>> bare_name("T-shirt/top")
    'tshirttop'
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def occlusion(model: Classifier, picture: torch.Tensor, label: int, side: int = 5, stride: int = 1) -> torch.Tensor:
    """Return how much each place of a picture speaks for a class, float32 (H, W): its share of the probability that is
    lost, from -1 to 1, while a square of `side` pixels around the place is blacked out. With a `stride` only every so
    many places down and across are tried.

    `picture` is uint8 (C, H, W).

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901).
    """
    _, height, width = picture.shape
    rows, columns = torch.arange(height), torch.arange(width)
    near_row = (rows[::stride, None] - rows).abs() <= side // 2
    near_column = (columns[::stride, None] - columns).abs() <= side // 2
    hidden = (near_row[:, None, :, None] & near_column[None, :, None, :]).reshape(-1, 1, height, width)
    covered = model.predict(picture[None].masked_fill(hidden, 0)).probabilities[:, label]
    return (model.predict(picture[None]).probabilities[0, label] - covered).reshape(len(near_row), len(near_column))


def features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return what a network makes of pictures, float (N, D): what goes into its last linear layer or, where it has none, its
    logits. Pictures that are alike to the network lie close together in it.

    `images` is uint8 (N, C, H, W).
    """
    with entering_last_layer(model) as found:
        logits = torch.cat([model.logits(part) for part in torch.split(images, 500)])
    if not found:
        return logits
    views = len(found) // -(-len(images) // 500)  # the mirror image comes after each batch
    return torch.cat(found[::views]).cpu()


@contextlib.contextmanager
def entering_last_layer(model: Classifier) -> Iterator[list[torch.Tensor]]:
    """Collect what goes into a network's last linear layer while this thread asks it, (N, D) a call; nothing where it has none."""
    layers = [module for module in model.network.modules() if isinstance(module, torch.nn.Linear)]
    found, here = list[torch.Tensor](), threading.get_ident()

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == here:  # a server's other threads ask the same network other things
            found.append(inputs[0].flatten(1))

    handles = [layer.register_forward_pre_hook(keep) for layer in layers[-1:]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Gallery:
    """Training pictures to compare others with: `images` uint8 (M, C, H, W), their `labels` by name, and `features` (M, D)."""

    images: torch.Tensor
    labels: tuple[str, ...]
    features: torch.Tensor

    def like(self, seen: torch.Tensor, count: int) -> list[int]:
        """Return the places of the pictures most like one of features (D,), best first."""
        places: list[int] = nearest(seen[None], self.features, count)[0].tolist()
        return places


def gallery(model: Classifier, train: Split, count: int) -> Gallery | None:
    """Return `count` of the training pictures, or all, evenly spread over the split; None where they are not of the model's shape."""
    if tuple(train.images.shape[1:]) != model.input_shape or not count:
        return None
    some = evenly(len(train), count)
    images = train.images[some].cpu()
    labels = tuple(train.classes[label] for label in train.labels[some].tolist())
    return Gallery(images, labels, features(model, images))
