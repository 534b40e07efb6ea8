"""A disk that is full at any write: one line, nothing torn, and the same command then succeeds."""

import errno
import os
import pathlib

import bench as benches
import pytest

VERBS = ("train", "store", "generate", "import", "export", "plan")


class FullAt:
    """Makes the `number`th request to bring something to the disk fail, from 1."""

    def __init__(self, monkeypatch, number: int):
        self.left = number
        for name in ("fsync", "mkdir", "replace", "rename"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(pathlib.Path, "mkdir", self._counted(pathlib.Path.mkdir))

    def _counted(self, call):
        def counted(*args, **named):
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return call(*args, **named)

        return counted


@pytest.mark.parametrize("verb", VERBS)
@benches.counts(2, 10**6)
def test_full_disk(verb, count, bench, tmp_path, monkeypatch):
    job, failed = benches.JOBS[verb], 0
    for number in range(1, count + 1):
        out = tmp_path / str(number)
        arguments = benches.command(job, bench, out)
        with monkeypatch.context() as patch:
            full = FullAt(patch, number)
            code, _, errors = benches.call(arguments)  # a traceback fails the test
        if full.left > 0:
            break  # there are fewer writes
        failed += code != 0
        if code:
            assert "No space left on device" in errors, errors
        assert benches.call(arguments)[0] == 0, (verb, number)
        assert (verb == "plan" or benches.outcome(job, out)) and benches.litter(out) == []
    print(f"full disk: {verb}: {failed} of {number} writes failed")
