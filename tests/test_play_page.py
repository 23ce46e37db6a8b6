"""The page of `play` in a real browser: keys, buttons, sticks, saving, several tabs."""

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from cosmos_wds.play.page import play_page
from cosmos_wds.rollout.action_log import read_log
from cosmos_wds.rollout.replay import replay
from tests.browser import CHROMIUM, Tab, browser
from tests.test_play import PICTURES, serving
from tests.test_report import Page
from tests.tiny_run import random_run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here"),
]

COUNT = "document.getElementById('count').textContent"
SAID = "document.getElementById('said').textContent"
X_SAID = "document.querySelector('.axis .value').textContent"
ASKED = "window.sent.filter(request => request.do === 'step')"
HEAR = """
const native = WebSocket.prototype.send;
window.sent = [];
WebSocket.prototype.send = function (text) {
  window.sent.push(JSON.parse(text));
  native.call(this, text);
};
"""


@pytest.fixture(scope="module")
def run():
    return random_run(window={"frames": 3})


@pytest.fixture(scope="module")
def server(run):
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=HEAR)
        yield tab


@pytest.fixture
def tab(chromium, server):
    """The page, begun from its first picture, as fast as it goes."""
    load(chromium, server)
    yield chromium
    assert chromium.complaints() == []
    chromium.visit("about:blank")  # so that its world ends


def load(tab, server, **look):
    tab.visit(f"{server.url}/", **look)
    tab.wait(f"{COUNT} === '0 of 1024 steps recorded'")
    choose(tab, "pace", "free")
    choose(tab, "turn", 0)


def choose(tab, name, value):
    field = f"document.getElementById('{name}')"
    tab.evaluate(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('input'))")


def steps(tab):
    return int(tab.evaluate(COUNT).split()[0])


def hold(tab, *codes, until):
    """Hold keys until so many steps were taken, and wait until the last one is shown.

    Returns the number of a step that was asked for with all of them down.
    """
    for code in codes:
        tab.key("keyDown", code)
    asked = len(actions(tab))
    tab.wait(f"parseInt({COUNT}) >= {until} && {ASKED}.length > {asked}")
    for code in codes:
        tab.key("keyUp", code)
    rest(tab)
    return asked


def rest(tab):
    """Wait until there is no more to ask; returns the steps taken."""
    tab.wait("!busy && !timer && !next()")
    return steps(tab)


def polled(tab):
    """Wait until the page has read its gamepads anew; it does so before each picture it draws."""
    tab.evaluate(
        "new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
    )


def actions(tab):
    return [request["action"] for request in tab.evaluate(ASKED)]


def shown(tab):
    """The picture on the page, (H, W, 3) uint8."""
    content = tab.evaluate("document.getElementById('stage').toDataURL()").split(",")[1]
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_what_stands_in_the_page():
    text = play_page()
    found = Page(text)
    assert text.count("<script>") == 1 and not found.sources[1:]
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "http://" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_begins_by_itself_and_fits(chromium, server, scheme, width):
    load(chromium, server, width=width, scheme=scheme)
    assert np.array_equal(shown(chromium), PICTURES[0])
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colour = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert chromium.complaints() == []
    assert chromium.requests() == [f"{server.url}/"]
    assert len(chromium.evaluate("[...document.querySelectorAll('#gallery button')]")) == 3


def test_keys_drive_and_time_stands_still_without(tab):
    time.sleep(0.3)
    assert steps(tab) == 0
    both = hold(tab, "KeyW", "KeyJ", until=3)
    sent = actions(tab)
    assert len(sent) == steps(tab) >= 3
    np.testing.assert_allclose(sent[both], [0.025, 0, 0, 0, 0, 0.025, 1], rtol=1e-6)
    assert rest(tab) == len(sent)
    tab.wait(f"{X_SAID} === '+0.000 m'")
    before = len(sent)
    both = hold(tab, "KeyS", "ShiftLeft", until=before + 2)
    np.testing.assert_allclose(actions(tab)[both], [-0.00625, 0, 0, 0, 0, 0, 1], rtol=1e-6)


def test_a_short_tap_is_one_step(tab):
    for code, place, sign in (
        ("KeyR", 2, 1),
        ("KeyF", 2, -1),
        ("KeyA", 1, 1),
        ("ArrowRight", 1, -1),
    ):
        before = len(actions(tab))
        tab.key("keyDown", code)
        tab.key("keyUp", code)
        assert rest(tab) == before + 1
        action = actions(tab)[-1]
        assert action[place] == pytest.approx(sign * 0.025)
        assert sum(map(abs, action)) == pytest.approx(1.025)


def test_the_gripper_closes_in_two_steps_and_stays(tab):
    tab.key("keyDown", "Space")
    tab.key("keyUp", "Space")
    rest(tab)
    assert [a[6] for a in actions(tab)] == [0.5, 0]
    assert tab.evaluate("document.getElementById('open').textContent") == "closed"
    hold(tab, "KeyO", until=3)
    assert actions(tab)[-1][6] == 0
    tab.evaluate("document.querySelector('.hold.wide').click()")
    rest(tab)
    assert [a[6] for a in actions(tab)][-2:] == [0.5, 1]


@pytest.mark.parametrize(
    ("turn", "up", "left"),
    [(0, (1, 0), (0, 1)), (1, (0, 1), (-1, 0)), (2, (-1, 0), (0, -1)), (3, (0, -1), (1, 0))],
)
def test_up_may_be_any_axis(tab, turn, up, left):
    """What W and A move, the signs on the dial, and the keys on the buttons agree."""
    choose(tab, "turn", turn)
    for code, way in (("KeyW", up), ("KeyA", left)):
        tab.key("keyDown", code)
        tab.key("keyUp", code)
        rest(tab)
        np.testing.assert_allclose(np.array(actions(tab)[-1][:2]) / 0.025, way, atol=1e-5)
    names = ["x", "y"]
    said = tab.evaluate("['ahead', 'aside'].map(id => document.getElementById(id).textContent)")
    wanted = [
        ("+" if sum(way) > 0 else "\u2212") + names[way.index(sum(way))] for way in (up, left)
    ]
    assert said == wanted
    button = "document.querySelectorAll('.axis')[%d].querySelectorAll('.hold')[%d].textContent"
    place, sign = up.index(sum(up)), sum(up)
    label = tab.evaluate(button % (place, sign > 0))
    assert label.startswith("W ")


def test_buttons_and_the_gallery_by_mouse_and_keyboard(tab):
    def mouse(kind, x, y):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    middle = "(r => [r.x + r.width / 2, r.y + r.height / 2])(%s.getBoundingClientRect())"
    plus = "document.querySelectorAll('.axis')[4].querySelectorAll('.hold')[1]"
    x, y = tab.evaluate(middle % plus)
    mouse("mousePressed", x, y)
    tab.wait(f"parseInt({COUNT}) >= 2")
    mouse("mouseReleased", x, y)
    now = rest(tab)
    assert now == len(actions(tab)) and actions(tab)[-1][4] == pytest.approx(0.025)
    tab.evaluate(f"{plus}.focus(); {plus}.click()")
    assert rest(tab) == now + 1

    third = "document.querySelectorAll('#gallery button')[2]"
    tab.evaluate(f"{third}.scrollIntoView()")
    x, y = tab.evaluate(middle % third)
    mouse("mousePressed", x, y)
    mouse("mouseReleased", x, y)
    tab.wait(f"{SAID} === 'picture 2'")
    assert np.array_equal(shown(tab), PICTURES[2]) and steps(tab) == 0
    assert tab.evaluate(f"{third}.getAttribute('aria-pressed')") == "true"
    assert tab.evaluate("document.activeElement.id") == "stage", "the space bar is the gripper's"


def test_keys_in_fields_stay_there(tab):
    tab.evaluate("document.getElementById('seed').focus()")
    tab.key("keyDown", "KeyW")
    tab.key("keyUp", "KeyW")
    tab.key("keyDown", "Backspace")
    tab.key("keyUp", "Backspace")
    assert rest(tab) == 0 and len(tab.evaluate("window.sent")) == 1


def test_a_stick_drives_as_far_as_it_is_pushed(tab):
    tab.evaluate(
        "window.pad = {connected: true, mapping: 'standard', axes: [0.05, -0.5, 0, 1], "
        "buttons: Array.from({length: 17}, () => ({pressed: false}))}; "
        "navigator.getGamepads = () => [window.pad]; dispatchEvent(new Event('gamepadconnected'))"
    )
    tab.wait(f"parseInt({COUNT}) >= 2")
    tab.evaluate("window.pad.axes = [0, 0, 0, 0]; window.pad.buttons[0].pressed = true")
    polled(tab)
    rest(tab)
    polled(tab)
    now = rest(tab)
    sent = actions(tab)
    np.testing.assert_allclose(sent[1], [0.0125, 0, -0.025, 0, 0, 0, 1], atol=1e-7)
    assert [a[6] for a in sent[-3:]] == [1, 0.5, 0], "A closes the gripper, once"
    tab.evaluate("window.pad.buttons[0].pressed = false")
    polled(tab)
    assert rest(tab) == now == len(actions(tab)), "and its release does nothing"
    tab.evaluate("window.pad.buttons[9].pressed = true")
    tab.wait(f"{COUNT} === '0 of 1024 steps recorded'")


def test_what_was_driven_is_saved_and_shown_again(tab, run, tmp_path):
    """Both files are downloaded, and the log gives the very picture that is on the page."""
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.evaluate("document.getElementById('seed').value = 77")
    tab.key("keyDown", "Backspace")
    tab.key("keyUp", "Backspace")
    hold(tab, "KeyW", until=2)
    hold(tab, "KeyD", "KeyF", until=5)
    count, last = steps(tab), shown(tab)
    tab.key("keyDown", "KeyV")
    tab.key("keyUp", "KeyV")
    tab.wait(f"{SAID} === 'saved {count} steps'")
    names = {f"play-{count:04}.mp4", f"play-{count:04}.json"}
    end = time.monotonic() + 20
    while {p.name for p in tmp_path.iterdir()} != names:
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    log = read_log(tmp_path / f"play-{count:04}.json")
    assert log.seed == 77 and len(log.actions) == count
    assert np.array_equal(replay(run, log)[-1], last)
    links = tab.evaluate("[...document.querySelectorAll('#files a')].map(a => a.download)")
    assert set(links) == names


def test_two_tabs_have_a_world_each(tab, server):
    other = Tab(tab._read, tab._write)
    other.call("Page.addScriptToEvaluateOnNewDocument", source=HEAR)
    load(other, server)
    hold(tab, "KeyW", until=3)
    assert steps(other) == 0 and np.array_equal(shown(other), PICTURES[0])
    hold(other, "KeyS", until=2)
    assert len(actions(tab)) == steps(tab) >= 3
    assert not np.array_equal(shown(tab), shown(other))
    other.call("Page.close")


def test_the_end_of_the_server_is_told(chromium, run):
    with serving(run) as server:
        load(chromium, server)
    chromium.wait(f"{SAID}.startsWith('The server has ended')")
