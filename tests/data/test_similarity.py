import torch

from gingham.data.similarity import near_duplicates, normalized_vectors


def make_images(count, seed=0, side=12):
    return torch.randint(256, (count, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_products_of_normalized_vectors_are_correlations():
    images = make_images(50)
    correlations = normalized_vectors(images) @ normalized_vectors(images).T
    expected = torch.corrcoef(images.flatten(1).double())
    assert torch.allclose(correlations.double(), expected, atol=1e-5)


def test_near_duplicates_match_a_comparison_of_all_pairs():
    images = make_images(3000)
    near = images[:200].float() * 0.8 + 10 + torch.randn(200, 1, 12, 12, generator=torch.Generator().manual_seed(1)) * 4
    images = torch.cat([images, near.clamp(0, 255).round().to(torch.uint8)])
    vectors = normalized_vectors(images)
    all_correlations = (vectors @ vectors.T).triu(1)
    for threshold in (0.99, 0.995, 0.9):
        expected = {tuple(pair) for pair in (all_correlations >= threshold).nonzero().tolist()}
        pairs = near_duplicates(vectors, threshold)
        assert {tuple(pair) for pair in pairs.tolist()} == expected
        assert expected
        assert (all_correlations[pairs[:, 0], pairs[:, 1]].diff() <= 1e-6).all()


def test_random_images_have_no_near_duplicates():
    assert near_duplicates(normalized_vectors(make_images(40))).shape == (0, 2)
    assert not normalized_vectors(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)).any()


def test_large_images_are_shrunk():
    assert normalized_vectors(make_images(3, side=64)).shape == (3, 32 * 32)
