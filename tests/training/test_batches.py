"""The shards of a batch: together they are the whole batch, for any number of processes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import Recipe
from gingham.data.augment import augment
from gingham.data.sampler import Sampler
from gingham.training.batches import BatchLoader, shard_of, shard_weight


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_mean_of_weighted_shard_losses_is_the_batch_loss(count, size):
    losses = torch.rand(count, dtype=torch.float64)
    shares = [losses[shard_of(count, rank, size)].mean() * shard_weight(count, rank, size) for rank in range(size)]
    assert torch.stack(shares).mean() == pytest.approx(float(losses.mean()))
    assert all(len(losses[shard_of(count, rank, size)]) for rank in range(size))  # every process has an image


def test_loss_weight_is_exact_for_uneven_shards():
    # 5 images in two processes are shards of 3 and 2, whose means have the weights 3/5 and 2/5.
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    whole = F.cross_entropy(logits, labels)
    halves = [F.cross_entropy(logits[rank::2], labels[rank::2]) * shard_weight(5, rank, 2) for rank in range(2)]
    assert sum(halves) / 2 == pytest.approx(float(whole))


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("size", [2, 3])
def test_augmentation_does_not_depend_on_the_number_of_processes(size, flip):
    recipe = Recipe(flip=flip, shift_pixels=2, cutout=6, seed=5)
    images = torch.randint(256, (11, 1, 28, 28), dtype=torch.uint8)
    indices = torch.randperm(11)
    whole = augment(images, indices, recipe, 1, 9)
    for rank in range(size):
        part = shard_of(11, rank, size)
        assert torch.equal(augment(images[part], indices[part], recipe, 1, 9, part, 11), whole[part])


PHOTOS = {"crop_size": 20, "rotation": 10, "trivial_augment": True, "color_jitter": 0.3, "crop_scale": 0.5}
CHANGES = [
    {},
    {"cutmix": 0.5},
    {"photo_share": 0.4, "network": "broad"},
    {"photo_share": 0.5, "outlier_share": 0.3, "network": "broad"},
    {"mixup": 0.5},
    PHOTOS,
    PHOTOS | {"mixup": 0.5},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_of_all_processes_are_the_batches_of_one(quadrants, changes, world_size):
    train = gingham.load_data(str(quadrants), validation=0).train
    recipe = Recipe(batch_size=64, flip="random", **changes)

    def batches(rank=0, size=1):
        sampler = Sampler(recipe, len(train))
        return list(BatchLoader(train, recipe, sampler, torch.device("cpu"), rank, size).batches(0, sampler.steps))

    whole = batches()
    for rank in range(world_size):
        for batch, shard in zip(whole, batches(rank, world_size), strict=True):
            part = shard_of(len(batch), rank, world_size)
            for one, other in zip((*batch.inputs(), batch.indices), (*shard.inputs(), shard.indices), strict=True):
                assert torch.equal(one[part], other)
            assert shard.weight == pytest.approx(world_size * len(shard) / len(batch))


@pytest.mark.parametrize("changes", [{"mixup": 0.7}, {"cutmix": 0.7}])
def test_the_labels_of_mixed_images_have_their_shares_of_the_pixels(quadrants, changes):
    train = gingham.load_data(str(quadrants), validation=0).train
    train = replace(train, images=(60 * train.labels).to(torch.uint8)[:, None, None, None].expand_as(train.images))
    recipe = Recipe(batch_size=64, **changes)
    sampler = Sampler(recipe, len(train))
    mixed = 0
    for batch in BatchLoader(train, recipe, sampler, torch.device("cpu"), 0, 1).batches(0, sampler.steps):
        expected = 60 * (batch.mix_weight * batch.labels + (1 - batch.mix_weight) * batch.mixed_labels)
        assert torch.allclose(batch.images.float().mean((1, 2, 3)), expected, atol=0.51)
        mixed += int((batch.mix_weight < 1).sum())
    assert mixed > 0.4 * len(train)
