"""The folder of a run."""

import json

import pytest

from distill_jax.errors import UsageError
from distill_jax.processes import coordination
from distill_jax.runs import workdir


def test_a_workdir_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    paths = workdir.Workdir(tmp_path)
    for name, value in (("is_distributed", True), ("is_first", False), ("process_index", 3)):
        monkeypatch.setattr(coordination, name, lambda value=value: value)
    monkeypatch.setattr(workdir, "VISIBLE_TIMEOUT", 0.2)
    message = "process 3 does not see what process 0 wrote there"
    for content in (None, "{", json.dumps({"started": "before", "resumed": []})):
        if content:
            paths.manifest.write_text(content)
        with pytest.raises(UsageError, match=message):
            paths.check_shared("now")
    paths.manifest.write_text(json.dumps({"started": "before", "resumed": [{"started": "now"}]}))
    paths.check_shared("now")
