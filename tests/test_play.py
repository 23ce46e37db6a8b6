"""The server of `play`: what it answers, to whom, to how many at once, and how it ends."""

import asyncio
import gc
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
import torch
from aiohttp import web
from PIL import Image

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.video import encode
from cosmos_wds.diffusion.guardrail import Blocked
from cosmos_wds.errors import CheckpointError, ConfigError, DataError
from cosmos_wds.play import drive, server
from cosmos_wds.play.drive import Drive
from cosmos_wds.play.messages import LONGEST, Rules, read_answer, read_request
from cosmos_wds.play.playground import find_starts, is_held, open_playground
from cosmos_wds.play.server import MOST_TABS, PlayRequest, application, listening, play
from cosmos_wds.play.worker import Stopped, Worker
from cosmos_wds.rollout.action_log import read_log
from cosmos_wds.rollout.described import describe
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.replay import replay
from cosmos_wds.rollout.session import Session
from cosmos_wds.rollout.starts import Limits, open_starts
from cosmos_wds.rollout.worlds import load_world
from cosmos_wds.train.run import find_weights, load_run
from tests.commands import environment
from tests.conftest import moving_frames, single_thread
from tests.test_infer import save_run
from tests.tiny_run import BRIDGE, planted_run, random_run

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = moving_frames(3, 16, 32)
STILL = [0, 0, 0, 0, 0, 0, 1]


def playground(run, starts, checkpoint):
    found = open_starts(starts, contract=run.contract, recipe=run.recipe)
    return open_playground(run, found, checkpoint=checkpoint, contract=run.contract)


@contextmanager
def serving(run, starts=PICTURES, checkpoint="my/run"):
    """The server in a thread of its own; yields its address and what it is made of."""
    worker, ready, loop = Worker(), threading.Event(), asyncio.new_event_loop()
    found = SimpleNamespace(worker=worker, loop=loop)

    async def begin():
        found.app = application(playground(run, starts, checkpoint), worker)
        found.runner = web.AppRunner(found.app, access_log=None, shutdown_timeout=1)
        await found.runner.setup()
        listener = listening(0)
        await web.SockSite(found.runner, listener).start()
        found.port = listener.getsockname()[1]
        found.host = f"127.0.0.1:{found.port}"
        found.url = f"http://{found.host}"
        ready.set()

    def live():
        with single_thread():
            loop.run_until_complete(begin())
            loop.run_forever()

    thread = threading.Thread(target=live)
    thread.start()
    assert ready.wait(20)
    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(found.runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def run():
    return random_run(window={"frames": 3})


@pytest.fixture(scope="module", name="server")
def served(run):
    with serving(run) as found:
        yield found


class Tab:
    """A page's side of a WebSocket."""

    def __init__(self, socket):
        self.socket = socket

    async def hear(self):
        message = await self.socket.receive(20)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        return read_answer(message.data)

    async def ask(self, **request):
        await self.socket.send_str(json.dumps(request))
        return await self.hear()

    async def begin(self, start=0, seed=0):
        head, [frame] = await self.ask(do="begin", start=start, seed=seed)
        assert head["is"] == "begun", head
        return picture(frame)

    async def step(self, action):
        head, [frame] = await self.ask(do="step", action=np.asarray(action, float).tolist())
        assert head["is"] == "frame", head
        return picture(frame)

    async def refusal(self, **request):
        head, files = await self.ask(**request)
        assert head["is"] == "error" and not files, head
        return head["text"]


def picture(content):
    return np.array(Image.open(io.BytesIO(content)))


@asynccontextmanager
async def opened(server, **headers):
    async with aiohttp.ClientSession() as session:
        wanted = {"Origin": server.url, **headers}
        async with session.ws_connect(f"{server.url}/ws", headers=wanted) as socket:
            yield Tab(socket)


@asynccontextmanager
async def driving(server):
    """A tab that has been greeted."""
    async with opened(server) as tab:
        tab.hello, tab.thumbnails = await tab.hear()
        yield tab


def actions(count, seed=0):
    rows = np.random.default_rng(seed).uniform(-0.04, 0.04, (count, 7))
    rows[:, 6] = np.abs(rows[:, 6]) * 20
    return rows


# What it answers


def test_a_tab_is_told_what_it_drives(server):
    async def tried():
        async with driving(server) as tab:
            return tab.hello, tab.thumbnails

    head, thumbnails = asyncio.run(tried())
    assert head["names"] == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert head["units"] == ["m", "m", "m", "rad", "rad", "rad", ""]
    np.testing.assert_allclose(head["high"], [0.05] * 6 + [1], rtol=1e-6)
    np.testing.assert_allclose(head["low"], [-0.05] * 6 + [0], rtol=1e-6)
    assert head["held"] == [False] * 6 + [True]
    assert (head["height"], head["width"], head["fps"]) == (16, 32, 5)
    assert [s["name"] for s in head["starts"]] == ["picture 0", "picture 1", "picture 2"]
    assert [picture(t).shape for t in thumbnails] == [(16, 32, 3)] * 3


def test_frames_are_those_of_a_session_and_a_log_gives_them_again(server, run, tmp_path):
    rows = actions(5)

    async def tried():
        async with driving(server) as tab:
            await tab.begin(0, seed=1)
            await tab.step(rows[0])
            shown = [await tab.begin(2, seed=9), *[await tab.step(row) for row in rows]]
            return shown, await tab.ask(do="save")

    shown, (head, [video, log]) = asyncio.run(tried())
    session = Session(run, PICTURES[2:], seed=[9])
    wanted = np.stack([session.frames[0], *(session.step(row[None])[0] for row in rows)])
    assert np.array_equal(shown, wanted)
    assert head == {"is": "saved", "step": 5, "sizes": [len(video), len(log)]}
    assert video == encode(wanted, 5.0, plays_at_once=True)
    (tmp_path / "log.json").write_bytes(log)
    found = read_log(tmp_path / "log.json")
    assert (found.checkpoint, found.contract, found.seed) == ("my/run", BRIDGE.digest, 9)
    assert found.steps == run.recipe.infer.steps
    assert np.array_equal(found.first, PICTURES[2]) and np.array_equal(found.actions, rows)
    assert np.array_equal(replay(run, found), wanted)


def test_tabs_do_not_disturb_each_other(server, run):
    """They step in turns, from different starts, and one begins anew in between."""
    rows = [actions(6, seed) for seed in range(4)]

    async def driven(number):
        async with driving(server) as tab:
            await tab.begin(number % 3, seed=number)
            if number == 2:
                await tab.step(rows[3][0])
                await tab.begin(2, seed=number)
            return [await tab.step(row) for row in rows[number]]

    async def tried():
        return await asyncio.gather(*(driven(number) for number in range(4)))

    for number, shown in enumerate(asyncio.run(tried())):
        start = number % 3
        session = Session(run, PICTURES[start : start + 1], seed=[number])
        assert np.array_equal(shown, [session.step(row[None])[0] for row in rows[number]])


def test_what_is_refused_changes_nothing(server, run):
    async def tried():
        async with driving(server) as tab:
            early = await tab.refusal(do="step", action=STILL), await tab.refusal(do="save")
            await tab.begin()
            nothing = await tab.refusal(do="save")
            far = await tab.refusal(do="step", action=[9, *STILL[1:]])
            return early, nothing, far, await tab.step(STILL)

    early, nothing, far, frame = asyncio.run(tried())
    assert (
        early[0].startswith("begin first")
        and early[1] == nothing == "nothing to save yet: drive first"
    )
    assert far == "action: x = 9: from -0.05 to 0.05"
    assert np.array_equal(frame, Session(run, PICTURES[:1], seed=[0]).step(np.array([STILL]))[0])


RULES = Rules(BRIDGE.names, Limits(np.float32([-0.05] * 6 + [0]), np.float32([0.05] * 6 + [1])), 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 10_000, "no JSON"),
        ("9" * 10_000, "no JSON"),
        ("\ud800", "no JSON"),
        ("null", "no JSON object"),
        ('["step"]', "no JSON object"),
        ("{}", "begin with start"),
        ('{"do": "stop"}', "begin with start"),
        ('{"do": ["step"]}', "begin with start"),
        ('{"do": "step"}', "begin with start"),
        ('{"do": "save", "path": "/etc/passwd"}', "no other key"),
        ('{"do": "begin", "start": 3, "seed": 0}', "start: a whole number from 0 to 2"),
        ('{"do": "begin", "start": -1, "seed": 0}', "start: a whole number"),
        ('{"do": "begin", "start": true, "seed": 0}', "start: a whole number"),
        ('{"do": "begin", "start": 0.0, "seed": 0}', "start: a whole number"),
        ('{"do": "begin", "start": 0, "seed": 4294967296}', "seed: a whole number"),
        ('{"do": "begin", "start": 0, "seed": "0"}', "seed: a whole number"),
        ('{"do": "step", "action": 0}', "action: 7 numbers: x y z roll pitch yaw gripper"),
        ('{"do": "step", "action": [0, 0, 0]}', "action: 7 numbers"),
        ('{"do": "step", "action": [0, NaN, 0, 0, 0, 0, 0]}', "no JSON"),
        ('{"do": "step", "action": [0, Infinity, 0, 0, 0, 0, 0]}', "no JSON"),
        ('{"do": "step", "action": [0, 1e999, 0, 0, 0, 0, 0]}', "y: not a finite number"),
        (f'{{"do": "step", "action": [0, 1{"0" * 400}, 0, 0, 0, 0, 0]}}', "y: not a finite"),
        ('{"do": "step", "action": [0, 0, 0, true, 0, 0, 0]}', "roll: not a finite number"),
        ('{"do": "step", "action": [0, 0, 0, "0", 0, 0, 0]}', "roll: not a finite number"),
        ('{"do": "step", "action": [0, 0, 0, 0, 0, 0, -0.1]}', "gripper = -0.1: from 0 to 1"),
        ('{"do": "step", "action": [0, 0, 0.06, 0, 0, 0, 0]}', "z = 0.06: from -0.05 to 0.05"),
    ],
)
def test_requests_that_are_none(text, says):
    with pytest.raises(DataError, match=says):
        read_request(text, RULES)


def test_what_stays_as_it_is_when_nothing_is_pressed():
    joints = ActionContract(
        signal="command",
        frame="recorded",
        names=("elbow", "x", "gripper"),
        units=("deg", "m", "1"),
        scale=(1, 1, 1),
    )
    assert [is_held(joints, name) for name in joints.names] == [True, False, True]
    assert [is_held(BRIDGE, name) for name in BRIDGE.names] == [False] * 6 + [True]


def refuse_bright(frames):
    if frames.max() > 100:
        raise Blocked("too bright")
    return frames


def test_the_guardrail_s_refusal_is_told_and_the_world_goes_on():
    run = planted_run(infer={"steps": 1, "guardrail": f"{__name__}:refuse_bright"})

    async def tried(server):
        async with driving(server) as tab:
            await tab.begin()
            said = await tab.refusal(do="step", action=[1, *STILL[1:]])
            return said, await tab.step([-1, *STILL[1:]]), await tab.ask(do="save")

    with serving(run, np.full((16, 32, 3), 100, np.uint8)) as server:
        said, frame, (head, _) = asyncio.run(tried(server))
    assert "too bright" in said
    assert frame.max() == 99 and head["step"] == 1


def test_a_full_record_takes_no_more(server, monkeypatch):
    monkeypatch.setattr(drive, "MOST_STEPS", 2)

    async def tried():
        async with driving(server) as tab:
            await tab.begin()
            await tab.step(STILL)
            await tab.step(STILL)
            full = await tab.refusal(do="step", action=STILL)
            saved, _ = await tab.ask(do="save")
            await tab.begin()
            await tab.step(STILL)
            return full, saved["step"]

    assert asyncio.run(tried()) == ("2 steps are recorded, and no more fit: begin anew", 2)


# To how many


def live_drives():
    gc.collect()
    return sum(type(found) is Drive for found in gc.get_objects())


def test_a_killed_browser_frees_its_world_and_its_place(server):
    """Many, one after the other, cut off in the middle of a step."""

    async def tried():
        for number in range(40):
            async with aiohttp.ClientSession() as session:
                where = session.ws_connect(f"{server.url}/ws", headers={"Origin": server.url})
                tab = Tab(await where)
                await tab.hear()
                await tab.begin(number % 3)
                await tab.socket.send_str(json.dumps({"do": "step", "action": STILL}))
                tab.socket._writer.transport.abort()
        while live_drives():
            await asyncio.sleep(0.02)
        async with driving(server) as tab:
            await tab.begin()
            assert live_drives() == 1

    asyncio.run(asyncio.wait_for(tried(), 60))


def test_no_more_tabs_than_fit(server):
    async def tried():
        async with aiohttp.ClientSession() as session:
            where = partial(session.ws_connect, f"{server.url}/ws", headers={"Origin": server.url})
            tabs = [Tab(await where()) for _ in range(MOST_TABS)]
            for tab in tabs:
                await tab.hear()
            last = Tab(await where())
            head, _ = await last.hear()
            ended = await last.socket.receive(20)
            await tabs[0].socket.close()
            free = Tab(await where())
            again, _ = await free.hear()
            return head, ended, again

    head, ended, again = asyncio.run(tried())
    assert head["is"] == "error" and head["text"].startswith(f"{MOST_TABS} tabs drive this model")
    assert ended.type is aiohttp.WSMsgType.CLOSE and ended.data == 1013
    assert again["is"] == "hello"


def test_a_flood_waits_on_the_sender_s_side(server):
    """A tab that asks without listening: others go on, and no more than one job of it waits."""
    request = json.dumps({"do": "step", "action": STILL}).encode()
    mask = b"\1\2\3\4"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(request))
    frame = struct.pack("!BB", 0x81, 0x80 | len(request)) + mask + masked

    def flood():
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(
                f"GET /ws HTTP/1.1\r\nHost: {server.host}\r\nOrigin: {server.url}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            raw.settimeout(0.3)
            sent = 0
            try:
                while sent < 2**27:
                    sent += raw.send(frame * 1000)
            except TimeoutError:
                pass
            stalled.set()
            done.wait(20)
            return sent

    stalled, done = threading.Event(), threading.Event()
    longest = 0

    async def tried():
        nonlocal longest
        async with driving(server) as tab:
            await tab.begin()
            flooded = asyncio.create_task(asyncio.to_thread(flood))
            await asyncio.to_thread(stalled.wait, 30)
            for _ in range(5):
                await asyncio.wait_for(tab.step(STILL), 5)
                longest = max(longest, server.worker._jobs.qsize())
            done.set()
            return await flooded

    sent = asyncio.run(tried())
    assert sent < 2**25, "it was stopped by back-pressure"
    assert longest <= 1


def test_the_worker_breaks_off_what_takes_long():
    worker, begun = Worker(), threading.Event()

    def endless():
        while True:
            begun.set()
            torch.ones(50, 50) @ torch.ones(50, 50)

    async def tried():
        job = asyncio.ensure_future(worker.run(endless))
        waiting = asyncio.ensure_future(worker.run(list))
        await asyncio.to_thread(begun.wait, 10)
        worker.close(10)
        assert not worker._thread.is_alive()
        with pytest.raises(Stopped):
            await job
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(tried())


@pytest.mark.parametrize("kind", ["long", "binary"])
def test_messages_of_a_wrong_kind_end_the_tab(server, kind):
    async def tried():
        async with driving(server) as tab:
            if kind == "long":
                await tab.socket.send_str("x" * (LONGEST + 1))
            else:
                await tab.socket.send_bytes(b"\0")
            return await tab.socket.receive(20)

    ended = asyncio.run(tried())
    assert ended.type is aiohttp.WSMsgType.CLOSE
    assert ended.data == {"long": 1009, "binary": 1003}[kind]


# To whom


async def fetched(server, path="/", method="GET", **headers):
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{server.url}{path}", headers=headers) as answered,
    ):
        return answered.status, await answered.text(), answered.headers


def test_the_page(server):
    status, text, headers = asyncio.run(fetched(server))
    assert status == 200 and text.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in text and "connect-src 'self'" in text
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("localhost:9000", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:8765", 403),
        ("127.0.0.1@evil.example", 403),
        ("[", 403),
    ],
)
def test_only_requests_to_this_machine_by_name(server, host, status):
    """A page elsewhere may let its own name point here (DNS rebinding)."""
    found, text, _ = asyncio.run(fetched(server, Host=host))
    assert found == status
    assert ("<html" in text) == (status == 200)


@pytest.mark.parametrize(
    ("host", "origin", "opens"),
    [
        ("{here}", "http://{here}", True),
        ("localhost:9000", "http://localhost:9000", True),
        ("{here}", "http://evil.example", False),
        ("{here}", "http://127.0.0.1:1", False),
        ("{here}", "https://{here}", False),
        ("{here}", "null", False),
        ("{here}", "", False),
        ("evil.example", "http://evil.example", False),
    ],
)
def test_only_this_page_opens_a_tab(server, host, origin, opens):
    headers = {"Host": host.format(here=server.host), "Origin": origin.format(here=server.host)}

    async def tried():
        try:
            async with opened(server, **headers) as tab:
                return (await tab.hear())[0]["is"] == "hello"
        except aiohttp.WSServerHandshakeError as refused:
            assert refused.status == 403
            return False

    assert asyncio.run(tried()) is opens


LINES = [
    *(f"GET {path} HTTP/1.1" for path in (
        "/index.html", "/../../../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/ws/../page.py", "/static/play.js", "/%00", "/\u00e9", "/" + "a" * 20_000, "/?a=../b%",
        "http://evil.example/", "*", "//", "/%", "/ws%2f",
    )),
    *(f"{method} / HTTP/1.1" for method in (
        "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "PROPFIND", "G\u00c9T",
        "get",
    )),
    *(f"{method} /ws HTTP/1.1" for method in ("GET", "POST", "HEAD")),
    "GET /", "GET / HTTP/9.9", "", "\x16\x03\x01\x02", "GET / HTTP/1.1\r\nContent-Length: -1",
    "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz", "GET / HTTP/1.1\r\nHost: a",
    "GET / HTTP/1.1\r\n: b", "GET / HTTP/1.1\r\nA: " + "b" * 100_000,
]  # fmt: skip


def test_no_path_and_no_method_leads_anywhere(server, caplog, capfd):
    """Raw lines, well-formed and not: a status from 400 on or the page, and no traceback."""
    caplog.clear()
    for line in LINES:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(f"{line}\r\nHost: {server.host}\r\nConnection: close\r\n\r\n".encode())
            raw.shutdown(socket.SHUT_WR)
            answered = b""
            try:
                while piece := raw.recv(2**16):
                    answered += piece
            except ConnectionResetError:
                pass
        head, _, body = answered.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 0
        is_page = b"cosmos-wds play</title>" in body
        assert is_page == (status == 200), (line, head)
        assert not is_page or line.split()[1][:2] in ("/", "/?"), line
        assert status < 500, (line, head)
        assert b"Traceback" not in answered and b"root:" not in answered
        assert is_page or len(body) < 1000, (line, body)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in said, said


# The command


def start(folder, *words):
    """`cosmos-wds play` in a process of its own, and the line that tells its address."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cosmos_wds", "play", *map(str, words), "--no-browser"],
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if "http://" in line:
            return process, line.split("http://")[1].split("/")[0]
    raise AssertionError("".join(said))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    Image.fromarray(PICTURES[0]).save(folder / "first.png")
    save_run(folder / "run")
    return folder


def test_infer_shows_what_was_driven(weights, tmp_path):
    """From the log alone, to the same file, byte for byte."""
    run = load_run(weights / "run")

    async def tried(server):
        async with driving(server) as tab:
            await tab.begin(1, seed=4)
            for row in actions(7):
                await tab.step(row)
            return (await tab.ask(do="save"))[1]

    with serving(run, checkpoint=str(weights / "run")) as server:
        video, log = asyncio.run(tried(server))
    (tmp_path / "drive.json").write_bytes(log)
    request = InferRequest(
        checkpoint=None, replay=tmp_path / "drive.json", output=tmp_path / "again.mp4", device="cpu"
    )
    assert infer(request).read_bytes() == video


def open_files(pid):
    """What the descriptors of a process stand for; they come and go while this looks."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(path))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
def test_the_command_listens_here_alone_and_ctrl_c_ends_it(weights):
    """With a tab that drives, at once and without a word too many."""
    process, host = start(weights, "run", "--image", "first.png", "--port", "0")
    port = int(host.split(":")[1])
    found = SimpleNamespace(url=f"http://{host}")
    own = open_files(process.pid)
    rows = [
        line.split()
        for kind in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    mine = [row[1] for row in rows if f"socket:[{row[9]}]" in own and row[3] == "0A"]
    assert mine == [f"0100007F:{port:04X}"]

    async def tried():
        async with driving(found) as tab:
            await tab.begin()
            await tab.step(STILL)
            process.send_signal(signal.SIGINT)
            return (await tab.socket.receive(20)).data

    assert asyncio.run(tried()) == 1001
    _, said = process.communicate(timeout=10)
    assert process.returncode == 0 and said == ""


def test_what_the_command_refuses(weights, monkeypatch):
    """Before it reads weights."""
    monkeypatch.chdir(weights)
    monkeypatch.setattr(server, "load_world", None)
    words = {"checkpoint": "run", "images": (Path("first.png"),), "port": 0}
    with listening(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: is taken; name another one, or 0"):
            play(PlayRequest(**{**words, "port": port}))
    with pytest.raises(CheckpointError, match="a model without actions"):
        play(PlayRequest(**{**words, "checkpoint": "cosmos-tiny"}))
    with pytest.raises(ConfigError, match="--steps 0: at least 1"):
        play(PlayRequest(**words, steps=0))
    with pytest.raises(ConfigError, match="guardrail 'nobody:at_home'"):
        play(PlayRequest(**words, guardrail="nobody:at_home"))


def test_what_there_is_to_start_from(run, weights, tmp_path):
    find = partial(find_starts, run.recipe, BRIDGE)
    with pytest.raises(ConfigError, match="give one of them"):
        find(shards="a", images=[weights / "first.png"])
    with pytest.raises(ConfigError, match="play: from which picture.*--shards FOLDER"):
        find(shards=None, images=[])
    with pytest.raises(DataError, match=r"none\.png: no such image"):
        find(shards=None, images=[tmp_path / "none.png"])
    assert find(shards=None, images=[weights / "first.png"]).names == (str(weights / "first.png"),)


def test_weights_that_ship_bring_pictures_to_start_from():
    recipe, contract = describe("cosmos-tiny-action")
    folder = find_weights("cosmos-tiny-action").folder
    starts = find_starts(recipe, contract, shards=None, images=[], beside=folder)
    run = load_world("cosmos-tiny-action", recipe)
    ground = open_playground(run, starts, checkpoint="cosmos-tiny-action", contract=contract)
    assert len(ground.starts) == len(ground.thumbnails()) >= 4
    assert {start.picture.shape for start in ground.starts} == {(48, 64, 3)}
