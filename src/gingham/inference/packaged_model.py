"""The model that is shipped with Gingham."""

from pathlib import Path

from gingham.runs.run import Run, load

PACKAGED = Path(__file__).parent / "packaged"


def load_packaged() -> Run:
    """Return the run of the model that comes in the package: trained on Fashion-MNIST by the recipe `photo`, seed 0.

    It has no folder: nothing is ever written beside what was installed.

        load_packaged().model.classes        # ('T-shirt/top', 'Trouser', ...)
    """
    run = load(PACKAGED)
    run.folder = None
    return run
