"""What report.html adds to the style that all pages share: charts, films and strips."""

STYLE = """
thead tr:first-child > * { border-bottom: 0; padding-bottom: 0; color: var(--muted); }
th[scope=colgroup] { font-weight: 400; text-align: center; }
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
.heads { display: grid; grid-template-columns: repeat(4, 1fr); font-size: .8rem; }
.heads, .marks, .strips .name { color: var(--muted); }
.heads span, .marks span { text-align: center; }
.strips {
  display: grid; grid-template-columns: 96px 1fr; gap: 3px 10px; align-items: center;
  margin-top: 14px; font-size: .8rem;
}
.marks { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; }
.strips img { display: block; width: 100%; }
@media (max-width: 600px) { .strips { grid-template-columns: 64px 1fr; } }
"""
