"""The memory of this study's losses in JAX on a chip that is not present, from its compiler.

    python -m experiments.vocab_loss.memory --target=gpu:h100:1 --publish

Nothing is computed: loss and gradients are compiled ahead of time. XLA's buffer assignment gives
the peak memory, operands and gradients included; the program's text gives the bytes that it moves
from and to HBM. With --publish the table in README.md and results/ are written.
"""

import datetime
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from distill_jax.planning import targets
from distill_jax.reports import tables
from distill_jax.storage import write_atomically
from experiments import markers, study
from experiments.provenance import git_revision, versions

HERE = pathlib.Path(__file__).resolve().parent
#: Contenders, each with the tokens of a chunk; 0: the library chooses.
WAYS = (("ours", 0), ("ours_low_memory", 0), ("ours_low_memory", 512), ("dense", 0))
DIVERGENCES = ("forward_kl", "jensen_shannon")
TOKENS, WIDTH, VOCAB, DTYPE = (8192, 16384), 4096, 128256, "bfloat16"


def compiled(task: dict[str, Any], device: Any) -> dict[str, Any]:
    """The bytes of one way of computing the loss on one device.

    Returns:
      The task with "operands", "gradients", "within" and "total", bytes, and "traffic".
    """
    import jax
    import jax.numpy as jnp

    from distill_jax import parallel
    from distill_jax.planning import hlo
    from experiments.vocab_loss.contenders import jax_loss

    mesh = parallel.make_mesh(devices=[device])
    width, vocab, dtype = task["student_width"], task["vocab"], jnp.dtype(task["dtype"])
    pair = (task["tokens"], width), (width, vocab)
    sharding = parallel.replicated(mesh)
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in pair * 2]
    loss = jax.value_and_grad(jax_loss(task, mesh), (0, 1))
    program = jax.jit(loss).lower(*given).compile()
    found = program.memory_analysis()
    parts = {
        "operands": found.argument_size_in_bytes,
        "gradients": found.output_size_in_bytes,
        "within": found.temp_size_in_bytes,
    }
    traffic = hlo.traffic(hlo.parse(program.as_text()))
    return task | parts | {"total": sum(parts.values()), "traffic": traffic}


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records in GB, one line each."""
    names = {"operands": 2, "gradients": 2, "within": 2, "total": 2, "traffic": 1}
    rows = [
        record
        | {name: record[name] / 1e9 for name in names}
        | {"chunk": record["chunk"] or "as chosen"}
        for record in records
    ]
    column = tables.Column
    listed = (
        column("divergence", "Divergence"),
        column("tokens", "Tokens", "integer"),
        column("name", "Contender"),
        column("chunk", "Tokens a chunk"),
        column("operands", "Operands, GB", "decimal", 2),
        column("gradients", "Gradients, GB", "decimal", 2),
        column("within", "Within, GB", "decimal", 2),
        column("total", "In all, GB", "decimal", 2),
        column("traffic", "Moved, GB", "decimal", 1),
    )
    return tables.markdown(tables.listing(rows, listed))


def measure(device: Any) -> list[dict[str, Any]]:
    """The records of all ways on one device."""
    shape = {"student_width": WIDTH, "teacher_width": WIDTH, "vocab": VOCAB, "dtype": DTYPE}
    records = []
    for divergence, tokens, (name, chunk) in itertools.product(DIVERGENCES, TOKENS, WAYS):
        task = {"divergence": divergence, "tokens": tokens, "name": name, "chunk": chunk}
        records.append(compiled(task | shape, device))
        print(
            f"{divergence}, {tokens} tokens, {name}, chunk {chunk or 'as chosen'}: "
            f"{records[-1]['total'] / 1e9:.2f} GB",
            flush=True,
        )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles all ways; returns the exit code, see `study.Program.run`."""
    program = study.Program("vocab_loss", "memory", huge_pages=False)
    parser = program.parser(__doc__)
    parser.add_argument("--target", default="gpu:h100:1", help="as of distill-jax plan")
    parser.add_argument("--publish", action="store_true")

    def work() -> int:
        arguments = parser.parse_args(argv)
        targets.prepare_process(arguments.target)  # before JAX is imported
        device = targets.open_target(arguments.target).devices[0]
        command = program.command([f"--target={arguments.target}", "--publish"])
        content = {
            "study": "vocab_loss_memory",
            "target": arguments.target,
            "records": measure(device),
            "versions": versions(),
            "date": datetime.date.today().isoformat(),
            "command": command,
            "git_revision": git_revision(),
        }
        folder = HERE / "results" if arguments.publish else pathlib.Path("runs/vocab_loss")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"memory-{arguments.target.replace(':', '-')}.json"
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        print(path)
        if arguments.publish:
            made = f"{content['date']}, jax {versions()['jax']}, by\n\n    {command}\n\n"
            block = made + table(content["records"]) + "\n"
            print(markers.fill(HERE / "README.md", lambda: block))
        return 0

    return program.run(work)


if __name__ == "__main__":
    sys.exit(main())
