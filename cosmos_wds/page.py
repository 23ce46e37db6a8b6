"""What all pages share: one HTML file that loads nothing from elsewhere, plain, light and dark."""

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType

STYLE = """
:root {
  --page: #ffffff; --text: #1b1f24; --muted: #59636e; --line: #d5dbe1; --soft: #f5f7f9;
  --c0: #0b61c2; --c1: #c2540a; --c2: #6b7480;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --text: #e4e8ec; --muted: #9aa5b1; --line: #363d45; --soft: #1d2126;
    --c0: #6cb0ff; --c1: #ff9d5c; --c2: #a3adb8;
  }
}
* { box-sizing: border-box; }
:focus-visible, video:focus-within { outline: 3px solid var(--c0); outline-offset: 2px; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
main:focus { outline: none; }
nav { max-width: 1080px; margin: 0 auto; padding: 16px 20px 0; font-size: .875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 0; padding: 0; }
a { color: var(--c0); }
.skip { position: absolute; left: -999px; background: var(--page); padding: 8px 14px; }
.skip:focus { left: 8px; top: 8px; z-index: 1; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 1.2rem; margin: 44px 0 12px; }
p { margin: 8px 0; max-width: 75ch; }
.lead { font-size: 1.1rem; }
.muted, .note { color: var(--muted); }
.note { font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; font-size: .875rem; vertical-align: bottom; }
tbody th { font-weight: 600; }
td { white-space: nowrap; }
td small { color: var(--muted); }
figure { margin: 28px 0 44px; }
figcaption { margin-bottom: 8px; }
figcaption .muted { font-size: .875rem; }
video { display: block; width: 100%; border-radius: 4px; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 8px 14px; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; background: var(--soft); padding: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: .875rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def html_page(
    title: str,
    body: str,
    *,
    style: str = "",
    script: str = "",
    has_films: bool = False,
    links: Mapping[str, str] = MappingProxyType({}),
    talks: bool = False,
) -> str:
    """A whole page. `body` is HTML; `style` comes after STYLE; no script but `script` can run.

    has_films   page_films.js is part of the script: sliders that move with their videos
    links       a line above the page's content: ids of sections -> what they are called
    talks       its script may speak to the server that it came from
    """
    if has_films:
        here = Path(__file__)
        style = here.with_name("page_films.css").read_text(encoding="utf-8") + style
        script = here.with_name("page_films.js").read_text(encoding="utf-8") + script
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    policy += "; connect-src 'self'" if talks else ""
    tag = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy, tag = f"{policy}; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n{_navigation(links)}"
        f'<main id="main" tabindex="-1">\n{body}\n</main>\n{tag}</body>\n</html>\n'
    )


def _navigation(links: Mapping[str, str]) -> str:
    if not links:
        return ""
    items = "".join(f'<li><a href="#{id}">{escape(name)}</a></li>' for id, name in links.items())
    return (
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<nav aria-label="Sections"><ul>{items}</ul></nav>\n'
    )


def data_url(kind: str, content: bytes) -> str:
    """A file's content as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
