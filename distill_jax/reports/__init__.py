"""Reports: figures, tables and self-contained pages, made from the files of runs.

`tables` formats results as cells of text, `figures` draws arrays with matplotlib, `html` combines
both on a page with panels that the scripts of page/ draw (`assets`), and `run` writes the page of
one run: `predictions`, `language` and `curves` are sections of it. Left out on purpose: computing
metrics, which is in `distill_jax.evaluation`, and anything that needs JAX or the network.
"""

import dataclasses
import os
import pathlib
from html import escape

from distill_jax.reports.tables import metrics_text

__all__ = ["InNotebook", "metrics_text", "run_report"]


def run_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into a workdir and returns its path; see `distill_jax.reports.run`."""
    from distill_jax.reports import run  # matplotlib is slow to import

    return run.run_report(workdir)


@dataclasses.dataclass(frozen=True)
class InNotebook:
    """A page inside a notebook: the last expression of a cell shows it.

        reports.InNotebook(reports.run_report("runs/a"))

    The page is copied into the notebook, in a frame of its own that reaches neither the notebook
    nor the network.

    Attributes:
      page: the path of a page.
      height: of the frame, in CSS pixels.
    """

    page: str | os.PathLike
    height: int = 900

    def _repr_html_(self) -> str:
        content = escape(pathlib.Path(self.page).read_text(encoding="utf-8"))
        return (
            f'<iframe title="Page of a run" sandbox="allow-scripts allow-downloads" width="100%" '
            f'height="{int(self.height)}" style="border: 0" srcdoc="{content}"></iframe>'
        )
