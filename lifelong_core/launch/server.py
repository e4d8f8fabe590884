"""A real ComfyUI in its own process: started on a free port, talked to, and always stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import SetupError
from .client import Client, RunResult, get_json
from .comfyui import ComfyUI

HOST = "127.0.0.1"
START_SECONDS = 300.0
LOG_TAIL = 30


class ComfyServer:
    """ComfyUI over a private base directory.

    Use it as a context manager: inside, `base_url` answers. `cpu` None means: the CPU if there is
    no accelerator. `startup_log` is what it wrote until it answered.
    """

    def __init__(self, comfyui: ComfyUI, base: Path, *, cpu: bool | None = None) -> None:
        self.comfyui = comfyui
        self.base = base
        self.cpu = not has_accelerator() if cpu is None else cpu
        self.port = 0
        self.startup_log = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.base / "server.log"

    def logs(self) -> str:
        """All that the server has written since its start."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def folder(self, name: str) -> Path:
        """A folder of the base directory: "input", "output", "models/loras" …"""
        return self.base / name

    def start(self) -> None:
        """Start the process and wait until it answers. Raises SetupError with the log's end."""
        self.port = free_port()
        command = [
            *(sys.executable, str(self.comfyui.path / "main.py")),
            *("--listen", HOST, "--port", str(self.port), "--base-directory", str(self.base)),
            *("--database-url", "sqlite:///:memory:", "--disable-api-nodes"),
            *("--disable-auto-launch",),
            *(("--cpu",) if self.cpu else ()),
        ]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui.path,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us: we stop the server when our own work is tidied up.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise SetupError(f"ComfyUI ended while starting. {self._tail()}")
            with contextlib.suppress(OSError, ValueError):
                get_json(f"{self.base_url}/system_stats", timeout=5)
                self.startup_log = self.logs()
                return
            time.sleep(0.25)
        raise SetupError(f"ComfyUI did not answer within {START_SECONDS:.0f} s. {self._tail()}")

    def _tail(self) -> str:
        lines = self.logs().splitlines()[-LOG_TAIL:]
        return f"The end of {self.log_path}:\n" + "\n".join(lines)

    def stop(self) -> None:
        """End the process and wait until it is gone. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def run(
        self,
        workflow: Mapping[str, Any],
        timeout: float = 600.0,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> RunResult:
        """Run a workflow in API form to its end; see `Client.run`."""
        return Client(self.base_url).run(workflow, timeout, on_event)

    def object_info(self) -> dict[str, Any]:
        """Every registered node with its inputs and outputs."""
        info: dict[str, Any] = get_json(f"{self.base_url}/object_info")
        return info

    def check(self, workflow: Mapping[str, Any]) -> None:
        """Have ComfyUI check a workflow in API form, not run it. Raises WorkflowError."""
        client = Client(self.base_url)
        client.submit(workflow)
        client.cancel()
        while get_json(f"{self.base_url}/prompt")["exec_info"]["queue_remaining"]:
            time.sleep(0.1)
            # ComfyUI forgets an interruption that comes just as a workflow begins.
            client.cancel()

    def interrupt(self) -> None:
        """Stop the workflow that is running now."""
        Client(self.base_url).interrupt()

    def files(self, result: RunResult, node: str | None = None) -> list[Path]:
        """The pictures that a run reports in its outputs (or those of one node), in order."""
        return [
            self.base / entry["type"] / entry["subfolder"] / entry["filename"]
            for name, output in result.outputs.items()
            if node in (None, name)
            for entry in output.get("images", ())
        ]


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def has_accelerator() -> bool:
    """Whether torch sees a GPU that ComfyUI can use."""
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def _environment() -> dict[str, str]:
    """Ours, without what would let our folder shadow ComfyUI's own modules."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    return environment
