"""Errors of use: one line that names the key, the value and what was expected.

The command line prints a `UsageError` as it stands and exits with code 2. Everything else that goes
wrong is a defect of ours or of the machine, and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in a config, a path or a command, said in one line for the person who made it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def unknown(key: str, value: object, known: Iterable[str], kind: str = "name") -> UsageError:
    """The error for a name that is not one of `known`, with the nearest known name.

    Args:
      key: where the name stands, such as "student.name".
      value: the name that arrived.
      known: every name that would have been accepted.
      kind: what the name names, such as "model".

    Returns:
      An error to raise: the key, the value, the nearest name if one is near, and the known names.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"{key}={value!r}: unknown {kind}; {hint}known: {', '.join(known) or 'none'}")
