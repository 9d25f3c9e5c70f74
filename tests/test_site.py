"""The documentation site builds without warnings and without a network, and has every document."""

import os
import re
import subprocess
import sys

import pytest

from helpers import ROOT


def test_every_document_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    documents = {path.name for path in ROOT.glob("docs/*.md")} | {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert documents <= listed


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path):
    pytest.importorskip("mkdocs")
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "commands.html", "python.html", "LOG.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]+src="?(?:https?:)?//', text), page
        assert not re.search(r'<link[^>]+rel="?stylesheet"?[^>]+href="?(?:https?:)?//', text), page
    python = (tmp_path / "site/reference/python.html").read_text(encoding="utf-8")
    assert "Return a dataset's training, validation and test split" in python
    commands = (tmp_path / "site/reference/commands.html").read_text(encoding="utf-8")
    assert "--skip-unreadable" in commands
