"""A W&B server in a thread: it answers what the client asks first, and remembers what it is sent."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers at :attr:`url`, until ``stop``.

    Args:
        broken: answer no query.
    """

    daemon_threads = True

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.broken = broken
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)  # of each run's history, by their number
        self.views: list[dict[str, Any]] = []
        self.thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def history(self, run: str) -> list[dict[str, Any]]:
        return [line for _, line in sorted(self.lines[run].items())]

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The ``data`` of an answer to one of the client's queries; None where there is no answer."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        known = {
            "Viewer": self._viewer, "GetDefaultEntity": self._viewer, "ServerFeaturesQuery": self._features,
            "RunResumeStatus": self._resume, "UpsertBucket": self._upsert, "CreateRunFiles": self._files,
            "UpsertView2": self._view,
        }  # fmt: skip
        answer = known.get(found[1]) if found and not self.broken else None
        return answer(asked) if answer else None

    def _viewer(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _features(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"model": _project(asked["project"]) | {"bucket": self._bucket(asked["name"])}}

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        new = asked["name"] not in self.runs
        self.runs.setdefault(asked["name"], {}).update({k: value for k, value in asked.items() if value is not None})
        bucket = self._bucket(asked["name"]) or {}
        more = {"project": _project(asked["project"]), "description": "", "sweepName": None}
        return {"upsertBucket": {"bucket": bucket | more, "inserted": new}}

    def _files(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}

    def _view(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.views.append(asked)
        return {"upsertView": {"view": {"id": "V", "name": asked["name"]}, "inserted": True}}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        run, lines = self.runs[name], self.history(name)
        config = run.get("config", "{}")
        return {
            "id": "R", "name": name, "displayName": run.get("displayName", name), "config": config,
            "wandbConfig": config, "tags": [], "summaryMetrics": "{}", "historyLineCount": len(lines),
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]), "logLineCount": 0,
            "eventsLineCount": 0, "eventsTail": "[]",
        }  # fmt: skip


def _project(name: str) -> dict[str, Any]:
    return {"id": "P", "name": name, "entity": {"id": "E", "name": "me"}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        content = self._body()
        body = json.loads(content) if "json" in self.headers.get("Content-Type", "") else {}
        if "file_stream" in self.path:
            self._receive(self.path.split("/")[-2], body.get("files") or {})
            self._reply({"exitcode": None, "limits": {}})
        elif "query" not in body:
            self._reply({})
        elif answer := self.server.answer(body["query"], body.get("variables") or {}):
            self._reply({"data": answer})
        else:
            self._reply({"errors": [{"message": "out of order"}]}, 400)

    def _receive(self, run: str, files: dict[str, Any]) -> None:
        part = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(part["content"], part["offset"]):
            self.server.lines[run][number] = json.loads(line)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
