"""Find exact and near duplicates and nearest neighbours, by the correlation of pixels."""

import torch
import torch.nn.functional as F

NUM_COMPONENTS = 64
MAX_SIDE = 32  # pixels; larger images are shrunk to it before they are compared
NEAR_DUPLICATE_CORRELATION = (
    0.997  # correlation; pairs of Fashion-MNIST above it look like the same photo, many of those below 0.995 do not
)
BLOCK_SIZE = 1024


def normalized_vectors(images: torch.Tensor) -> torch.Tensor:
    """Return float32 (N, D): each image's pixels with mean 0 and norm 1, so that products are correlations.

    `images` is uint8 (N, C, H, W). A constant image becomes zeros.
    """
    rows = []
    for batch in torch.split(images, 4096):
        pixels = batch.float()
        if (largest := max(batch.shape[2:])) > MAX_SIDE:
            scale = MAX_SIDE / largest
            pixels = F.interpolate(pixels, scale_factor=scale, mode="area", recompute_scale_factor=True)
        pixels = pixels.flatten(1)
        pixels = pixels - pixels.mean(dim=1, keepdim=True)
        rows.append(pixels / pixels.norm(dim=1, keepdim=True).clamp(min=1e-3))
    return torch.cat(rows)


def principal_directions(vectors: torch.Tensor) -> torch.Tensor:
    """Return float32 (D, M), the orthonormal principal directions of vectors (N, D), in order of decreasing variance."""
    sample = vectors[:: max(1, len(vectors) // 5000)]
    centred = (sample - sample.mean(dim=0)).double()
    _, eigenvectors = torch.linalg.eigh(centred.T @ centred)
    components: torch.Tensor = eigenvectors[:, -NUM_COMPONENTS:].flip(1).float()
    return components


def near_duplicates(
    vectors: torch.Tensor, near: float = NEAR_DUPLICATE_CORRELATION
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs of images whose correlation is at least `near`, and their correlations, the highest first.

    `vectors` come from `normalized_vectors`, (N, D). The results are int64 (P, 2), the smaller index first, and float
    (P,). No pair is missed: a projection never increases a distance, so pairs that are far apart along the first
    direction or all principal directions are far apart.

    >>> images = torch.tensor([[[[0, 9], [9, 0]]], [[[9, 0], [0, 0]]], [[[1, 19], [19, 1]]]], dtype=torch.uint8)
    >>> near_duplicates(normalized_vectors(images))[0].tolist()
    [[0, 2]]
    """
    max_distance = (2 * (1 - near)) ** 0.5 + 1e-5  # the distance of two unit vectors of that correlation
    projected = vectors @ principal_directions(vectors)
    order = projected[:, 0].argsort()
    projected, first_component = projected[order], projected[order, 0].contiguous()
    candidates = []
    for start in range(0, len(projected), BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, len(projected))
        end = int(torch.searchsorted(first_component, first_component[stop - 1] + max_distance, right=True))
        distances = torch.cdist(projected[start:stop], projected[start:end])
        rows, columns = (distances <= max_distance).nonzero(as_tuple=True)
        is_later = columns > rows
        candidates.append(torch.stack([order[rows[is_later] + start], order[columns[is_later] + start]], dim=1))
    pairs = torch.cat(candidates).sort(dim=1).values
    products = [(vectors[chunk[:, 0]] * vectors[chunk[:, 1]]).sum(dim=1) for chunk in torch.split(pairs, 20_000)]
    correlations = torch.cat(products) if products else torch.empty(0)
    is_near = correlations >= near
    order_by_correlation = correlations[is_near].argsort(descending=True, stable=True)
    return pairs[is_near][order_by_correlation], correlations[is_near][order_by_correlation]


def count_label_agreement(
    queries: torch.Tensor, labels: torch.Tensor, base: torch.Tensor, base_labels: torch.Tensor
) -> tuple[int, int]:
    """Return how many images have the same label as the most similar image of `base`, and how many there are.

    `queries` and `base` are normalised vectors, (Q, D) and (B, D), of different images. If labels belong to their
    images this is far above chance, even if classes are hard to tell apart.
    """
    num_equal = 0
    for block, expected in zip(torch.split(queries, BLOCK_SIZE), torch.split(labels, BLOCK_SIZE), strict=True):
        num_equal += int((base_labels[(block @ base.T).argmax(dim=1)] == expected).sum())
    return num_equal, len(labels)


def nearest_neighbours(queries: torch.Tensor, base: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the `count` vectors of `base` (B, D) nearest to each of `queries` (Q, D): int64 (Q, count).

    Vectors are compared by cosine, and the most similar comes first.

    >>> nearest_neighbours(torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), 2).tolist()
    [[1, 2]]
    """
    similarities = F.normalize(queries, dim=1) @ F.normalize(base, dim=1).T
    return similarities.topk(min(count, len(base)), dim=1).indices
