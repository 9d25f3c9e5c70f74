"""Check a dataset for problems: duplicates, wrong labels, odd files, missing or rare classes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import torch

from gingham.data.decode import UNREADABLE
from gingham.data.similarity import NEAR_DUPLICATE_CORRELATION, near_duplicates, normalized_vectors
from gingham.data.splits import DataSplits, Split
from gingham.evaluation.metrics import fit_temperature
from gingham.presets import RECIPES
from gingham.training.checks import check_labels
from gingham.training.fit import fit
from gingham.training.issue import Issue

MAX_IMBALANCE = 10  # ratio of the most common class to the rarest
MIN_OTHER_PROBABILITY, MAX_LABEL_PROBABILITY = (
    0.97,
    0.01,
)  # of another class and of the label, for a label that is likely wrong
MAX_LISTED = 40  # images, or groups of them, that an issue lists
ImageIndex = tuple[str, int]  # a split's name and an image's index in it
Groups = list[list[ImageIndex]]


def check_data(data: DataSplits, odd_files: Sequence[tuple[str, str]] = ()) -> list[Issue]:
    """Return the issues of a dataset, the most serious first; an empty list if there are none.

    Checks for classes that are missing from a split or rare, constant images, exact and near duplicates within and
    across splits, labels that do not belong to the images, and single labels that are likely wrong. For the last, a
    small network is trained on each half of the training and validation images and predicts the other half. The last
    two checks never use the test split. `odd_files` are the files that reading the data reported, as (file, reason).

        for issue in gingham.check_data(gingham.load_data("fashion-mnist")):
            print(issue)

    Source of the last: Northcutt, Jiang & Chuang, "Confident learning" (arXiv 1911.00068), with fixed thresholds.
    """
    splits = [split for split in (data.train, data.validation, data.test) if split is not None and len(split)]
    issues = [*_check_classes(data, splits), *_check_constant(data, splits)]
    exact = _exact_duplicates(splits)
    issues += _duplicate_issues(data, exact, "exact")
    issues += _duplicate_issues(data, _near_duplicates(splits, exact), "near")
    label_issues = check_labels(data.train, data.validation)
    return [*_check_files(odd_files), *label_issues, *issues, *([] if label_issues else _check_single_labels(data))]


def _check_files(odd_files: Sequence[tuple[str, str]]) -> list[Issue]:
    unreadable = [row for row in odd_files if row[1].startswith(UNREADABLE)]
    odd = [row for row in odd_files if row not in unreadable]
    kinds = (
        (
            unreadable,
            "unreadable-files",
            "not to be read as pictures",
            "take them out, or replace those that should be pictures",
        ),
        (odd, "odd-files", "odd", "see whether they are what they should be"),
    )
    return [
        Issue(
            code,
            f"{_count(len(rows), 'file')} {_is(len(rows))} {title}",
            _join([" ".join(row) for row in rows], 8),
            fix,
        )
        for rows, code, title, fix in kinds
        if rows
    ]


def _check_classes(data: DataSplits, splits: Sequence[Split]) -> list[Issue]:
    issues = []
    for split in splits:
        missing = [name for name, count in split.counts().items() if not count]
        if missing:
            names = _join(missing)
            issues.append(
                Issue(
                    "missing-classes",
                    f"the {split.name} split lacks {len(missing)} of {len(data.classes)} classes",
                    f"it has no picture of {names}",
                    f"add pictures of {names} to it, or cut the splits anew",
                )
            )
    counts = {name: count for name, count in data.train.counts().items() if count}
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[common] > MAX_IMBALANCE * counts[rare]:
        issues.append(
            Issue(
                "imbalanced-classes",
                "the classes are out of balance",
                f"{counts[common]:,} training pictures of {common}, {counts[rare]:,} of {rare}: "
                f"{counts[common] / counts[rare]:.0f} times as many",
                f"collect more pictures of {rare}, and judge by the accuracy of each class, not by the total",
            )
        )
    return issues


def _check_constant(data: DataSplits, splits: Sequence[Split]) -> list[Issue]:
    constant: list[ImageIndex] = []
    for split in splits:
        pixels = split.images.flatten(1)
        constant += [(split.name, k) for k in (pixels.amax(dim=1) == pixels.amin(dim=1)).nonzero().flatten().tolist()]
    if not constant:
        return []
    return [
        Issue(
            "constant-images",
            f"{_count(len(constant), 'picture')} of one value all over",
            f"{_image_names(data, constant)}",
            "remove them, or see what went wrong when they were made",
            tuple((image,) for image in constant[:MAX_LISTED]),
        )
    ]


def _exact_duplicates(splits: Sequence[Split]) -> Groups:
    """Return the groups of two or more images with the same pixels."""
    by_hash: dict[bytes, list[ImageIndex]] = defaultdict(list)
    for split in splits:
        for index, image in enumerate(split.images.numpy()):
            by_hash[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append((split.name, index))
    return [group for group in by_hash.values() if len(group) > 1]


def _near_duplicates(splits: Sequence[Split], exact: Groups) -> Groups:
    """Return the groups of near duplicates, with only the first image of each group of exact ones."""
    image_indices = [(split.name, index) for split in splits for index in range(len(split))]
    vectors = torch.cat([normalized_vectors(split.images) for split in splits])
    repeated = {image for group in exact for image in group[1:]}
    usable = torch.tensor([image not in repeated for image in image_indices]) & (vectors.norm(dim=1) > 0.5)
    index = usable.nonzero().flatten()
    if len(index) < 2:
        return []
    pairs, _ = near_duplicates(vectors[index])
    parents: dict[int, int] = {}  # a disjoint-set forest

    def root(k: int) -> int:
        while parents.setdefault(k, k) != k:
            k = parents[k]
        return k

    groups: dict[int, list[ImageIndex]] = {}
    for a, b in index[pairs].tolist():
        parents[root(a)] = root(b)
    for k in dict.fromkeys(index[pairs].flatten().tolist()):
        groups.setdefault(root(k), []).append(image_indices[k])
    return list(groups.values())


def _duplicate_issues(data: DataSplits, groups: Groups, kind: str) -> list[Issue]:
    issues = []
    across = [
        group
        for group in groups
        if any(name == "test" for name, _ in group) and any(name != "test" for name, _ in group)
    ]
    within = [group for group in groups if group not in across]
    in_common = (
        "the same pixels"
        if kind == "exact"
        else f"a correlation of {NEAR_DUPLICATE_CORRELATION} or more, whatever brightness and contrast"
    )
    if across:
        leaks = sum(name == "test" for group in across for name, _ in group)
        issues.append(
            Issue(
                f"{kind}-duplicates-across-splits",
                f"{_count(leaks, 'test picture')} {_is(leaks)} in the training data too ({kind} duplicates)",
                f"{_count(len(across), 'group')} of pictures with {in_common}, such as {_image_names(data, across[0])}",
                "remove the training pictures"
                + (
                    "; gingham diagnose RUN --split test gives a run's accuracy with and without them"
                    if data.fingerprint
                    else ""
                ),
                tuple(tuple(group) for group in across[:MAX_LISTED]),
            )
        )
    if within:
        extra = sum(len(group) - 1 for group in within)
        issues.append(
            Issue(
                f"{kind}-duplicates-within-split",
                f"{_count(extra, 'picture')} {_is(extra)} there more than once within a split ({kind} duplicates)",
                f"{_count(len(within), 'group')} of pictures with {in_common}, such as {_image_names(data, within[0])}",
                "keep one of each group",
                tuple(tuple(group) for group in within[:MAX_LISTED]),
            )
        )
    splits = {split.name: split for split in (data.train, data.validation, data.test) if split is not None}
    conflicting = [group for group in groups if len({int(splits[name].labels[k]) for name, k in group}) > 1]
    if conflicting:
        labels = [data.classes[int(splits[name].labels[k])] for name, k in conflicting[0]]
        issues.append(
            Issue(
                f"{kind}-duplicates-with-different-labels",
                f"{_count(len(conflicting), 'group')} of {kind} duplicates with different labels",
                f"such as {_image_names(data, conflicting[0])}, labelled {' and '.join(labels)}",
                "look at them and correct the labels",
                tuple(tuple(group) for group in conflicting[:MAX_LISTED]),
            )
        )
    return issues


def _check_single_labels(data: DataSplits) -> list[Issue]:
    splits = [split for split in (data.train, data.validation) if split is not None]
    images, labels = torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits])
    if len(labels) < 20 * len(data.classes):
        return []  # too few to train on half of them
    logits = _cross_fit_logits(data, images, labels)
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    label_probabilities = probabilities.gather(1, labels[:, None]).squeeze(1)
    top, predicted = probabilities.max(dim=1)
    doubted = (label_probabilities <= MAX_LABEL_PROBABILITY) & (top >= MIN_OTHER_PROBABILITY) & (predicted != labels)
    wrong = doubted.nonzero().flatten()
    wrong = wrong[(label_probabilities[wrong] - top[wrong]).argsort(stable=True)]
    if not len(wrong):
        return []
    first = int(wrong[0])
    image_indices = [(split.name, index) for split in splits for index in range(len(split))]
    wrong_images = [image_indices[k] for k in wrong.tolist()]
    return [
        Issue(
            "likely-wrong-labels",
            f"{_count(len(wrong), 'label')} {_is(len(wrong))} likely wrong",
            f"small networks that had not seen these pictures are at least {MIN_OTHER_PROBABILITY:.0%} sure of another "
            f"class, such as of {_image_names(data, wrong_images[:1])}, labelled {data.classes[int(labels[first])]}, "
            f"which they take for {data.classes[int(predicted[first])]}",
            "look at them, the surest first, and correct those that are wrong",
            tuple((image,) for image in wrong_images[:MAX_LISTED]),
        )
    ]


def _cross_fit_logits(data: DataSplits, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K) of each image from a network trained on the half of the images that it is not in."""
    pixels = images[:: max(1, len(images) // 5000)].float() / 255
    recipe = RECIPES["fast-90"].replace(
        name="check-data", epochs=min(30.0, max(4.0, 60_000 / len(images))), hard_share=1.0,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()), std=tuple(pixels.std((0, 2, 3)).clamp(min=0.02).tolist()),
    )  # fmt: skip
    halves = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % 2
    logits = torch.empty(len(labels), len(data.classes))
    for half in (0, 1):
        indices = (halves == half).nonzero().flatten()
        train = Split("train", images[indices], labels[indices], data.classes, data.name, data.fingerprint)
        run = fit(recipe.replace(batch_size=min(recipe.batch_size, max(2, len(indices) // 8))), train, progress=False)
        logits[halves != half] = run.model.logits(images[halves != half])
    return logits


def find_leaks(train: Sequence[Split], split: Split) -> torch.Tensor:
    """Return which images of a split are near duplicates of images in the splits `train`, bool (N,)."""
    vectors = [normalized_vectors(part.images) for part in (*train, split)]
    start = sum(map(len, vectors[:-1]))
    pairs, _ = near_duplicates(torch.cat(vectors))
    leaks = torch.zeros(len(split), dtype=torch.bool)
    leaks[pairs[(pairs[:, 0] < start) & (pairs[:, 1] >= start), 1] - start] = True
    return leaks


def _image_names(data: DataSplits, image_indices: Sequence[ImageIndex]) -> str:
    splits = {split.name: split for split in (data.train, data.validation, data.test) if split is not None}
    return _join([splits[name].files[k] if splits[name].files else f"{name} picture {k}" for name, k in image_indices])


def _join(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
