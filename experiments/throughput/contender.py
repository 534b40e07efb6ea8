"""The process of one contender: `python -m experiments.throughput.contender NAME TASK FOLDER`.

Not called by hand: it answers to the one that gives the turns, see contest.py.
"""

import json
import pathlib
import sys

from experiments.throughput import contest, ours


def main(name: str, task: str, folder: str) -> None:
    """Prepares the contender and serves until no turn can come.

    Args:
      name: "ours", "torch_eager" and so on.
      task: the JSON file that all contenders are given.
      folder: for what this one writes.
    """
    given = json.loads(pathlib.Path(task).read_text())
    if name in ours.NAMES:
        contest.serve(lambda: ours.prepare(name, given, pathlib.Path(folder)))
        return
    from experiments.throughput import peers  # needs PyTorch

    contest.serve(lambda: peers.prepare(name, given))


if __name__ == "__main__":
    main(*sys.argv[1:])
