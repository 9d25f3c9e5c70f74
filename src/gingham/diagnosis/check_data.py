"""Check a dataset for problems: duplicates, wrong labels, odd files, and missing or rare classes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gingham.data.decode import UNREADABLE
from gingham.data.image_files import count_formats
from gingham.data.image_hashes import hash_images
from gingham.data.sampler import limit_count
from gingham.data.similarity import NEAR_DUPLICATE_CORRELATION, near_duplicates, normalized_vectors
from gingham.data.splits import DataSplits, Split
from gingham.errors import list_first, plural, require_types
from gingham.evaluation.metrics import fit_temperature
from gingham.presets import RECIPES
from gingham.training.checks import check_balance, check_labels
from gingham.training.fit import fit
from gingham.training.issue import Issue

MIN_OTHER_PROBABILITY, MAX_LABEL_PROBABILITY = 0.97, 0.01  # of another class, and of a label that is likely wrong
MIN_RANGE = 0.1  # share of the range from 0 to 255 that the pixels of a dataset should span
MEASURED_PIXELS = 1 << 25  # of images whose mean and standard deviation are computed
MAX_LISTED = 40  # images, or groups of images, that an issue lists
ImageIndex = tuple[str, int]  # a split's name and an image's index in it
Groups = list[tuple[ImageIndex, ...]]


def check_data(data: DataSplits, odd_files: Sequence[tuple[str, str]] = ()) -> list[Issue]:
    """Return the issues of a dataset, the most serious first; an empty list if there are none.

    Checks for classes that are missing from a split or rare, constant images, a narrow range of values, exact and near
    duplicates within and across splits, labels that do not belong to the images, and single labels that are likely
    wrong. For the last check, a small network is trained on each half of the training and validation images and
    predicts the other half. The last two checks never use the test split. `odd_files` are the files that were reported
    when the data was read, as (file, reason).

        for issue in gingham.check_data(gingham.load_data("fashion-mnist")):
            print(issue)

    Source of the last check: Northcutt, Jiang & Chuang, "Confident learning" (arXiv 1911.00068), with fixed thresholds.
    """
    require_types("check_data", data=(data, DataSplits))
    splits = [split for split in (data.train, data.validation, data.test) if split is not None and len(split)]
    exact = _exact_duplicates(splits)
    label_issues = list(check_labels(data.train, data.validation))
    return [
        *_check_files(odd_files),
        *label_issues,
        *_check_classes(data, splits),
        *check_balance(data.train),
        *_check_pixels(splits),
        *_check_duplicates(data, splits, exact, "exact"),
        *_check_duplicates(data, splits, _near_duplicates(splits, exact), "near"),
        *([] if label_issues else _check_single_labels(data)),
    ]


def _check_files(odd_files: Sequence[tuple[str, str]]) -> Iterator[Issue]:
    remove = "remove them, or replace those that should be images"
    for unreadable, code, title, fix in (
        (True, "unreadable-files", "not readable as images", remove),
        (False, "odd-files", "odd", "check whether they are the files that you meant"),
    ):
        if rows := [row for row in odd_files if row[1].startswith(UNREADABLE) == unreadable]:
            evidence = f"{count_formats(name for name, _ in rows)}: {list_first([' '.join(row) for row in rows], 8)}"
            yield Issue(code, f"{_count_are(len(rows), 'file')} {title}", evidence, fix)


def _check_classes(data: DataSplits, splits: Sequence[Split]) -> Iterator[Issue]:
    for split in splits:
        missing = [name for name, count in split.counts().items() if not count]
        if missing:
            names = list_first(missing, 4)
            title = f"the {split.name} split lacks {len(missing)} of {len(data.classes)} classes"
            fix = f"add images of {names} to it, or create the splits again"
            yield Issue("missing-classes", title, f"it has no image of {names}", fix)


def _check_pixels(splits: Sequence[Split]) -> Iterator[Issue]:
    darkest = torch.cat([split.images.flatten(1).amin(dim=1) for split in splits]).double()
    brightest = torch.cat([split.images.flatten(1).amax(dim=1) for split in splits]).double()
    images = _image_indices(splits)
    constant = [images[k] for k in (darkest == brightest).nonzero().flatten().tolist()]
    if constant:
        title = f"{plural(len(constant), 'image')} with the same value in all pixels"
        fix = "remove them, or find out what went wrong when they were created"
        listed = tuple((image,) for image in constant[:MAX_LISTED])
        yield Issue("constant-images", title, _image_names(splits, constant), fix, listed)
    # Quantiles, so that a few images with a white dot, such as a hot pixel of a camera, do not hide that the others are
    # too dark. They are not interpolated: of fewer than 100 images, a single one would raise them.
    low, high = darkest.quantile(0.01, interpolation="higher"), brightest.quantile(0.99, interpolation="lower")
    if 0 < (share := float(high - low) / 255) < MIN_RANGE:
        evidence = f"their values are between {low:.0f} and {high:.0f}, out of 0 to 255"
        fix = "create them again from their source, with values up to 255 (65535 in 16-bit files)"
        yield Issue("narrow-range", f"the images use {share:.0%} of the range of values", evidence, fix)


def _exact_duplicates(splits: Sequence[Split]) -> Groups:
    """Return the groups of two or more images with the same pixels."""
    by_hash: dict[int, list[ImageIndex]] = defaultdict(list)
    for split in splits:
        for index, image_hash in enumerate(hash_images(split.images).tolist()):
            by_hash[image_hash].append((split.name, index))
    return [tuple(group) for group in by_hash.values() if len(group) > 1]


def _near_duplicates(splits: Sequence[Split], exact: Groups) -> Groups:
    """Return the groups of near duplicates, with only the first image of each group of exact duplicates."""
    repeated = {image for group in exact for image in group[1:]}
    images = _image_indices(splits)
    vectors = torch.cat([normalized_vectors(split.images) for split in splits])
    usable = torch.tensor([image not in repeated for image in images]) & (vectors.norm(dim=1) > 0.5)  # not constant
    indices = usable.nonzero().flatten()
    if len(indices) < 2:
        return []
    pairs = indices[near_duplicates(vectors[indices])]
    links = coo_array((torch.ones(len(pairs)), pairs.T), shape=(len(images), len(images)))
    _, components = connected_components(links, directed=False)
    groups: dict[int, list[ImageIndex]] = defaultdict(list)
    for k in dict.fromkeys(pairs.flatten().tolist()):
        groups[components[k]].append(images[k])
    return [tuple(group) for group in groups.values()]


def _check_duplicates(data: DataSplits, splits: Sequence[Split], groups: Groups, kind: str) -> Iterator[Issue]:
    labels = {(split.name, k): data.classes[label] for split in splits for k, label in enumerate(split.labels.tolist())}
    across = [group for group in groups if _leaks(group) not in (0, len(group))]
    within = [group for group in groups if _leaks(group) in (0, len(group))]
    conflicting = [group for group in groups if len({labels[image] for image in group}) > 1]
    leak_title = f"{_count_are(sum(map(_leaks, across)), 'test image')} also in the training data ({kind} duplicates)"
    repeats = _count_are(sum(len(group) - 1 for group in within), "image")
    repeat_title = f"{repeats} repeated within a split ({kind} duplicates)"
    conflict_title = f"{plural(len(conflicting), 'group')} of {kind} duplicates with different labels"
    compare = "; gingham diagnose RUN --split test gives a run's accuracy with and without them"
    remove = "remove the training images" + (compare if data.fingerprint else "")
    similar = f"a correlation of {NEAR_DUPLICATE_CORRELATION} or more, regardless of brightness and contrast"
    alike = "the same pixels" if kind == "exact" else similar
    for code, found, title, fix in (
        ("across-splits", across, leak_title, remove),
        ("within-split", within, repeat_title, "keep one of each group"),
        ("with-different-labels", conflicting, conflict_title, "check them and correct the labels"),
    ):
        if found:
            first_labels = " and ".join(dict.fromkeys(labels[image] for image in found[0]))
            such_as = f"such as {_image_names(splits, found[0])}, labelled {first_labels}"
            evidence = f"{plural(len(found), 'group')} of images with {alike}, {such_as}"
            yield Issue(f"{kind}-duplicates-{code}", title, evidence, fix, tuple(found[:MAX_LISTED]))


def _leaks(group: Sequence[ImageIndex]) -> int:
    """Return how many images of a group belong to the test split."""
    return sum(name == "test" for name, _ in group)


def _check_single_labels(data: DataSplits) -> Iterator[Issue]:
    splits = [split for split in (data.train, data.validation) if split is not None]
    images, labels = torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits])
    if len(labels) < 20 * len(data.classes):
        return  # too few to train on half of them
    logits = _cross_fit_logits(data, images, labels)
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    label_probabilities = probabilities.gather(1, labels[:, None]).squeeze(1)
    top, predicted = probabilities.max(dim=1)
    doubted = (label_probabilities <= MAX_LABEL_PROBABILITY) & (top >= MIN_OTHER_PROBABILITY) & (predicted != labels)
    wrong = doubted.nonzero().flatten()
    wrong = wrong[(label_probabilities[wrong] - top[wrong]).argsort(stable=True)]
    if len(wrong):
        image_indices = _image_indices(splits)
        wrong_images = tuple((image_indices[k],) for k in wrong.tolist())
        examples = []
        for image, k in zip(wrong_images, wrong.tolist(), strict=True):
            label, other = (data.classes[int(values[k])] for values in (labels, predicted))
            examples.append(f"{_image_names(splits, image)} (labelled {label}, predicted {other})")
        evidence = (
            f"small networks not trained on these images have {MIN_OTHER_PROBABILITY:.0%} or more confidence in "
            f"another class: {list_first(examples, 4)}"
        )
        title = f"{_count_are(len(wrong), 'label')} likely wrong"
        fix = "check them, those with the highest probability first, and correct those that are wrong"
        yield Issue("likely-wrong-labels", title, evidence, fix, wrong_images[:MAX_LISTED])


def _cross_fit_logits(data: DataSplits, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K), for each image from a network that was trained on the half without this image."""
    pixels = images[:: max(1, len(images) // limit_count(5000, images, MEASURED_PIXELS))].float() / 255
    mean, std = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).clamp(min=0.02).tolist()
    epochs = min(30.0, max(4.0, 60_000 / len(images)))
    recipe = RECIPES["fast-90"].replace(name="check-data", epochs=epochs, hard_share=1.0, mean=mean, std=std)
    halves = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % 2
    logits = torch.empty(len(labels), len(data.classes))
    for half in (0, 1):
        half_images, half_labels = images[halves == half], labels[halves == half]
        train = Split("train", half_images, half_labels, data.classes, data.name, data.fingerprint)
        run = fit(recipe.replace(batch_size=min(recipe.batch_size, max(2, len(train) // 8))), train, progress=False)
        logits[halves != half] = run.model.logits(images[halves != half])
    return logits


def find_leaks(train: Sequence[Split], split: Split) -> torch.Tensor:
    """Return which images of a split are near duplicates of images in the splits `train`, bool (N,)."""
    pairs = near_duplicates(torch.cat([normalized_vectors(part.images) for part in (*train, split)]))
    start = sum(map(len, train))
    leaks = torch.zeros(len(split), dtype=torch.bool)
    leaks[pairs[(pairs[:, 0] < start) & (pairs[:, 1] >= start), 1] - start] = True
    return leaks


def _image_indices(splits: Sequence[Split]) -> list[ImageIndex]:
    return [(split.name, index) for split in splits for index in range(len(split))]


def _image_names(splits: Sequence[Split], images: Sequence[ImageIndex]) -> str:
    files = {split.name: split.files for split in splits}
    return list_first([files[name][k] if files[name] else f"{name} image {k}" for name, k in images], 4)


def _count_are(number: int, noun: str) -> str:
    return f"{plural(number, noun)} {'is' if number == 1 else 'are'}"
