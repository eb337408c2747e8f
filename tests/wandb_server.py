"""A stand-in for the Weights & Biases server, for tests: in this process, on loopback, and forgetful.

It speaks the part of the HTTP interface that a run, its tables, its artifacts and ``wandb sync`` use: GraphQL
operations, the file stream that carries history and summary, and uploads by PUT. Everything it is sent is kept, so
that a test can compare what arrived with what was logged. An operation that it does not know is answered with an
error and noted in ``unknown``.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

API_KEY = "0" * 40
"""A key of the right shape; the server takes any."""

ENTITY = "local"
EPOCH = "2026-01-01T00:00:00Z"


@dataclass
class SentRun:
    """What the server was told about one run."""

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    complete: bool = False
    upserts: int = 0

    def values(self, key: str) -> list[Any]:
        """The logged values of one metric, in order."""
        return [row[key] for _, row in sorted(self.history.items()) if key in row]


@dataclass
class SentArtifact:
    """One artifact version: its head, its files, and the runs on both sides of it."""

    id: str
    name: str
    type: str
    digest: str
    made_by: str
    aliases: list[str]
    metadata: dict[str, Any]
    version: int
    committed: bool = False
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)


class WandbServer:
    """Runs while its ``with`` block is open; ``url`` is what WANDB_BASE_URL should say.

    Attributes:
        refuse: an HTTP status with which every request is answered, or None.
        operations: the GraphQL operations received, as (name, variables).
        unknown: names of operations and paths that have no answer here.
    """

    def __init__(self) -> None:
        self.refuse: int | None = None
        self.runs: dict[str, SentRun] = {}
        self.artifacts: list[SentArtifact] = []
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.unknown: list[str] = []
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Is gone: open connections break, and new ones are refused."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def environment(self) -> dict[str, str]:
        """The variables that point a W&B client at this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def artifact(self, name: str) -> SentArtifact:
        """The latest version of the artifact called ``name``."""
        return [a for a in self.artifacts if a.name == name][-1]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The ``data`` of a GraphQL reply, or None when the operation has no answer here."""
        self.operations.append((operation, variables))
        method = getattr(self, "_on_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower(), None)
        if method is None:
            self.unknown.append(operation)
            return None
        return method(variables)

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Takes one request of the file stream: history rows at their offset, and the newest summary."""
        run = self.runs.setdefault(run_id, SentRun())
        for name, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                run.history.update({chunk["offset"] + i: line for i, line in enumerate(lines)})
            elif name == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        if body.get("complete"):
            run.complete, run.exit_code = True, body.get("exitcode")

    def upload(self, path: str, content: bytes) -> None:
        """Takes one uploaded file; ``path`` is what the matching upload address said."""
        kind, owner, name = path.split("/", 2)
        if kind == "run":
            self.runs.setdefault(owner, SentRun()).files[name] = content
        else:
            artifact = self._by_id(owner)
            if kind == "manifest":
                artifact.manifest = json.loads(content)
            else:
                artifact.files[name] = content

    def _by_id(self, artifact_id: str) -> SentArtifact:
        return next(a for a in self.artifacts if a.id == artifact_id)

    def _project(self, name: str | None) -> dict[str, Any]:
        return {"id": "project", "internalId": "project", "name": name, "entity": {"id": "entity", "name": ENTITY}}

    # The client spells its operations in camel case; `answer` looks for the method of that name in snake case.

    def _on_viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _on_get_default_entity(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"entity": ENTITY, "id": "viewer"}}

    def _on_runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The runs of a project that a filter wants (all its fields must be equal), oldest first."""
        wanted: dict[str, Any] = json.loads(variables["filters"] or "{}")
        names = {"group": "groupName"}
        found = [
            (name, run)
            for name, run in self.runs.items()
            if run.fields.get("project") == variables["project"]
            and all(run.fields.get(names.get(key, key)) == value for key, value in wanted.items())
        ]
        edges = [{"node": self._told(name, run), "cursor": name} for name, run in found]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"internalId": "1", "runCount": len(edges), "runs": {"edges": edges, "pageInfo": page}}}

    def _told(self, name: str, run: SentRun) -> dict[str, Any]:
        """A run as the server describes it to somebody who asks for it."""
        config, summary = json.dumps(run.config), json.dumps(run.summary)
        head = {"id": name, "name": name, "displayName": run.fields.get("displayName"), "state": "finished"}
        head |= {"group": run.fields.get("groupName"), "jobType": run.fields.get("jobType"), "tags": []}
        head |= {"config": config, "summaryMetrics": summary, "historyLineCount": len(run.history), "projectId": "1"}
        head |= {"systemMetrics": "{}", "historyKeys": None, "createdAt": EPOCH, "heartbeatAt": EPOCH}
        return head | {"user": {"name": ENTITY, "username": ENTITY}, "sweepName": None, "notes": "", "readOnly": False}

    def _on_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[variables["name"]]
        edges = []
        for name in variables.get("fileNames") or run.files:
            address = f"{self.url}/files/{variables['name']}/{name}"
            size = len(run.files[name])
            node = {"id": name, "name": name, "url": address, "directUrl": address, "sizeBytes": size, "mimetype": ""}
            edges.append({"node": node | {"md5": "", "updatedAt": EPOCH}, "cursor": name})
        files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "run": {"fileCount": len(edges), "files": files}}}

    def _on_server_features_query(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_run_resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None or not run.upserts:
            return {"model": self._project(variables["project"]) | {"bucket": None}}
        rows = [json.dumps(row) for _, row in sorted(run.history.items())]
        bucket = {"id": "bucket", "name": variables["name"], "displayName": run.fields.get("displayName")}
        bucket |= {"summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config), "tags": [], "notes": ""}
        bucket |= {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
        bucket |= {"historyTail": json.dumps(rows[-1:]), "wandbConfig": "{}"}
        return {"model": self._project(variables["project"]) | {"bucket": bucket}}

    def _on_upsert_bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], SentRun())
        inserted, run.upserts = run.upserts == 0, run.upserts + 1
        run.fields.update({key: value for key, value in variables.items() if value is not None})
        run.config.update(json.loads(variables.get("config") or "{}"))
        bucket = {"id": "bucket", "name": variables["name"], "displayName": run.fields.get("displayName")}
        bucket |= {"description": None, "config": json.dumps(run.config), "sweepName": None}
        bucket |= {"historyLineCount": len(run.history), "project": self._project(variables.get("project"))}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_create_run_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/run/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}

    def _on_create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        sent = variables["input"]
        name = (sent.get("artifactCollectionNames") or [sent["artifactCollectionName"]])[0]
        earlier = [a for a in self.artifacts if a.name == name]
        artifact = next((a for a in earlier if a.digest == sent["digest"]), None)
        if artifact is None:
            aliases = [alias["alias"] for alias in sent.get("aliases") or []]
            metadata = json.loads(sent.get("metadata") or "{}")
            artifact = SentArtifact(
                id=f"artifact{len(self.artifacts)}",
                name=name,
                type=sent["artifactTypeName"],
                digest=sent["digest"],
                made_by=sent["runName"],
                aliases=aliases,
                metadata=metadata,
                version=len(earlier),
            )
            self.artifacts.append(artifact)
        latest = {"id": earlier[-1].id} if earlier else None
        state = "COMMITTED" if artifact.committed else "PENDING"
        reply = {"id": artifact.id, "state": state, "artifactSequence": {"latestArtifact": latest}}
        return {"createArtifact": {"artifact": reply}}

    def _on_create_artifact_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        file: dict[str, Any] = {"id": "file"}
        if variables["includeUpload"]:
            address = f"{self.url}/upload/manifest/{variables['artifactID']}/{variables['name']}"
            file |= {"uploadUrl": address, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}

    def _on_create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in variables["input"]["artifactFiles"]:
            address = f"{self.url}/upload/artifact/{spec['artifactID']}/{spec['name']}"
            node = {"storagePath": spec["name"], "uploadUrl": address, "uploadHeaders": []}
            edges.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self._by_id(variables["artifactID"])
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_artifact_type(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"].partition(":")[0]
        types = [artifact.type for artifact in self.artifacts if artifact.name == name]
        return {"project": {"artifact": {"artifactType": {"name": types[-1]}} if types else None}}

    def _on_artifact_by_id(self, variables: dict[str, Any]) -> dict[str, Any]:
        """What a run that declares an input asks once its contents are there."""
        artifact = self._by_id(variables["id"])
        project = self._project("project")
        body = {"__typename": "Artifact", "id": artifact.id, "versionIndex": artifact.version, "description": None}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        body |= {"artifactSequence": sequence | {"id": "sequence"}, "state": "COMMITTED", "tags": [], "size": 0}
        body |= {"artifactType": {"name": artifact.type}, "metadata": json.dumps(artifact.metadata)}
        body |= {"ttlDurationSeconds": -2, "ttlIsInherited": True, "historyStep": None, "commitHash": "commit"}
        body |= {"digest": artifact.digest, "fileCount": len(artifact.files), "createdAt": EPOCH, "updatedAt": None}
        body |= {"aliases": [], "currentManifest": None}
        return {"artifact": body}

    def _on_use_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        sent = variables.get("input") or variables  # so sends a run that logged it, and so one that asked by name
        artifact = self._by_id(sent["artifactID"])
        if sent["runName"] not in artifact.used_by:
            artifact.used_by.append(sent["runName"])
        head = {"id": artifact.id, "digest": artifact.digest, "description": None, "state": "COMMITTED"}
        return {"useArtifact": {"artifact": head | {"createdAt": EPOCH, "metadata": "{}"}}}


def _handler(server: WandbServer) -> type[http.server.BaseHTTPRequestHandler]:
    """The request handler of one server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: test output is for test results."""

        def handle(self) -> None:
            server.connections.add(self.connection)
            with contextlib.suppress(OSError):  # a client that gives up just hangs up
                super().handle()
            server.connections.discard(self.connection)

        def body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def reply(self, content: dict[str, Any], status: int = 200) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def do_GET(self) -> None:
            _, kind, run, name = unquote(urlsplit(self.path).path).split("/", 3)
            content = server.runs[run].files[name] if kind == "files" else b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            body = self.body()
            with server.lock:
                if not server.refuse:
                    server.upload(unquote(urlsplit(self.path).path).removeprefix("/upload/"), body)
            self.reply({}, server.refuse or 200)

        def do_POST(self) -> None:
            body = self.body()
            with server.lock:
                status, content = (server.refuse, {}) if server.refuse else self.respond(json.loads(body or b"{}"))
            self.reply(content, status)

        def respond(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            path = urlsplit(self.path).path
            if path.endswith("/file_stream"):
                server.stream(unquote(path.split("/")[-2]), body)
                return 200, {"exitcode": None, "limits": {}}
            named = re.match(r"(?:\s*#.*\n)*\s*(?:query|mutation)\s+(\w+)", body.get("query", ""))
            if path != "/graphql" or named is None:
                server.unknown.append(path)
                return 404, {}
            data = server.answer(named.group(1), body.get("variables") or {})
            if data is None:
                return 200, {"errors": [{"message": f"unknown operation {named.group(1)}"}]}
            return 200, {"data": data}

    return Handler
