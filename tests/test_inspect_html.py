"""The page of `inspect --html`: what stands in it, and what a real browser makes of it."""

import base64
import io
import json
import re

import numpy as np
import pytest

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.inspection import player
from cosmos_wds.inspection.overview import overview
from cosmos_wds.inspection.player import write_player
from cosmos_wds.inspection.reach import samples
from cosmos_wds.inspection.tables import browser_words
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.prepare import shard
from tests.browser import CHROMIUM, browser
from tests.conftest import write_episode
from tests.remake import edit_index, remake
from tests.test_inspect import latents_only
from tests.test_report import Page

EVIL = "</figure><script>document.title='broken in'</script> \"&quot;' <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three episodes of twenty frames, whose texts are an attack."""
    root = tmp_path_factory.mktemp("html")
    for split, number in (("train", 0), ("train", 1), ("val", 0)):
        write_episode(root / "raw", split, number, frames=20, height=96, width=128, texts=[EVIL])
    changes = [f"source.path={root}/raw", f"shards.path={root}/shards", "shards.workers=1"]
    shard(load_pipeline("bridge", changes))
    edit_index(root / "shards", lambda table: table.update(concerns=["<b>jumps</b>"]))
    return root / "shards"


def write(folder, path, most=4):
    """The page of a set; returns its text."""
    write_player(path, overview(str(folder)), samples(ShardIndex.read(folder), most))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(shards, tmp_path_factory):
    """The page's file."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    write(shards, path)
    return path


def episodes(text):
    """What stands in the page for the script, of each episode."""
    found = [v for tag, name, v in Page(text).attributes if name == "data-episode"]
    return [json.loads(value) for value in found]


# What stands in it


def test_it_loads_nothing_and_escapes_everything(page):
    text = page.read_text()
    found = Page(text)
    assert len(found.sources) == 4 and all(url.startswith("data:") for _, url in found.sources)
    assert not re.search(r"https?:|@import", text)
    assert text.count("<script>") == text.count("</script>") == 1
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    said = "".join(found.words)
    assert said.count(EVIL) == 4 and "<b>jumps</b>" in said
    [policy] = [v for _, name, v in found.attributes if name == "content" and "default-src" in v]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert "prefers-color-scheme: dark" in text


def test_videos_stand_in_it_as_they_are(shards, page):
    index = ShardIndex.read(shards)
    wanted = [index.split(s).read(i, "mp4") for s, i in (("train", 0), ("train", 1), ("val", 0))]
    found = [url for tag, url in Page(page.read_text()).sources if tag == "video"]
    assert [base64.b64decode(url.removeprefix("data:video/mp4;base64,")) for url in found] == wanted


def test_marks_are_the_actions_over_what_most_stay_below(shards, page):
    index = ShardIndex.read(shards)
    table = index.table["statistics"]
    most = np.maximum(np.abs(table["q01"]), np.abs(table["q99"]))
    bounds = np.repeat([most[:3].max(), most[3:6].max()], 3)
    action = index.split("train").read_array(1, "action.npy")
    found = episodes(page.read_text())[1]
    wanted = (action[:, :6] / bounds).clip(-1, 1)
    np.testing.assert_allclose(found["marks"][:-1], wanted, atol=6e-5)
    assert found["marks"][-1] == [0] * 6 and found["words"][-1].startswith("the last frame")
    assert found["words"][3].startswith(f"x {action[3, 0]:+.4f} m, y {action[3, 1]:+.4f} m, z ")
    assert found["words"][3].endswith(f"gripper {action[3, 6]:+.4f}")
    assert len(found["marks"]) == len(found["words"]) == 20 and found["rate"] == 5


def test_the_gripper_is_that_of_the_later_frame(shards, page):
    action = ShardIndex.read(shards).split("train").read_array(0, "action.npy")
    points = re.search(r'<polyline points="([^"]+)"', page.read_text())[1].split()
    assert len(points) == 19
    for frame, point in enumerate(points, start=1):
        x, y = map(float, point.split(","))
        assert x == frame and y == pytest.approx(1 - action[frame - 1, 6], abs=1e-4)


def test_a_set_of_latents_says_so(shards, tmp_path):
    text = write(latents_only(shards, tmp_path / "set"), tmp_path / "page.html")
    assert "<video" not in text and text.count("no video, latents only") == 3
    assert len(episodes(text)) == 3


def test_a_video_too_large_for_a_page_says_so(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(player, "LARGEST", 1000)
    text = write(shards, tmp_path / "page.html")
    assert "<video" not in text and text.count("too large for a page") == 3


def test_other_actions_than_poses_are_bars(shards, tmp_path):
    """A set with commands of three joints, and no statistics."""
    names = ("shoulder", "<elbow>", "gripper")
    contract = ActionContract(
        signal="command", frame="recorded", names=names, units=("rad", "rad", "1"), scale=(1, 1, 1)
    )

    def change(_, __, members):
        joints = io.BytesIO()
        np.save(joints, np.tile(np.float32([0.5, 0, 1]), (19, 1)))
        return {**members, "action.npy": joints.getvalue()}

    folder = remake(shards, tmp_path / "set", change)
    edit_index(folder, lambda t: t.update(contract=contract.to_dict(), statistics=None))
    text = write(folder, tmp_path / "page.html")
    assert "&lt;elbow&gt;" in text and "<elbow>" not in text and 'class="arrow"' not in text
    assert episodes(text)[0]["marks"][0] == [1, 0]
    assert (
        episodes(text)[0]["words"][0]
        == "shoulder +0.5000 rad, <elbow> +0.0000 rad, gripper +1.0000"
    )
    assert "in the axes of the recording" in text


def test_words_about_browsers():
    assert browser_words("h264 yuv420p") == "plays in every browser"
    assert "Chromium" in browser_words("av1 yuv420p")
    for codec in ("hevc yuv420p", "h264 yuv444p", "mpeg4 yuv420p"):
        assert browser_words(codec) == "not every browser plays it"


# In a browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def frames(tab):
    return tab.evaluate("[...document.querySelectorAll('.tracks input')].map(i => +i.value)")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_episodes_play_and_their_drawings_follow(tab, page, scheme):
    tab.open(page, scheme=scheme)
    tab.wait("[...document.querySelectorAll('video')].every(v => v.currentTime > 0.5)")
    tab.wait("[...document.querySelectorAll('.tracks input')].every(i => i.value >= 2)")
    assert tab.evaluate("document.title").startswith("shards: ")
    assert tab.evaluate("document.querySelectorAll('.cannot:not([hidden])').length") == 0
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_browser
def test_the_keyboard_goes_through_the_frames(tab, page):
    """Each step shows the frame's numbers, arrow, bars and cursor, and takes the video along."""
    tab.open(page, motion="reduce")
    tab.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    assert tab.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    found = episodes(page.read_text())[0]
    tab.evaluate("document.querySelector('.tracks input').focus()")
    tab.press("Home")
    for frame in (1, 2, 3):
        tab.press("ArrowRight")
        tab.wait(f"document.querySelector('.at').textContent === '{frame} of 19'")
        assert tab.evaluate("document.querySelector('.now').textContent") == found["words"][frame]
        x, y, *bars = found["marks"][frame]
        arrow = "document.querySelector('.arrow').getAttribute"
        assert float(tab.evaluate(f"{arrow}('x2')")) == pytest.approx(46 + 36 * x)
        assert float(tab.evaluate(f"{arrow}('y2')")) == pytest.approx(50 - 36 * y)
        at = "[+b.attributes.y.value, +b.attributes.height.value]"
        drawn = f"[...document.querySelector('.hud').querySelectorAll('.bar')].map(b => {at})"
        for bar, (top, height) in zip(bars, tab.evaluate(drawn), strict=True):
            assert height == pytest.approx(36 * abs(bar))
            assert top == pytest.approx(50 - 36 * max(bar, 0))
        moved = tab.evaluate("document.querySelector('.cursor').getAttribute('transform')")
        assert moved == f"translate({frame} 0)"
        tab.wait(f"document.querySelector('video').currentTime === {frame + 0.5} / 5")
    tab.press("End")
    tab.wait("document.querySelector('.now').textContent.startsWith('the last frame')")
    assert tab.complaints() == []


@needs_browser
def test_latents_have_a_slider_alone(tab, shards, tmp_path):
    write(latents_only(shards, tmp_path / "set"), tmp_path / "page.html")
    tab.open(tmp_path / "page.html", width=400)
    tab.evaluate("document.querySelector('.tracks input').focus()")
    tab.press("ArrowRight")
    tab.wait("document.querySelector('.at').textContent === '1 of 19'")
    assert tab.complaints() == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_browser
def test_a_video_that_cannot_be_played_is_said(tab, page, tmp_path):
    text = re.sub(r"data:video/mp4;base64,[^\"]+", "data:video/mp4;base64,AAAA", page.read_text())
    (tmp_path / "page.html").write_text(text)
    tab.open(tmp_path / "page.html")
    tab.wait("document.querySelectorAll('.cannot:not([hidden])').length === 3")
    assert "cannot play this video" in tab.evaluate("document.querySelector('.cannot').textContent")
