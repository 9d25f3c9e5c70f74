"""Write small datasets in the formats that load_data reads."""

import io
import os
import struct
import tarfile

import numpy as np
import pillow_heif
from PIL import Image


def save_image(path, seed=0, shape=(28, 28), label=0):
    """Save a noisy image whose upper half is bright for an even label, else its lower half."""
    pixels = np.random.RandomState(seed).randint(0, 90, shape).astype(np.uint8)
    half = shape[0] // 2
    pixels[half * (label % 2) : half * (label % 2) + half] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def encode_heic(image, *more, **options):
    """Return the bytes of a lossless HEIC file, which pi-heif cannot write, of one or several images."""
    heif = pillow_heif.from_pillow(image)
    for other in more:
        heif.add_from_pillow(other)
    file = io.BytesIO()
    heif.save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def set_heif_size(content, width, height):
    """Return a HEIC or AVIF file whose header says another size."""
    start = content.index(b"ispe") + 8
    return content[:start] + struct.pack(">II", width, height) + content[start + 8 :]


def make_image_folder(folder, counts, **options):
    """Write a folder per class, with as many images as `counts` says, and return the folder."""
    for label, (name, count) in enumerate(counts.items()):
        for k in range(count):
            save_image(folder / name / f"{k}.png", seed=1000 * label + k, label=label, **options)
    return folder


def add_unreadable_files(folder):
    """Add files of every kind that cannot be read as an image to the class boot, and return their names."""
    boot = folder / "boot"
    content = (boot / "1.png").read_bytes()
    (boot / "empty.png").write_bytes(b"")
    (boot / "notes.jpg").write_text("remember the boots")
    (boot / "truncated.png").write_bytes(content[: len(content) // 2])
    (boot / "dangling.png").symlink_to(boot / "nowhere.png")
    os.mkfifo(boot / "pipe.png")
    Image.new("L", (20, 20)).save(boot / "bomb.bmp")
    header = bytearray((boot / "bomb.bmp").read_bytes())
    header[18:26] = (60_000).to_bytes(4, "little") * 2  # claims 3.6 billion pixels
    (boot / "bomb.bmp").write_bytes(header)
    (boot / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(boot / "float.tif")
    return {
        "empty.png",
        "notes.jpg",
        "truncated.png",
        "dangling.png",
        "pipe.png",
        "bomb.bmp",
        "program.png",
        "float.tif",
    }


def cifar_batch(seed):
    random = np.random.RandomState(seed)
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    return labels, np.tile(random.randint(0, 256, (4, 3, 32, 32)).astype(np.uint8), (2500, 1, 1, 1))


def make_cifar_archive(folder):
    """Write `cifar-10-binary.tar.gz` and return its training images and labels, then those of the test set."""
    batches = []
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for seed, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            labels, images = cifar_batch(seed)
            content = np.concatenate([labels[:, None], images.reshape(10_000, -1)], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            batches.append((images, labels))
    train = [np.concatenate([batch[k] for batch in batches[:5]]) for k in (0, 1)]
    return [*train, *batches[5]]
