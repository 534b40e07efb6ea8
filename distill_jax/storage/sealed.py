"""Seals on the JSON files that a run reads back: which run wrote them, and their own SHA-256.

A seal notices a file that was edited, cut short, or put there from another run. It guards against
mistakes, not against an attacker: who can write a file can seal it. Files without a seal, which
earlier versions wrote, are accepted.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sealed"  # of the seal, in the file itself


def seal(values: Mapping[str, Any], *, run: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The values with a seal.

    Args:
      values: what the file holds, as JSON.
      run: what identifies the run.
      files: the content of other files of the run that are final, by name.
    """
    about = {"run": run, "files": {name: digest(content) for name, content in files.items()}}
    return {**values, KEY: {**about, "sha256": _sha256_of({**values, KEY: about})}}


def broken(values: Mapping[str, Any], *, run: str | None) -> str:
    """What is wrong with the values of a file; "" where the seal is intact.

    Args:
      values: of the file, with its seal if it has one.
      run: what identifies the run whose file it must be; None for a run without a name.
    """
    found = values.get(KEY)
    if found is None:
        return f"is not of this run ({run[:12]}), whose files have a seal" if run else ""
    if not isinstance(found, Mapping):
        return "is damaged: its seal cannot be read"
    about = {name: value for name, value in found.items() if name != "sha256"}
    if found.get("sha256") != _sha256_of({**values, KEY: about}):
        return "was changed after the run wrote it: its SHA-256 is another one"
    if found.get("run") != run:
        return f"is of another run, {str(found.get('run'))[:12]}, not of {str(run)[:12]}"
    return ""


def changed_file(values: Mapping[str, Any], name: str, content: bytes | None) -> str:
    """What is wrong with another file that the seal names; "" for nothing.

    Args:
      values: of the sealed file.
      name: of the other file.
      content: of the other file; None where there is no file.
    """
    expected = values.get(KEY, {}).get("files", {}).get(name)
    if expected is None or (content is not None and digest(content) == expected):
        return ""
    return "is missing" if content is None else "is not as the run left it: its SHA-256 differs"


def without(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their seal."""
    return {name: value for name, value in values.items() if name != KEY}


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hex."""
    return hashlib.sha256(content).hexdigest()


def _sha256_of(values: Any) -> str:
    # As JSON gives them back, so that it makes no difference whether they were written before.
    plain = json.loads(json.dumps(values))
    return digest(json.dumps(plain, sort_keys=True).encode())
