"""scripts/audit: what cannot be audited is said, and is not taken for sound."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT

# Stands in for pip-audit: knows the old Pillow if it is reached at all, and of the others what KNOWN says.
PIP_AUDIT = f"""#!{sys.executable}
import json, os, sys
given = sys.argv[1:]
packages = [line.strip().split("==") for line in open(given[given.index("--requirement") + 1])]
if "REACHED" not in os.environ:
    sys.exit("ConnectionError: no way to it")
known = {{"pillow 9.0.0": {{"vulns": [{{"id": "PYSEC-1"}}]}}}}
known |= {{f"{{name}} {{version}}": json.loads(os.environ["KNOWN"])[name] for name, version in packages if name in json.loads(os.environ["KNOWN"])}}
answers = [{{"name": name, **known.get(f"{{name}} {{version}}", {{"version": version, "vulns": []}})}} for name, version in packages]
json.dump({{"dependencies": answers}}, open(given[given.index("--output") + 1], "w"))
"""


def audit(place, known="{}", **environment):
    program = place / "pip-audit"
    program.write_text(PIP_AUDIT)
    program.chmod(0o755)
    # Nothing is to be reached from a test: not PyPI's pages either.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return subprocess.run(
        ["sh", str(ROOT / "scripts/audit"), sys.executable],
        env={**os.environ, **nowhere, "PIP_AUDIT": str(program), "KNOWN": known, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_where_nothing_is_known_it_ends_with_0(tmp_path):
    done = audit(tmp_path, REACHED="1")
    assert done.returncode == 0, done.stderr
    assert "audited by pypi: " in done.stdout
    assert "0 known vulnerabilities" in done.stdout


def test_what_is_vulnerable_is_named(tmp_path):
    done = audit(
        tmp_path, '{"numpy": {"vulns": [{"id": "PYSEC-2", "aliases": ["CVE-3"], "fix_versions": ["99"]}]}}', REACHED="1"
    )
    assert done.returncode == 1
    assert "VULNERABLE: numpy " in done.stdout
    assert ": PYSEC-2, CVE-3; mended in 99\n" in done.stdout


def test_what_could_not_be_audited_is_named(tmp_path):
    done = audit(tmp_path, '{"scipy": {"skip_reason": "it is not on PyPI"}}', REACHED="1")
    assert done.returncode == 3
    assert "COULD NOT BE AUDITED: scipy " in done.stdout
    assert "(it is not on PyPI)" in done.stdout


@pytest.mark.parametrize("environment", [{}, {"REACHED": "1", "KNOWN": '{"pillow": {"vulns": []}}'}])
def test_where_no_service_answers_nothing_is_said_to_be_sound(tmp_path, environment):
    """Nor where one answers that knows nothing, such as a mirror without advisories."""
    done = audit(tmp_path, **environment)
    assert done.returncode == 3
    assert "NOTHING WAS AUDITED" in done.stderr
    assert "known vulnerabilities" not in done.stdout
