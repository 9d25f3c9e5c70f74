import numpy as np

import gingham
from gingham.figures import write_figure
from gingham.plots import draw_batch, draw_confusion, draw_contact_sheet, draw_curves
from helpers import contact_sheet_arguments, read_pixels


def test_a_contact_sheet_shows_the_images(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=0)
    sheet = read_pixels(write_figure(draw_contact_sheet(*contact_sheet_arguments(data)), tmp_path / "sheet.png"))
    assert min(sheet.shape[:2]) > 300
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100, "it is not blank"
    fewer = draw_contact_sheet(*contact_sheet_arguments(data), per_class=3)
    fewer = read_pixels(write_figure(fewer, tmp_path / "fewer.png"))
    assert fewer.shape[1] < sheet.shape[1]


def test_batches_curves_and_confusion_matrices_are_drawn(small_run, tmp_path):
    run, data = small_run
    names = [data.classes[label] for label in data.train.labels[:8].tolist()]
    result = gingham.evaluate(run, data.validation)
    for number, figure in enumerate(
        (
            draw_batch(data.train.images[:8], names),
            draw_curves(run.history, "article"),
            draw_confusion(result.confusion.matrix, data.classes, "all right"),
        )
    ):
        pixels = read_pixels(write_figure(figure, tmp_path / f"{number}.png"))
        assert pixels.std() > 5
        assert min(pixels.shape[:2]) > 200


def test_long_titles_and_names_are_not_cut_off(small_run, tmp_path):
    title = "81.97% of 61 validation images right; each row in percent"
    figure = draw_confusion([[1, 0], [0, 1]], ["cardboard", "glass"], title)
    pixels = read_pixels(write_figure(figure, tmp_path / "confusion.png"))
    assert (pixels[:, -4:] == pixels[0, 0]).all()
    _, data = small_run
    images, labels, classes = contact_sheet_arguments(data)[:3]
    names = ["Brown-Cap-Mushroom", *classes[1:]]
    figure = draw_contact_sheet(images, labels, names, *contact_sheet_arguments(data)[3:])
    pixels = read_pixels(write_figure(figure, tmp_path / "sheet.png"))
    assert (pixels[:, :4] == pixels[0, 0]).all()
