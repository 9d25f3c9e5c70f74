"""What docs/deploy.md deploys: it names options that there are, and its limits are those of the server."""

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
    """The Dockerfile's instructions, in order, each with what follows it."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def only(name: str) -> str:
    (rest,) = (rest for word, rest in instructions() if word == name)
    return rest


def directives(name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", UNIT.read_text())


def default_port() -> int:
    command = typer.main.get_command(app).commands["serve"]
    return next(option.default for option in command.params if option.name == "port")


def test_everything_that_starts_it_names_options_that_there_are(command):
    known = set(re.findall(r"(?m)^ +(--[a-z0-9-]+)", command("serve", "--help").stdout))
    entry = json.loads(only("ENTRYPOINT"))
    assert entry[:2] == ["gingham", "serve"]
    (start,) = directives("ExecStart")
    after_image = re.findall(r"(?m)^docker run (?:.*\\\n)*.* gingham(| --.*)$", TEXT)
    assert after_image == ["", " --run /run-folder"]
    for words in (entry, start.split(), *(rest.split() for rest in after_image)):
        assert {word for word in words if word.startswith("--")} <= known, words


def test_it_is_asked_for_on_the_port_it_listens_on():
    port = default_port()
    (start,) = directives("ExecStart")
    assert only("EXPOSE") == str(port)
    assert f"--port {port}" in start
    assert f"127.0.0.1:{port}/health" in only("HEALTHCHECK")
    assert f"--publish 127.0.0.1:{port}:{port} " in TEXT
    assert f"reverse_proxy 127.0.0.1:{port}\n" in TEXT
    assert f"proxy_pass http://127.0.0.1:{port};" in TEXT


def test_proxies_let_in_what_the_server_takes():
    units = {"MiB": 1 << 20, "m": 1 << 20}  # Caddy's MB are a million bytes, nginx's m are 1,048,576
    found = re.findall(r"(?:max_size|client_max_body_size) (\d+)(\w+)", TEXT)
    assert [int(number) * units[unit] for number, unit in found] == [serving.BODY_BYTES] * 2


def test_whatever_stops_it_waits_for_what_is_in_flight():
    assert [int(seconds) > serving.GRACE_SECONDS for seconds in directives("TimeoutStopSec")] == [True]
    assert [int(seconds) > serving.GRACE_SECONDS for seconds in re.findall(r"--stop-timeout (\d+)", TEXT)] == [True]
    assert only("STOPSIGNAL") == "SIGTERM"


def test_the_container_file_copies_what_there_is_and_is_let_through():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    sources = [word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    assert set(sources) == let_through
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatch(source, line) for line in ignored if line not in ("*", *let_through))


def test_the_container_runs_as_nobody_in_particular():
    user, _, group = only("USER").partition(":")
    assert int(user) >= 10_000
    assert int(group) == int(user)
    assert any(name == "RUN" and f"--uid {user} " in rest for name, rest in instructions())


@pytest.mark.parametrize("status", [200, 500])
def test_the_health_check_fails_where_the_server_does(status):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    _, *arguments = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [word.replace(f":{default_port()}/", f":{server.server_port}/") for word in arguments]
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
        server.shutdown()
    assert (done.returncode == 0) == (status == 200)


def test_the_unit_asks_for_nothing_that_torch_cannot_bear():
    # oneDNN writes machine code while it runs; torch reads /proc/cpuinfo, and is killed where @resources are not refused by an error.
    assert not directives("MemoryDenyWriteExecute")
    assert not directives("ProcSubset")
    assert directives("SystemCallErrorNumber") == ["EPERM"]


def test_systemd_takes_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    (start,) = directives("ExecStart")
    program = Path(start.split()[0])
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(str(program), sys.executable))  # /opt/gingham is where it is installed, not here
    done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert not said
    assert done.returncode == 0, done.stderr
    score = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", copy], capture_output=True, text=True, check=False
    ).stdout
    if overall := re.search(r"exposure level for \S+: ([\d.]+)", score):
        assert float(overall[1]) < 2
