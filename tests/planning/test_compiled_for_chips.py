"""Steps compiled for TPUs and GPUs that are not here, by their own compilers."""

import importlib.util
import pathlib
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_plans import LLAMA, config, folder

from distill_jax import tasks
from distill_jax.errors import UsageError
from distill_jax.planning import alternatives, gpus, memory, plan, step_flops, targets
from distill_jax.training.step import compile_steps

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install '.[plan]'",
)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "mesh", "devices"),
    [
        ("tpu:v5e:2x2", {"mesh__fsdp": 2, "mesh__tensor": 2}, 4),
        pytest.param("tpu:v5p:2x2x2", {"mesh__fsdp": 8}, 8, marks=pytest.mark.nightly),
    ],
)
def test_tpu_slices_are_compiled_for(tmp_path, kept_environment, target, mesh, devices):
    targets.prepare_process(target)
    opened = targets.open_target(target)
    found = plan.make_plan(config(tmp_path, training__compute_dtype="bfloat16", **mesh), opened)
    assert found.mesh.size == devices and found.fits
    assert 0 <= found.memory.padding < found.memory.arguments
    assert found.times.bound in ("compute", "memory", "interconnect")
    assert {axis for c in found.messages for axis in c.axes} >= {"fsdp"}
    assert found.flops.student_backward == 2 * found.flops.student_forward
    assert len({tuple(device.coords) for device in found.mesh.devices.flat}) == devices


needs_gpu_compiler = pytest.mark.skipif(
    not gpus.installed(), reason="no compiler for GPUs is installed: pip install '.[plan-gpu]'"
)


@needs_gpu_compiler
@pytest.mark.slow
def test_gpus_are_compiled_for(tmp_path, kept_environment):
    targets.prepare_process("gpu:h100:8")
    opened = targets.open_target("gpu:h100:8")
    settings = config(tmp_path, training__compute_dtype="bfloat16", mesh__fsdp=4, mesh__tensor=2)
    run, found = tasks.abstract_step(settings, opened.devices), plan.make_plan(settings, opened)
    assert found.memory.limit == 60 * 10**9  # three quarters: what JAX takes of a GPU
    assert found.memory.padding == 0 and found.fits
    assert found.flops.student_backward == 2 * found.flops.student_forward
    assert {axis for c in found.messages for axis in c.axes} == {"fsdp", "tensor"}
    # What a device lacks of a parameter over fsdp comes to it in bfloat16, not in float32.
    gathered = sum(c.bytes for c in found.messages if c.kind == "all-gather")
    leaves = jax.tree.leaves((run.state.params, run.frozen))
    lacking = sum(
        3 * np.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in leaves
        if "fsdp" in leaf.sharding.spec
    )
    assert lacking < gathered <= 2 * lacking


@needs_gpu_compiler
@pytest.mark.nightly
@pytest.mark.parametrize("installed", [False, True])
def test_attention_on_gpus_is_cudnns_where_that_is_here(
    tmp_path, kept_environment, monkeypatch, installed
):
    targets.prepare_process("gpu:h100:2")
    opened = targets.open_target("gpu:h100:2")
    if installed and not gpus.cudnn():
        pytest.skip("cuDNN is not installed: pip install '.[cuda]'")
    monkeypatch.setattr(gpus, "cudnn", lambda: installed)
    settings = config(tmp_path, training__compute_dtype="bfloat16", mesh__fsdp=2)
    found = plan.make_plan(settings, opened)
    plain = tasks.abstract_step(
        alternatives.changed(settings, {"training.attention": "xla"}), jax.devices()[:2]
    )
    assert found.flops == step_flops.count_step(plain)
    assert any("needs cuDNN, which is not installed" in note for note in found.notes) != installed
    if not installed:
        with pytest.raises(
            UsageError, match="training.attention='cudnn': compiling it needs cuDNN"
        ):
            plan.make_plan(alternatives.changed(settings, {"training.attention": "cudnn"}), opened)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "remat"),
    [
        ("auto", "none"),
        *(pytest.param(a, "full", marks=pytest.mark.nightly) for a in ("auto", "xla")),
    ],
)
def test_on_a_tpu_the_kernel_keeps_no_logits(tmp_path, kept_environment, attention, remat):
    targets.prepare_process("tpu:v5e:2x2")
    opened = targets.open_target("tpu:v5e:2x2")
    shape = LLAMA | {"head_dim": 128, "sliding_window": 100, "model_type": "mistral"}
    settings = config(
        tmp_path,
        data__length=384,
        mesh__fsdp=2,
        mesh__tensor=2,
        student__path=folder(tmp_path, "wide", shape),
        teacher__path=folder(tmp_path, "wide_teacher", shape),
        training__compute_dtype="bfloat16",
        training__attention=attention,
        training__remat=remat,
    )
    run = tasks.abstract_step(settings, opened.devices)
    where = jax.tree.map(lambda a: a.sharding, run.state)
    given = (run.state, run.frozen, run.resident, run.batches)
    lowered = compile_steps(run.recipe, run.mesh, where).lower(*given)
    compiled, taken = memory.compile_step(lowered, "tpu")
    stats = compiled.memory_analysis()
    within = taken - stats.argument_size_in_bytes  # memory_analysis() gives more than is allocated
    assert 0 < within < stats.temp_size_in_bytes
    text = compiled.as_text()
    kept = re.findall(r"(?:f32|bf16|pred)\[[\d,]*384,384\]", text)
    assert bool(kept) == (attention == "xla")
    assert ("tpu_custom_call" in text) == (attention == "auto")


@pytest.mark.parametrize("written", [True, False])
def test_bytes_on_a_tpu_are_of_the_compilers_report(written):
    stats = SimpleNamespace(
        argument_size_in_bytes=500,
        temp_size_in_bytes=800,
        output_size_in_bytes=300,
        alias_size_in_bytes=290,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: stats)

    def compile_(compiler_options):
        folder = pathlib.Path(compiler_options["xla_dump_to"])
        (folder / "module_0000.jit_steps.after_optimizations.txt").write_text("HloModule jit_steps")
        if written:
            report = folder / "module_0000.jit_steps.after_optimizations-memory-usage-report.txt"
            report.write_text(
                "Memory Space: default (color=0)\nTotal bytes: 1024 (1.0KiB)\n  cumulative_size\n\n"
                "Memory Space: vmem (color=1)\nTotal bytes: 2048 (2.0KiB)\n"
            )
        return compiled

    found = memory.compile_step(SimpleNamespace(compile=compile_), "tpu")
    assert found == (compiled, 1024 if written else 500 + 800 + 10)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Used 21.50G of 15.75G hbm. Exceeded hbm capacity by 5.75G", (16.5, 15.75)),
        ("temporaries (21.63G) exceeds available HBM (15.75G).", (16.63, 15.75)),
        ("temporaries (3.5G) exceeds available HBM (10.75G)", (3.5, 15.75)),
        ("Allocation (size=137438953472) would exceed memory (size=17179869184) :: %s0", (128, 16)),
        ("INTERNAL: something else", None),
    ],
)
def test_the_tpu_compilers_out_of_memory_errors_are_parsed(message, expected):
    found = plan._out_of_memory(message, held=5 * 2**30, most=16 * 2**30)
    assert found == (expected and tuple(round(number * 2**30) for number in expected))


@needs_libtpu
@pytest.mark.slow
def test_the_tpu_compiler_refuses_what_does_not_fit(tmp_path, kept_environment):
    targets.prepare_process("tpu:v5e:2x2")
    opened = targets.open_target("tpu:v5e:2x2")
    large = config(tmp_path, training__batch_size=4096, data__length=2048, training__remat="none")
    found = plan.make_plan(large, opened)
    assert not found.fits and found.times is None
    assert found.memory.total > found.memory.limit
    assert 15 * 2**30 < found.memory.limit <= 16 * 2**30
