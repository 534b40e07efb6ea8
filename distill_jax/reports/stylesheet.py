"""The looks of a page: the colours that figures take in light and dark mode, and its style sheet.

A figure is drawn in the colours of `distill_jax.reports.figure_style`; a page replaces each of
them by a variable of the style sheet, so that text, axes and lines follow the reader's colour
scheme. The layout is in page/*.css. Print is always light.
"""

from distill_jax.reports import assets, figure_style

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
@media screen and (prefers-color-scheme: dark) {{
  :root:not(.printing) {{ {_palette(dark=True)}
    --paper: #14171c; --card: #1c2027; }}
}}
{assets.text("base.css")}"""
