"""SHA-256 sums of the files of a model folder, in the format of `sha256sum`, written and compared.

    cd model && sha256sum -c SHA256SUMS

A list that this program wrote begins with a comment, and must then name every file that is read.
One that came with a folder from elsewhere is compared as far as it goes. It guards against damage,
not against an attacker: who can write the files can write their sums.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping

from distill_jax.errors import UsageError
from distill_jax.processes import coordination

#: The file that is written here.
NAME = "SHA256SUMS"

_OURS = re.compile(r"# distill_jax: (\d+) files(?:, parameters_sha256 ([0-9a-f]{64}))?")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_LISTS = re.compile(r"sha256sums?(\.txt)?|checksums?\.(sha256|txt)", re.IGNORECASE)
_ONE = ".sha256"  # model.safetensors.sha256 has the sum of model.safetensors
_BLOCK = 2**22  # bytes


def render(sums: Mapping[str, str], identity: str = "") -> str:
    """The content of the list: a sum for each file, and what identifies the parameters."""
    about = f", parameters_sha256 {identity}" if identity else ""
    lines = [f"{sums[name]}  {name}" for name in sorted(sums)]
    return "\n".join([f"# distill_jax: {len(lines)} files{about}", *lines, ""])


def identity(folder: pathlib.Path) -> str | None:
    """The parameters_sha256 in a list that was written here; None where there is none."""
    try:
        first = (folder / NAME).read_bytes().decode("utf-8", "replace").split("\n", 1)[0]
    except OSError:
        return None
    found = _OURS.fullmatch(first)
    return found[2] if found else None


def verify(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Compares files of a folder with the sums that lie beside them, where some do.

    All processes call it together; the first one reads.

    Raises:
      UsageError: a file is not what its sum says, or is missing in a list that was written here.
    """
    wanted = sorted(names)
    fault = coordination.broadcast_from_first(lambda: _fault(folder, wanted))
    if fault:
        raise UsageError(fault)


def _fault(folder: pathlib.Path, names: list[str]) -> str:
    for source, sums, whole in _lists(folder):
        for name in names:
            if name not in sums:
                if whole:
                    return (
                        f"{name} is not in {source}, which lists the files of this model; expected "
                        f"the folder as it was written, or no {source} if the change is meant"
                    )
                continue
            if _sha256(folder / name) != sums[name]:
                return (
                    f"{name} is damaged or was changed: its SHA-256 is not the one in {source}; "
                    f"expected the file as it was written, or no {source} if the change is meant"
                )
    return ""


def _lists(folder: pathlib.Path) -> Iterable[tuple[str, dict[str, str], bool]]:
    """(name, sum of each file, whether it must name every file) of every list in a folder."""
    try:
        present = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in present:
        single = name.removesuffix(_ONE) if name.endswith(_ONE) else ""
        if not _LISTS.fullmatch(name) and single not in present:
            continue
        try:
            lines = (folder / name).read_bytes().decode(errors="replace").splitlines()
        except OSError:
            continue
        found = [match for match in map(_LINE.fullmatch, lines) if match]
        sums = {match[2].strip(): match[1].lower() for match in found}
        if single and not sums and lines and re.fullmatch(r"[0-9a-fA-F]{64}", lines[0].strip()):
            sums = {single: lines[0].strip().lower()}
        yield name, sums, name == NAME and bool(lines) and lines[0].startswith("# distill_jax")


def _sha256(path: pathlib.Path) -> str:
    """Of a file; "" where it cannot be read, which its reader reports."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
