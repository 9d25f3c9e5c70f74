"""Turn the options that choose a recipe into a Recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gingham.cli.options import AUTO
from gingham.cli.output import print_message
from gingham.errors import GinghamError
from gingham.presets import DEFAULT_RECIPE, RECIPES
from gingham.recipe import Recipe, parse_settings

if TYPE_CHECKING:
    import gingham


def recipe_changes(settings: Sequence[str] | None, backbone: str | None, **options: Any) -> dict[str, Any]:
    """Return the fields of a recipe that are set by --set, --backbone and options such as --epochs, with their values.

    Raises
        GinghamError: a field got two values.
    """
    changes = parse_settings(settings or [])
    options["network"] = f"timm/{backbone}" if backbone else None
    given = {name: value for name, value in options.items() if value is not None}
    if twice := sorted(set(changes) & set(given)):
        option = "backbone" if twice[0] == "network" else twice[0]
        raise GinghamError(f"{twice[0]} got two values, by --{option} and by --set; give one of them")
    return changes | given


@dataclass(frozen=True)
class RecipeChoice:
    """The options that choose a recipe. `changes` are its `recipe_changes`; `scratch` is whether other options need a
    network from scratch, such as --model; `start` is the run to start from.

    Raises
        GinghamError: an option for pretrained networks is given with a recipe or network that is not pretrained.
    """

    recipe: str
    data: str
    changes: dict[str, Any]
    finetune: bool = False
    weights: Path | None = None
    scratch: bool = False
    label_from: str = "folder"
    start: "gingham.Run | None" = None

    def __post_init__(self) -> None:
        named = self.recipe != AUTO and not RECIPES[self.recipe].pretrained
        if self._is_pretrained and (self.scratch or named):
            other = f"the recipe {self.recipe}" if named else "a network of your own or teachers"
            raise GinghamError(
                f"--finetune, --weights, --backbone and network=timm/... are for pretrained networks, not for {other}; "
                "leave them out, or give --recipe frozen or finetune"
            )

    @property
    def _is_pretrained(self) -> bool:
        return self.finetune or self.weights is not None or self.changes.get("network", "").startswith("timm/")

    @property
    def is_auto(self) -> bool:
        """Whether the recipe depends on the images."""
        from gingham.data.registry import REGISTRY

        fixed = self._is_pretrained or self.scratch or "network" in self.changes or self.start is not None
        return self.recipe == AUTO and not fixed and self.data not in REGISTRY

    def choose(self, folder: Path | None = None, *, resume: bool = False) -> tuple[Recipe, str]:
        """Return the recipe with the changes, and why it was chosen, if the images decided.

        To `resume`, a recipe that depends on the images is that of the run in the `folder`.

        Raises
            DataError: the images cannot be listed.
        """
        stored = None
        if resume and self.is_auto:
            stored = _stored_recipe(folder or self.default_folder(Recipe(seed=self.changes.get("seed", 0))))
        base, reason = (stored, "") if stored else self._base_recipe()
        return base.replace(**self.changes), reason

    def _base_recipe(self) -> tuple[Recipe, str]:
        """Return the recipe without changes, and why it was chosen, if the images decided."""
        if self.is_auto:
            from gingham.training.auto import auto_recipe

            return auto_recipe(self.data, self.label_from, say=print_message)
        if self.recipe != AUTO:
            return RECIPES[self.recipe], ""
        recipe = RECIPES["finetune" if self.finetune else "frozen" if self._is_pretrained else DEFAULT_RECIPE]
        if self.start is not None:
            start = self.start.recipe
            # At another size, the images that it was trained on would not be recognised.
            recipe = recipe.replace(network=start.network, size=start.size) if self._is_pretrained else start
        if not self._is_pretrained or self.start is not None:
            return recipe, ""
        network = self.changes.get("network", recipe.network).removeprefix("timm/")
        return recipe, f"recipe {recipe.name}, which starts from the pretrained network {network}"

    def default_folder(self, recipe: Recipe, model: str | None = None, ending: str = "") -> Path:
        """Return the folder that a command writes to if --out is not given, such as `runs/fast-0`."""
        network = f"-{model.rpartition(':')[2]}" if model else ""
        # If the recipe depends on the images, the folder of a run to resume must be known before.
        return Path("runs") / f"{AUTO if self.is_auto else recipe.name}{network}-{ending or recipe.seed}"


def _stored_recipe(folder: Path) -> Recipe | None:
    """Return the recipe of the run or the unfinished run in a folder, or None if there is neither."""
    from gingham.io import read_json
    from gingham.runs.checkpoint import has_checkpoint, load_checkpoint
    from gingham.runs.run import METADATA_FILE

    if (folder / METADATA_FILE).exists():
        return Recipe.from_dict(read_json(folder / METADATA_FILE).get("recipe", {}))
    return Recipe.from_dict(load_checkpoint(folder).metadata["recipe"]) if has_checkpoint(folder) else None
