"""Choose a recipe for the user's own images: a small network from scratch, or a pretrained one."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from gingham.data.decode import MAX_COMMON_SIDE, read_properties
from gingham.data.image_files import list_images
from gingham.data.load_data import is_image_collection, load_data
from gingham.data.registry import REGISTRY
from gingham.data.sampler import evenly_spaced
from gingham.errors import GinghamError
from gingham.models.backbones import PREFIX, find_weights
from gingham.presets import DEFAULT_RECIPE, RECIPES
from gingham.recipe import Recipe

NUM_SAMPLED = 100  # images that are looked at
SCRATCH_SIDE = 64  # pixels, for photos without pretrained weights: 28 are too few, and more take minutes


def auto_recipe(
    name: str,
    label_from: str = "folder",
    weights: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[Recipe, str]:
    """Return the recipe for a dataset, and one sentence that says which and why.

    Photos (colour images of more than 64 pixels) get `frozen`, a classifier on the features of a pretrained network;
    published datasets, grey images and small ones, such as icons and digits, get `fast`, a small network from scratch.
    Without pretrained weights, which `find_weights` searches for, photos get `fast` at 64x64 pixels.

    `name` and `label_from` are those of `load_data`.

        recipe, reason = auto_recipe("photos")

    Raises
        DataError: see `load_data`.
    """
    scratch, frozen = RECIPES[DEFAULT_RECIPE], RECIPES["frozen"]
    images, are_photos = _describe(name, label_from)
    if not are_photos:
        return scratch, f"{images}: recipe {scratch.name}, a small network from scratch"
    backbone = frozen.network.removeprefix(PREFIX)
    try:
        find_weights(backbone, weights, say)
    except GinghamError as error:
        scratch = scratch.replace(size=SCRATCH_SIDE)
        reason, _, remedy = str(error).partition("; ")
        choice = f"recipe {scratch.name}, a small network from scratch, at {SCRATCH_SIDE}x{SCRATCH_SIDE} pixels"
        advice = f"; to start from the pretrained weights, {remedy}" if remedy else ""
        return scratch, f"{images}, but {reason}: {choice}{advice}"
    why = f"a classifier on the features of {backbone}, which was trained on ImageNet"
    return frozen, f"{images} are photos: recipe {frozen.name}, {why} (--finetune: slower and more accurate)"


def auto_size(name: str, label_from: str = "folder") -> int:
    """Return the `size` for `load_data` that suits a dataset: that of `frozen` for photos, otherwise 0."""
    _, are_photos = _describe(name, label_from)
    return RECIPES["frozen"].size if are_photos else 0


def _describe(name: str, label_from: str) -> tuple[str, bool]:
    """Return what a dataset's images are, and whether they are photos: large, and most of them in colour."""
    path = Path(name)
    if name in REGISTRY:
        return f"{name} is a dataset of small images", False
    if is_image_collection(path):
        entries = list_images(path.resolve(), label_from=label_from).entries
        files = [entries[k].path for k in evenly_spaced(len(entries), NUM_SAMPLED).tolist()]
        found = [properties for file in files if (properties := read_properties(file)) is not None]
        widths, heights, colours = zip(*found, strict=True) if found else ([0], [0], [False])
        number, width, height = len(entries), round(median(widths)), round(median(heights))
        is_colour = sum(colours) * 2 > len(colours)
    else:
        train = load_data(name, 0).train
        channels, height, width = train.image_shape
        number, is_colour = len(train), channels > 1
    text = f"{number:,} {'colour' if is_colour else 'grey'} images of about {width}x{height} pixels"
    return text, is_colour and max(width, height) > MAX_COMMON_SIDE
