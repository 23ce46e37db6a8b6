"""Weights from a hub on this machine: what is fetched, what is checked, what is said."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import pytest

from cosmos_wds.errors import ConfigError, DownloadError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.sources import ask as bytes_of
from cosmos_wds.sources import hub as fetching
from cosmos_wds.sources import weights
from cosmos_wds.sources.fetch import fetch, fetch_named
from cosmos_wds.sources.hub import fetch_weights
from tests.commands import environment, run
from tests.hub import (
    BIG,
    COMMIT,
    ENABLE,
    FILES,
    LARGE,
    MODEL,
    OLDER,
    REFUSALS,
    TOKENIZER,
    hub_server,
)


def md5_of(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and a table of models with the sums of its files."""
    known = {
        repo: {name: md5 and md5_of(FILES[repo][name]) for name, md5 in files.items()}
        for repo, files in weights.KNOWN.items()
    }
    monkeypatch.setattr(weights, "KNOWN", known)
    with hub_server() as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
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
    with pytest.raises(DownloadError, match=r"0\.0 GB of .* are to come and 0\.0 GB are free"):
        fetch_weights(MODEL, tmp_path)
    assert not any(command == "GET" and "/resolve/" in path for command, path, _ in hub.asked)
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_repository_lacks_is_named(hub, tmp_path):
    hub.absent = ("decoder.jit",)
    with pytest.raises(DownloadError, match=r"has no decoder\.jit at main"):
        fetch_weights(TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_published_sum_is_taken_and_said_aloud(hub, tmp_path, capsys):
    weights.KNOWN[MODEL]["model.pt"] = md5_of(b"the file of another year")
    folder = fetch_weights(MODEL, tmp_path)
    assert (folder / "model.pt").read_bytes() == BIG
    said = " ".join(capsys.readouterr().err.split())
    assert f"MD5 {md5_of(BIG)}" in said and "replaced since" in said
    fetch_weights(MODEL, tmp_path)
    assert "nothing to do" in capsys.readouterr().err


def test_the_token_of_the_environment_is_sent(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_weights(MODEL, tmp_path)
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_a_token_goes_nowhere_else(hub, tmp_path, monkeypatch):
    """Files of the hub lie behind a redirect to another host, which must not see the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_server() as other:
        hub.moved = other.url
        folder = fetch_weights(MODEL, tmp_path)
    assert (folder / "model.pt").read_bytes() == BIG
    assert other.tokens and set(other.tokens) == {None}


def test_a_redirect_within_the_hub_keeps_the_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.within = True
    assert fetched(fetch_weights("owner/name", tmp_path)) == {"a.bin", "b/c.bin"}
    assert any("/kept/" in path for command, path, _ in hub.asked if command == "GET")


@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("owner/gated", "licence must be accepted first, at http://[^/]*/owner/gated;"),
        ("owner/nobody", "licence must be accepted first, at http://[^/]*/owner/nobody;"),
        ("owner/unknown", "no such repository"),
        ("owner/secret", "wants a token, or another one than it got"),
        ("owner/bad-token", "wants a token, or another one than it got; `hf auth login`"),
        ("owner/weak-token", f"answers: 403 Forbidden: {ENABLE}.* look at .*/owner/weak-token"),
        ("owner/busy", "answers: .*503"),
        ("owner/portal", "cannot be reached, or broke off .*; run again"),
        ("not/a/repo", "not the name of a repository"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, monkeypatch, repo, says):
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    with pytest.raises(DownloadError, match=says) as error:
        fetch_weights(repo, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_licence_is_told_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    """A gated repository lists its files to everyone, and refuses them."""
    monkeypatch.setitem(REFUSALS, "decoder.jit", (401, {"X-Error-Code": "GatedRepo"}))
    with pytest.raises(DownloadError, match=f"licence must be accepted first, at .*{TOKENIZER}"):
        fetch_weights(TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())


@contextmanager
def half_way(hub, tmp_path):
    """A download of the 14B in a process of its own, which waits for the hub in mid-file."""
    hub.stalls.append(300_000)
    words = [sys.executable, "-m", "cosmos_wds", "download", LARGE.lower()]
    part = tmp_path / "checkpoints/Cosmos-Predict1-14B-Video2World/model.pt.part"
    pipe, end = subprocess.PIPE, time.monotonic() + 60
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stderr=pipe, text=True
    ) as process:
        try:
            while not part.exists() or part.stat().st_size < 200_000:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.02)
            yield process, part
        finally:
            process.kill()


def test_ctrl_c_ends_with_130_and_a_later_run_goes_on(hub, tmp_path):
    with half_way(hub, tmp_path) as (process, part):
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    kept = part.stat().st_size
    done = run("download", LARGE.lower(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checkpoints/Cosmos-Predict1-14B-Video2World"
    assert part.with_name("model.pt").read_bytes() == BIG
    assert [r for _, _, r in hub.asked if r] == [f"bytes={kept}-"]


def test_a_second_download_at_once_is_refused_and_the_first_one_is_whole(hub, tmp_path):
    with half_way(hub, tmp_path) as (process, part):
        other = run("download", LARGE.lower(), cwd=tmp_path)
        assert other.returncode == 1 and "another download is writing it" in other.stderr
        hub.released.set()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert part.with_name("model.pt").read_bytes() == BIG and not part.exists()
    hub.asked.clear()
    fetch_weights(LARGE, tmp_path / "checkpoints")
    assert not hub.asked


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be reached") as error:
        fetch_weights("owner/name", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cosmos-predict1-8b", r"did you mean cosmos-predict1-7b-video2world\?$"),
        ("nvidia/Cosmos-Predict1-14B-Video2Word@v1", r"mean cosmos-predict1-14b-video2world\?$"),
        ("brigde", r"did you mean bridge\?$"),
        ("brigde.toml", r"did you mean bridge\?$"),
        ("zzz", "pipelines: bridge, .*; weights: cosmos-predict1-7b-video2world, "),
    ],
)
def test_a_name_that_is_neither_names_the_nearest(name, says):
    with pytest.raises(ConfigError, match=f"^{name}: no such file, .*{says}") as error:
        fetch_named(name)
    assert "\n" not in str(error.value)


def test_a_pipeline_pins_its_weights(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos_wds.sources.fetch.fetch_archive", lambda settings, root: None)
    weights_to = f"download.weights_to={tmp_path}"
    fetch(load_pipeline("bridge", [f'download.weights=["{TOKENIZER}@v1"]', weights_to]))
    record = json.loads((tmp_path / "Cosmos-Tokenize1-CV8x8x8-720p/download.json").read_text())
    assert (record["revision"], record["commit"]) == ("v1", OLDER)


def test_offline_what_is_there_is_used_and_what_is_missing_is_told(hub, tmp_path):
    def download():
        return run("download", "cosmos-tokenize1-cv8x8x8-720p", cwd=tmp_path, HF_HUB_OFFLINE="1")

    done = download()
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    fetch_weights(TOKENIZER, tmp_path / "checkpoints")
    hub.asked.clear()
    done = download()
    assert done.returncode == 0 and "nothing to do" in done.stderr
    assert not hub.asked


def test_md5_sums_are_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "CHUNK", 1000)
    (tmp_path / "a").write_bytes(BIG)
    assert fetching._md5(tmp_path / "a") == md5_of(BIG)
