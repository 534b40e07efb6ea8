"""configs/literature.py: the pairs, methods and recipes of the benchmark.

The configs are not a package, so that module is imported by its folder.
"""

import importlib
import pathlib
import sys

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def _load():
    sys.path.insert(0, str(CONFIGS))
    try:
        return importlib.import_module("literature")
    finally:
        sys.path.pop(0)


literature = _load()
