"""What a program sends, against shardings whose messages are known, and against written HLO."""
# ruff: noqa: E501 (the lines of a program are as long as XLA writes them)

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax import parallel
from distill_jax.planning import hlo
from distill_jax.planning.collectives import axes_of, collectives, first_group


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(2, 2, 2)


def compiled(mesh, function, **arrays):
    """The messages of a function of (shape, spec)s, as {(kind, axes): (count, bytes)}."""
    given = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, spec in arrays.values()
    ]
    module = hlo.parse(jax.jit(function).lower(*given).compile().as_text())
    assert hlo.executed_computations(module)[1] == 0
    return {(c.kind, c.axes): (c.count, c.bytes) for c in collectives(module, mesh)}


def test_an_all_gather_sends_what_the_others_lack(mesh):
    def function(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))

    # 2 of 4 parts are here after `data`; each device sends half of 64 * 8 * 4 bytes.
    found = compiled(mesh, function, x=((64, 8), ("data",)))
    assert found == {("all-gather", ("data",)): (1, 64 * 8 * 4 // 2)}


def test_an_all_reduce_sends_its_array_twice_but_for_a_part(mesh):
    def function(x):
        return jax.shard_map(
            lambda x: jax.lax.psum(x, ("data", "fsdp")),
            mesh=mesh,
            in_specs=PartitionSpec(("data", "fsdp")),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(x)

    found = compiled(mesh, function, x=((16, 24), (("data", "fsdp"),)))
    assert found == {("all-reduce", ("data", "fsdp")): (1, 2 * (4 * 24 * 4) * 3 // 4)}


def test_a_reduce_scatter_sends_its_array_but_for_a_part(mesh):
    def function(x):
        return jax.shard_map(
            lambda x: jax.lax.psum_scatter(x, "tensor", scatter_dimension=0, tiled=True),
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec("tensor"),
            check_vma=False,
        )(x)

    found = compiled(mesh, function, x=((32, 10), ()))
    assert found == {("reduce-scatter", ("tensor",)): (1, 32 * 10 * 4 // 2)}


def test_what_is_within_scans_counts_as_often_as_they_turn(mesh):
    def inner(x, _):
        y = jax.lax.psum(x, "fsdp")
        return y * 0.5, None

    def outer(x, _):
        x = jax.lax.scan(inner, x, None, length=3)[0]
        return jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), None

    def function(x):
        return jax.shard_map(
            lambda x: jax.lax.scan(outer, x, None, length=5)[0],
            mesh=mesh,
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(x)

    found = compiled(mesh, function, x=((100,), ()))
    assert found == {
        ("all-reduce", ("fsdp",)): (15, 15 * 400),
        ("collective-permute", ("data",)): (5, 5 * 400),
    }


def test_a_layer_in_shards_gathers_its_weights_and_sums_over_tensor(mesh):
    def keep(x, *spec):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def function(weights, x):
        def layer(x, w):
            w = keep(w, None, "tensor")
            y = keep(x @ w, ("data", "fsdp"), "tensor")
            return keep(jnp.tanh(y) @ w.T, ("data", "fsdp")), None

        return jax.lax.scan(layer, x, weights)[0]

    found = compiled(
        mesh,
        function,
        weights=((5, 256, 128), (None, "fsdp", "tensor")),
        x=((64, 256), (("data", "fsdp"),)),
    )
    assert found == {
        ("all-gather", ("fsdp",)): (5, 5 * 256 * 64 * 4 // 2),
        ("all-reduce", ("tensor",)): (5, 5 * 2 * 16 * 256 * 4 // 2),
    }


@pytest.mark.parametrize(
    ("attribute", "group", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", (0, 1), ("tensor",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", (0, 2), ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", (0, 1), ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4), ("data",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6), ("data", "fsdp")),
        ("replica_groups=[1,8]<=[8]", tuple(range(8)), ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4), ("data",)),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}",
            (0, 2, 4, 6),
            ("data", "fsdp"),
        ),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1), ("tensor",)),
        ("replica_groups={{0,1,2},{3,4,5}}", (0, 1, 2), ()),
    ],
)
def test_groups_are_read_in_every_form_and_named_by_axes(mesh, attribute, group, axes):
    found = first_group(f"  %x = f32[8] all-gather(%y), {attribute}, dimensions={{0}}", 8)
    assert found == group
    assert axes_of(found, mesh) == axes


TPU = """HloModule steps, is_scheduled=true, num_partitions=8

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[16,8]) -> f32[8,8] {
  %input = f32[16,8]{1,0} parameter(0)
  %all-reduce.5 = f32[16,8]{1,0} all-reduce(%input), channel_id=5, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add.1
  %zero = s32[] constant(0)
  ROOT %slice = f32[8,8]{1,0} dynamic-slice(%all-reduce.5, %zero, %zero), dynamic_slice_sizes={8,8}
}

%start.1 (part: bf16[4,8]) -> (bf16[4,8], bf16[8,8], u32[]) {
  %part = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0} all-gather(%part), channel_id=8, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %begun = (bf16[4,8]{1,0}, bf16[8,8]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (part: bf16[4,8], other: bf16[4,8]) -> bf16[4,8] {
  %part = bf16[4,8]{1,0} parameter(0)
  %other = bf16[4,8]{1,0} parameter(1)
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%part), channel_id=8, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %more = bf16[4,8]{1,0} multiply(%other, %other)
}

%done.3 (part: bf16[4,8]) -> bf16[8,8] {
  %part = bf16[4,8]{1,0} parameter(0)
  %all-gather.3 = bf16[8,8]{1,0} all-gather(%part), channel_id=8, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  ROOT %ended = bf16[8,8]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%body (state: (s32[], bf16[4,8], f32[16,8])) -> (s32[], bf16[4,8], f32[16,8]) {
  %state = (s32[], bf16[4,8]{1,0}, f32[16,8]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %y = f32[16,8]{1,0} get-tuple-element(%state), index=2
  %begun.1 = (bf16[4,8]{1,0}, bf16[8,8]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start.1
  %meanwhile = bf16[4,8]{1,0} fusion(%x, %x), kind=kLoop, calls=%async_collective_fusion.2
  %whole = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%done.3
  %part.1 = f32[8,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], bf16[4,8]{1,0}, f32[16,8]{1,0}) tuple(%number, %meanwhile, %y)
}

%condition (state: (s32[], bf16[4,8], f32[16,8])) -> pred[] {
  %state = (s32[], bf16[4,8]{1,0}, f32[16,8]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(6)
  %number = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%number, %bound), direction=LT
}

ENTRY %main (x: bf16[4,8], y: f32[16,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = f32[16,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[4,8]{1,0}, f32[16,8]{1,0}) tuple(%zero, %x, %y)
  %loop = (s32[], bf16[4,8]{1,0}, f32[16,8]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %result = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_the_fusions_of_the_tpu_compiler_are_read(mesh):
    # XLA annotates no trip count; the all-gather is in three fusions, and counts once.
    found = {(c.kind, c.axes): (c.count, c.bytes) for c in collectives(hlo.parse(TPU), mesh)}
    assert found == {
        ("all-gather", ("data",)): (6, 6 * 8 * 8 * 2 // 2),
        ("reduce-scatter", ("tensor",)): (6, 6 * 16 * 8 * 4 // 2),
    }


def test_a_loop_of_unknown_turns_counts_once_and_is_told(mesh):
    def function(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x * 2, x)

    text = jax.jit(function).lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile().as_text()
    assert hlo.executed_computations(hlo.parse(text))[1] == 1


def test_traffic_is_what_is_read_and_written():
    def function(x, y):
        return jnp.tanh(x @ y)

    shapes = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 2
    text = jax.jit(function).lower(*shapes).compile().as_text()
    whole = 256 * 256 * 4
    # The product reads two and writes one, tanh reads one and writes one, unless they are fused.
    assert 3 * whole <= hlo.traffic(hlo.parse(text)) <= 5 * whole


def test_a_scan_reads_the_slice_of_a_stack_and_not_the_stack_each_time():
    def function(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x + w), None), x, stack)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1024,), (50, 1024))]
    text = jax.jit(function).lower(*shapes).compile().as_text()
    found, row = hlo.traffic(hlo.parse(text)), 1024 * 4
    assert 50 * row <= found <= 10 * 50 * row


KERNEL = """HloModule kernel

ENTRY %main (x: f32[8,128], y: bf16[8,128]) -> (f32[8,128], f32[8,128]) {
  %x = f32[8,128]{1,0} parameter(0)
  %y = bf16[8,128]{1,0} parameter(1)
  %pair = (f32[8,128]{1,0}, f32[1,128]{1,0}) custom-call(%x, %y), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="kernel"}, backend_config={"custom_call_config":{"body":"TUzvUgFN"}}
  %own = f32[8,128]{1,0} get-tuple-element(%pair), index=0
  %twice = f32[8,128]{1,0} add(%own, %own)
  ROOT %both = (f32[8,128]{1,0}, f32[8,128]{1,0}) tuple(%own, %twice)
}
"""


def test_a_kernel_moves_its_operands_and_values_once():
    row = 128 * 4
    kernel = (8 + 4) * row + (8 + 1) * row
    assert hlo.traffic(hlo.parse(KERNEL)) == kernel + 3 * 8 * row
