"""Talk to a running ComfyUI: send a workflow, follow it on the websocket, collect its outputs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from ..errors import WorkflowError

ENDS = {
    "execution_success": None,
    "execution_error": "failed",
    "execution_interrupted": "interrupted",
}
OnEvent = Callable[[dict[str, Any]], None]

# The server is on this machine: a proxy from the environment must not come between.
_OPENER = build_opener(ProxyHandler({}))


@dataclass
class RunResult:
    """A finished run. `outputs`: node id to its UI output; `executed` and `cached`: node ids.

    `previews`: the binary messages in order, each (ComfyUI's type number, payload).
    """

    prompt_id: str
    history: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = self.history.get("outputs", {})
        return outputs

    @property
    def executed(self) -> list[str]:
        nodes = (e["data"].get("node") for e in self.events if e["type"] == "executing")
        return [node for node in nodes if node]

    @property
    def cached(self) -> list[str]:
        lists = (e["data"]["nodes"] for e in self.events if e["type"] == "execution_cached")
        return [node for nodes in lists for node in nodes]


def get_bytes(url: str, timeout: float = 120.0) -> bytes:
    """GET an answer from a server on this machine. Raises OSError unless its status is good."""
    with _OPENER.open(url, timeout=timeout) as answer:
        content: bytes = answer.read()
    return content


def get_json(url: str, timeout: float = 120.0) -> Any:
    """GET a JSON answer from a server on this machine. Raises OSError or ValueError."""
    return json.loads(get_bytes(url, timeout))


def post_json(url: str, body: Any, timeout: float = 120.0) -> tuple[int, bytes]:
    """POST JSON; returns status and body, also for refusals."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


class Client:
    """One conversation with the ComfyUI at `base_url`."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.client_id = uuid.uuid4().hex
        self.prompt_id = ""

    def interrupt(self) -> None:
        """Stop the workflow that is running now."""
        post_json(f"{self.base_url}/interrupt", {})

    def submit(self, workflow: Mapping[str, Any]) -> str:
        """Queue a workflow in API form; returns its id. Raises WorkflowError when refused."""
        body = {"prompt": workflow, "client_id": self.client_id}
        status, answer = post_json(f"{self.base_url}/prompt", body)
        reply = json.loads(answer) if answer[:1] == b"{" else {}
        if status != 200:
            raise WorkflowError(refusal(reply), "refused", reply)
        self.prompt_id = str(reply["prompt_id"])
        return self.prompt_id

    def cancel(self) -> None:
        """Take back the workflow submitted last, whether it waits or runs."""
        if self.prompt_id:
            post_json(f"{self.base_url}/queue", {"delete": [self.prompt_id]})
            post_json(f"{self.base_url}/interrupt", {"prompt_id": self.prompt_id})

    def run(
        self,
        workflow: Mapping[str, Any],
        timeout: float = 600.0,
        on_event: OnEvent | None = None,
    ) -> RunResult:
        """Run a workflow in API form. `on_event` gets each message of the websocket (JSON ones).

        Raises WorkflowError when ComfyUI refuses it, a node fails, it is interrupted, `timeout`
        seconds pass, or the server goes away. A run given up on is taken back.
        """
        outcome: list[RunResult | BaseException] = []
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._run(workflow, on_event))

        def follow() -> None:
            try:
                outcome.append(loop.run_until_complete(asyncio.wait_for(work, timeout)))
            except (Exception, asyncio.CancelledError) as error:
                outcome.append(error)
            finally:
                loop.close()

        # A thread of its own, because the caller's may have an event loop already (Playwright's).
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except BaseException:
            with contextlib.suppress(RuntimeError, OSError):  # It ended, or the server did.
                loop.call_soon_threadsafe(work.cancel)
                thread.join(5)
                self.cancel()
            raise
        result = outcome[0]
        if isinstance(result, asyncio.TimeoutError):
            self.cancel()
            raise WorkflowError(f"The workflow did not end within {timeout:.0f} s.", "timeout")
        if isinstance(result, BaseException):
            raise result
        return result

    async def _run(self, workflow: Mapping[str, Any], on_event: OnEvent | None) -> RunResult:
        import aiohttp

        address = f"{self.base_url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(address, max_msg_size=2**28) as socket,
            ):
                features = {"supports_preview_metadata": True}
                await socket.send_json({"type": "feature_flags", "data": features})
                result = RunResult(await asyncio.to_thread(self.submit, workflow))
                await self._follow(socket, result, on_event)
                await self._collect(session, result)
                return result
        except (aiohttp.ClientError, URLError) as error:
            raise WorkflowError(f"ComfyUI went away: {error}.", "lost") from error

    async def _follow(self, socket: Any, result: RunResult, on_event: OnEvent | None) -> None:
        import aiohttp

        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                result.previews.append((struct.unpack(">I", message.data[:4])[0], message.data[4:]))
                continue
            event = json.loads(message.data)
            data = event.get("data", {})
            if data.get("prompt_id", result.prompt_id) != result.prompt_id:
                continue
            result.events.append(event)
            if on_event is not None:
                on_event(event)
            if event["type"] in ENDS:
                kind = ENDS[event["type"]]
                if kind is not None:
                    raise WorkflowError(failure(data), kind, data)
                return
        raise WorkflowError("ComfyUI closed the connection before the end.", "lost")

    async def _collect(self, session: Any, result: RunResult) -> None:
        """The history entry. It may appear a moment after the last event, so ask again."""
        for _ in range(100):
            url = f"{self.base_url}/history/{result.prompt_id}"
            async with session.get(url) as answer:
                history = await answer.json()
            if result.prompt_id in history:
                result.history = history[result.prompt_id]
                return
            await asyncio.sleep(0.1)
        raise WorkflowError("ComfyUI keeps no history of the run.", "lost")


def refusal(reply: Any) -> str:
    """ComfyUI's answer to a prompt that it does not accept, as one text."""
    lines = [str(reply.get("error", {}).get("message", "ComfyUI refused the workflow."))]
    for node, problem in (reply.get("node_errors") or {}).items():
        for error in problem.get("errors", ()):
            lines.append(
                f"node {node} ({problem.get('class_type')}): "
                f"{error.get('message')}: {error.get('details')}"
            )
    return "\n".join(lines)


def failure(data: Mapping[str, Any]) -> str:
    """An execution_error or execution_interrupted event as one text."""
    node = f"node {data.get('node_id')} ({data.get('node_type')})"
    if "exception_message" not in data:
        return f"Interrupted at {node}."
    return f"{data.get('exception_type')} in {node}: {str(data['exception_message']).strip()}"
