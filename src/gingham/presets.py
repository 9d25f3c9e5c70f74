"""The named recipes."""

from collections.abc import Mapping
from typing import Any

from gingham.errors import Catalogue, RecipeError
from gingham.recipe import Recipe

# The hyper-parameters of the article: float32, all 60,000 images, nothing held out. On two cores it takes minutes;
# benchmarks/reproduce_article.py measures how many, and the accuracy.
ARTICLE = Recipe(name="article", network="article", precision="float32", validation_images=0)

# Each of these recipes is the fastest we know for its accuracy. records/README.md has accuracies and times. Those of
# `accurate` are in records/LOG.md, which also lists what else was tried.
FAST = Recipe(
    name="fast",
    network="small",
    epochs=21,
    batch_size=256,
    optimizer="muon",
    learning_rate=0.8,
    filter_lr_scale=0.2,
    momentum=0.8,
    nesterov=True,
    warmup=0.2,
    schedule="linear",
    weight_decay=1e-4,
    label_smoothing=0.1,
    hard_share=0.3,
    easy_share=0.1,
    flip="alternating",
    tta="flip",
    # At a high learning rate the accuracy varies by 10 points from step to step. That of the mean weights over about 20
    # steps does not. The mean costs 1 % of a step, and is the same in the end because the learning rate falls to 0.
    ema_decay=0.95,
    mean=(0.286,),
    std=(0.353,),
)
# In less than one epoch no image is seen twice, so nothing is needed against over-fitting. Small batches allow more
# steps.
FAST_85 = FAST.replace(
    name="fast-85",
    network="tiny",
    epochs=0.35,
    batch_size=128,
    learning_rate=1.0,
    filter_lr_scale=0.15,
    momentum=0.6,
    flip="none",
    tta="none",
    ema_decay=0,  # evaluated at the end only
)
FAST_90 = FAST_85.replace(name="fast-90", epochs=3, ema_decay=FAST.ema_decay)
FAST_92 = FAST.replace(name="fast-92", epochs=6)
# With a block in stage one and this many epochs, shifting images by a pixel gains more than it costs. Averaging the
# predictions over such shifts gains too; evaluations then take three times as long, so there are fewer of them.
FAST_94 = FAST.replace(name="fast-94", network="large", epochs=22, shift_pixels=1, tta="shift", validate_every=3)
# Half of each batch are simulated photos, a third of which show no garment: nearly as accurate on the dataset, useful
# on the user's own photos, and unsure of other things.
PHOTO = FAST.replace(
    name="photo",
    network="broad",
    epochs=56,
    hard_share=1.0,
    shift_pixels=1,
    photo_share=0.5,
    outlier_share=0.16,
    ema_decay=0,
)
# About ten times the seconds of `fast-94`. Convolutions on all 28x28 pixels are worth more than channels or epochs.
ACCURATE = FAST_94.replace(name="accurate", network="wrn-10-3", epochs=31, shift_pixels=2, validate_every=10)
# For one GPU, which is about a hundred times as fast as a CPU.
GPU_94 = FAST_94.replace(name="gpu-94", network="giant", epochs=14, batch_size=1024, validate_every=1000, ema_decay=0)
GPU_95 = GPU_94.replace(name="gpu-95", network="wrn-10-4", epochs=18, batch_size=512, shift_pixels=2)
GPU_96 = GPU_95.replace(name="gpu-96", network="wrn-16-4", epochs=100, cutout=8)
GPU_BEST = GPU_95.replace(
    name="gpu-best",
    network="wrn-28-10",
    epochs=200,
    hard_share=1.0,
    cutmix=0.5,
    flip="random",
    schedule="cosine",
    ema_decay=0.999,
    compile=True,
    validate_every=10,
)

# For photos in colour: networks of timm that were trained on ImageNet. `frozen` trains a classifier on their features,
# which are computed once; `finetune` then trains the later layers too, which is slower and more accurate.
FROZEN = Recipe(
    name="frozen",
    network="timm/tf_efficientnet_lite0",
    pretrained=True,
    frozen_layers=1.0,
    epochs=30,
    batch_size=256,
    optimizer="adamw",
    learning_rate=3e-3,
    weight_decay=1.0,
    schedule="linear",
    label_smoothing=0.1,
    mean=(0.0,),  # pixels from 0 to 1: the network has the normalisation that it was trained with
    std=(1.0,),
    size=224,
)
FINETUNE = FROZEN.replace(
    name="finetune",
    frozen_layers=0.45,
    early_lr_scale=0.03,
    epochs=16,
    batch_size=16,  # as accurate after 16 epochs as batches of 32 after 20
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup=0.1,
    schedule="cosine",
    flip="random",
    crop_scale=0.25,
    # Objects look larger in crops than in whole images, so the crops are smaller than the images that it answers for
    # (Touvron et al., arXiv 1906.06423).
    crop_size=144,
    size=192,
    validate_every=4,  # evaluating takes seconds
    color_jitter=0.2,
    tta="flip",
)

_FOR_CPUS = (FAST, FAST_85, FAST_90, FAST_92, FAST_94, ACCURATE, PHOTO, ARTICLE)
_FOR_GPUS = (GPU_94, GPU_95, GPU_96, GPU_BEST)
_ALL = {recipe.name: recipe for recipe in (*_FOR_CPUS, *_FOR_GPUS, FROZEN, FINETUNE)}
RECIPES: Mapping[str, Recipe] = Catalogue("recipe", RecipeError, _ALL)
DEFAULT_RECIPE = FAST.name


def train_options(recipe: Recipe) -> str:
    """Return the `gingham train` options for this recipe: its name, its seed and the fields that were changed.

    >>> train_options(RECIPES["fast"].replace(seed=5, epochs=2, nesterov=False))
    '--recipe fast --seed 5 --epochs 2 --set nesterov=false'
    """
    options = [f"--recipe {recipe.name} --seed {recipe.seed}"]
    named = RECIPES.get(recipe.name, recipe)
    for key, value in vars(recipe).items():
        if key in ("name", "seed") or value == getattr(named, key):
            continue
        is_own_network = key == "network" and ":" in value
        option = "--epochs " if key == "epochs" else "--model " if is_own_network else f"--set {key}="
        options.append(option + _format_value(value))
    return " ".join(options)


def _format_value(value: Any) -> str:
    """Return a field's value in the form that --set takes."""
    if isinstance(value, tuple):
        return ",".join(map(_format_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
