"""How the page of the advice looks: light or dark as the reader's system is, on a wide screen or a telephone."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5a6472; --paper: #fff; --panel: #f4f6f9; --rule: #d9dee5;
  --accent: #1b62b5; --good: #e3f3e6; --warn: #b36b00; --first: #1b62b5; --second: #c26a00; --third: #8b95a3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a4adba; --paper: #14181e; --panel: #1e242c;
  --rule: #37404c; --accent: #6cb0ff; --good: #1d3a26; --warn: #f0b04a; --first: #6cb0ff; --second: #f0a550;
  --third: #7d8896; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--accent); border-radius: 4px; padding: .9rem 1.2rem; }
.verdict.unsure { border-color: var(--warn); }
.label { margin: 0; color: var(--accent); font-size: .8rem; font-weight: 700; letter-spacing: .08em; }
.what { margin: 0 0 .6rem; font-size: 1.25rem; font-weight: 650; line-height: 1.3; }
.unsure .what { color: var(--warn); }
.cards { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: .6rem 0; }
.cards dt { color: var(--soft); font-size: .82rem; } .cards dd { margin: 0; font-weight: 600; }
ul { margin: .5rem 0; padding-left: 1.2rem; } .verdict p { margin: .5rem 0 .2rem; }
pre { margin: .3rem 0; padding: .6rem .8rem; background: var(--paper); border: 1px solid var(--rule);
  border-radius: 4px; font: .85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; margin: .6rem 0; } .side { display: flex; flex-wrap: wrap; gap: 0 3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .4rem; }
th { border-bottom: 1px solid var(--soft); color: var(--soft); font-weight: 600; }
tr.chosen { background: var(--good); font-weight: 650; }
.bar { width: 9rem; } .bar span { display: block; height: .7rem; background: var(--third); border-radius: 2px; }
svg { display: block; height: auto; } svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.wide > svg { width: 100%; min-width: 34rem; max-width: 46rem; }
svg .marked { fill: var(--ink); font-weight: 700; } .grid { stroke: var(--rule); }
polyline, path { fill: none; } polyline { stroke-width: 2; } .first { stroke: var(--first); } circle.first {
  fill: var(--first); stroke: none; } .second { stroke: var(--second); } polyline.second { stroke-dasharray: 3 4; }
circle.second { fill: var(--second); stroke: none; } .third { fill: var(--third); }
.frame { fill: var(--panel); stroke: var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0; list-style: none;
  font-size: .88rem; color: var(--soft); }
.legend span { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: 2px; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
.maps svg { width: 100%; } .maps h3 { margin-top: .6rem; }
.suspect { display: inline-block; vertical-align: top; max-width: 15rem; margin: .4rem 1rem .8rem 0; }
.suspect img { border-radius: 4px; margin-right: .3rem; } .suspect figcaption { overflow-wrap: anywhere; }
"""
