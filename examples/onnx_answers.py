"""Answers pictures with an exported model, without torch: by ONNX Runtime, NumPy and Pillow.

    gingham export model.onnx
    python examples/onnx_answers.py model.onnx coat.png boot.jpg

A picture of the model's own size and colours is taken as it is; all that is done to its values is inside the file. Photographs are prepared by
gingham.inference.preprocess, which needs OpenCV and no torch either: pip install --no-deps . opencv-python-headless tqdm platformdirs
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image


def as_it_is(file: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """A picture of the model's own size and colours, uint8 (1, C, H, W); None for any other."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
        in_colour = bool(np.ptp(np.asarray(image.convert("RGB")), axis=2).any())
    picture = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
    return picture[None] if picture.shape == shape and in_colour == (shape[0] == 3) else None


def prepared(file: Path, shape: tuple[int, int, int], facts: dict[str, str]) -> npt.NDArray[np.uint8]:
    """A photograph as the model's training pictures were made, uint8 (V, C, H, W): V framings, whose answers are averaged."""
    from gingham.inference.preprocess import open_photo, prepare_garment, prepare_plain

    photo = open_photo(file)
    if facts["preparation"] == "garment":
        return prepare_garment(photo, shape).framings
    return prepare_plain(photo, shape, json.loads(facts["background"])).framings


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("give an exported model and pictures: python onnx_answers.py model.onnx coat.png")
    session = onnxruntime.InferenceSession(sys.argv[1])
    facts = session.get_modelmeta().custom_metadata_map
    classes, threshold = json.loads(facts["classes"]), float(facts["threshold"])
    channels, height, width = json.loads(facts["input_shape"])
    for file in map(Path, sys.argv[2:]):
        shape = (channels, height, width)
        try:
            pictures = as_it_is(file, shape)
        except OSError as error:  # what Pillow raises for a file that is missing or no picture
            print(f"{file}: {error}", file=sys.stderr)
            continue
        if pictures is None:
            pictures = prepared(file, shape, facts)
        probabilities = session.run(["probabilities"], {"images": pictures})[0].mean(axis=0)
        top = int(probabilities.argmax())
        sure = "" if probabilities[top] >= threshold else "not sure, perhaps "
        print(f"{file}: {sure}{classes[top]} ({probabilities[top]:.1%})")


if __name__ == "__main__":
    main()
