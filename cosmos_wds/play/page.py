"""The page that drives: one HTML with its style and script; the rest comes over its WebSocket."""

from pathlib import Path

from cosmos_wds.page import html_page

BODY = """
<header><h1>Drive</h1><p class="muted" id="model">connecting</p></header>
<p id="said" role="status" aria-live="polite"></p>
<div class="drive">
<div class="seen">
<canvas id="stage" tabindex="0" role="application" aria-roledescription="world"
 aria-label="the world; the keys that drive it are listed below"></canvas>
<p class="facts"><span id="count"></span><span id="rate"></span></p>
<div class="buttons">
<button type="button" id="again" aria-keyshortcuts="Backspace">Begin anew</button>
<button type="button" id="save" aria-keyshortcuts="V">Save mp4 and log</button>
<span id="files"></span>
</div>
</div>
<div class="told" id="controls">
<div class="sent"><svg id="dial" viewBox="-60 -60 120 120" role="img" aria-label="x and y">
<circle class="frame" r="42"/><path class="frame" d="M-42,0 H42 M0,-42 V42"/>
<text id="ahead" y="-47"></text><text id="aside" x="-51" y="4"></text>
<path id="arrow"/></svg>
<svg id="hand" viewBox="0 0 120 120" role="img" aria-label="gripper"><path class="frame"
 d="M60,14 V34 M28,34 H92"/><path class="finger" id="left"/><path class="finger" id="right"/>
<text x="60" y="112" id="open"></text></svg></div>
<div id="axes" role="group" aria-label="what is sent"></div>
<label class="option"><span>speed</span><input type="range" id="speed" min="5" max="100" step="5"
 value="50"><output id="speed-said"></output></label>
<label class="option"><span>pace</span><select id="pace"><option value="real">as the robot</option>
<option value="free">as fast as it goes</option></select></label>
<label class="option"><span id="turn-name">up is</span><select id="turn"></select></label>
<label class="option"><span>seed</span><input type="number" id="seed" min="0" max="4294967295"
 value="0" required></label>
<label class="option"><input type="checkbox" id="pixels"><span>show pixels</span></label>
</div>
</div>
<section><h2>Start from</h2><div id="gallery" class="gallery"></div></section>
<section><h2>Keys</h2><div class="scroll" tabindex="0"><table><thead><tr><th scope="col">moves</th>
<th scope="col">less</th><th scope="col">more</th><th scope="col">gamepad</th></tr></thead>
<tbody id="keys"></tbody></table></div>
<p class="note">Hold to keep moving; Shift moves at a quarter of the speed. Without a key, time
stands still. Keys are taken by their place on the keyboard. What is recorded begins with the last
start: <kbd>cosmos-wds infer --replay</kbd> with the log shows the same frames.</p></section>
<noscript><p>This page needs JavaScript.</p></noscript>
"""


def play_page() -> str:
    """The page, which loads nothing and talks to its own server alone."""
    here = Path(__file__)
    return html_page(
        "cosmos-wds play",
        BODY,
        style=here.with_name("play.css").read_text(encoding="utf-8"),
        script=here.with_name("play.js").read_text(encoding="utf-8"),
        talks=True,
    )
