"""Plans: bytes against XLA's and the devices' own, verdicts, exit codes and what is written."""

import dataclasses
import json
import os
import types

import jax
import jax.numpy as jnp
import pytest
from small_plans import config

from distill_jax import cli, planning, tasks
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.planning import alternatives, gpus, memory, plan, report, targets
from distill_jax.planning.chips import CHIPS
from distill_jax.processes import machine
from distill_jax.training.step import compile_steps


@pytest.fixture
def local(monkeypatch):
    """The devices here, without what the process of the tests holds besides."""
    monkeypatch.setattr(machine, "resident", lambda: 0)
    return targets.open_target("local")


def arguments(where, settings, mesh: dict) -> list[str]:
    """Writes a config and gives the arguments of the verb."""
    content = configs.to_json(settings)
    file = where / "run.py"
    file.write_text(f"import json\n\ndef get_config():\n    return json.loads({content!r})\n")
    flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    return ["plan", f"--config={file}", "--target=local", *flags]


@pytest.mark.parametrize(
    "mesh",
    [
        {},
        {"mesh__fsdp": 4, "mesh__tensor": 2},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"mesh__fsdp": 2, "student__lora_rank": 2},
                {"teacher__quantize": "int8", "mesh__tensor": 2},
                {"teacher__store": "sampled:50", "mesh__fsdp": 2, "mesh__tensor": 2},
                {"student__path": "", "student__layers": (0, 2), "mesh__fsdp": 2},
            )
        ),
    ],
)
def test_the_parts_are_the_arguments_of_the_compiled_step(tmp_path, mesh):
    run = tasks.abstract_step(config(tmp_path, **mesh), jax.devices())
    given = (run.state, run.frozen, run.resident, run.batches)
    where = jax.tree.map(lambda a: a.sharding, run.state)
    compiled = compile_steps(run.recipe, run.mesh, where).lower(*given).compile()
    held = memory.argument_bytes(*given)
    assert sum(held.values()) == compiled.memory_analysis().argument_size_in_bytes
    trained = memory.bytes_per_device((run.state.params, run.state.adapters))
    assert 2 * trained <= held["optimizer"] <= 2 * trained + 16  # two moments, and counts


def test_the_parts_are_what_live_arrays_take(tmp_path):
    run = tasks.abstract_step(config(tmp_path, mesh__fsdp=4, mesh__tensor=2), jax.devices())
    made = jax.tree.map(
        lambda a: jax.device_put(jnp.zeros(a.shape, a.dtype), a.sharding), run.state
    )
    taken = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(made)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[3]
    )
    assert taken == memory.bytes_per_device(run.state)


def test_an_image_run_needs_neither_data_nor_weights(local):
    flat = {
        "data.name": "mnist",
        "data.validation": 0,
        "student.name": "mlp",
        "student.widths": (32,),
        "teacher.path": ("mlp:widths=(64, 64)",),
        "method.name": "soft_target",
        "training.epochs": 2.0,
        "training.batch_size": 80,
        "evaluation.batch_size": 80,
    }
    found = plan.make_plan(configs.resolve(configs.unflatten(flat)), local)
    assert found.parameters["teacher"] == 784 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert found.memory.held["data"] == 60_000 * (28 * 28 + 4)
    assert found.flops.teacher_forward == 80 * 2 * (784 * 64 + 64 * 64 + 64 * 10)
    assert found.flops.student_forward == 80 * 2 * (784 * 32 + 32 * 10)
    assert (found.unit, found.units, found.steps) == ("images", 80, 1500)
    assert found.memory.padding == 0
    assert found.memory.process == found.memory.held["data"]  # the images, decoded on the host


def test_what_the_process_of_a_cpu_holds_besides_counts(tmp_path, local, monkeypatch):
    settings = config(tmp_path)
    alone = plan.make_plan(settings, local).memory
    monkeypatch.setattr(machine, "resident", lambda: 8 * 2**30)
    exact = dataclasses.replace(local, memory=alone.total + 2**30)
    found = plan.make_plan(settings, exact)
    assert (found.memory.total, found.memory.process) == (alone.total, 2**30) and found.fits
    assert "1.00 GiB: libraries, compiler, images on the host" in report.to_text(found)
    assert report.to_json(found)["bytes_a_device"]["process"] == 2**30
    assert not plan.make_plan(settings, dataclasses.replace(exact, memory=exact.memory - 1)).fits


def test_the_memory_of_a_cpu_is_that_of_the_machine_or_its_control_group(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 8000)
    assert targets.open_target("local").memory == 1000  # eight devices


@pytest.mark.parametrize("method", ["crd", "mutual", "fitnet"])
def test_methods_with_arrays_of_their_own_are_planned_without_values(method):
    flat = {
        "data.name": "cifar100",
        "student.name": "resnet8",
        "teacher.path": ("resnet14",),
        "method.name": method,
        "evaluation.batch_size": 8,
    }
    run = tasks.abstract_step(configs.resolve(configs.unflatten(flat)), jax.devices())
    own = jax.tree.leaves((run.state.adapters, run.state.memory))
    assert own and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in own)
    assert memory.bytes_per_device((run.state.adapters, run.state.memory)) > 0


def test_a_teacher_that_is_neither_workdir_nor_model_is_refused(local):
    flat = {"data.name": "mnist", "teacher.path": ("runs/none",), "method.name": "soft_target"}
    flat["evaluation.batch_size"] = 8
    with pytest.raises(UsageError, match=r"teacher.path='runs/none': no such workdir and no such"):
        plan.make_plan(configs.resolve(configs.unflatten(flat)), local)


def test_a_shape_that_does_not_divide_is_told(tmp_path, local):
    settings = config(tmp_path, mesh__fsdp=1, mesh__tensor=8)
    notes = plan.notes_of(tasks.abstract_step(settings, local.devices), local)
    assert not any("embedding" in note for note in notes)
    uneven = json.loads((tmp_path / "student" / "config.json").read_text()) | {"vocab_size": 508}
    (tmp_path / "student" / "config.json").write_text(json.dumps(uneven))
    notes = plan.notes_of(tasks.abstract_step(settings, local.devices), local)
    assert "embedding [508, 32] is whole over tensor=8" in notes


@pytest.mark.slow
def test_what_does_not_fit_names_a_change_that_does(tmp_path, local):
    settings = config(tmp_path, training__remat="full")
    whole = plan.make_plan(settings, local)
    sharded = plan.make_plan(
        alternatives.changed(settings, {"mesh.data": -1, "mesh.fsdp": 8}), local
    )
    assert sharded.memory.total < whole.memory.total
    small = dataclasses.replace(local, memory=(sharded.memory.total + whole.memory.total) // 2)
    fits, text, content = planning.check(settings, small)
    assert not fits and "does not fit" in text
    assert content["advice"].startswith("it fits with --config.mesh.data=-1 --config.mesh.fsdp=")
    flags = dict(
        word.removeprefix("--config.").split("=") for word in content["advice"].split()[3:]
    )
    changes = {name: int(value) for name, value in flags.items()}
    assert plan.make_plan(alternatives.changed(settings, changes), small).fits


def test_the_cheapest_change_is_tried_first_and_all_together_last(tmp_path, local):
    settings = config(tmp_path, teacher__compute_dtype="float32")
    run = tasks.abstract_step(settings, local.devices)
    given = (run.state, run.frozen, run.resident, run.batches)
    roomy = dataclasses.replace(local, memory=sum(memory.argument_bytes(*given).values()) + 1)
    tried = []

    def judge(settings, target):
        tried.append(settings)
        last = settings.teacher.quantize == "int8" and settings.training.remat == "full"
        return dataclasses.make_dataclass("Judged", ["fits"])(last)

    advice = alternatives.fix(settings, roomy, lambda flags: None, judge)
    assert (tried[0].mesh.fsdp, tried[1].mesh.fsdp, tried[2].mesh.fsdp) == (2, 4, 8)
    assert tried[3].teacher.compute_dtype == "bfloat16" and tried[3].mesh.fsdp == 1
    for flag in ("mesh.fsdp=8", "training.remat=full", "teacher.quantize=int8"):
        assert f"--config.{flag}" in advice
    assert "batch_size" not in advice


def test_where_nothing_fits_more_chips_are_the_answer(tmp_path, local):
    tiny = dataclasses.replace(local, memory=1000)

    def never(*arguments):
        raise AssertionError("what cannot fit need not be compiled")

    advice = alternatives.fix(config(tmp_path), tiny, never, never)
    assert advice.endswith("more chips")


@pytest.mark.slow
def test_a_search_ranks_what_fits(tmp_path, local):
    settings = config(tmp_path)
    chip = {"kind": "h100", "chip": CHIPS["h100"]}
    chosen = dataclasses.replace(local, devices=local.devices[:2], **chip)
    reported = []
    plans, skipped = alternatives.search(settings, chosen, reported.append, most=2)
    assert len(plans) == 2 == len(reported) and skipped >= 1
    steps = [found.times.overlapped for found in plans]
    assert steps == sorted(steps)
    meshes = [tuple(found.mesh.shape.values()) for found in plans]
    assert set(meshes) == {(1, 2, 1), (2, 1, 1)}
    lines = report.ranking(plans).splitlines()
    assert len(lines) == 3 and lines[1].startswith(" 1")


def test_the_verb_prints_and_writes(tmp_path, capsys, kept_environment):
    given = arguments(tmp_path, config(tmp_path), {"fsdp": 2})
    assert cli.main([*given, f"--workdir={tmp_path / 'out'}"]) == 0
    page = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert content["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1} and content["fits"]
    sizes = content["bytes_a_device"]
    parts = ("teacher", "student", "optimizer", "averages", "adapters", "data", "batch")
    parts += ("counters", "padding", "program")
    temporaries = sizes["total"] - sum(sizes[part] for part in parts)
    assert temporaries == sizes["gradients"] + sizes["activations"]
    assert sizes["averages"] == sizes["student"] > 0
    work = content["flops_a_step"]
    assert (
        work["model"]
        == sum(work[f"{k}"] for k in ("teacher_forward", "student_forward"))
        + (work["student_backward"])
    )
    assert any(c["axes"] == ["fsdp"] for c in content["collectives_a_step"])
    assert content["seconds_a_step"] is None  # a CPU is in no table
    assert "fits" in page and "teacher forward" in page and "not in the table" in page


def test_the_verb_exits_1_where_it_does_not_fit(tmp_path, capsys, monkeypatch, kept_environment):
    opened = targets.open_target

    def small(target):
        return dataclasses.replace(opened(target), memory=1000)

    monkeypatch.setattr(targets, "open_target", small)
    assert cli.main(arguments(tmp_path, config(tmp_path), {})) == 1
    assert "more chips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tpu:v9:2x2", "--target=tpu:v9:2x2: no tpu 'v9'; expected v4, v5e, v5p, v6e"),
        ("gpu:v5p:8", "--target=gpu:v5p:8: no gpu 'v5p'; expected a100, h100, h200, b200"),
        ("tpu:v5p:4x4", "--target=tpu:v5p:4x4: expected 3 sizes, as in tpu:v5p:4x4x4"),
        ("tpu:v5e:32x32", "--target=tpu:v5e:32x32: expected sizes of at most 16"),
        ("tpu:v5e", "--target=tpu:v5e: expected tpu:CHIP:SHAPE such as tpu:v5p:4x4x4"),
        ("gpu:h100:0", "--target=gpu:h100:0: expected tpu:CHIP:SHAPE"),
        ("gpu:h100:12", "--target=gpu:h100:12: expected up to 8 GPUs, or a multiple of 8"),
    ],
)
def test_a_target_that_is_none_is_misuse(tmp_path, capsys, kept_environment, target, message):
    given = arguments(tmp_path, config(tmp_path), {})
    assert cli.main([f"--target={target}" if "--target" in g else g for g in given]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_mesh_that_does_not_fit_the_target_is_misuse(tmp_path, capsys, kept_environment):
    assert cli.main(arguments(tmp_path, config(tmp_path), {"fsdp": 3})) == 2
    assert "mesh.data=-1" in capsys.readouterr().err


def test_without_a_compiler_for_gpus_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(gpus, "PLUGINS", ("jax_plugins.none",))
    with pytest.raises(UsageError, match=r"--target=gpu:h100:8: .*pip install '.\[plan-gpu\]'"):
        targets.open_target("gpu:h100:8")


def test_a_gpu_without_cudnn_here_is_planned_with_the_attention_of_xla(tmp_path, monkeypatch):
    """Fast: the whole plan, compiled for a GPU, is a nightly test."""
    gpu, here = types.SimpleNamespace(platform="gpu"), types.SimpleNamespace(platform="cpu")
    settings = config(tmp_path, training__compute_dtype="bfloat16")
    cudnn = alternatives.changed(settings, {"training.attention": "cudnn"})
    monkeypatch.setattr(gpus, "cudnn", lambda: False)
    chosen, (note,) = plan._compilable_attention(settings, gpu)
    assert chosen.training.attention == "xla" and "needs cuDNN, which is not installed" in note
    with pytest.raises(UsageError, match="training.attention='cudnn': compiling it needs cuDNN"):
        plan._compilable_attention(cudnn, gpu)
    assert plan._compilable_attention(settings, here) == (settings, [])
    monkeypatch.setattr(gpus, "cudnn", lambda: True)
    for wanted in (settings, cudnn):
        assert plan._compilable_attention(wanted, gpu) == (wanted, [])


@pytest.mark.parametrize("name", ["taken", "file/plan.json", "locked/new/plan.json"])
def test_a_plan_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch, capsys, name
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked").mkdir()
    writable = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p.name != "locked" and writable(p, mode))
    monkeypatch.setattr(planning, "check", lambda *_: pytest.fail("the plan was made"))
    flags = arguments(tmp_path, config(tmp_path), {})
    assert cli.main([*flags, f"--out={tmp_path / name}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"distill-jax: error: --out={tmp_path / name}: cannot be written: ")
    assert line.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "locked" / "new").exists()
