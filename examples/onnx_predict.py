"""Classify images with an exported model, without torch: with ONNX Runtime, NumPy and OpenCV.

    gingham export model.onnx
    python examples/onnx_predict.py model.onnx coat.png boot.jpg

Images are prepared by gingham.inference.preprocess, which does not need torch:
pip install --no-deps . opencv-python-headless pillow tqdm platformdirs
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from gingham.errors import DataError
from gingham.inference.garments import prepare_garment
from gingham.inference.preprocess import PreparedPhoto, is_input_like, least_novel, open_photo, prepare_candidates


def prepare(file: Path, shape: tuple[int, int, int], metadata: dict[str, str]) -> list[PreparedPhoto]:
    """Return the ways to prepare an image for a model whose images have this shape (C, H, W).

    Each has one or more framings, uint8 (V, C, H, W), whose predictions are averaged.
    """
    photo = open_photo(file)
    is_input = is_input_like(photo, shape)
    if metadata["preparation"] == "garment" and not is_input:
        return [prepare_garment(photo, shape)]
    background, object_share = (json.loads(metadata[name]) for name in ("background", "object_share"))
    return prepare_candidates(photo, shape, background, object_share, is_input)


def read_thresholds(metadata: dict[str, str], *, for_photos: bool) -> tuple[float, float]:
    """Return the probability below which a prediction is not sure, and the score above which an image is novel."""
    prefix = "photo_" if for_photos else ""
    novelty = json.loads(metadata[f"{prefix}novelty_threshold"])
    return float(metadata[f"{prefix}threshold"]), math.inf if novelty is None else novelty


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("give an exported model and images: python onnx_predict.py model.onnx coat.png")
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"there is no file {sys.argv[1]}; write one with: gingham export model.onnx")
    session = onnxruntime.InferenceSession(sys.argv[1])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["classes"])
    channels, height, width = json.loads(metadata["input_shape"])
    for file in map(Path, sys.argv[2:]):
        try:
            candidates = prepare(file, (channels, height, width), metadata)
        except DataError as error:
            print(error, file=sys.stderr)
            continue
        prepared = candidates[0]
        if len(candidates) > 1:  # of one framing each
            images = np.concatenate([candidate.framings for candidate in candidates])
            prepared = least_novel(candidates, session.run(["novelty"], {"images": images})[0].tolist())
        outputs = session.run(["probabilities", "novelty"], {"images": prepared.framings})
        probabilities, novelty = (output.mean(axis=0) for output in outputs)
        top = int(probabilities.argmax())
        threshold, novelty_threshold = read_thresholds(metadata, for_photos=prepared.is_photo)
        doubt = "not sure, perhaps " if probabilities[top] < threshold else ""
        if novelty > novelty_threshold:
            doubt = "unlike anything it was trained on, nearest class "
        print(f"{file}: {doubt}{classes[top]} ({probabilities[top]:.1%})")


if __name__ == "__main__":
    main()
