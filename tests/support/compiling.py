"""How the tests have XLA compile: for eight CPU devices or some other number, and quickly.

Most of their time goes into compiling for the CPU, which takes half as long without some of its
optimisations. What a run ends in is tested with all of them too, in test_resume.py.
"""

from importlib.metadata import version

QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1"}
if version("jaxlib") < "0.11":  # a later one ends the process at a flag that it does not know
    QUICK["xla_cpu_use_fusion_emitters"] = "false"
#: Compiler options for what is to be equal bit by bit however the compiler cuts it up: as users
#: have them, since the older way of fusing rounds otherwise.
ROUNDING = {name: True for name in QUICK if name == "xla_cpu_use_fusion_emitters"}
#: Compiler options, as users have them, for what computes much longer than it compiles.
FULL = {"xla_backend_optimization_level": 3, **ROUNDING}


def flags(devices: int, given: str = "") -> str:
    """XLA_FLAGS with so many CPU devices; what is given goes before."""
    wanted = {"xla_force_host_platform_device_count": str(devices)} | QUICK
    more = (f"--{name}={value}" for name, value in wanted.items() if name not in given)
    return " ".join([given, *more]).strip()
