"""Errors of use: one line that names the key, the value and what was expected.

The command line prints the line of a `UsageError` and exits with code 2. Any other exception is a
defect of this program or of the machine and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake of the user in a config, a path or a command; its message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def unknown(key: str, value: object, known: Iterable[str], kind: str = "name") -> UsageError:
    """The error for a name that is not one of `known`; it suggests the nearest known name.

    Args:
      key: the config key or flag that has the name, such as "student.name".
      value: the unknown name.
      known: all valid names.
      kind: what is named, such as "model".

    Returns:
      The error to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"{key}={value!r}: unknown {kind}; {hint}known: {', '.join(names) or 'none'}")
