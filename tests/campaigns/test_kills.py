"""SIGKILL at any moment of any verb: the same command then ends as if nothing had happened."""

import json
import os
import random
import shutil
import time

import bench as benches
import pytest

#: The jobs that a push kills: what no other test of it kills. Those of `train` on images, `store`
#: and `generate` have tests of their own; `report`, `plan` and `import` write by the same function.
FIRST = ("train text", "store text", "export")


@pytest.fixture(scope="module")
def undisturbed(bench, tmp_path_factory):
    """Outcome and seconds of each job, once made."""
    made = {}

    def of(name: str):
        if name not in made:
            out = fresh(name, bench, tmp_path_factory.mktemp("undisturbed") / "out")
            began = time.monotonic()
            process = benches.start(benches.command(benches.JOBS[name], bench, out))
            errors = process.communicate()[1]
            assert process.returncode == 0, errors
            made[name] = benches.outcome(benches.JOBS[name], out), time.monotonic() - began
        return made[name]

    return of


def fresh(name: str, bench, out):
    """The folder that a job writes to, as it is before."""
    if name == "report":
        shutil.copytree(bench / "run", out)
        (out / "report.html").unlink()
    return out


@benches.counts(3, 500)
def test_kills(count, bench, undisturbed, tmp_path):
    names = sorted(benches.JOBS, key=lambda name: name not in FIRST)
    killed = 0
    draws = random.Random(f"kills {count} {os.environ.get('DISTILL_JAX_SEED', 0)}")
    for number in range(count):
        name = names[number % len(names)]
        job = benches.JOBS[name]
        expected, seconds = undisturbed(name)
        out = fresh(name, bench, tmp_path / str(number))
        arguments = benches.command(job, bench, out)
        process = benches.start(arguments)
        time.sleep(draws.random() * seconds)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        process = benches.start(arguments)
        errors = process.communicate()[1]
        assert process.returncode == 0 and "Traceback" not in errors, (name, errors)
        assert benches.outcome(job, out) == expected, name
        if job.verb == "train":
            assert (out / "report.html").exists()
            assert json.loads((out / "result.json").read_text())
        assert benches.litter(out) == [], name
        assert not (out.parent / f".{out.name}.lock").exists()
        shutil.rmtree(out)
    assert killed >= count // 2  # else the moments were drawn too late
    print(f"kills: {killed} of {count} before the end")
