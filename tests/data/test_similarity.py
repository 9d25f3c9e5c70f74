import torch

from gingham.data.similarity import count_label_agreement, near_duplicates, normalized_vectors


def pictures(count, seed=0, side=12):
    return torch.randint(256, (count, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_products_are_correlations():
    images = pictures(50)
    ours = normalized_vectors(images) @ normalized_vectors(images).T
    theirs = torch.corrcoef(images.flatten(1).double())
    assert torch.allclose(ours.double(), theirs, atol=1e-5)


def test_near_duplicates_against_every_pair():
    images = pictures(3000)
    near = images[:200].float() * 0.8 + 10 + torch.randn(200, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 4
    images = torch.cat([images, near.clamp(0, 255).round().to(torch.uint8)])
    vectors = normalized_vectors(images)
    slow = (vectors @ vectors.T).triu(1)
    for threshold in (0.99, 0.995, 0.9):
        expected = {tuple(pair) for pair in (slow >= threshold).nonzero().tolist()}
        found, correlations = near_duplicates(vectors, threshold)
        assert {tuple(pair) for pair in found.tolist()} == expected
        assert expected
        assert (correlations.diff() <= 0).all()


def test_nothing_is_near_nothing():
    assert near_duplicates(normalized_vectors(pictures(40)))[0].shape == (0, 2)
    assert not normalized_vectors(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)).any()


def test_large_pictures_are_compared_small():
    assert normalized_vectors(pictures(3, side=64)).shape == (3, 32 * 32)


def test_agreement_counts_the_nearest():
    base = normalized_vectors(pictures(20))
    labels = torch.arange(20) % 3
    assert count_label_agreement(base[4:9], labels[4:9], base, labels) == (5, 5)
    assert count_label_agreement(base[4:9], labels[4:9] + 1, base, labels) == (0, 5)
