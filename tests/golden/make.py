"""Create the golden run of this release: `python tests/golden/make.py`. Earlier releases keep theirs unchanged."""

import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import gingham  # noqa: E402
from helpers import make_dataset  # noqa: E402

if __name__ == "__main__":
    folder = HERE / f"run-{'.'.join(gingham.__version__.split('.')[:2])}"
    with tempfile.TemporaryDirectory() as temporary:
        data = gingham.load_data(str(make_dataset(Path(temporary) / "quadrants")), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=2, batch_size=16, learning_rate=0.05, validation_images=40)
    run = gingham.fit(recipe, data.train, data.validation, progress=False)
    run.data["name"] = "quadrants"
    gingham.save(run, folder)
    image = torch.arange(784, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 1, 28, 28)
    predictions = run.model.predict(image)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry][:10]
    expected = {
        "probabilities": predictions.probabilities[0].tolist(),
        "novelty": float(predictions.novelty),
        "first_losses": losses,
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
