"""Tests of scripts/audit: packages that cannot be audited are reported as such."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT

# Replaces pip-audit: if REACHED is set, it knows the old Pillow and the vulnerabilities in KNOWN.
PIP_AUDIT = f"""#!{sys.executable}
import json, os, sys
arguments = sys.argv[1:]
packages = [line.strip().split("==") for line in open(arguments[arguments.index("--requirement") + 1])]
if "REACHED" not in os.environ:
    sys.exit("ConnectionError: no way to it")
known = {{"pillow 9.0.0": {{"vulns": [{{"id": "PYSEC-1"}}]}}}}
advisories = json.loads(os.environ["KNOWN"])
known |= {{f"{{name}} {{version}}": advisories[name] for name, version in packages if name in advisories}}
results = []
for name, version in packages:
    results.append({{"name": name, **known.get(f"{{name}} {{version}}", {{"version": version, "vulns": []}})}})
json.dump({{"dependencies": results}}, open(arguments[arguments.index("--output") + 1], "w"))
"""


def audit(folder, known="{}", **environment):
    program = folder / "pip-audit"
    program.write_text(PIP_AUDIT)
    program.chmod(0o755)
    # Tests must not reach PyPI's pages either.
    unreachable = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return subprocess.run(
        ["sh", str(ROOT / "scripts/audit"), sys.executable],
        env={**os.environ, **unreachable, "PIP_AUDIT": str(program), "KNOWN": known, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_audit_without_vulnerabilities_exits_with_0(tmp_path):
    process = audit(tmp_path, REACHED="1")
    assert process.returncode == 0, process.stderr
    assert "audited by pypi: " in process.stdout
    assert "0 known vulnerabilities" in process.stdout


def test_vulnerable_package_is_named(tmp_path):
    process = audit(
        tmp_path, '{"numpy": {"vulns": [{"id": "PYSEC-2", "aliases": ["CVE-3"], "fix_versions": ["99"]}]}}', REACHED="1"
    )
    assert process.returncode == 1
    assert "VULNERABLE: numpy " in process.stdout
    assert ": PYSEC-2, CVE-3; fixed in 99\n" in process.stdout


def test_package_that_could_not_be_audited_is_named(tmp_path):
    process = audit(tmp_path, '{"scipy": {"skip_reason": "it is not on PyPI"}}', REACHED="1")
    assert process.returncode == 3
    assert "COULD NOT BE AUDITED: scipy " in process.stdout
    assert "(it is not on PyPI)" in process.stdout


@pytest.mark.parametrize("environment", [{}, {"REACHED": "1", "KNOWN": '{"pillow": {"vulns": []}}'}])
def test_audit_without_a_service_reports_no_result(tmp_path, environment):
    """The second case is a service without advisories, such as a mirror."""
    process = audit(tmp_path, **environment)
    assert process.returncode == 3
    assert "NOTHING WAS AUDITED" in process.stderr
    assert "known vulnerabilities" not in process.stdout
