"""The process of one contender: `python -m experiments.throughput.contender NAME TASK FOLDER`.

Started by run.py, with which it communicates as contest.py describes.
"""

import json
import pathlib
import sys

from experiments.throughput import contest, ours
from experiments.throughput.plan import HUGE


def main(name: str, task: str, folder: str) -> None:
    """Prepares the contender and serves until its input ends.

    Args:
      name: "ours", "torch_eager" and so on.
      task: the JSON file of the task, the same for all contenders.
      folder: the contender's folder.
    """
    given = json.loads(pathlib.Path(task).read_text())
    name = name.removesuffix(HUGE)
    if name in ours.CHANGES:
        contest.serve(lambda: ours.prepare(name, given, pathlib.Path(folder)))
        return
    from experiments.throughput import peers  # needs PyTorch

    contest.serve(lambda: peers.prepare(name, given))


if __name__ == "__main__":
    main(*sys.argv[1:])
