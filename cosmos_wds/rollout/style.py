"""The style sheet of report.html: plain, light and dark."""

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
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
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
thead tr:first-child > * { border-bottom: 0; padding-bottom: 0; color: var(--muted); }
th[scope=colgroup] { font-weight: 400; text-align: center; }
tbody th { font-weight: 600; }
td { white-space: nowrap; }
td small { color: var(--muted); }
.gain { background: var(--soft); }
.chart { display: block; width: 100%; max-width: 860px; height: auto; }
.chart text { fill: var(--muted); font-size: 12px; font-family: inherit; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--muted); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line0 { stroke: var(--c0); }
.line1 { stroke: var(--c1); stroke-dasharray: 7 3; }
.line2 { stroke: var(--c2); stroke-dasharray: 2 3; }
.dot0, .band0 { fill: var(--c0); }
.dot1, .band1 { fill: var(--c1); }
.dot2, .band2 { fill: var(--c2); }
.band { opacity: .14; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: .875rem; }
.key svg { width: 26px; height: 8px; margin-right: 7px; vertical-align: middle; }
figure { margin: 28px 0 44px; }
figcaption { margin-bottom: 8px; }
figcaption .muted { font-size: .875rem; }
.heads { display: grid; grid-template-columns: repeat(4, 1fr); font-size: .8rem; }
.heads, .marks, .strips .name { color: var(--muted); }
.heads span, .marks span { text-align: center; }
video { display: block; width: 100%; border-radius: 4px; }
.strips {
  display: grid; grid-template-columns: 96px 1fr; gap: 3px 10px; align-items: center;
  margin-top: 14px; font-size: .8rem;
}
.marks { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; }
.strips img { display: block; width: 100%; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 8px 14px; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; background: var(--soft); padding: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: .875rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { .strips { grid-template-columns: 64px 1fr; } }
"""
