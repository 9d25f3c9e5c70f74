"""Compare the public names of Gingham with those of the last release, and fail if a change breaks their callers.

    python scripts/check_api.py [TAG]

Public are the names in `gingham.__all__` with their parameters, attributes and methods. Without releases, nothing is
compared.
"""

import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent
# The last release before this commit, which may itself be tagged.
DESCRIBE = ("git", "describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")


def public_names(package: griffe.Object | griffe.Alias) -> dict[str, str]:
    """Return the public names of a package, and where each is defined."""
    aliases = [(name, member) for name, member in package.members.items() if isinstance(member, griffe.Alias)]
    return {name: member.canonical_path for name, member in aliases if member.target_path.startswith("gingham.")}


def breaking_changes(tag: str) -> list[str]:
    """Return a line for each change since a tag that breaks callers of a public name."""
    before = griffe.load_git("gingham", ref=tag, repo=ROOT, search_paths=["src"], resolve_aliases=True)
    after = griffe.load("gingham", search_paths=[str(ROOT / "src")], resolve_aliases=True)
    old, new = public_names(before), public_names(after)
    lines = [f"gingham.{name}: the name was removed" for name in sorted(old.keys() - new.keys())]
    for change in griffe.find_breaking_changes(before, after):
        path = change.obj.canonical_path
        if any(path == public or path.startswith(f"{public}.") for public in old.values()):
            lines.append(change.explain(griffe.ExplanationStyle.ONE_LINE))
    return lines


def main() -> None:
    tag = sys.argv[1] if len(sys.argv) > 1 else ""
    if not tag:
        found = subprocess.run(DESCRIBE, cwd=ROOT, capture_output=True, text=True, check=False)
        tag = found.stdout.strip()
    if not tag:
        print("there is no release yet to compare the public names with")
        return
    if lines := breaking_changes(tag):
        sys.exit("\n".join([*lines, f"these changes break callers of {tag}: see CONTRIBUTING.md"]))
    print(f"the public names are compatible with {tag}")


if __name__ == "__main__":
    main()
