"""`gingham embed`."""

import os
from pathlib import Path
from typing import Annotated

from typer import Option

import gingham
from gingham.cli.options import Images, Json, Model, RunFolder
from gingham.cli.output import print_result
from gingham.cli.predict import GROUP_SIZE, SHOWN, list_files
from gingham.cli.resolve import load_run_or_packaged
from gingham.errors import DataError, GinghamError, list_first


def embed(
    images: Images,
    out: Annotated[Path, Option(metavar="FILE.npz", help="The file to write; it must not exist.")],
    run: RunFolder = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write the features of images, for search and clustering."""
    import numpy as np
    from tqdm import tqdm

    from gingham.io import atomic_write

    if os.path.lexists(out):
        raise GinghamError(f"--out {out} already exists; give another file, or remove it first")
    if out.suffix.lower() != ".npz":
        raise GinghamError(f"--out {out} does not end in .npz; give a new file, such as features.npz")
    trained, files = load_run_or_packaged(run, model), list_files(images)
    groups = [files[start : start + GROUP_SIZE] for start in range(0, len(files), GROUP_SIZE)]
    bar = tqdm(groups, disable=None if len(groups) > 1 else True, leave=False)
    parts = [gingham.embed(trained, group) for group in bar]
    errors = [error for *_, some in parts for error in some]
    if found := [rows for rows, _, _ in parts if len(rows)]:
        features, names = np.concatenate(found), [name for _, some, _ in parts for name in some]
        with atomic_write(out) as temporary, temporary.open("wb") as file:
            np.savez(file, features=features, files=np.array(names))
        count, width = features.shape
        result = {"file": str(out), "images": count, "features": width, "errors": errors}
        print_result(result, f"{out}: {width:,} features of {count:,} images (arrays: features, files)", as_json)
    if errors:
        raise DataError(f"no features for {len(errors)} of {len(files)} images: {list_first(errors, SHOWN, '; ')}")
