"""The part of Google Cloud Storage's JSON API that gcsfs and TensorStore speak, in memory.

`python fake_gcs.py BUCKET` prints its port on 127.0.0.1 and serves one bucket. The emulators on
PyPI leave out generations and conditions, which TensorStore's database relies on.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")


class Failure(Exception):
    """An answer that is an error, by its code."""


class Bucket:
    """The objects by name, each with its content and generation."""

    def __init__(self, name: str):
        self.name, self.objects, self.uploads = name, {}, {}
        self.generation, self.lock = 1000, threading.RLock()

    def check(self, name: str, query: dict, code: int = 304) -> None:
        """The conditions of a request; 0 stands for an object that is not there."""
        now = self.objects[name][1] if name in self.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            raise Failure(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            raise Failure(code)

    def put(self, name: str, content: bytes, query: dict) -> dict:
        with self.lock:
            self.check(name, query, 412)
            self.generation += 1
            self.objects[name] = (content, self.generation)
            return self.about(name)

    def get(self, name: str) -> tuple[bytes, int]:
        if name not in self.objects:
            raise Failure(404)
        return self.objects[name]

    def about(self, name: str) -> dict:
        content, generation = self.get(name)
        return {
            "kind": "storage#object",
            "bucket": self.name,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, query: dict) -> dict:
        """Names and prefixes in order, a page of at most `maxResults` at a time."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        low, high = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        found = {}
        with self.lock:
            for name in sorted(self.objects):
                if name.startswith(prefix) and low <= name < high:
                    head, cut, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                    found[prefix + head + cut] = cut != ""
            names = [name for name in found if name > query.get("pageToken", "")]
            size = min(int(query.get("maxResults", 1000)), 1000)
            page = names[:size]
            answer = {
                "kind": "storage#objects",
                "items": [self.about(name) for name in page if not found[name]],
                "prefixes": [name for name in page if found[name]],
            }
        if len(names) > size:
            answer["nextPageToken"] = page[-1]
        return answer


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, which needs no acknowledgement on the way
    disable_nagle_algorithm = True
    bucket: Bucket

    def log_message(self, *_) -> None:
        pass

    def answer(self, code: int, content: bytes | dict = b"", **headers: str) -> None:
        if isinstance(content, dict):
            content, headers["Content-Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_one(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.route(parts.path, query, body)
        except Failure as failure:
            code = failure.args[0]
            about = {"error": {"code": code, "message": f"{self.command} {self.path}"}}
            self.answer(code, b"" if code == 304 else about)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one

    def route(self, path: str, query: dict, body: bytes) -> None:
        bucket, unquote = self.bucket, urllib.parse.unquote
        if f"/b/{bucket.name}" not in path:
            raise Failure(404)
        if path == f"/storage/v1/b/{bucket.name}":
            return self.answer(200, {"kind": "storage#bucket", "name": bucket.name})
        if path == f"/storage/v1/b/{bucket.name}/o":
            return self.answer(200, bucket.list(query))
        if path == f"/upload/storage/v1/b/{bucket.name}/o":
            return self.upload(query, body)
        if match := REWRITE.fullmatch(path):
            content, _ = bucket.get(unquote(match[2]))
            about = bucket.put(unquote(match[4]), content, query)
            return self.answer(200, {"done": True, "resource": about})
        match = OBJECT.fullmatch(path)
        if not match:
            raise Failure(404)
        name = unquote(match[2])
        with bucket.lock:
            bucket.check(name, query)
            content, generation = bucket.get(name)
            if self.command == "DELETE":
                del bucket.objects[name]
                return self.answer(204)
            about = bucket.about(name)
        if query.get("alt") != "media":
            return self.answer(200, about)
        headers = {"x_goog_generation": str(generation), "Content_Type": "application/octet-stream"}
        if not (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return self.answer(200, content, **headers)
        begin, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if begin >= len(content):
            raise Failure(416)
        headers["Content_Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self.answer(206, content[begin : end + 1], **headers)

    def upload(self, query: dict, body: bytes) -> None:
        bucket = self.bucket
        if "upload_id" in query:  # a part of a resumable upload
            name, conditions, before = bucket.uploads[query["upload_id"]]
            before += body
            total = self.headers["Content-Range"].rsplit("/", 1)[1]
            if total != "*" and len(before) == int(total):
                return self.answer(200, bucket.put(name, bytes(before), conditions))
            return self.answer(308, Range=f"bytes=0-{len(before) - 1}")
        if query["uploadType"] == "media":
            return self.answer(200, bucket.put(query["name"], body, query))
        if query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, rest = re.split(rb"--" + re.escape(boundary), body, maxsplit=2)
            content = rest[: rest.rindex(b"--" + boundary)]
            about, content = (re.split(rb"\r?\n\r?\n", p, maxsplit=1)[1] for p in (about, content))
            content = content[: -2 if content.endswith(b"\r\n") else -1]
            return self.answer(200, bucket.put(json.loads(about)["name"], content, query))
        number = str(len(bucket.uploads))
        name = query.get("name") or json.loads(body)["name"]
        bucket.uploads[number] = (name, query, bytearray())
        host = self.headers["Host"]
        place = f"http://{host}/upload/storage/v1/b/{bucket.name}/o?upload_id={number}"
        return self.answer(200, Location=place)


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request, address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may end before the answer
            super().handle_error(request, address)


def main() -> None:
    Handler.bucket = Bucket(sys.argv[1])
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
