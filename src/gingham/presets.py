"""The named recipes."""

from collections.abc import Mapping
from typing import Any

from gingham.errors import Catalogue, RecipeError
from gingham.recipe import Recipe

# The article's own hyper-parameters: float32, every one of the 60,000 pictures, nothing held out.
# On two cores it takes minutes; benchmarks/reproduce_article.py says how many and how accurate it ends.
ARTICLE = Recipe(name="article", network="article", precision="float32", validation_images=0)

# Each of these recipes is the fastest we know for its accuracy; records/README.md has accuracies and seconds, except
# for `accurate`, which has run with one seed so far. records/LOG.md says what else was tried.
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
    # At a high learning rate the weights of one step vary by 10 points of accuracy. Their mean over some 20 steps does
    # not, costs 1 % of a step, and is the same in the end, as the rate falls to 0.
    ema_decay=0.95,
    mean=(0.286,),
    std=(0.353,),
)
# In less than an epoch no picture is seen twice: small batches for more steps, and nothing against over-fitting.
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
# With a stage-one block and this many passes, pictures moved by a pixel gain more than they cost.
FAST_94 = FAST.replace(name="fast-94", network="large", epochs=22, shift_pixels=1)
# Two fifths of each batch as if photographed: nearly as good on the dataset, and of use on one's own photographs.
PHOTO = FAST_94.replace(name="photo", network="broad", epochs=48, hard_share=1.0, photo_share=0.4, ema_decay=0)
ACCURATE = FAST_94.replace(name="accurate", network="huge", epochs=100)
# For one GPU, whose seconds are some hundred of a CPU's.
GPU_94 = FAST_94.replace(name="gpu-94", network="huge", epochs=30, batch_size=1024, validate_every=1000, ema_decay=0)
GPU_95 = GPU_94.replace(name="gpu-95", network="giant", epochs=100, shift_pixels=2)
GPU_96 = GPU_95.replace(
    name="gpu-96", network="wrn-16-4", epochs=45, batch_size=512, hard_share=1.0, cutmix=0.5, flip="random"
)
GPU_BEST = GPU_96.replace(
    name="gpu-best",
    network="wrn-28-10",
    epochs=200,
    schedule="cosine",
    ema_decay=0.999,
    compile=True,
    validate_every=10,
)

_ALL = (FAST, FAST_85, FAST_90, FAST_92, FAST_94, ACCURATE, PHOTO, ARTICLE, GPU_94, GPU_95, GPU_96, GPU_BEST)
RECIPES: Mapping[str, Recipe] = Catalogue("recipe", RecipeError, {recipe.name: recipe for recipe in _ALL})
DEFAULT_RECIPE = FAST.name


def train_options(recipe: Recipe) -> str:
    """Return the options of `gingham train` for this recipe: its name and seed, and the fields that were changed.

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
