"""The recipes of experiments/launch: linted, and run with stand-ins for srun, scontrol and xpk."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from small_runs import TEACHER, changed

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# As srun does: every task has the step's variables; the worst code is that of all.
SRUN = """
import os, subprocess, sys
arguments = [a for a in sys.argv[1:]]
while arguments[0].startswith("--"):
    arguments.pop(0)
tasks = []
for number in range(2):
    own = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    own |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": "0"}
    tasks.append(subprocess.Popen(arguments, env={**os.environ, **own}))
    open(os.environ["PIDS"], "a").write(f"{tasks[-1].pid}\\n")
sys.exit(max(abs(task.wait()) for task in tasks))
"""
NOTED = """
import json, os, sys
open(os.environ["NOTED"], "a").write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def machine(tmp_path):
    """The environment of a machine with those commands, and with distill-jax."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "srun": SRUN,
        "scontrol": NOTED,
        "xpk": NOTED,
        "distill-jax": "import sys\nfrom distill_jax.cli import main\nsys.exit(main())\n",
    }
    for name, content in commands.items():
        (folder / name).write_text(f"#!{sys.executable}\n{content}")
        (folder / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "NOTED": str(tmp_path / "noted"),
        "PIDS": str(tmp_path / "pids"),
        "SLURM_JOB_ID": str(os.getpid()),  # of which JAX makes the port
    }


def noted(machine) -> list[list[str]]:
    path = pathlib.Path(machine["NOTED"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def written(folder, **values) -> pathlib.Path:
    file = folder / "mine.py"
    config = changed(TEACHER, mesh__data=-1, **values)
    file.write_text(f"def get_config():\n    return {config!r}\n")
    return file


def devices(workdir) -> tuple[int, str]:
    manifest = json.loads((workdir / "manifest.json").read_text())
    return manifest["processes"], json.loads((workdir / "result.json").read_text())["device"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_fault(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    # The extra `test` installs it next to this Python, which need not be on the PATH.
    scripts = pathlib.Path(sys.executable).parent
    checker = shutil.which("shellcheck", path=f"{scripts}{os.pathsep}{os.environ['PATH']}")
    assert checker, "shellcheck is not installed: pip install '.[test]'"
    subprocess.run([checker, script], check=True)


@pytest.mark.parametrize("name", ["tpu_jobset.yaml", "gpu_jobset.yaml"])
def test_job_sets_say_one_number_of_pods(name):
    yaml = pytest.importorskip("yaml")
    job_set = yaml.safe_load((LAUNCH / name).read_text())
    (job,) = job_set["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][:2] == ["distill-jax", "train"]
    assert spec["parallelism"] == spec["completions"]
    variables = {variable["name"]: variable for variable in container.get("env", [])}
    if variables:
        assert variables["JAX_NUM_PROCESSES"]["value"] == str(spec["completions"])
        first = f"{job_set['metadata']['name']}-{job['name']}-0-0.{job_set['metadata']['name']}"
        assert variables["JAX_COORDINATOR_ADDRESS"]["value"].startswith(f"{first}:")
        assert "job-completion-index" in str(variables["JAX_PROCESS_ID"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_xpk_is_given_the_command_as_one_word(machine):
    variables = {"CLUSTER": "mine", "IMAGE": "i", "TPU": "v5litepod-16", "SLICES": "2"}
    command = [LAUNCH / "xpk.sh", "run", "--config=a b.py", "--workdir=/shared/r"]
    subprocess.run(command, env=machine | variables, check=True)
    (arguments,) = noted(machine)
    assert arguments[:2] == ["workload", "create"]
    assert {"--workload=run", "--cluster=mine", "--tpu-type=v5litepod-16"} < set(arguments)
    assert arguments[-1] == r"--command=distill-jax train --config=a\ b.py --workdir=/shared/r"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["local.sh"], "expected the number of processes"),
        (["local.sh", "--config=x"], "expected the number of processes"),
        (["slurm.sbatch", "--config=x"], "expected --workdir=DIR"),
        (["xpk.sh", "name", "--config=x"], "expected the variable CLUSTER"),
    ],
)
def test_recipes_refuse_what_is_missing(machine, command, message):
    done = subprocess.run(
        [LAUNCH / command[0], *command[1:]], env=machine, capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_local_processes_train_together(machine, tmp_path):
    workdir = tmp_path / "run"
    arguments = [f"--config={written(tmp_path)}", f"--workdir={workdir}"]
    subprocess.run([LAUNCH / "local.sh", "2", *arguments], env=machine, check=True, timeout=200)
    assert devices(workdir) == (2, "2 x cpu in 2 processes")


@pytest.mark.slow
def test_local_processes_stop_together(machine, tmp_path):
    workdir = tmp_path / "run"
    file = written(tmp_path, training__steps=100_000, checkpoint__every_steps=20)
    arguments = [f"--config={file}", f"--workdir={workdir}"]
    script = subprocess.Popen([LAUNCH / "local.sh", "2", *arguments], env=machine)
    until(lambda: (workdir / "checkpoints" / "20").exists(), script)
    script.send_signal(signal.SIGTERM)
    assert script.wait(100) == 0
    assert not (workdir / "result.json").exists()


@pytest.mark.slow
def test_a_job_of_slurm_stops_and_is_queued_again(machine, tmp_path):
    """What JAX detects is real; the tasks of the step get SIGTERM, as at the end of the time."""
    workdir = tmp_path / "run"
    arguments = [f"--config={written(tmp_path)}", f"--workdir={workdir}"]
    long = ["--config.checkpoint.every_steps=50", "--config.training.steps=1000"]
    script = subprocess.Popen([LAUNCH / "slurm.sbatch", *arguments, *long], env=machine)
    until(lambda: (workdir / "checkpoints" / "50").exists(), script)
    for process in pathlib.Path(machine["PIDS"]).read_text().split():
        os.kill(int(process), signal.SIGTERM)
    assert script.wait(100) == 0 and not (workdir / "result.json").exists()
    assert noted(machine) == [["requeue", machine["SLURM_JOB_ID"]]]
    subprocess.run([LAUNCH / "slurm.sbatch", *arguments, *long], env=machine, check=True)
    assert devices(workdir) == (2, "2 x cpu in 2 processes")
    assert len(noted(machine)) == 1


def until(condition, process, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
