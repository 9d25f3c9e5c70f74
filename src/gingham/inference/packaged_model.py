"""The model that is shipped with Gingham."""

from pathlib import Path

from gingham.runs.run import Run, load

PACKAGED = Path(__file__).parent / "packaged"


def load_packaged() -> Run:
    """Return the run of the model in the package: trained on Fashion-MNIST with the recipe `photo`, seed 0.

    Its `folder` is None, so that nothing is written into the installed package.

        load_packaged().model.classes        # ('T-shirt/top', 'Trouser', ...)
    """
    run = load(PACKAGED)
    run.folder = None
    return run
