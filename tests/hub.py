"""A Hugging Face hub on this machine: what its library asks of one, well or badly answered."""

import hashlib
import http.server
import json
import re

from tests.servers import serving

COMMIT, OLDER = "0123456789" * 4, "abcdef0123" * 4
MODEL = "nvidia/Cosmos-Predict1-7B-Video2World"
LARGE = "nvidia/Cosmos-Predict1-14B-Video2World"
TOKENIZER = "nvidia/Cosmos-Tokenize1-CV8x8x8-720p"
BIG = bytes(range(256)) * 4000
FILES = {
    MODEL: {"model.pt": BIG, "config.json": b"{}", "guardrail/big.bin": b"no"},
    LARGE: {"model.pt": BIG, "config.json": b"{}"},
    TOKENIZER: {
        **{"encoder.jit": b"encode", "decoder.jit": b"decode", "mean_std.pt": b"statistics"},
        **{"autoencoder.jit": b"both", "README.md": b"words"},
    },
    "owner/name": {"a.bin": b"a", "b/c.bin": b"c"},
}

INVALID = "Invalid credentials in Authorization header"
ENABLE = "Please enable access to public gated repositories in your fine-grained token settings"
REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "nobody": (401, {"X-Error-Code": "GatedRepo"}),
    "bad-token": (401, {"X-Error-Message": INVALID}),
    "weak-token": (403, {"X-Error-Message": ENABLE}),
    "secret": (401, {}),
    "busy": (503, {}),
}
"""What stands in a path -> what the hub answers there."""


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: a repository's files, and these, by ranges."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        state = self.server.state
        path = self.path.partition("?")[0]
        state.asked.append((self.command, path, self.headers.get("Range")))
        state.tokens.append(self.headers.get("Authorization"))
        refusal = next((REFUSALS[word] for word in REFUSALS if word in path), None)
        if refusal:
            return self.reply(refusal[0], b"", {"X-Request-Id": "one", **refusal[1]})
        if "portal" in path:
            return self.reply(200, b"<html>log in to this network</html>", {})
        repo = next((name for name in FILES if f"/{name}" in path), None)
        if repo is None:
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models"):
            return self.list_files(repo, path.partition("/revision/")[2] or "main")
        if state.moved:
            return self.reply(302, b"", {"Location": f"{state.moved}{self.path}"})
        if state.within and "/resolve/" in path:
            target = f"/api/cache{self.path.replace('/resolve/', '/kept/')}"
            return self.reply(307, b"", {"Location": target})
        if state.within and not self.headers.get("Authorization"):
            return self.reply(401, b"", {})
        commit, name = re.search("/(?:resolve|kept)/(.+?)/(.+)", path).groups()
        assert commit in (COMMIT, OLDER), path  # never a branch, which may move on the way
        content = FILES[repo][name]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return self.send(state.damaged.get(name, content), headers)

    def list_files(self, repo, revision):
        if revision not in ("main", "v1", COMMIT, OLDER):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name in sorted(FILES[repo].keys() - set(self.server.state.absent)):
            content = FILES[repo][name]
            sha256, size = hashlib.sha256(content).hexdigest(), len(content)
            lfs = {"sha256": sha256, "size": size, "pointerSize": 1}
            siblings.append({"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs})
        sha = OLDER if revision in ("v1", OLDER) else COMMIT
        table = {"id": repo, "sha": sha, "siblings": siblings, "private": False}
        return self.reply(200, json.dumps(table).encode(), {})

    def send(self, content, headers):
        begin, status = 0, 200
        if self.headers.get("Range"):
            begin, status = int(self.headers["Range"].split("=")[1].split("-")[0]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            if begin == len(content):
                return self.reply(416, b"", {"Content-Range": f"bytes */{begin}"})
        body, cut = content[begin:], self.server.state.cut
        headers["Content-Length"] = str(len(body))
        if self.command == "GET" and cut:
            body, self.close_connection = body[: cut.pop()], True
        if self.command == "GET" and self.server.state.stalls:
            self.reply(status, body[: self.server.state.stalls.pop()], headers)
            self.server.state.released.wait(60)
            self.close_connection = True
        else:
            self.reply(status, body, headers)

    def reply(self, status, body, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def hub_server():
    """Run a hub. Its state: who asked, with which tokens; and how it misbehaves, and redirects."""
    misbehaves = {"damaged": {}, "absent": (), "cut": [], "stalls": []}
    return serving(Hub, asked=[], tokens=[], **misbehaves, moved="", within=False)
