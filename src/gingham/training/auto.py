"""Choose a recipe for the user's own images: a small network from scratch, or a pretrained one."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

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


class Images(NamedTuple):
    """What the choice depends on: the number of images, the median side in pixels, and whether most are in colour."""

    number: int
    width: int
    height: int
    colour: bool

    @property
    def are_photos(self) -> bool:
        """Whether they are large and in colour."""
        return self.colour and max(self.width, self.height) > MAX_COMMON_SIDE

    def __str__(self) -> str:
        return (
            f"{self.number:,} {'colour' if self.colour else 'grey'} images of about {self.width}x{self.height} pixels"
        )


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
    if name in REGISTRY:
        return scratch, f"{name} is a dataset of small images: recipe {scratch.name}, a small network from scratch"
    images = _describe(name, label_from)
    if not images.are_photos:
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
    return RECIPES["frozen"].size if name not in REGISTRY and _describe(name, label_from).are_photos else 0


def _describe(name: str, label_from: str) -> Images:
    path = Path(name)
    if is_image_collection(path):
        entries = list_images(path.resolve(), label_from=label_from).entries
        files = [entries[k].path for k in evenly_spaced(len(entries), NUM_SAMPLED).tolist()]
        found = [properties for file in files if (properties := read_properties(file)) is not None]
        widths, heights, colours = zip(*found, strict=True) if found else ([0], [0], [False])
        return Images(len(entries), round(median(widths)), round(median(heights)), sum(colours) * 2 > len(colours))
    train = load_data(name, 0).train
    channels, height, width = train.image_shape
    return Images(len(train), width, height, channels > 1)
