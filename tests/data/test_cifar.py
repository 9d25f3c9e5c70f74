import tarfile

import pytest
import torch

from dataset_files import make_cifar_archive
from gingham import DataError, load_data
from gingham.data.registry import REGISTRY


def test_cifar_is_read_from_its_folder_and_archive_and_damage_is_an_error(tmp_path):
    arrays = make_cifar_archive(tmp_path)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "cifar-10-batches-bin"
    for path in (folder, tmp_path / "cifar-10-binary.tar.gz"):
        data = load_data(str(path), validation=100)
        assert data.classes == REGISTRY["cifar-10"].classes
        assert data.train.images.shape == (49_900, 3, 32, 32)
        assert torch.equal(data.test.images, torch.from_numpy(arrays[2]))
    (folder / "data_batch_3.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"data_batch_3.bin of .* is 100 bytes long, not 30730000"):
        load_data(str(folder))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin of .* is missing"):
        load_data(str(folder))
    content = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot read .*cifar-10-binary.tar.gz"):
        load_data(str(tmp_path / "cifar-10-binary.tar.gz"))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    with pytest.raises(DataError, match=r"data_batch_1.bin of .* is missing"):
        load_data(str(tmp_path / "cifar-10-python.tar.gz"))
