"""Recipe: every setting that a training run depends on. Frozen, validated, and independent of torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from gingham.errors import Catalogue, RecipeError, list_first

SMALL_DATASET_IMAGES, MIN_STEPS = 10_000, 500  # a recipe is adapted if a dataset has fewer of both


def _setting(default: Any, allowed: str, is_allowed: Callable[[Any], bool]) -> Any:
    return field(default=default, metadata={"allowed": allowed, "is_allowed": is_allowed})


def _number(default: float, low: float, high: float, allowed: str = "") -> Any:
    kind = "a whole number" if isinstance(default, int) else "a number"
    return _setting(default, allowed or f"{kind} from {low} to {high}", lambda value: low <= value <= high)


def _share(default: float, of: str) -> Any:
    return _number(default, 0, 1, f"the share, from 0 to 1, of {of}")


def _text(default: str, allowed: str, length: int) -> Any:
    return _setting(default, allowed, lambda value: 0 < len(value) <= length and value.isprintable())


def _choice(*values: str) -> Any:  # the first is the default
    return _setting(values[0], "one of " + ", ".join(values), lambda value: value in values)


def _flag(allowed: str = "true or false") -> Any:
    return _setting(False, allowed, lambda value: True)


def _channels(default: tuple[float, ...], allowed: str, low: float) -> Any:
    return _setting(default, allowed, lambda value: 0 < len(value) <= 64 and all(low <= x <= 1e3 for x in value))


@dataclass(frozen=True)
class Recipe:
    """The settings that a network is trained with. Fields are keyword arguments and are validated.

    >>> Recipe(network="article").replace(epochs=1, seed=7).learning_rate
    0.01

    Raises
        RecipeError: a field does not exist, or a value is not allowed; the message has the allowed ones.
    """

    name: str = _text("custom", "a name of 1 to 100 printable characters", 100)
    network: str = _text("article", "the name of a network", 200)
    seed: int = _number(0, 0, 2**31 - 1)
    epochs: float = _number(3.0, 1e-6, 1e5, "a number above 0, at most 100000 (0.5 is half the images once)")
    batch_size: int = _number(64, 1, 1 << 20)
    pretrained: bool = _flag("true or false: start with pretrained weights, which only networks named timm/... have")
    frozen_layers: float = _share(0.0, "a pretrained network's first layers that keep their weights; 1: all of them")
    early_lr_scale: float = _number(1.0, 1e-6, 1, "from 0.000001 to 1: a factor for the first layers' learning rate")
    optimizer: str = _choice("sgd", "muon", "adamw")
    learning_rate: float = _number(0.01, 0, 10_000)
    filter_lr_scale: float = _number(0.4, 0, 1e4, "from 0 to 10000: a factor for Muon's learning rate of filters")
    warmup: float = _share(0.0, "the steps over which the learning rate rises")
    schedule: str = _choice("constant", "linear", "cosine")
    momentum: float = _number(0.9, 0, 1 - 1e-9, "a number from 0 to below 1")
    nesterov: bool = _flag()
    weight_decay: float = _number(0.0, 0, 10_000)
    label_smoothing: float = _number(0.0, 0, 1)
    class_balance: float = _number(0.0, 0, 1, "from 0 (each image weighs the same in the loss) to 1 (each class does)")
    hard_share: float = _share(1.0, "hardest images that each epoch after the first uses")
    easy_share: float = _share(0.0, "the other images that each epoch after the first uses")
    flip: str = _choice("none", "random", "alternating")
    shift_pixels: int = _number(0, 0, 1024)
    cutout: int = _number(
        0, 0, 1024, "from 0 to 1024: the side in pixels of the square that is blackened in each image"
    )
    crop_scale: float = _number(1.0, 0.01, 1, "from 0.01 to 1: the smallest share of an image that a random crop has")
    crop_size: int = _number(0, 0, 4096, "the side of the random crops in pixels, up to 4096; 0: that of the images")
    rotation: float = _number(0.0, 0, 180, "from 0 to 180: the largest angle, in degrees, of random rotations")
    color_jitter: float = _share(0.0, "brightness, contrast and saturation that random changes add or remove")
    trivial_augment: bool = _flag("true or false: one random operation of TrivialAugment on each image")
    mixup: float = _share(0.0, "images in each batch that are blended with another image")
    cutmix: float = _share(0.0, "images in each batch over which a box of another image is pasted")
    photo_share: float = _share(0.0, "images in each batch that are turned into simulated photos")
    outlier_share: float = _share(
        0.0, "images in each batch, among the simulated photos, that show none of the classes"
    )
    ema_decay: float = _number(0.0, 0, 1 - 1e-9, "a number from 0 (no EMA) to below 1: the EMA's decay per step")
    distillation_weight: float = _share(0.9, "the loss that follows the teachers, if there are any")
    distillation_temperature: float = _number(2.0, 0.01, 100, "a number from 0.01 to 100 that divides all logits")
    tta: str = _choice("none", "flip", "shift")
    precision: str = _choice("auto", "float32", "bfloat16")
    compile: bool = _flag("true or false: torch.compile takes a minute, then saves time")
    mean: tuple[float, ...] = _channels((0.5,), "one number per channel, for pixels from 0 to 1, such as 0.5", -1e3)
    std: tuple[float, ...] = _channels((0.5,), "one number above 0 per channel, for pixels from 0 to 1, as 0.5", 1e-6)
    size: int = _number(0, 0, 4096, "the images' side in pixels, up to 4096; 0 keeps a common side up to 64, or is 28")
    validation_images: int = _number(5000, 0, 1 << 31, "a whole number of at least 0 (0 holds none out)")
    validate_every: int = _number(1, 1, 10**6, "from 1: evaluate after that many times the size of the training split")
    patience: int = _number(0, 0, 10**6, "how many evaluations may pass without a better one; 0 trains to the end")
    risk: float = _share(0.02, "wrong predictions allowed among those above the threshold")
    checkpoint_seconds: float = _number(30.0, 0, 1e9, "a number of seconds of at least 0 (0 saves at every step)")

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _validated(item, getattr(self, item.name)))
        if self.nesterov and self.momentum == 0:
            raise RecipeError("nesterov is true with momentum 0; set momentum=0.9, or nesterov=false")
        if self.mixes and self.hard_share < 1:
            raise RecipeError(
                f"{self.mixes} with hard_share {self.hard_share:g}, but mixed images cannot be ranked by their loss; "
                f"set hard_share=1 or {self.mixes.split()[0]}=0"
            )
        if len(pair := [field for field in ("cutmix", "mixup", "photo_share") if getattr(self, field)]) > 1:
            first, second = pair[:2]
            given = f"{first} is {getattr(self, first):g} with {second} {getattr(self, second):g}"
            raise RecipeError(f"{given}; set one of them to 0")
        if self.outlier_share > self.photo_share or (self.outlier_share and self.hard_share < 1):
            raise RecipeError(
                f"outlier_share is {self.outlier_share:g} with photo_share {self.photo_share:g} and hard_share "
                f"{self.hard_share:g}; outliers are some of the simulated photos and have no loss to be ranked by: set "
                "outlier_share to at most photo_share, and hard_share=1"
            )
        if self.trains_head_only and (augmented := self._augmentations()):
            raise RecipeError(
                f"{augmented[0]} is {getattr(self, augmented[0])} with frozen_layers 1, which trains on features of "
                f"unchanged images; set {augmented[0]}={getattr(Recipe, augmented[0])}, or train more layers"
            )

    @property
    def mixes(self) -> str:
        """How images of a batch are mixed, such as "cutmix is 0.5", or an empty string."""
        return next((f"{name} is {share:g}" for name in ("cutmix", "mixup") if (share := getattr(self, name))), "")

    @property
    def trains_head_only(self) -> bool:
        """Whether only the classifier of a pretrained network is trained, on features that are computed once."""
        return self.frozen_layers == 1

    @property
    def transforms_photos(self) -> bool:
        """Whether images are cropped, rotated or recoloured at random, as is useful for photos in colour."""
        return bool(self.crop_scale < 1 or self.crop_size or self.trivial_augment or self.rotation or self.color_jitter)

    def _augmentations(self) -> list[str]:
        """Return the names of the fields that change the training images."""
        names = ["crop_scale", "crop_size", "rotation", "color_jitter", "trivial_augment", "mixup", "cutmix"]
        names += ["flip", "shift_pixels", "cutout", "photo_share"]
        return [name for name in names if getattr(self, name) != getattr(Recipe, name)]

    def replace(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed; the copy keeps the name."""
        return self.from_dict({**vars(self), **changes})

    def for_small_dataset(self, num_images: int) -> "Recipe":
        """Return the recipe adapted to a small training split: at least 500 steps, and all images in each epoch.

        With 10,000 images or more, or if the recipe takes 500 steps anyway, it is returned unchanged. Otherwise each
        epoch has about eight batches of at least 15 images, and there are enough epochs for 500 steps.

        >>> adapted = Recipe(epochs=21, batch_size=256, hard_share=0.3, easy_share=0.1).for_small_dataset(136)
        >>> adapted.batch_size, adapted.epochs, adapted.hard_share
        (17, 63.0, 1.0)
        """
        share = 1.0 if self.epochs <= 1 else self.hard_share + self.easy_share * (1 - self.hard_share)
        images_seen = num_images * (min(self.epochs, 1) + max(self.epochs - 1, 0) * share)
        if num_images >= SMALL_DATASET_IMAGES or images_seen / self.batch_size >= MIN_STEPS:
            return self
        batch_size = min(self.batch_size, max(16, num_images // 8))
        while num_images % batch_size == 1 and batch_size > 2:
            batch_size -= 1  # BatchNorm takes no batch of one image
        steps = -(-num_images // batch_size)
        return self.replace(batch_size=batch_size, hard_share=1.0, epochs=max(self.epochs, -(-MIN_STEPS // steps)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with the fields in a dict, as returned by `to_dict`; missing fields have their default."""
        if not isinstance(values, Mapping):
            raise RecipeError(f"a recipe got {_short_repr(values)}; it takes an object of fields, as {{'seed': 1}}")
        for name in values:
            FIELDS[name]  # raises a RecipeError if there is no such field
        return cls(**values)


FIELDS: Mapping[str, "Field[Any]"] = Catalogue(
    "recipe field", RecipeError, {item.name: item for item in fields(Recipe)}
)


def _short_repr(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # Python formats no integer of more than 4300 digits
        return "a value too long to show"


def _validated(item: "Field[Any]", value: Any) -> Any:
    """Return a value converted to the type of its field, or raise a RecipeError if the field does not allow it."""
    try:
        if isinstance(item.type, type):
            converted: Any = _convert(item.type, value)
        else:
            converted = tuple(_convert(float, x) for x in (value if isinstance(value, (list, tuple)) else [value]))
        if item.metadata["is_allowed"](converted):
            return converted
    except (TypeError, ValueError, OverflowError):
        pass
    raise RecipeError(f"recipe field {item.name} got {_short_repr(value)}; allowed: {item.metadata['allowed']}")


def _convert(kind: type, value: Any) -> Any:
    if isinstance(value, bool) != (kind is bool) or isinstance(value, str) != (kind is str):
        raise TypeError
    if kind is int and value != int(value):
        raise ValueError
    return kind(value)


def describe_changes(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return how the settings of a training differ from those stored earlier, or an empty string if they do not.

    Both are JSON values: a `recipe`, the fingerprint of the data and the checksums of the teachers.

    >>> describe_changes({"recipe": {"seed": 1}, "fingerprint": "a"}, {"recipe": {"seed": 2}, "fingerprint": "b"})
    'fingerprint a, not b and seed 1, not 2'
    """
    recipe = stored.get("recipe")
    before = {"teachers": [], **stored, **Recipe().to_dict(), **(recipe if isinstance(recipe, dict) else {})}
    now = {**settings, **settings["recipe"]}
    for key in ("recipe", "checkpoint_seconds"):  # fields are compared one by one; the second changes no weights
        now.pop(key, None)
    changes = [f"{key} {before.get(key)}, not {value}" for key, value in now.items() if before.get(key) != value]
    return list_first(changes, 3, " and ")


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return texts of the form FIELD=VALUE as keyword arguments for `Recipe.replace`.

    >>> parse_settings(["learning_rate=0.05", "nesterov=true", "mean=0.5,0.5,0.5"])
    {'learning_rate': 0.05, 'nesterov': True, 'mean': (0.5, 0.5, 0.5)}

    Raises
        RecipeError: there is no `=`, the field does not exist, or the value is not allowed.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set got {setting!r}; write FIELD=VALUE, such as --set learning_rate=0.05")
        changes[name] = _validated(FIELDS[name], _parse_value(FIELDS[name].type, text.strip()))
    return changes


def _parse_value(kind: Any, text: str) -> Any:
    """Return a text converted to the field's type, or unchanged if that fails; `_validated` then rejects it."""
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(kind, type):
            return kind(text)
        return tuple(float(part) for part in text.split(","))
    except (KeyError, ValueError):
        return text
