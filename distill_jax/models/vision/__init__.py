"""Image classifiers, one file a family; each registers its names when this package is imported.

This package imports every module in its folder: a new family is one new file and no other edit.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
