import socket
import sys

import gingham
import gingham.deploy


def test_user_errors_of_serve_say_what_to_do(command, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        stderr = command("serve", "--port", port, code=2).stderr
    assert stderr == (
        f"gingham: cannot listen on 127.0.0.1 port {port} (Address already in use); choose another port, or --port 0 "
        "for any free port\n"
    )
    stderr = command("serve", "--host", "nowhere.invalid", code=2).stderr
    assert "cannot listen on nowhere.invalid port 8000" in stderr
    assert stderr.endswith("; choose another --host, such as 127.0.0.1\n")
    assert "there is no folder nowhere" in command("serve", "--run", "nowhere", code=2).stderr
    monkeypatch.delitem(sys.modules, "gingham.deploy.server")
    monkeypatch.delattr(gingham.deploy, "server")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert (
        command("serve", code=2).stderr
        == "gingham: serving needs the package fastapi; run pip install 'gingham[serve]'\n"
    )
