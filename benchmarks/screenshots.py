"""Make the screenshots in the documentation: docs/images/page.png, the page on a desktop and a phone, light and dark,
and docs/images/explained.png, the figure of `gingham predict coat.jpg --explain`, whose output it prints.

    python benchmarks/screenshots.py

The photos are made from validation images, as in benchmarks/photographs.py. Needs Debian's chromium, or google-chrome,
and opens the page from disk, as `gingham export page.html` writes it.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import gingham
import records
from photographs import floor, product

NAMES = ("chromium", "chromium-browser", "google-chrome")
GAP, BACKGROUND = 40, "#d9dee0"


def make_photo(make: Any, label: str, index: int, seed: int) -> bytes:
    """Return a photo made from a validation image of a class, as PNG."""
    split = gingham.load_data("fashion-mnist").validation
    assert split is not None
    position = (split.labels == split.classes.index(label)).nonzero().flatten()[index]
    file = io.BytesIO()
    make(split.images[position, 0].numpy(), np.random.default_rng(seed)).save(file, "PNG")
    return file.getvalue()


def capture_prediction(page: Page, address: str, photo: bytes) -> Image.Image:
    page.goto(address)
    page.set_input_files("#file", {"name": "photo.png", "mimeType": "image/png", "buffer": photo})
    page.wait_for_selector("#like li", timeout=60_000)
    page.wait_for_timeout(800)
    page.evaluate("scrollTo(0, 0)")
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def capture_drawing(page: Page, address: str) -> Image.Image:
    page.goto(address)
    page.click("#draw")
    box = page.locator("#paper").bounding_box()
    assert box is not None
    shirt = [
        (0.35, 0.15),
        (0.45, 0.2),
        (0.55, 0.2),
        (0.65, 0.15),
        (0.9, 0.4),
        (0.78, 0.5),
        (0.7, 0.4),
        (0.7, 0.88),
        (0.3, 0.88),
        (0.3, 0.4),
        (0.22, 0.5),
        (0.1, 0.4),
    ]
    for number, (x, y) in enumerate(shirt):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if not number:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#like li", timeout=60_000)
    page.wait_for_timeout(800)
    page.evaluate("scrollTo(0, 0)")
    return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")


def explain(folder: Path) -> None:
    """Run the command, print its output and copy its figure to docs/images/explained.png."""
    with Image.open(io.BytesIO(make_photo(floor, "Coat", 6, 3))) as photo:
        photo.convert("RGB").save(folder / "coat.jpg", quality=92)
    command = [sys.executable, "-m", "gingham", "predict", "coat.jpg", "--explain"]
    print(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    shutil.copy(folder / "coat-explained.png", records.ROOT / "docs" / "images" / "explained.png")


def main() -> None:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        raise SystemExit(f"there is no browser: install one of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        explain(Path(folder))
        address = gingham.export(gingham.load_packaged(), Path(folder, "page.html")).file.as_uri()
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        desktop = capture_prediction(
            browser.new_page(viewport={"width": 1180, "height": 900}), address, make_photo(floor, "Ankle boot", 2, 12)
        )
        dark = browser.new_context(
            viewport={"width": 390, "height": 844}, device_scale_factor=1.25, color_scheme="dark"
        )
        phone = capture_prediction(dark.new_page(), address, make_photo(product, "Coat", 2, 12))
        light = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=1.25)
        sketch = capture_drawing(light.new_page(), address)
        browser.close()
    height = desktop.height
    parts = [desktop, phone.crop((0, 0, phone.width, height)), sketch.crop((0, 0, sketch.width, height))]
    sheet = Image.new("RGB", (sum(part.width + GAP for part in parts) + GAP, height + 2 * GAP), BACKGROUND)
    left = GAP
    for part in parts:
        sheet.paste(part, (left, GAP))
        left += part.width + GAP
    file = records.ROOT / "docs" / "images" / "page.png"
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(file, optimize=True)
    print("written:", file)


if __name__ == "__main__":
    main()
