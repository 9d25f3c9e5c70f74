import json

import pytest
import torch
from PIL import Image

import gingham
from gingham.inference.explain import occlusion
from helpers import draw_garment_photo


def test_occlusion_is_nonzero_only_around_the_pixel_that_the_network_uses():
    class OnePixel(torch.nn.Module):
        def forward(self, x):
            return torch.stack([8 * x[:, 0, 5, 9], torch.zeros(len(x))], dim=1)

    model = gingham.Classifier(OnePixel(), ("lit", "dark"), (1, 28, 28), mean=(0.0,), std=(1.0,))
    image = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    occlusion_map = occlusion(model, image, 0, side=5)
    assert occlusion_map.shape == (28, 28)
    expected = torch.zeros(28, 28)
    expected[3:8, 7:12] = torch.sigmoid(torch.tensor(8.0)) - 0.5
    assert torch.allclose(occlusion_map, expected, atol=1e-6)
    assert torch.equal(occlusion(model, image, 0, side=5, stride=3), occlusion_map[::3, ::3])


@pytest.mark.usefixtures("small_gallery")
def test_explanations_of_files_with_the_same_name_get_distinct_names(command):
    for folder in ("one", "two"):
        (command.folder / folder).mkdir()
        draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / folder / "shirt.png")
    done = command("predict", "one/shirt.png", "two/shirt.png", "--explain", "--out", "why", "--json")
    files = [entry["file"] for entry in json.loads(done.stdout)]
    assert files == ["why/shirt-explained.png", "why/shirt-explained-2.png"]
    for file in files:
        with Image.open(command.folder / file) as image:
            assert image.width > 1000


@pytest.mark.usefixtures("small_gallery")
def test_a_figure_that_cannot_be_written_does_not_prevent_the_prediction(command):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(command.folder / "shirt.png")
    (command.folder / "shirt-explained.png").write_text("the user's own")
    done = command("predict", "shirt.png", "--explain")
    assert done.stdout.startswith("shirt.png: ")
    assert "is not a figure written by gingham, so it is kept" in done.stderr
    assert (command.folder / "shirt-explained.png").read_text() == "the user's own"
