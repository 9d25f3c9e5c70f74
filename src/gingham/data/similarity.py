"""Find exact and near duplicates and nearest neighbours, by the correlation of pixels."""

import torch
import torch.nn.functional as F

COMPONENTS = 64
LARGEST_SIDE = 32  # pixels; larger pictures are compared as shrunk to it
NEAR = 0.997  # correlation; Fashion-MNIST's pairs above it look like one photograph, many of those below 0.995 do not
BLOCK = 1024


def normalized_vectors(images: torch.Tensor) -> torch.Tensor:
    """Return float32 (N, D): each picture's pixels with mean 0 and norm 1, so that products are correlations.

    `images` is uint8 (N, C, H, W). A picture of one value becomes zeros.
    """
    rows = []
    for part in torch.split(images, 4096):
        pixels = part.float()
        if (largest := max(part.shape[2:])) > LARGEST_SIDE:
            shrink = LARGEST_SIDE / largest
            pixels = F.interpolate(pixels, scale_factor=shrink, mode="area", recompute_scale_factor=True)
        pixels = pixels.flatten(1)
        pixels = pixels - pixels.mean(dim=1, keepdim=True)
        rows.append(pixels / pixels.norm(dim=1, keepdim=True).clamp(min=1e-3))
    return torch.cat(rows)


def directions(vectors: torch.Tensor) -> torch.Tensor:
    """Return float32 (D, M), the orthonormal principal directions of vectors (N, D), the strongest first."""
    sample = vectors[:: max(1, len(vectors) // 5000)]
    centred = (sample - sample.mean(dim=0)).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    strongest: torch.Tensor = axes[:, -COMPONENTS:].flip(1).float()
    return strongest


def near_duplicates(vectors: torch.Tensor, near: float = NEAR) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs of pictures whose correlation is at least `near`, and their correlations, the closest first.

    `vectors` is what `normalized_vectors` gives, (N, D); what comes back is int64 (P, 2), the smaller index first, and float (P,).
    No pair is missed: a projection never makes two vectors lie further apart, so pairs that are far apart in it, by its
    first direction and then by all of its directions, are far apart.

    >>> pictures = torch.tensor([[[[0, 9], [9, 0]]], [[[9, 0], [0, 0]]], [[[1, 19], [19, 1]]]], dtype=torch.uint8)
    >>> near_duplicates(normalized_vectors(pictures))[0].tolist()
    [[0, 2]]
    """
    reach = (2 * (1 - near)) ** 0.5 + 1e-5  # the distance of two unit vectors of that correlation
    seen = vectors @ directions(vectors)
    order = seen[:, 0].argsort()
    seen, first = seen[order], seen[order, 0].contiguous()
    found = []
    for start in range(0, len(seen), BLOCK):
        stop = min(start + BLOCK, len(seen))
        end = int(torch.searchsorted(first, first[stop - 1] + reach, right=True))
        distances = torch.cdist(seen[start:stop], seen[start:end])
        rows, columns = (distances <= reach).nonzero(as_tuple=True)
        later = columns > rows
        found.append(torch.stack([order[rows[later] + start], order[columns[later] + start]], dim=1))
    pairs = torch.cat(found).sort(dim=1).values
    parts = [(vectors[part[:, 0]] * vectors[part[:, 1]]).sum(dim=1) for part in torch.split(pairs, 20_000)]
    correlations = torch.cat(parts) if parts else torch.empty(0)
    kept = correlations >= near
    best = correlations[kept].argsort(descending=True, stable=True)
    return pairs[kept][best], correlations[kept][best]


def count_label_agreement(
    queries: torch.Tensor, labels: torch.Tensor, base: torch.Tensor, base_labels: torch.Tensor
) -> tuple[int, int]:
    """Return how many pictures have the label of the picture most like them, and how many there are.

    `queries` and `base` are normalised vectors, (Q, D) and (B, D), of different pictures. Where labels belong to their
    pictures this is far above chance even if classes are hard to tell apart.
    """
    right = 0
    for part, wanted in zip(torch.split(queries, BLOCK), torch.split(labels, BLOCK), strict=True):
        right += int((base_labels[(part @ base.T).argmax(dim=1)] == wanted).sum())
    return right, len(labels)


def nearest_neighbours(queries: torch.Tensor, base: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places in `base` (B, D) of the `count` vectors most like each of `queries` (Q, D), by cosine, best first: int64 (Q, count).

    >>> nearest_neighbours(torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), 2).tolist()
    [[1, 2]]
    """
    likeness = F.normalize(queries, dim=1) @ F.normalize(base, dim=1).T
    return likeness.topk(min(count, len(base)), dim=1).indices
