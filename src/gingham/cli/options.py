"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from gingham.presets import DEFAULT_RECIPE, RECIPES
from gingham.recipe import FIELDS

DEFAULT_DATA = "fashion-mnist"
DATA_HELP = (
    "A dataset's name (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced, cifar-10, ...), a folder with a folder "
    "of images for each class, a table (.csv, .tsv, .txt) of paths and labels or of pixels, a folder with such tables "
    "for train and test, a .npz file, or a folder of IDX files (torchvision's root folder too)."
)
SETTINGS_HELP = f"Set a field of the recipe; may be repeated. Fields: {', '.join(FIELDS)}."
MODEL_FORM = "package.module:Class"

Data = Annotated[str, Option(help=DATA_HELP)]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps; auto uses a GPU if there is one.")]
Epochs = Annotated[float | None, Option(help="Passes over the training images, such as 0.5 or 3.")]
Images = Annotated[
    list[Path],
    Argument(metavar="IMAGE-OR-FOLDER...", help="PNG, JPEG, WEBP, BMP, GIF, TIFF, AVIF or HEIC files, or folders."),
]
Json = Annotated[bool, Option("--json", help="Print one JSON value to stdout, and nothing else.")]
LabelFrom = Annotated[
    Literal["folder", "parent", "name"],
    Option(help="The class of an image: the first folder, the folder it is in, or its name without the number."),
]
Model = Annotated[
    str | None,
    Option("--model", metavar=MODEL_FORM, help="A network of your own, importable from here, instead of the recipe's."),
]
Start = Annotated[
    Path | None, Option("--from", metavar="RUN", help="Start with the weights of a run; classes may be added.")
]
AUTO = "auto"
RECIPE_HELP = f"{AUTO}: chosen for the data, {DEFAULT_RECIPE} for Fashion-MNIST; or one of: {', '.join(RECIPES)}."
RecipeName = Annotated[str, Option(help=RECIPE_HELP, autocompletion=lambda: [AUTO, *RECIPES])]
Finetune = Annotated[bool, Option("--finetune", help="Train the later layers of a pretrained network too.")]
BackboneName = Annotated[
    str | None, Option("--backbone", metavar="NAME", help="A pretrained network of timm, such as resnet18.")
]
WeightsFile = Annotated[
    Path | None, Option("--weights", metavar="FILE", help="Its pretrained weights (.safetensors); else downloaded.")
]
RunFolder = Annotated[Path | None, Option(help="A run folder; by default the model that comes with Gingham.")]
Settings = Annotated[list[str] | None, Option("--set", metavar="FIELD=VALUE", help=SETTINGS_HELP)]
SkipUnreadable = Annotated[bool, Option("--skip-unreadable", help="Leave out unreadable image files, and list them.")]
SplitName = Literal["validation", "test"]
Split = Annotated[SplitName, Option(help="Each use of the test split is recorded in the run.")]
Teacher = Annotated[
    list[Path] | None, Option(metavar="RUN", help="A run on the same split to distil from; may be repeated.")
]
