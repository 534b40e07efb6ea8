"""The style of figures and their files: palette, matplotlib settings, reproducible SVG.

Nothing here changes pyplot or any other global state. Left out on purpose: what is drawn, which is
in `distill_jax.reports.figures`, and the colours of dark mode, which belong to the page
(`distill_jax.reports.stylesheet`).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID = "#22262e", "#69707d", "#dfe3e8"
ACCENT = "#d9480f"
SERIES = ("#1c6dd0", ACCENT, "#0b8a5f", "#8e4ec6", "#a87900", "#0c8599")
MARKERS = ("o", "s", "^", "D", "v", "P")

# A style file, so that other figures of a paper take it too.
_STYLE = matplotlib.rc_params_from_file(
    os.path.join(os.path.dirname(__file__), "paper.mplstyle"), use_default_template=False
)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The matplotlib settings of all figures here, from paper.mplstyle, for your own figures too.

    With pyplot: plt.style.use("distill_jax.reports.paper").
    """
    with matplotlib.style.context("default"), matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as SVG with text as text and no date; equal figures give equal bytes."""
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # The viewer's fonts cover scripts that the layout font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure on white as .svg, .png or .pdf; equal figures give equal bytes.

    Args:
      figure: any figure made here.
      path: the file to write; its suffix decides the format.
    """
    with open(path, "wb") as file:
        file.write(encoded(figure, os.path.splitext(path)[1].lower().removeprefix(".")))


def encoded(figure: Figure, form: str) -> bytes:
    """The figure on white as a file "svg", "png" or "pdf"; equal figures give equal bytes."""
    dates: dict[str, dict[str, Any]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
    }
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=form, facecolor="white", metadata=dates.get(form), dpi=160)
    return buffer.getvalue()


def pixels(figure: Figure) -> np.ndarray:
    """The figure on white as pixels, uint8 [H, W, 3]."""
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.set_dpi(120)
        figure.set_facecolor("white")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def label_text(text: object) -> str:
    """Text for a figure, cut to 40 characters, with control characters made visible.

    SVG forbids control characters, and a long name would leave no room for the drawing.
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return text if len(text) <= 40 else text[:39] + "…"
