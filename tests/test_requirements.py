"""The locked requirements: one file for each Python, every dependency with its hashes."""

import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
# The first releases without a published vulnerability that a file from elsewhere reaches.
SAFE = {"pillow": "12.2.0", "pyarrow": "23.0.1", "aiohttp": "3.13.3"}


def locked(version: str) -> dict[str, list[tuple[Requirement, str]]]:
    """Requirement and hashes of each entry, by the name of the package."""
    text = (ROOT / "requirements" / f"{version}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    found: dict[str, list[tuple[Requirement, str]]] = {}
    for entry in entries:
        first, _, hashes = entry.partition("--hash")
        requirement = Requirement(first.replace("\\", "").strip())
        found.setdefault(requirement.name, []).append((requirement, hashes))
    return found


def stated() -> list[Requirement]:
    """The requirements that setup.py states, of the package and of some extras."""
    text = (ROOT / "setup.py").read_text()
    lines = re.findall(r'"([A-Za-z0-9_-]+>=[^"]*)"', text)
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("version", PYTHONS)
def test_every_locked_package_has_hashes_and_is_a_safe_release(version):
    packages = locked(version)
    assert len(packages) > 100
    for name, entries in packages.items():
        for requirement, hashes in entries:
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            assert re.search(r"=sha256:[0-9a-f]{64}", hashes), requirement
            if name in SAFE:
                assert Version(pin.version) >= Version(SAFE[name])


@pytest.mark.parametrize("version", PYTHONS)
def test_the_lock_serves_what_setup_states(version):
    packages = locked(version)
    for requirement in stated():
        for pinned, _ in packages.get(requirement.name.lower().replace("_", "-"), []):
            (pin,) = pinned.specifier
            if requirement.marker is None:
                assert requirement.specifier.contains(pin.version), requirement


def test_lower_bounds_exclude_vulnerable_releases():
    bounds = {r.name: r.specifier for r in stated()}
    for name, safe in SAFE.items():
        assert not bounds[name].contains("1.0")
        lowest = min(Version(s.version) for s in bounds[name] if s.operator == ">=")
        assert lowest >= Version(safe), name
    makefile = (ROOT / "Makefile").read_text()
    for target in ("lock", "audit", "sbom"):
        assert f"\n{target}: $(TOOLS)/.installed" in makefile
