"""Classify images with an exported model, without torch: with ONNX Runtime, NumPy and Pillow.

    gingham export model.onnx
    python examples/onnx_predict.py model.onnx coat.png boot.jpg

An image of the model's size and colours is used unchanged, as the file normalizes it. Photos are prepared by
gingham.inference.preprocess, which needs OpenCV but no torch either: pip install --no-deps . opencv-python-headless
tqdm platformdirs
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image


def read_matching_image(file: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """Return an image of the model's size and colours, uint8 (1, C, H, W), or None for any other."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
        in_colour = bool(np.ptp(np.asarray(image.convert("RGB")), axis=2).any())
    array = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
    return array[None] if array.shape == shape and in_colour == (shape[0] == 3) else None


def preprocess_photo(file: Path, shape: tuple[int, int, int], metadata: dict[str, str]) -> npt.NDArray[np.uint8]:
    """Prepare a photo like the training images, uint8 (V, C, H, W): V framings, whose predictions are averaged."""
    from gingham.inference.preprocess import open_photo, prepare_garment, prepare_plain

    photo = open_photo(file)
    if metadata["preparation"] == "garment":
        return prepare_garment(photo, shape).framings
    return prepare_plain(photo, shape, json.loads(metadata["background"])).framings


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("give an exported model and images: python onnx_predict.py model.onnx coat.png")
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"there is no file {sys.argv[1]}; write one with: gingham export model.onnx")
    session = onnxruntime.InferenceSession(sys.argv[1])
    metadata = session.get_modelmeta().custom_metadata_map
    classes, threshold = json.loads(metadata["classes"]), float(metadata["threshold"])
    channels, height, width = json.loads(metadata["input_shape"])
    for file in map(Path, sys.argv[2:]):
        shape = (channels, height, width)
        try:
            images = read_matching_image(file, shape)
        except OSError as error:  # Pillow raises it for a file that is missing or no image
            print(f"{file}: {error}", file=sys.stderr)
            continue
        if images is None:
            images = preprocess_photo(file, shape, metadata)
        probabilities = session.run(["probabilities"], {"images": images})[0].mean(axis=0)
        top = int(probabilities.argmax())
        sure = "" if probabilities[top] >= threshold else "not sure, perhaps "
        print(f"{file}: {sure}{classes[top]} ({probabilities[top]:.1%})")


if __name__ == "__main__":
    main()
