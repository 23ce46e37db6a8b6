"""Uploading exported weights to a hub on this machine."""

import base64
import hashlib
import http.server
import json

import pytest

from cosmos_wds.errors import DownloadError
from cosmos_wds.sources.push import push_folder
from tests.servers import serving

WEIGHTS = bytes(range(256)) * 50


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub to make a repository and commit files to it."""

    protocol_version = "HTTP/1.1"

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        state, body = self.server.state, self.body()
        state.tokens.add(self.headers.get("Authorization"))
        if state.refuses:
            return self.reply(403, {"error": "no right to write"})
        if self.path == "/api/repos/create":
            state.created.append(json.loads(body))
            return self.reply(200, {"url": f"{state.url}/me/model", "id": "me/model"})
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{state.url}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply(200, {"objects": objects, "transfer": "basic"})
        assert "/commit/" in self.path, self.path
        state.commits.append([json.loads(line) for line in body.splitlines()])
        oid = "0" * 40
        return self.reply(
            200, {"commitUrl": f"{state.url}/me/model/commit/{oid}", "commitOid": oid, "success": 1}
        )

    def do_PUT(self):
        self.server.state.put[self.path.rpartition("/")[2]] = self.body()
        self.reply(200, {})

    def do_GET(self):
        self.reply(200, {"id": "me/model", "sha": "0" * 40, "siblings": [], "private": True})

    def reply(self, status, table):
        content = json.dumps(table).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    more = {"tokens": set(), "created": [], "commits": [], "put": {}, "refuses": False}
    with serving(Hub, **more) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        # What the library reads from the environment once, as it is imported. No Xet storage here.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield state


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model-safetensors"
    path.mkdir()
    (path / "model.safetensors").write_bytes(WEIGHTS)
    (path / "README.md").write_text("# a card\n")
    return path


@pytest.mark.filterwarnings("ignore:Use 'content=")  # the library's own
def test_a_folder_becomes_one_commit_of_a_private_repository(hub, folder):
    push_folder(folder, "me/model")
    assert hub.created[0]["name"] == "model"
    assert hub.created[0].get("private") is True or hub.created[0]["visibility"] == "private"
    [commit] = hub.commits
    values = {row["value"].get("path"): row for row in commit if row["key"] != "header"}
    assert values.keys() == {"README.md", "model.safetensors"}
    assert base64.b64decode(values["README.md"]["value"]["content"]) == b"# a card\n"
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    assert values["model.safetensors"]["value"]["oid"] == sha
    assert hub.put == {sha: WEIGHTS}
    assert "Bearer hf_secret" in hub.tokens


def test_a_refusal_and_a_missing_token_are_one_line_each(hub, folder, monkeypatch, tmp_path):
    hub.refuses = True  # a token that may only read
    with pytest.raises(DownloadError, match="the hub answers.*403") as told:
        push_folder(folder, "me/model")
    assert "\n" not in str(told.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(DownloadError, match="takes a token.*is written"):
        push_folder(folder, "me/model")
