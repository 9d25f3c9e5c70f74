"""docs/architecture.md names every file of the package, and no file that does not exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src/gingham"
DOCUMENT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_architecture_lists_every_file_of_the_package():
    tree = DOCUMENT.split("```")[1]
    listed, folder = [], ""
    for line in tree.splitlines():
        if found := re.match(r"(\w+)/$", line):
            folder = f"{found[1]}/"
        elif found := re.match(r"( *)(\w+\.py) ", line):
            listed.append((folder if found[1] else "") + found[2])
    files = [path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(listed) == sorted(files)


def test_files_and_folders_that_architecture_names_exist():
    names = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)", DOCUMENT)) - {"mnist/main.py"}  # of pytorch/examples
    assert "training/fit.py" in names
    folders = (SOURCES, ROOT, ROOT / "tests")
    assert [name for name in sorted(names) if not any((folder / name).exists() for folder in folders)] == []
