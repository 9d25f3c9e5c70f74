"""Make the images in docs/images: the page and a report in a browser, the figure of an explained prediction, the figures
of an evaluation, mistakes on photos, and near duplicates in Fashion-MNIST.

    python benchmarks/screenshots.py [--run runs/fast-0]

The report and the evaluation are those of the run, which `make train` makes. The photos are made from validation images, as in
benchmarks/photographs.py. Needs Debian's chromium, or google-chrome, and opens the files from disk.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

import gingham
import photographs
import records
from gingham.cli.diagnose import image_groups
from gingham.evaluation.run_data import load_run_data
from gingham.figures import write_figure
from gingham.plots import draw_image_groups
from photographs import floor, product

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE: ViewportSize = {"width": 390, "height": 844}
IMAGES = records.ROOT / "docs" / "images"


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
    shutil.copy(folder / "coat-explained.png", IMAGES / "explained.png")


def draw_near_duplicates() -> None:
    """Draw the test images that are nearly in the training data, as `gingham diagnose fashion-mnist` does."""
    splits = gingham.load_data("fashion-mnist")
    issues = [issue for issue in gingham.check_data(splits) if issue.code == "near-duplicates-across-splits"]
    write_figure(draw_image_groups(image_groups(issues, splits)), IMAGES / "near-duplicates.png")
    print("written:", IMAGES / "near-duplicates.png")


def draw_photo_mistakes() -> None:
    """Draw the photos that the packaged model is wrong about, the most confident first, each beside its preparation."""
    run, groups = gingham.load_packaged(), []
    photos, labels = [], list[str]()
    for kind in photographs.KINDS:
        made, indices = photographs.make(kind, 40)
        photos += made
        labels += [run.model.classes[index] for index in indices.tolist()]
    predictions = gingham.predict(run, photos, "photo")
    wrong = [k for k, (p, label) in enumerate(zip(predictions, labels, strict=True)) if p.label != label]
    for k in sorted(wrong, key=lambda k: -predictions[k].confidence)[:20]:
        prepared = predictions[k].prepared
        assert prepared is not None
        small = np.array(photos[k].convert("RGB").resize((112, 112 * photos[k].height // photos[k].width)))
        caption = f"{predictions[k].label} {predictions[k].confidence:.0%}"
        groups.append(
            [(torch.tensor(small).permute(2, 0, 1), f"is {labels[k]}"), (torch.tensor(prepared.image), caption)]
        )
    title = f"{len(wrong)} of {len(photos)} photos made from validation images are wrong; the most confident of them"
    write_figure(draw_image_groups([(title, groups)]), IMAGES / "photo-mistakes.png")
    print("written:", IMAGES / "photo-mistakes.png")


def draw_evaluation(folder: Path) -> None:
    """Draw the confusion matrix, the reliability diagram and the mistakes of a run on the validation split."""
    run = gingham.load(folder)
    validation = load_run_data(run, folder).validation
    assert validation is not None
    result = gingham.evaluate(run, validation)
    for what in ("confusion", "reliability", "mistakes"):
        print("written:", write_figure(result.plot(what), IMAGES / f"{what}.png"))


def write_report(folder: Path, file: Path) -> Path:
    run = gingham.load(folder)
    splits = load_run_data(run, folder)
    return gingham.write_report(run, splits.train, splits.validation, splits.test, file)


def save(image: Image.Image, name: str) -> None:
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(IMAGES / name, optimize=True)
    print("written:", IMAGES / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/fast-0"), help="the run whose report is shown")
    run = parser.parse_args().run
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        raise SystemExit(f"there is no browser: install one of {', '.join(NAMES)}")
    draw_near_duplicates()
    draw_photo_mistakes()
    draw_evaluation(run)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        explain(Path(folder))
        report = write_report(run, Path(folder, "report.html")).as_uri()
        address = gingham.export(gingham.load_packaged(), Path(folder, "page.html")).file.as_uri()
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        desktop = browser.new_page(viewport={"width": 1180, "height": 900})
        save(capture_prediction(desktop, address, make_photo(floor, "Ankle boot", 2, 12)), "page-desktop.png")
        desktop.goto(report)
        save(Image.open(io.BytesIO(desktop.screenshot())).convert("RGB"), "report.png")
        dark = browser.new_context(viewport=PHONE, device_scale_factor=2, color_scheme="dark")
        phone = capture_prediction(dark.new_page(), address, make_photo(product, "Coat", 2, 12))
        light = browser.new_context(viewport=PHONE, device_scale_factor=2)
        drawing = capture_drawing(light.new_page(), address)
        browser.close()
    for image, name in ((phone, "page-phone.png"), (drawing, "page-drawing.png")):
        save(image.crop((0, 0, image.width, 2 * PHONE["height"])), name)


if __name__ == "__main__":
    records.run(main)
