"""Find near duplicates by the correlation of pixels."""

import torch
import torch.nn.functional as F

from gingham.data.sampler import limit_count

# Principal components in which candidates are searched for: with more, there are fewer candidates, but it takes longer.
NUM_COMPONENTS = 16
MAX_BATCH_PIXELS = 1 << 22  # that are converted at once
MAX_SIDE = 32  # pixels; larger images are shrunk to it before they are compared
# Pairs of Fashion-MNIST images above it look like the same photo; many pairs below 0.995 do not.
NEAR_DUPLICATE_CORRELATION = 0.997


def normalized_vectors(images: torch.Tensor) -> torch.Tensor:
    """Return float32 (N, D): each image's pixels with mean 0 and norm 1, so that products are correlations.

    `images` is uint8 (N, C, H, W). A constant image becomes zeros.
    """
    rows = []
    for batch in torch.split(images, limit_count(4096, images, MAX_BATCH_PIXELS)):
        pixels = batch.float()
        if (largest := max(batch.shape[2:])) > MAX_SIDE:
            scale = MAX_SIDE / largest
            pixels = F.interpolate(pixels, scale_factor=scale, mode="area", recompute_scale_factor=True)
        pixels = pixels.flatten(1)
        rows.append(F.normalize(pixels - pixels.mean(dim=1, keepdim=True), eps=1e-3))
    return torch.cat(rows)


def brightness_and_contrast(images: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation and mean of each channel, float32 (N, 2C), which correlations do not depend on."""
    batches = torch.split(images, limit_count(1024, images, MAX_BATCH_PIXELS))
    statistics = [torch.std_mean(batch.float(), dim=(2, 3)) for batch in batches]
    return torch.cat([torch.cat(pair, dim=1) for pair in statistics])


def near_duplicates(vectors: torch.Tensor, near: float = NEAR_DUPLICATE_CORRELATION) -> torch.Tensor:
    """Return the pairs of images whose correlation is at least `near`, the highest correlation first.

    `vectors` come from `normalized_vectors`, (N, D). The result is int64 (P, 2), the smaller index first. No pair is
    missed: a projection never increases a distance, so pairs that are far apart along the principal components are far
    apart.

    >>> images = torch.tensor([[[[0, 9], [9, 0]]], [[[9, 0], [0, 0]]], [[[1, 19], [19, 1]]]], dtype=torch.uint8)
    >>> near_duplicates(normalized_vectors(images)).tolist()
    [[0, 2]]
    """
    from scipy.spatial import KDTree  # slow to import, and few commands need it

    sample = vectors[:: max(1, len(vectors) // 5000)]
    centred = (sample - sample.mean(dim=0)).double()
    _, components = torch.linalg.eigh(centred.T @ centred)  # in order of increasing variance
    max_distance = (2 * (1 - near)) ** 0.5 + 1e-5  # the distance of two unit vectors of that correlation
    tree = KDTree((vectors @ components[:, -NUM_COMPONENTS:].float()).numpy())
    pairs = torch.from_numpy(tree.query_pairs(max_distance, output_type="ndarray"))
    products = [(vectors[chunk[:, 0]] * vectors[chunk[:, 1]]).sum(dim=1) for chunk in torch.split(pairs, 20_000)]
    correlations = torch.cat(products)
    order = correlations.argsort(descending=True, stable=True)
    return pairs[order][correlations[order] >= near]
