"""The same command twice at once: one does it, the other is told who does."""

import json
import os
import random
import time

import bench as benches


@benches.counts(1, 50)
def test_two_processes(count, bench, tmp_path):
    draws = random.Random(f"two {count} {os.environ.get('DISTILL_JAX_SEED', 0)}")
    alone = benches.start(benches.command(benches.JOBS["train"], bench, tmp_path / "alone"))
    assert alone.communicate() and alone.returncode == 0
    expected = benches.outcome(benches.JOBS["train"], tmp_path / "alone")
    refused = 0
    for number in range(count):
        out = tmp_path / str(number)
        arguments = benches.command(benches.JOBS["train"], bench, out)
        first = benches.start(arguments)
        time.sleep(draws.random() * 0.5)
        both = [first, benches.start(arguments)]
        errors = [process.communicate()[1] for process in both]
        codes = [process.returncode for process in both]
        assert set(codes) <= {0, 2} and 0 in codes, errors  # the later one may find it finished
        if 2 in codes:
            refused += 1
            holder = both[codes.index(0)].pid
            assert f"in use by process {holder} on " in errors[codes.index(2)]
        assert benches.outcome(benches.JOBS["train"], out) == expected
        assert json.loads((out / "result.json").read_text())["steps"] == 12
        assert benches.litter(out) == []
    print(f"two processes: {count} times, {refused} refused")
