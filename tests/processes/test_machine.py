"""What is known of this machine: the memory that a control group leaves, and the CPU."""

import subprocess
import sys

from distill_jax.processes import machine


def test_the_memory_is_at_most_that_of_the_control_groups(tmp_path):
    own, groups = tmp_path / "cgroup", tmp_path / "sys"
    (groups / "jobs/one").mkdir(parents=True)
    (groups / "jobs/memory.max").write_text("3000\n")
    (groups / "jobs/one/memory.max").write_text("max\n")
    own.write_text("0::/jobs/one\n")
    assert machine._group_limits(groups, str(own)) == [3000]
    (groups / "memory/jobs").mkdir(parents=True)
    (groups / "memory/jobs/memory.limit_in_bytes").write_text("2000\n")
    own.write_text("5:cpu,memory:/jobs\n4:cpuset:/jobs\n")
    assert machine._group_limits(groups, str(own)) == [2000]
    assert machine._group_limits(groups, str(tmp_path / "none")) == []
    assert machine.memory() > 2**27


def test_every_process_gives_the_cpu_the_same_name():
    code = "from distill_jax.processes import machine; print(machine.cpu_identity())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == machine.cpu_identity()
