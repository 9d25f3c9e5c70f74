"""The files of docs/deploy.md: they use existing options, and their limits match those of the server."""

import fnmatch
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer

from gingham.cli.app import app
from gingham.deploy import server as serving
from helpers import ROOT

DOCKERFILE = ROOT / "docs/deploy/Dockerfile"
UNIT = ROOT / "docs/deploy/gingham.service"
TEXT = (ROOT / "docs/deploy.md").read_text()


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, in order, each with its arguments."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def instruction(name: str) -> str:
    """Return the arguments of an instruction that the Dockerfile has once."""
    (arguments,) = (arguments for word, arguments in instructions() if word == name)
    return arguments


def directives(name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", UNIT.read_text())


def default_port() -> int:
    command = typer.main.get_command(app).commands["serve"]
    return next(option.default for option in command.params if option.name == "port")


def test_start_commands_use_existing_options(command):
    options = set(re.findall(r"(?m)^ +(--[a-z0-9-]+)", command("serve", "--help").stdout))
    entry_point = json.loads(instruction("ENTRYPOINT"))
    assert entry_point[:2] == ["gingham", "serve"]
    (start,) = directives("ExecStart")
    run_arguments = re.findall(r"(?m)^docker run (?:.*\\\n)*.* gingham(| --.*)$", TEXT)
    assert run_arguments == ["", " --run /run-folder"]
    for words in (entry_point, start.split(), *(arguments.split() for arguments in run_arguments)):
        assert {word for word in words if word.startswith("--")} <= options, words


def test_all_files_use_the_default_port():
    port = default_port()
    (start,) = directives("ExecStart")
    assert instruction("EXPOSE") == str(port)
    assert f"--port {port}" in start
    assert f"127.0.0.1:{port}/health" in instruction("HEALTHCHECK")
    assert f"--publish 127.0.0.1:{port}:{port} " in TEXT
    assert f"reverse_proxy 127.0.0.1:{port}\n" in TEXT
    assert f"proxy_pass http://127.0.0.1:{port};" in TEXT


def test_the_body_limits_of_proxies_equal_that_of_the_server():
    units = {"MiB": 1 << 20, "m": 1 << 20}  # Caddy's MB are a million bytes, nginx's m are 1,048,576
    limits = re.findall(r"(?:max_size|client_max_body_size) (\d+)(\w+)", TEXT)
    assert [int(number) * units[unit] for number, unit in limits] == [serving.BODY_BYTES] * 2


def test_the_container_and_the_unit_set_the_same_memory_variables():
    variables = set(re.findall(r"MALLOC_\w+=\d+", DOCKERFILE.read_text()))
    assert variables == set(re.findall(r"MALLOC_\w+=\d+", " ".join(directives("Environment"))))
    assert variables == set(re.findall(r"MALLOC_\w+=\d+", TEXT))


def test_stop_timeouts_exceed_the_grace_period():
    assert [int(seconds) > serving.GRACE_SECONDS for seconds in directives("TimeoutStopSec")] == [True]
    assert [int(seconds) > serving.GRACE_SECONDS for seconds in re.findall(r"--stop-timeout (\d+)", TEXT)] == [True]
    assert instruction("STOPSIGNAL") == "SIGTERM"


def test_the_dockerfile_copies_existing_files_that_are_not_ignored():
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in patterns if line.startswith("!")}
    assert "*" in patterns
    sources = [
        path
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for path in arguments.split()[:-1]
    ]
    assert set(sources) == allowed
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatch(source, line) for line in patterns if line not in ("*", *allowed))


def test_the_container_runs_as_an_unprivileged_user():
    user, _, group = instruction("USER").partition(":")
    assert int(user) >= 10_000
    assert int(group) == int(user)
    assert any(name == "RUN" and f"--uid {user} " in arguments for name, arguments in instructions())


@pytest.mark.parametrize("status", [200, 500])
def test_the_health_check_fails_if_the_server_does(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    _, *arguments = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [word.replace(f":{default_port()}/", f":{server.server_port}/") for word in arguments]
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
        server.shutdown()
    assert (done.returncode == 0) == (status == 200)


def test_the_unit_has_no_restriction_that_breaks_torch():
    # oneDNN generates machine code; torch reads /proc/cpuinfo, and is killed unless refused system calls return an
    # error.
    assert not directives("MemoryDenyWriteExecute")
    assert not directives("ProcSubset")
    assert directives("SystemCallErrorNumber") == ["EPERM"]


def test_systemd_accepts_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    (start,) = directives("ExecStart")
    program = Path(start.split()[0])
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(str(program), sys.executable))  # /opt/gingham does not exist here
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False)
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert not warnings
    assert done.returncode == 0, done.stderr
    score = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", copy], capture_output=True, text=True, check=False
    ).stdout
    if overall := re.search(r"exposure level for \S+: ([\d.]+)", score):
        assert float(overall[1]) < 2
