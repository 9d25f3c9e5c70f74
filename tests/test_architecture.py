"""docs/architecture.md names every file of the package, and no other."""

import re

from helpers import ROOT

SOURCES = ROOT / "src/gingham"


def test_architecture_lists_every_file_of_the_package():
    tree = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    listed, folder = set(), ""
    for line in tree.splitlines():
        if found := re.match(r"(\w+)/$", line):
            folder = f"{found[1]}/"
        elif found := re.match(r"( *)(\w+\.py) ", line):
            listed.add((folder if found[1] else "") + found[2])
    files = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if path.name != "__init__.py"}
    assert listed == files
