"""Weights from a hub on this machine: what is fetched, what is checked, what is said."""

import hashlib
import http.server
import json
import shutil
from collections import namedtuple

import pytest

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.sources import http as bytes_of
from cosmos_wds.sources import hub as fetching
from cosmos_wds.sources.fetch import fetch_named
from cosmos_wds.sources.hub import fetch_weights
from tests.commands import run
from tests.servers import serving

COMMIT, OLDER = "0123456789" * 4, "abcdef0123" * 4
MODEL = "nvidia/Cosmos-Predict1-7B-Video2World"
TOKENIZER = "nvidia/Cosmos-Tokenize1-CV8x8x8-720p"
BIG = bytes(range(256)) * 4000
FILES = {
    MODEL: {"model.pt": BIG, "config.json": b"{}", "guardrail/big.bin": b"no"},
    TOKENIZER: {
        **{"encoder.jit": b"encode", "decoder.jit": b"decode", "mean_std.pt": b"statistics"},
        **{"autoencoder.jit": b"both", "README.md": b"words"},
    },
    "owner/name": {"a.bin": b"a", "b/c.bin": b"c"},
}


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
        if "gated" in path:
            return self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        if "token" in path:
            return self.reply(401, b"", {})
        repo = next((name for name in FILES if f"/{name}" in path), None)
        if repo is None:
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = {**FILES[repo], **state.changed}
        if path.startswith("/api/models"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", "v1", COMMIT, OLDER):
                return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            sha = OLDER if revision in ("v1", OLDER) else COMMIT
            siblings = [
                {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": "0" * 40,
                    "lfs": {
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 1,
                    },
                }
                for name, content in files.items()
                if name not in state.absent
            ]
            table = {"id": repo, "sha": sha, "siblings": siblings, "private": False}
            return self.reply(200, json.dumps(table).encode(), {})
        if state.moved and self.command == "GET":
            return self.reply(302, b"", {"Location": f"{state.moved}{self.path}"})
        commit, _, name = path.partition("/resolve/")[2].partition("/")
        assert commit in (COMMIT, OLDER), path  # never a branch, which may move on the way
        content = files[name]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return self.send(state.damaged.get(name, content), headers)

    def send(self, content, headers):
        begin, status = 0, 200
        if self.headers.get("Range"):
            begin, status = int(self.headers["Range"].split("=")[1].split("-")[0]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body, cut = content[begin:], self.server.state.cut
        headers["Content-Length"] = str(len(body))
        if self.command == "GET" and cut:
            body, self.close_connection = body[: cut.pop()], True
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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    more = {
        "asked": [],
        "tokens": [],
        "changed": {},
        "damaged": {},
        "absent": (),
        "cut": [],
        "moved": "",
    }
    with serving(Hub, **more) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield state


def fetched(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".sha256")
    return {str(p.relative_to(folder)) for p in files} - {"download.json"}


@pytest.mark.parametrize(
    "name",
    ["cosmos-predict1-7b-video2world", MODEL, MODEL.upper(), "Cosmos-Predict1-7B-Video2World"],
)
def test_a_model_is_fetched_by_its_name_and_no_more_than_is_needed(hub, tmp_path, name):
    folder = fetch_named(name, [f"download.weights_to={tmp_path}"])
    assert folder == tmp_path / "Cosmos-Predict1-7B-Video2World"
    assert fetched(folder) == {"model.pt"}
    assert (folder / "model.pt").read_bytes() == BIG


def test_the_tokenizer_s_three_files_and_every_file_of_an_unknown_repository(hub, tmp_path):
    folder = fetch_named("cosmos-tokenize1-cv8x8x8-720p", [f"download.weights_to={tmp_path}"])
    assert fetched(folder) == {"encoder.jit", "decoder.jit", "mean_std.pt"}
    assert fetched(fetch_weights("owner/name", tmp_path)) == {"a.bin", "b/c.bin"}


def test_a_second_call_asks_nothing_also_without_a_network(hub, tmp_path, monkeypatch, capsys):
    fetch_weights(MODEL, tmp_path)
    record = json.loads((tmp_path / "Cosmos-Predict1-7B-Video2World/download.json").read_text())
    assert record["commit"] == COMMIT
    assert record["files"]["model.pt"]["sha256"] == hashlib.sha256(BIG).hexdigest()
    hub.asked.clear()
    fetch_weights(MODEL, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fetch_weights(MODEL, tmp_path)
    assert not hub.asked
    assert "nothing to do" in capsys.readouterr().err


def test_a_file_that_has_gone_is_fetched_again_and_another_one_is_not_touched(hub, tmp_path):
    path = fetch_weights(MODEL, tmp_path) / "model.pt"
    path.unlink()
    fetch_weights(MODEL, tmp_path)
    assert path.read_bytes() == BIG
    path.write_bytes(BIG[:100])
    with pytest.raises(DownloadError, match="100 bytes, 1024000 expected; move it away"):
        fetch_weights(MODEL, tmp_path)
    assert path.read_bytes() == BIG[:100]


def test_a_revision_is_pinned_and_another_one_is_fetched_anew(hub, tmp_path):
    folder = fetch_weights(f"{MODEL}@v1", tmp_path)
    assert json.loads((folder / "download.json").read_text())["commit"] == OLDER
    assert any(OLDER in path for _, path, _ in hub.asked)
    hub.asked.clear()
    fetch_weights(f"{MODEL}@{OLDER}", tmp_path)
    assert not hub.asked
    fetch_weights(f"{MODEL}@{COMMIT}", tmp_path)
    assert hub.asked
    with pytest.raises(DownloadError, match="no such revision"):
        fetch_weights(f"{MODEL}@v9", tmp_path)


def test_a_cut_download_goes_on_where_it_broke(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(bytes_of, "PAUSES", (0.0, 0.0))
    hub.cut = [*[0] * 9, 300_000]
    with pytest.raises(DownloadError, match="run again") as told:
        fetch_weights(MODEL, tmp_path)
    assert "\n" not in str(told.value)
    folder = tmp_path / "Cosmos-Predict1-7B-Video2World"
    assert fetched(folder) == {"model.pt.part", "model.pt.part.tag"}
    hub.cut, hub.asked = [], []
    fetch_weights(MODEL, tmp_path)
    ranges = [r for command, _, r in hub.asked if command == "GET" and r]
    assert ranges and ranges[0].startswith("bytes=300000-")
    assert (folder / "model.pt").read_bytes() == BIG


def test_a_wrong_byte_is_told_and_never_stays(hub, tmp_path):
    hub.damaged = {"model.pt": BIG[:-1] + b"?"}
    with pytest.raises(DownloadError, match="checksum .* instead of"):
        fetch_weights(MODEL, tmp_path)
    folder = tmp_path / "Cosmos-Predict1-7B-Video2World"
    assert fetched(folder) == set()
    hub.damaged = {}
    fetch_weights(MODEL, tmp_path)
    assert (folder / "model.pt").read_bytes() == BIG


def test_a_full_disk_is_told_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(DownloadError, match=r"takes 0\.0 GB and 0\.0 GB are free"):
        fetch_weights(MODEL, tmp_path)
    assert not any("/resolve/" in path for _, path, _ in hub.asked)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_repository_lacks_is_named(hub, tmp_path):
    hub.absent = ("decoder.jit",)
    with pytest.raises(DownloadError, match=r"has no decoder\.jit at main"):
        fetch_weights(TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_reference_did_not_know_is_said_aloud(hub, tmp_path, capsys):
    fetch_weights(MODEL, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "not the file that the reference's script names" in said


def test_the_token_of_the_environment_is_sent(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_weights(MODEL, tmp_path)
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_a_token_goes_nowhere_else(hub, tmp_path, monkeypatch):
    """Files of the hub lie behind a redirect to another host, which must not see the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    same = {name: getattr(hub, name) for name in ("changed", "damaged", "absent", "cut")}
    with serving(Hub, **same, asked=[], tokens=[], moved="") as other:
        hub.moved = other.url
        folder = fetch_weights(MODEL, tmp_path)
    assert (folder / "model.pt").read_bytes() == BIG
    assert other.tokens and set(other.tokens) == {None}


@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("owner/gated", "licence must be accepted first, at http.*/owner/gated"),
        ("owner/unknown", "no such repository"),
        ("owner/token", "does not accept the token|no such repository"),
        ("not/a/repo", "not the name of a repository"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, repo, says):
    with pytest.raises(DownloadError, match=says) as error:
        fetch_weights(repo, tmp_path)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be reached") as error:
        fetch_weights("owner/name", tmp_path)
    assert "\n" not in str(error.value)


def test_a_name_that_is_neither_names_what_there_is():
    with pytest.raises(ConfigError, match="cosmos-predict1-7b-video2world"):
        fetch_named("cosmos-predict1-8b")


def test_offline_the_command_says_what_is_missing(tmp_path):
    done = run("download", "cosmos-tokenize1-cv8x8x8-720p", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_sums_are_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "CHUNK", 1000)
    (tmp_path / "a").write_bytes(BIG)
    wanted = hashlib.sha256(BIG).hexdigest(), hashlib.md5(BIG).hexdigest()
    assert fetching._sums(tmp_path / "a") == wanted
