"""Check a dataset for problems: duplicates, wrong labels, odd files, missing or rare classes."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import torch

from gingham.data.decode import UNREADABLE
from gingham.data.similarity import NEAR, near_duplicates, normalized_vectors
from gingham.data.splits import DataSplits, Split
from gingham.evaluation.metrics import fit_temperature
from gingham.presets import RECIPES
from gingham.training.checks import check_labels
from gingham.training.fit import fit
from gingham.training.issue import Issue

IMBALANCE = 10  # times as many pictures of one class as of another
SURE, DOUBTED = 0.97, 0.01  # probabilities of another class and of the given one at which a label is doubted
LISTED = 40  # pictures, or groups of them, a finding shows
Place = tuple[str, int]  # a split's name and a picture's index in it


def check_data(data: DataSplits, odd_files: Sequence[tuple[str, str]] = ()) -> list[Issue]:
    """Return what is wrong with a dataset, the gravest first; an empty list if nothing is found.

    Looks for classes that a split lacks or that are rare, pictures of one value, exact and near duplicates within and
    across the splits, labels that do not belong to the pictures, and single labels that are likely wrong. For the last a
    small network is trained on each half of the training pictures and asked about the other half; of test pictures
    only the pixels are looked at. `odd_files` are what reading the data found odd, as (file, reason).

        for finding in gingham.check_data(gingham.load_data("fashion-mnist")):
            print(finding)

    Source of the last: Northcutt, Jiang & Chuang, "Confident learning" (arXiv 1911.00068), with fixed thresholds.
    """
    parts = [part for part in (data.train, data.validation, data.test) if part is not None and len(part)]
    found = [*_check_classes(data, parts), *_check_constant(data, parts)]
    copies = _copies(parts)
    found += _describe_copies(data, copies, "exact")
    found += _describe_copies(data, _near(parts, copies), "near")
    mixed = check_labels(data.train, data.validation)
    return [*_describe_files(odd_files), *mixed, *found, *([] if mixed else _check_single_labels(data))]


def _describe_files(odd_files: Sequence[tuple[str, str]]) -> list[Issue]:
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
        Issue(code, f"{_count(len(rows), 'file')} {_is(len(rows))} {title}", _listed([" ".join(row) for row in rows], 8), fix)
        for rows, code, title, fix in kinds
        if rows
    ]


def _check_classes(data: DataSplits, parts: Sequence[Split]) -> list[Issue]:
    found = []
    for part in parts:
        missing = [name for name, count in part.counts().items() if not count]
        if missing:
            names = _listed(missing)
            found.append(
                Issue(
                    "missing-classes",
                    f"the {part.name} split lacks {len(missing)} of {len(data.classes)} classes",
                    f"it has no picture of {names}",
                    f"add pictures of {names} to it, or cut the splits anew",
                )
            )
    counts = {name: count for name, count in data.train.counts().items() if count}
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[common] > IMBALANCE * counts[rare]:
        found.append(
            Issue(
                "imbalanced-classes",
                "the classes are out of balance",
                f"{counts[common]:,} training pictures of {common}, {counts[rare]:,} of {rare}: {counts[common] / counts[rare]:.0f} "
                "times as many",
                f"collect more pictures of {rare}, and judge by the accuracy of each class, not by the total",
            )
        )
    return found


def _check_constant(data: DataSplits, parts: Sequence[Split]) -> list[Issue]:
    places: list[Place] = []
    for part in parts:
        flat = part.images.flatten(1)
        places += [(part.name, k) for k in (flat.amax(dim=1) == flat.amin(dim=1)).nonzero().flatten().tolist()]
    if not places:
        return []
    return [
        Issue(
            "constant-images",
            f"{_count(len(places), 'picture')} of one value all over",
            f"{_named(data, places)}",
            "remove them, or see what went wrong when they were made",
            tuple((place,) for place in places[:LISTED]),
        )
    ]


Groups = list[list[Place]]


def _copies(parts: Sequence[Split]) -> Groups:
    seen: dict[bytes, list[Place]] = defaultdict(list)
    for part in parts:
        for index, picture in enumerate(part.images.numpy()):
            seen[hashlib.blake2b(picture.tobytes(), digest_size=16).digest()].append((part.name, index))
    return [places for places in seen.values() if len(places) > 1]


def _near(parts: Sequence[Split], copies: Groups) -> Groups:
    """Groups of near duplicates, each of exact ones only once."""
    places = [(part.name, index) for part in parts for index in range(len(part))]
    vectors = torch.cat([normalized_vectors(part.images) for part in parts])
    again = {place for group in copies for place in group[1:]}
    usable = torch.tensor([place not in again for place in places]) & (vectors.norm(dim=1) > 0.5)
    index = usable.nonzero().flatten()
    if len(index) < 2:
        return []
    pairs, _ = near_duplicates(vectors[index])
    joined: dict[int, int] = {}

    def root(k: int) -> int:
        while joined.setdefault(k, k) != k:
            k = joined[k]
        return k

    order: dict[int, list[Place]] = {}
    for a, b in index[pairs].tolist():
        joined[root(a)] = root(b)
    for k in dict.fromkeys(index[pairs].flatten().tolist()):
        order.setdefault(root(k), []).append(places[k])
    return list(order.values())


def _describe_copies(data: DataSplits, groups: Groups, kind: str) -> list[Issue]:
    found = []
    across = [
        group for group in groups if any(name == "test" for name, _ in group) and any(name != "test" for name, _ in group)
    ]
    within = [group for group in groups if group not in across]
    same = "the same pixels" if kind == "exact" else f"a correlation of {NEAR} or more, whatever brightness and contrast"
    if across:
        leaks = sum(name == "test" for group in across for name, _ in group)
        found.append(
            Issue(
                f"{kind}-duplicates-across-splits",
                f"{_count(leaks, 'test picture')} {_is(leaks)} in the training data too ({kind} duplicates)",
                f"{_count(len(across), 'group')} of pictures with {same}, such as {_named(data, across[0])}",
                "remove the training pictures"
                + (
                    "; gingham diagnose RUN --split test gives a run's accuracy with and without them"
                    if data.fingerprint
                    else ""
                ),
                tuple(tuple(group) for group in across[:LISTED]),
            )
        )
    if within:
        extra = sum(len(group) - 1 for group in within)
        found.append(
            Issue(
                f"{kind}-duplicates-within-split",
                f"{_count(extra, 'picture')} {_is(extra)} there more than once within a split ({kind} duplicates)",
                f"{_count(len(within), 'group')} of pictures with {same}, such as {_named(data, within[0])}",
                "keep one of each group",
                tuple(tuple(group) for group in within[:LISTED]),
            )
        )
    splits = {part.name: part for part in (data.train, data.validation, data.test) if part is not None}
    torn = [group for group in groups if len({int(splits[name].labels[k]) for name, k in group}) > 1]
    if torn:
        labels = [data.classes[int(splits[name].labels[k])] for name, k in torn[0]]
        found.append(
            Issue(
                f"{kind}-duplicates-with-different-labels",
                f"{_count(len(torn), 'group')} of {kind} duplicates with different labels",
                f"such as {_named(data, torn[0])}, labelled {' and '.join(labels)}",
                "look at them and correct the labels",
                tuple(tuple(group) for group in torn[:LISTED]),
            )
        )
    return found


def _check_single_labels(data: DataSplits) -> list[Issue]:
    parts = [part for part in (data.train, data.validation) if part is not None]
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    places = [(part.name, index) for part in parts for index in range(len(part))]
    if len(labels) < 20 * len(data.classes):
        return []  # too few to learn from half of them
    logits = _answers_of_the_other_half(data, images, labels)
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    given = probabilities.gather(1, labels[:, None]).squeeze(1)
    sure, other = probabilities.max(dim=1)
    doubted = ((given <= DOUBTED) & (sure >= SURE) & (other != labels)).nonzero().flatten()
    doubted = doubted[(given[doubted] - sure[doubted]).argsort(stable=True)]
    if not len(doubted):
        return []
    first = int(doubted[0])
    wrong = [places[k] for k in doubted.tolist()]
    return [
        Issue(
            "likely-wrong-labels",
            f"{_count(len(wrong), 'label')} {_is(len(wrong))} likely wrong",
            f"small networks that had not seen these pictures are at least {SURE:.0%} sure of another class, such as of "
            f"{_named(data, wrong[:1])}, labelled {data.classes[int(labels[first])]}, which they take for {data.classes[int(other[first])]}",
            "look at them, the surest first, and correct those that are wrong",
            tuple((place,) for place in wrong[:LISTED]),
        )
    ]


def _answers_of_the_other_half(data: DataSplits, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (N, K) for every picture from a network that was trained on the half it is not in."""
    pixels = images[:: max(1, len(images) // 5000)].float() / 255
    recipe = RECIPES["fast-90"].replace(
        name="doctor", epochs=min(30.0, max(4.0, 60_000 / len(images))), hard_share=1.0,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()), std=tuple(pixels.std((0, 2, 3)).clamp(min=0.02).tolist()),
    )  # fmt: skip
    half = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % 2
    logits = torch.empty(len(labels), len(data.classes))
    for side in (0, 1):
        mine = (half == side).nonzero().flatten()
        split = Split("train", images[mine], labels[mine], data.classes, data.name, data.fingerprint)
        run = fit(recipe.replace(batch_size=min(recipe.batch_size, max(2, len(mine) // 8))), split, progress=False)
        logits[half != side] = run.model.logits(images[half != side])
    return logits


def find_leaks(train: Sequence[Split], split: Split) -> torch.Tensor:
    """Return which pictures of a split are near duplicates of pictures that were trained on, bool (N,)."""
    vectors = [normalized_vectors(part.images) for part in (*train, split)]
    start = sum(map(len, vectors[:-1]))
    pairs, _ = near_duplicates(torch.cat(vectors))
    leaks = torch.zeros(len(split), dtype=torch.bool)
    leaks[pairs[(pairs[:, 0] < start) & (pairs[:, 1] >= start), 1] - start] = True
    return leaks


def _named(data: DataSplits, places: Sequence[Place]) -> str:
    splits = {part.name: part for part in (data.train, data.validation, data.test) if part is not None}
    names = [splits[name].files[k] if splits[name].files else f"{name} picture {k}" for name, k in places]
    return _listed(names)


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
