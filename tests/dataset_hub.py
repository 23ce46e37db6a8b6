"""A hub of data sets on this machine: what fsspec's hf:// asks of one, served from folders."""

import http.server
import json
import re
from hashlib import sha1
from urllib.parse import unquote

from tests.servers import serving

COMMIT = "0123456789" * 4


class DatasetHub(http.server.BaseHTTPRequestHandler):
    """Folders below `state.root` as OWNER/NAME: commit, trees, facts of paths, content."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        """Facts of single paths."""
        words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = (self.folder(self.path) / path for path in words["paths"])
        self.reply(json.dumps([self.facts(path) for path in found if path.exists()]).encode())

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        folder = self.folder(path)
        if not folder.is_dir():
            return self.reply(b"", 404, {"X-Error-Code": "RepoNotFound"})
        if found := re.search(r"/resolve/[^/]+/(.+)", path):
            content = (folder / found[1]).read_bytes()
            begin, end = 0, len(content) - 1
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
                begin, end = int(wanted[1]), min(int(wanted[2]), end)
            headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            return self.reply(content[begin : end + 1], 206 if wanted else 200, headers)
        if found := re.search(r"/tree/[^/]+/?(.*)", path):
            entries = [self.facts(p) for p in sorted((folder / found[1]).iterdir())]
            return self.reply(json.dumps(entries).encode())
        return self.reply(json.dumps({"id": "x", "sha": COMMIT, "siblings": []}).encode())

    def folder(self, path):
        return self.server.state.root / re.search(r"/datasets/([^/]+/[^/]+)", path)[1]

    def facts(self, path):
        name = "/".join(path.relative_to(self.server.state.root).parts[2:])
        oid = sha1(name.encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": oid}
        return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}

    def reply(self, body, status=200, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def dataset_hub(root):
    """Run a hub of the folders OWNER/NAME below `root`."""
    return serving(DatasetHub, root=root)
