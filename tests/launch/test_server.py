"""Starting and stopping, against a stand-in that only answers: the real one is in tests/comfyui."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lifelong_core.errors import SetupError
from lifelong_core.launch import server as module
from lifelong_core.launch.comfyui import ComfyUI
from lifelong_core.launch.server import HOST, ComfyServer

ANSWERS = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

print("arguments", *sys.argv[1:], flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

FORGETS_AN_INTERRUPTION = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

calls = []

class Handler(BaseHTTPRequestHandler):
    def answer(self, **reply):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def do_GET(self):
        running = 0 < calls.count("/interrupt") < 2
        self.answer(exec_info={"queue_remaining": int(running)})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        calls.append(self.path)
        print(self.path, flush=True)
        self.answer(prompt_id="7")

port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def server(base: Path, program: str) -> ComfyServer:
    folder = base.parent / "ComfyUI"
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(program)
    return ComfyServer(ComfyUI(folder, own=True), base, cpu=True)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_it_answers_inside_and_is_gone_after(base: Path) -> None:
    with server(base, ANSWERS) as running:
        assert running.running()
        assert listening(running.port)
        assert f"--base-directory {base}" in running.startup_log
        assert "--cpu" in running.startup_log
    assert not listening(running.port)
    assert not running.running()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_stopped_whatever_happens_inside(base: Path, error: type[BaseException]) -> None:
    running = server(base, ANSWERS)
    with pytest.raises(error), running:
        raise error
    assert not listening(running.port)


def test_checking_stops_a_workflow_that_began_all_the_same(base: Path) -> None:
    with server(base, FORGETS_AN_INTERRUPTION) as running:
        running.check({})
        assert running.logs().splitlines().count("/interrupt") == 2


def test_one_that_ends_at_once_shows_its_log(base: Path) -> None:
    with pytest.raises(SetupError, match="(?s)ended while starting.*no such model"):
        server(base, "raise SystemExit('no such model')").start()


def test_one_that_never_answers_is_stopped(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 1.0)
    silent = server(base, "import time; time.sleep(60)")
    with pytest.raises(SetupError, match="did not answer within 1 s"):
        silent.start()
    assert not silent.running()


def test_our_folder_does_not_shadow_comfyuis_modules(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/of/ours")
    program = "import os, sys; sys.exit(os.environ.get('PYTHONPATH', 'clean'))"
    with pytest.raises(SetupError, match="clean"):
        server(base, program).start()
