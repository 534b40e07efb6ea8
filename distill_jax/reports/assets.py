"""What a page carries inside it: style sheets, scripts, and data as JSON that cannot break out.

The files are in page/; page/vendor/ holds uPlot (MIT). A page names the SHA-256 of each of its
style sheets and scripts in its Content-Security-Policy, so that a browser runs nothing else,
whatever a name or a text of the data may contain.
"""

import base64
import functools
import hashlib
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

#: The scripts and style sheets that a kind of panel needs, besides those of every page.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "table": ("table.js",),
    "browser": ("predictions.css", "browser.js"),
    "matrix": ("predictions.css", "matrix.js"),
    "tokens": ("predictions.css", "tokens.js"),
    "columns": ("compare.css", "compare.js"),
    "scatter": ("compare.css", "compare.js"),
    "chart": ("vendor/uPlot.min.css", "vendor/uPlot.iife.min.js", "chart.js"),
}

_OUT_OF_MARKUP = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def text(name: str) -> str:
    """The content of a file of page/, such as "core.js"."""
    folder = importlib.resources.files("distill_jax.reports") / "page"
    return folder.joinpath(*name.split("/")).read_text(encoding="utf-8")


def files(kinds: Iterable[str]) -> list[str]:
    """The files that a page with these kinds of panels needs, each once, in order."""
    kinds = list(kinds)
    if not kinds:
        return ["language.css"]
    needed = [
        "language.css",
        "panels.css",
        "core.js",
        *(name for kind in kinds for name in NEEDS[kind]),
    ]
    return list(dict.fromkeys(needed))


@functools.cache
def digest(content: str) -> str:
    """The source expression of Content-Security-Policy for an inline script or style sheet."""
    found = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(found).decode()}'"


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The Content-Security-Policy of a page: its own styles and scripts, and images inside it."""
    allowed = ["default-src 'none'", f"style-src {' '.join(map(digest, styles))}", "img-src data:"]
    if scripts:
        allowed.append(f"script-src {' '.join(map(digest, scripts))}")
    return "; ".join([*allowed, "base-uri 'none'", "form-action 'none'"])


def embedded(data: Any) -> str:
    """Data as JSON for a <script type="application/json">; what is not finite becomes null."""
    plain = json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return plain.translate(_OUT_OF_MARKUP)


def float32s(values: ArrayLike) -> str:
    """Numbers as base64 of little-endian float32, which `page.float32s` reads."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
