from PIL import Image


def test_diagnose_draws_the_images_of_each_issue(command, run_json, quadrants):
    images = quadrants / "t10k-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[16:800] = (quadrants / "train-images-idx3-ubyte").read_bytes()[16:800]
    images.write_bytes(content)
    (issue,) = run_json("diagnose", quadrants)
    assert issue["pictures"] == [[["train", 0], ["test", 0]]]
    with Image.open(command.folder / issue["file"]) as figure:
        assert figure.width > 500
