"""A small broll server on loopback, in memory: what docs say about the HTTP API, and faults on demand.

    with SmallServer() as server:
        server.fail("GET", "/v1/jobs/", status=503, times=2)     the next two are refused
        server.cut("/content", after=1000)                       the next body breaks off after so many bytes
        server.seen                                              every request so far

A job is done `WORK_S` after it was made; its prompt decides how: "fail ..." fails, "forever ..." goes on.
"""

import base64
import contextlib
import email
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "broll_test_key"
WORK_S = 0.2
VIDEO = bytes(range(256)) * 2000


@dataclass
class Fault:
    method: str
    path: str
    status: int
    times: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after: int = -1  # bytes of the body; then the connection is cut
    body: bytes | None = None


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class SmallServer:
    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: dict[str, str] = {}  # Idempotency-Key -> job
        self.keys: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.video = VIDEO
        self.lock = threading.RLock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"small": self}))
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.url, self.key = f"http://127.0.0.1:{self.http.server_port}", KEY

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def fail(self, method, path, *, status, times=1, code="", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, path, status, times, code, headers))

    def cut(self, path, *, after, times=1, method="GET"):
        self.faults.append(Fault(method, path, 0, times, after=after))

    def lose(self, method, path, *, times=1):
        """The request is done, and its answer is lost."""
        self.faults.append(Fault(method, path, 0, times, after=0))

    def say(self, method, path, body, *, status=200):
        """Something that no broll server says."""
        self.faults.append(Fault(method, path, status, 1, body=body))

    def requests(self, method, path):
        return [seen for seen in self.seen if seen.method == method and path in seen.path]

    # --- jobs ---------------------------------------------------------------------------------------------

    def make(self, fields, **more):
        number = len(self.jobs) + 1
        job = {
            "job_id": f"job_{number:04}", "prompt": fields["prompt"], "model": fields.get("model", "nano"),
            "size": "160x96", "seconds": 5.06, "frames": 81, "seed": int(fields.get("seed", 7)),
            "credits": 4, "attempts": 1, "priority": fields.get("priority", "normal"), "retry_of": None,
            "created_at": datetime.now(UTC).isoformat(), "notes": ["1280x720 became 160x96"],
            "spec": {"prompt": fields["prompt"], "seed": int(fields.get("seed", 7))},
            "resumed_elsewhere": False, "urls": {}, "brand_new_field": {"of": "a newer server"},
            "begun": time.monotonic(), "fields": fields,
        } | more  # fmt: skip
        self.jobs[job["job_id"]] = job
        return job

    def told(self, job):
        done = time.monotonic() - job["begun"]
        share = 0.5 if job["prompt"].startswith("forever") else min(1.0, done / WORK_S)
        now = {"status": "processing", "progress": int(100 * share), "stage": "denoise", "eta_s": 1.5}
        if job.get("cancelled"):
            now |= {"status": "failed", "error": "cancelled", "error_code": "cancelled", "stage": None}
        elif share == 1 and job["prompt"].startswith("fail"):
            now |= {"status": "failed", "error": "it does not fit", "error_code": "out_of_memory"}
        elif share == 1:
            now |= {"status": "completed", "output_url": f"{self.url}/v1/jobs/{job['job_id']}/content?sig=x"}
            now |= {"started_at": job["created_at"], "completed_at": datetime.now(UTC).isoformat()}
        hidden = ("begun", "fields", "cancelled")
        return {"error": None, "error_code": None, "output_url": None, "queue_position": None} | {
            name: value for name, value in (job | now).items() if name not in hidden
        }


class Handler(BaseHTTPRequestHandler):
    small: SmallServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError, ValueError):  # the other side went away
            super().handle()

    def do_GET(self):
        self.serve()

    do_POST = do_DELETE = do_HEAD = do_GET

    def serve(self):
        small, path = self.small, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        with small.lock:
            small.seen.append(Seen(self.command, self.path, dict(self.headers.items()), body))
            fault = next((f for f in small.faults if f.method == self.command and f.path in path), None)
            if fault:
                fault.times -= 1
                if not fault.times:
                    small.faults.remove(fault)
        if fault and fault.body is not None:
            return self.raw(fault.status, fault.body, {"content-type": "text/html"})
        if fault and fault.status:
            return self.refuse(fault.status, fault.code or "some_code", "asked to fail", fault.headers)
        self.after = fault.after if fault else -1
        if self.headers.get("authorization") != f"Bearer {small.key}" and "sig" not in self.query:
            return self.refuse(401, "not_authenticated", "an API key is needed")
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, body, *match.groups())
        return self.refuse(404, "not_found", f"there is no {path}")

    # --- answers ------------------------------------------------------------------------------------------

    def raw(self, status, body, headers):
        self.send_response(status)
        for name, value in ({"x-request-id": "req_1", "content-length": str(len(body))} | headers).items():
            self.send_header(name, value)
        after = getattr(self, "after", -1)
        if after == 0:  # not even the head
            self._headers_buffer = []
            return self.hang_up()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if after < 0 else body[:after])
        if after >= 0:
            self.hang_up()
        return None

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def json(self, status, value, headers=None):
        self.raw(status, json.dumps(value).encode(), {"content-type": "application/json"} | (headers or {}))

    def refuse(self, status, code, detail, headers=None):
        told = {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code}
        told |= {"request_id": "req_1", "error": {"message": detail, "code": code}}
        kind = {"content-type": "application/problem+json"}
        self.raw(status, json.dumps(told).encode(), kind | (headers or {}))

    # --- endpoints ----------------------------------------------------------------------------------------

    def form(self, body):
        kind = self.headers["content-type"]
        if kind == "application/json":
            return json.loads(body)
        message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
        fields = {}
        for part in message.get_payload():
            value = part.get_payload(decode=True)
            name = part.get_param("name", header="content-disposition")
            fields[name] = value if part.get_filename() else value.decode()
        return fields

    def generate(self, body):
        small, key = self.small, self.headers.get("idempotency-key")
        fields = self.form(body)
        if not fields["prompt"].strip():
            return self.refuse(422, "bad_prompt", "the prompt is empty")
        with small.lock:
            job = small.jobs.get(small.submitted.get(key, "")) or small.make(fields)
            if key:
                small.submitted[key] = job["job_id"]
        return self.json(202, small.told(job))

    def prompt(self, body, route):
        told = json.loads(body)["prompt"]
        report = {"prompt": told, "findings": [], "negative_prompt": ""}
        self.json(200, report | ({"additions": [], "diff": []} if route == "rewrite" else {}))

    def estimate(self, body):
        self.json(200, {"credits": 4, "seconds_s": None, "memory_mb": 900, "model": "nano", "notes": []})

    def found(self, job_id):
        job = self.small.jobs.get(job_id)
        if job is None:
            self.refuse(404, "not_found", f"there is no job {job_id}")
        return job

    def job(self, body, job_id):
        job, small = self.found(job_id), self.small
        if job is None:
            return None
        if self.command == "DELETE":
            if small.told(job)["status"] == "processing":
                return self.refuse(409, "conflict", "the job is not done")
            del small.jobs[job_id]
            return self.raw(204, b"", {})
        hold = re.fullmatch(r"wait=(\d+)", self.headers.get("prefer", ""))
        until = time.monotonic() + (int(hold[1]) if hold else 0)
        while small.told(job)["status"] == "processing" and time.monotonic() < until:
            time.sleep(0.01)
        return self.json(200, small.told(job))

    def job_list(self, body):
        found = [self.small.told(job) for job in self.small.jobs.values()]
        found = found[::-1] if self.query.get("order", "desc") == "desc" else found
        found = [job for job in found if self.query.get("status", job["status"]) == job["status"]]
        ids = [job["job_id"] for job in found]
        start = ids.index(self.query["after"]) + 1 if "after" in self.query else 0
        limit = min(int(self.query.get("limit", 20)), 3)  # small pages
        page = found[start : start + limit]
        last = page[-1]["job_id"] if page else None
        self.json(200, {"data": page, "has_more": start + limit < len(found), "last_id": last})

    def cancel(self, body, job_id):
        if job := self.found(job_id):
            job["cancelled"] = True
            self.json(200, self.small.told(job))

    def retry(self, body, job_id):
        if job := self.found(job_id):
            if self.small.told(job)["status"] != "failed":
                return self.refuse(409, "conflict", "only a failed job can be made again")
            self.json(202, self.small.told(self.small.make(job["fields"], retry_of=job_id)))
        return None

    def events(self, body, job_id):
        """Numbered from 1: status, stage, progress at 50, preview, and done when it is."""
        job, small = self.found(job_id), self.small
        if job is None:
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.close_connection = True
        self.end_headers()
        preview = base64.b64encode(b"RIFF webp").decode()
        plan = [
            ("status", small.told(job)),
            ("stage", {"stage": "denoise"}),
            ("progress", {"progress": 50, "stage": "denoise", "eta_s": 0.1}),
            ("preview", {"webp": preview}),
            ("done", None),
        ]
        self.wfile.write(b": keep-alive\n\n")
        for number, (kind, data) in enumerate(plan, 1):
            if number <= int(self.headers.get("last-event-id", 0)):
                continue
            while kind == "done" and small.told(job)["status"] == "processing":
                time.sleep(0.01)
            text = json.dumps(data or small.told(job), ensure_ascii=False)
            message = f"id: {number}\nevent: {kind}\ndata: {text}\n\n".encode()
            if 0 <= self.after < number:
                self.wfile.write(message[:-1])  # cut off before it is whole
                self.hang_up()
                return
            self.wfile.write(message)
            self.wfile.flush()

    def content(self, body, job_id):
        job, small = self.found(job_id), self.small
        if job is None:
            return None
        if small.told(job)["status"] != "completed":
            return self.refuse(404, "not_found", "there is no such file")
        data = small.video if self.query.get("variant", "video") == "video" else b"RIFF webp"
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"etag": etag, "accept-ranges": "bytes", "content-type": "video/mp4"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if start and self.headers.get("if-range", etag) == etag:
            begin = int(start[1])
            headers["content-range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return self.raw(206, data[begin:], headers)
        return self.raw(200, data, headers)

    def upload(self, body):
        data = self.form(body)["file"]
        number = f"upl_{len(self.small.uploads) + 1}"
        self.small.uploads[number] = data
        self.json(201, {"id": number, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})

    def models(self, body):
        self.json(200, {"data": [{"id": "nano", "object": "model", "task": "t2v", "ready": True}]})

    def credits(self, body):
        self.json(200, {"available": 96, "held": 4, "unmetered": False})

    def ledger(self, body):
        rows = [{"id": f"ent_{n}", "kind": "hold", "amount": -n} for n in range(1, 6)]
        start = int(self.query["after"].removeprefix("ent_")) if "after" in self.query else 0
        self.json(200, {"data": rows[start : start + 2], "has_more": start + 2 < len(rows)})

    def api_keys(self, body, key_id=None, rotate=None):
        keys = self.small.keys
        if self.command == "GET":
            return self.json(200, {"data": list(keys.values())})
        if key_id and key_id not in keys:
            return self.refuse(404, "not_found", "there is no such key")
        if self.command == "DELETE":
            del keys[key_id]
            return self.raw(204, b"", {})
        made = {"id": key_id or f"key_{len(keys) + 1}", "hint": "…abcd"}
        keys[made["id"]] = made | {"fields": json.loads(body)}
        return self.json(201, made | {"key": "broll_secret"})


ROUTES = [
    (r"POST /v1/video/generate", Handler.generate),
    (r"POST /v1/video/estimate", Handler.estimate),
    (r"POST /v1/prompts/(check|rewrite)", Handler.prompt),
    (r"GET /v1/jobs", Handler.job_list),
    (r"(?:GET|DELETE) /v1/jobs/([^/]+)", Handler.job),
    (r"POST /v1/jobs/([^/]+)/cancel", Handler.cancel),
    (r"POST /v1/jobs/([^/]+)/retry", Handler.retry),
    (r"GET /v1/jobs/([^/]+)/events", Handler.events),
    (r"(?:GET|HEAD) /v1/jobs/([^/]+)/content", Handler.content),
    (r"POST /v1/uploads", Handler.upload),
    (r"GET /v1/models", Handler.models),
    (r"GET /v1/credits", Handler.credits),
    (r"GET /v1/credits/ledger", Handler.ledger),
    (r"(?:GET|POST) /v1/api-keys", Handler.api_keys),
    (r"DELETE /v1/api-keys/([^/]+)", Handler.api_keys),
    (r"POST /v1/api-keys/([^/]+)/(rotate)", Handler.api_keys),
]
