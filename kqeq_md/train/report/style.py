"""How the page of a report looks: on a screen, on a phone, by night, on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2328; --soft: #5c666f; --line: #d5dade; --paper: #fff; --shade: #f5f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde2e6; --soft: #9aa5ae; --line: #3a434a; --paper: #15191c; --shade: #1e2428; }
  img { filter: invert(0.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; }
ul { max-width: 46rem; margin: .5rem 0; padding-left: 1.25rem; }
h4 { font-size: .86rem; margin: 1rem 0 .25rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .25rem 0; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.settings { columns: 19rem; column-gap: 2.5rem; }
.settings div { break-inside: avoid; }
.warning { border-left: 3px solid #c77700; padding-left: .7rem; }
.lead { color: var(--soft); }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.key div { background: var(--shade); border-radius: 6px; padding: .6rem .8rem; }
.key b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.key span { color: var(--soft); font-size: .82rem; }
.wide { overflow-x: auto; margin: .75rem 0 1.25rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .2rem .6rem .3rem 0; }
th, td { padding: .26rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
thead th { color: var(--soft); border-bottom: 1px solid var(--soft); vertical-align: bottom; }
th[scope=row], th:first-child { text-align: left; padding-left: 0; }
.key small { font-size: .68em; font-weight: 500; }
.words td, .words thead th { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; }
.words td, .words th { vertical-align: top; }
figure { margin: .75rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; }
@media (max-width: 44rem) {
  body { padding: 1rem .9rem 3rem; }
  figure img { max-width: none; width: auto; height: 23rem; }
  figure img.tall { height: 34rem; }
  .numbers th:first-child { position: sticky; left: 0; background: var(--paper); }
  .numbers th[scope=row] { white-space: normal; min-width: 7rem; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --shade: #f2f2f2; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure img { filter: none; max-width: 100%; width: auto; height: auto; max-height: 20cm; }
  figure, table, .key { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .wide, figure { overflow: visible; }
  th, td { padding: .2rem .4rem; white-space: normal; }
}
"""
