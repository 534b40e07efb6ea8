"""The looks of a page: one style sheet, and the colours that figures take in light and dark mode.

A figure is drawn in the colours of `distill_jax.reports.figure_style`; a page replaces each of
them by a variable of the style sheet, so that text, axes and lines follow the reader's colour
scheme.
"""

from distill_jax.reports import figure_style

_DARK_SERIES = ("#6cb0ff", "#ff8a50", "#3fc796", "#c79bf2", "#deb54a", "#4cc3d9")

VARIABLES = {
    figure_style.INK: ("--ink", "#e6e8ec"),
    figure_style.MUTED: ("--muted", "#9aa3b2"),
    figure_style.GRID: ("--rule", "#30353f"),
    **{
        light: (f"--series-{i}", dark)
        for i, (light, dark) in enumerate(
            zip(figure_style.SERIES, _DARK_SERIES, strict=True), start=1
        )
    },
}
"""Colour in a figure -> (the variable that takes its place on a page, its value in dark mode)."""


def _palette(dark: bool) -> str:
    return "".join(
        f"{variable}: {dark_value if dark else light_value}; "
        for light_value, (variable, dark_value) in VARIABLES.items()
    )


CSS = f"""\
:root {{ color-scheme: light dark; {_palette(dark=False)}
  --paper: #ffffff; --card: #f6f7f9; }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_palette(dark=True)}
    --paper: #14171c; --card: #1c2027; }}
}}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  "Noto Sans", "Liberation Sans", Arial, sans-serif; }}
body > * {{ max-width: 58rem; margin-inline: auto; padding-inline: 1.5rem; }}
header {{ padding-top: 3.5rem; }}
h1 {{ font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0; text-wrap: balance;
  overflow-wrap: anywhere; }}
header p {{ color: var(--muted); font-size: 1.05rem; margin: 0.6rem 0 0; }}
nav {{ margin-top: 1.25rem; font-size: 0.9rem; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; list-style: none; margin: 0;
  padding: 0.75rem 0; border-block: 1px solid var(--rule); }}
a {{ color: var(--series-1); text-decoration: none; }}
a:hover, a:focus-visible {{ text-decoration: underline; }}
section {{ margin-top: 2.75rem; scroll-margin-top: 1rem; }}
h2 {{ font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.01em; margin: 0 0 0.9rem; }}
p {{ margin: 0 0 1rem; max-width: 44rem; overflow-wrap: anywhere; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 45%), 1fr));
  gap: 0.75rem; margin: 0 0 1.5rem; }}
.facts > div {{ background: var(--card); border-radius: 0.6rem; padding: 0.8rem 1rem; }}
.facts dt {{ color: var(--muted); font-size: 0.8rem; line-height: 1.35; }}
.facts dd {{ margin: 0.15rem 0 0; font-size: 1.45rem; line-height: 1.25; font-weight: 600;
  letter-spacing: -0.01em; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; margin: 0 0 1.5rem; }}
.scroll:focus-visible {{ outline: 2px solid var(--series-1); outline-offset: 3px; }}
table {{ border-collapse: collapse; font-size: 0.9rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }}
caption, figcaption {{ color: var(--muted); font-size: 0.875rem; line-height: 1.5;
  text-align: left; }}
caption {{ caption-side: top; padding-bottom: 0.5rem; }}
th, td {{ padding: 0.4rem 1.1rem 0.4rem 0; text-align: left; vertical-align: baseline; }}
th:last-child, td:last-child {{ padding-right: 0; }}
.number {{ text-align: right; white-space: nowrap; }}
thead th {{ color: var(--muted); font-weight: 500; font-size: 0.82rem;
  border-bottom: 1px solid var(--muted); }}
tbody th {{ font-weight: 500; }}
tbody tr + tr > * {{ border-top: 1px solid var(--rule); }}
figure {{ margin: 0 0 1.75rem; }}
figure .scroll {{ margin-bottom: 0.5rem; }}
figure svg {{ display: block; height: auto; max-width: 100%; }}
figure svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
figure svg text {{ font-family: inherit !important; }}
figcaption {{ max-width: 44rem; }}
figcaption b {{ color: var(--ink); font-weight: 600; }}
details {{ margin: 0 0 0.75rem; }}
summary {{ cursor: pointer; color: var(--series-1); padding: 0.25rem 0; }}
details > .scroll {{ margin-top: 0.5rem; }}
details td {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono",
  monospace; font-size: 0.82rem; overflow-wrap: anywhere; }}
footer {{ color: var(--muted); font-size: 0.82rem; margin-top: 3.5rem; padding-bottom: 3rem; }}
@media (max-width: 40rem) {{
  header {{ padding-top: 2rem; }}
  h1 {{ font-size: 1.6rem; }}
  figure svg {{ max-width: none; }}
}}
@media print {{ nav {{ display: none; }} figure, tr {{ break-inside: avoid; }} }}
"""
