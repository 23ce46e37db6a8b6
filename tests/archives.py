"""Archives for the tests of downloading, in any order of members, and a server that misbehaves."""

import gzip
import hashlib
import http.server
import io
import json
import re
import tarfile

import numpy as np

from tests.servers import serving

STRIP = "opensource_robotdata/bridge"


def tar_of(members, ending="tar.gz"):
    """The bytes of a tar of (name, content or TarInfo changes) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                for key, value in what.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return gzip.compress(file.getvalue(), 6) if ending == "tar.gz" else file.getvalue()


def recordings(count=6, *, splits=("train", "val"), size=20_000, cameras=1, seed=0):
    """name -> content of a data set whose videos are not even mp4: only bytes matter here."""
    rng = np.random.default_rng(seed)
    annotations, videos = {}, {}
    for split in splits:
        for number in range(count):
            names = [f"videos/{split}/{number}/rgb{camera}.avi" for camera in range(cameras)]
            text = {"videos": [{"video_path": n} for n in names], "state": rng.random(50).tolist()}
            annotations[f"annotation/{split}/{number}.json"] = json.dumps(text).encode()
            for name in names:
                half = rng.bytes(size // 2)
                videos[name] = half + json.dumps(rng.random(size // 40).tolist()).encode()
            videos[f"videos/{split}/{number}/state.npy"] = rng.bytes(100)
    return annotations, videos


def ordered(annotations, videos, order):
    """Members of an archive: as a walk over sorted folders, or in another order without folders."""
    files = {**annotations, **videos}
    if order == "walk":
        folders = {"/".join(n.split("/")[:i]) for n in files for i in range(1, n.count("/") + 1)}
        entries = {**files, **{f: {"type": tarfile.DIRTYPE, "mode": 0o755} for f in folders}}
        names = sorted(entries, key=lambda name: name.split("/"))
    else:
        entries, names = files, list(files)
        if order == "videos first":
            names = [*videos, *annotations]
        elif order == "turns":
            names = sorted(files, key=lambda n: (re.findall(r"\d+", n)[0], n.split("/")[1], n))
        elif order == "random":
            np.random.default_rng(1).shuffle(names)
    return [(f"{STRIP}/{name}", entries[name]) for name in names]


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` by ranges. `server.fault(path, begin, body)` may return another body,
    shorter ones being cut connections; `begin` says where in the file the body begins."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state, path = self.server.state, self.path.partition("?")[0]
        content, begin, end = state.files.get(path), 0, None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and asked[2] != "0":  # a look at the file asks for its first byte
            state.asked.append(int(asked[1]))
        if content is None:
            return self.reply(404, {}, b"", 0)
        etag = f'"{state.version}{hashlib.sha256(content).hexdigest()[:8]}"'
        is_range = asked and state.has_ranges and self.headers.get("If-Range") in (None, etag)
        if is_range:
            begin, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
        body = content[begin:end]
        headers = {"ETag": etag}
        if is_range:
            shown = begin + state.lie
            headers["Content-Range"] = f"bytes {shown}-{shown + len(body) - 1}/{len(content)}"
        sent = state.fault(path, begin, body)
        self.reply(206 if is_range else 200, headers, sent, len(body))

    def reply(self, status, headers, body, length):
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        self.server.state.sent += len(body)
        self.close_connection = self.close_connection or len(body) < length

    def log_message(self, *args):
        pass


COMMIT = "0123456789" * 4


def hub_files(repository, parts):
    """path -> content of what a Hugging Face hub answers for a data set of these files."""
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
        for name, content in parts.items()
    ]
    table = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}
    paths = {
        f"datasets/{repository}/resolve/{COMMIT}/{name}": content for name, content in parts.items()
    }
    return {f"api/datasets/{repository}": json.dumps(table).encode(), **paths}


def in_parts(name, content, size):
    """A file as `split` leaves it: NAME.sfpart_aa, NAME.sfpart_ab, ..."""
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return {f"{name}.sfpart_a{chr(97 + i)}": piece for i, piece in enumerate(pieces)}


def range_server(**files):
    """Run one; its state says who asked for what, and how it misbehaves."""
    state = {"asked": [], "version": "", "has_ranges": True, "lie": 0, "sent": 0}
    paths = {f"/{name}": content for name, content in files.items()}
    return serving(Ranges, files=paths, fault=lambda path, begin, body: body, **state)
