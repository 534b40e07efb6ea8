"""The provenance of a record: the versions of libraries, and the revision."""

import importlib.metadata
import pathlib
import platform
import subprocess

from distill_jax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEASURED = ("distill_jax", "configs", "experiments/throughput/*.py")
LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "numpy"),
    *("torch", "torchvision", "torchdistill", "transformers", "onednn-cpu-gomp"),
)


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the installed libraries."""
    found = {"distill_jax": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the source tree, marked if it has changes; None without a repository."""
    if not (ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{git('rev-parse', 'HEAD')}{' with changes' if changed else ''}"
