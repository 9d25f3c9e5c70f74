"""Turn the options that choose a recipe into a Recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gingham.cli.options import AUTO
from gingham.cli.output import print_message
from gingham.errors import GinghamError
from gingham.presets import DEFAULT_RECIPE, RECIPES
from gingham.recipe import Recipe, parse_settings


@dataclass(frozen=True)
class RecipeChoice:
    """The options that choose a recipe. `scratch` is whether others need a network from scratch, such as --model.

    Raises
        GinghamError: an option for pretrained networks is given with a recipe or network that is not pretrained.
    """

    recipe: str
    data: str
    finetune: bool = False
    backbone: str | None = None
    weights: Path | None = None
    scratch: bool = False
    label_from: str = "folder"

    def __post_init__(self) -> None:
        if self._is_pretrained and (self.scratch or (self.recipe != AUTO and not RECIPES[self.recipe].pretrained)):
            other = "a network of your own or teachers" if self.scratch else f"the recipe {self.recipe}"
            raise GinghamError(
                f"--finetune, --backbone and --weights are for pretrained networks, not for {other}; leave them out, "
                "or give --recipe frozen or finetune"
            )

    @property
    def _is_pretrained(self) -> bool:
        return self.finetune or self.backbone is not None or self.weights is not None

    @property
    def is_auto(self) -> bool:
        """Whether the recipe depends on the images."""
        from gingham.data.registry import REGISTRY

        return self.recipe == AUTO and not self._is_pretrained and not self.scratch and self.data not in REGISTRY

    @property
    def network(self) -> str | None:
        """The network that --backbone names, as in a recipe."""
        return None if self.backbone is None else f"timm/{self.backbone}"

    def base_recipe(self) -> Recipe:
        """Return the recipe, without the changes by other options. If it depends on the images, print why.

        Raises
            DataError: the images cannot be listed.
        """
        if self.is_auto:
            from gingham.training.auto import auto_recipe

            recipe, reason = auto_recipe(self.data, self.label_from, say=print_message)
            print_message(reason)
            return recipe
        if self._is_pretrained and self.recipe == AUTO:
            return RECIPES["finetune" if self.finetune else "frozen"]
        return RECIPES[DEFAULT_RECIPE if self.recipe == AUTO else self.recipe]


def choose_recipe(base: Recipe, settings: Sequence[str] | None, **options: Any) -> tuple[Recipe, dict[str, Any]]:
    """Return a recipe with the changes by --set and by options such as --epochs, and the changes alone."""
    changes, given = parse_settings(settings or []), {k: value for k, value in options.items() if value is not None}
    if twice := sorted(set(changes) & set(given)):
        option = "backbone" if twice[0] == "network" else twice[0]
        raise GinghamError(f"{twice[0]} got two values, by --{option} and by --set; give one of them")
    return base.replace(**changes, **given), changes | given


def auto_folder(settings: Sequence[str] | None, seed: int | None) -> Path:
    """Return the run folder if the recipe is chosen for the data: it must be known before the data is read."""
    return Path("runs") / f"{AUTO}-{seed or parse_settings(settings or []).get('seed', 0)}"


def stored_recipe(folder: Path) -> Recipe | None:
    """Return the recipe of the run or the unfinished run in a folder, or None if there is neither."""
    from gingham.io import read_json
    from gingham.runs.checkpoint import has_checkpoint, load_checkpoint
    from gingham.runs.run import METADATA_FILE

    if (folder / METADATA_FILE).exists():
        return Recipe.from_dict(read_json(folder / METADATA_FILE).get("recipe", {}))
    return Recipe.from_dict(load_checkpoint(folder).metadata["recipe"]) if has_checkpoint(folder) else None
