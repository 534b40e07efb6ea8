"""Breaks the package's promises one at a time, to see that the tests of a push notice.

    python tests/mutations.py             # all, two at a time: about ten minutes
    python tests/mutations.py shuffle     # those whose name has the word

A mutation replaces a piece of the source in a copy of the repository and runs a few tests there,
none of them nightly, after they have passed without it. It survives if they pass, and exit code 1
says that some did: write a test. A piece that is no longer in the source is an error too: the
mutation is then to be written anew.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("distill_jax", "tests", "configs", "experiments", "docs", "README.md", "pyproject.toml")
SESSION = "distill_jax/runs/session.py"
RESUME = ("tests/runs/test_resume.py", "-k", "between_everything")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A broken promise.

    Attributes:
      name: what is broken.
      file: of the package.
      before: a piece of it, wherever it stands.
      after: what takes its place.
      tests: arguments of pytest.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def without_part(part: str) -> Mutation:
    """A checkpoint that has zeros for one part of the state."""
    zeros = f"jax.tree.map(lambda a: 0 * a, now.{part})"
    return Mutation(
        f"checkpoints leave out {part}",
        SESSION,
        "self.checkpoints.save(at, now, extra",
        f"self.checkpoints.save(at, __import__('dataclasses').replace(now, {part}={zeros}), extra",
        RESUME,
    )


PARTS = ("step", "params", "stats", "adapters", "memory", "optimizer", "average", "sums")
MUTATIONS = (
    *map(without_part, PARTS),
    Mutation(
        "checkpoints leave out the position in the data",
        SESSION,
        'extra.get("position", 0)',
        "0",
        RESUME,
    ),
    Mutation(
        "checkpoints leave out the best score",
        SESSION,
        '"best_score": history.best_score',
        '"best_score": None',
        ("tests/runs/test_resume.py", "-k", "best_score"),
    ),
    Mutation(
        "a checkpoint's SHA-256 is not compared",
        "distill_jax/training/checkpoints/integrity.py",
        "if layout.sha256(files[name]) != digest:",
        "if False:",
        ("tests/training/checkpoints/test_checkpoints_damage.py",),
    ),
    Mutation(
        "the worst validation score selects",
        SESSION,
        "score > self.history.best_score",
        "score < self.history.best_score",
        ("tests/runs",),
    ),
    Mutation(
        "the test split selects",
        "distill_jax/tasks/images/parts.py",
        'evaluator("validation", opened.train, opened.validation_ids, resident)',
        'evaluator("validation", opened.test, np.arange(len(opened.test)), {})',
        ("tests/runs", "tests/tasks/images"),
    ),
    Mutation(
        "no factor T^2",
        "distill_jax/losses/divergences.py",
        "scale = jnp.square(jnp.asarray(temperature, jnp.float32))",
        "scale = jnp.float32(1)",
        ("tests/losses/test_divergences.py",),
    ),
    Mutation(
        "no factor T^2 over a vocabulary",
        "distill_jax/losses/vocab/chunk.py",
        "ValueAndSlope(value * temperature**power, slope * temperature ** (power - 1))",
        "ValueAndSlope(value, slope / temperature)",
        ("tests/losses/vocab/test_vocab.py",),
    ),
    Mutation(
        "masked values count",
        "distill_jax/losses/reduction.py",
        "jnp.sum(jnp.where(where, values, 0.0))",
        "jnp.sum(values)",
        ("tests/losses/test_reduction.py",),
    ),
    Mutation(
        "the mean is over all tokens, not over those that are learned",
        "distill_jax/tasks/language/recipe.py",
        "jnp.maximum(jnp.sum(mask), 1.0)",
        "mask.size",
        ("tests/tasks/language/test_text_runs.py", "-k", "single_documents"),
    ),
    Mutation(
        "the mean is of each row, not of the global batch",
        "distill_jax/tasks/language/recipe.py",
        "jnp.maximum(jnp.sum(mask), 1.0)",
        "(len(mask) * jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0))",
        ("tests/tasks/language/test_text_runs.py", "-k", "single_documents"),
    ),
    Mutation(
        "packed documents see each other",
        "distill_jax/tasks/language/comparison.py",
        "positions=positions, segments=segments)",
        "positions=positions, segments=jnp.minimum(segments, 1))",
        ("tests/tasks/language/test_text_runs.py", "-k", "single_documents"),
    ),
    Mutation(
        "ids that pad a vocabulary count",
        "distill_jax/losses/vocab/shard.py",
        "return logits[:, : self.real]",
        "return logits",
        ("tests/losses/vocab/test_vocab.py",),
    ),
    Mutation(
        "a gradient reaches the teacher",
        "distill_jax/losses/divergences.py",
        "teacher_logits = jax.lax.stop_gradient(teacher_logits)",
        "teacher_logits = jnp.asarray(teacher_logits)",
        ("tests/losses/test_divergences.py",),
    ),
    Mutation(
        "the teacher is in training mode",
        "distill_jax/teachers/online.py",
        "train=False",
        "train=True, key=jax.random.key(0)",
        ("tests/training/test_step.py", "-k", "evaluation_mode"),
    ),
    Mutation(
        "the teacher sees another view than the student",
        "distill_jax/tasks/images/recipe.py",
        'teachers_on(inputs["images"])',
        'teachers_on(inputs["images"][:, :, ::-1])',
        ("tests/training/test_step.py", "-k", "same_view"),
    ),
    Mutation(
        "answers computed ahead are those of the next step",
        "distill_jax/tasks/images/recipe.py",
        "steps = state.step + jnp.arange(count)",
        "steps = state.step + 1 + jnp.arange(count)",
        ("tests/tasks/images/test_stored_views.py", "-k", "looking_ahead"),
    ),
    Mutation(
        "stored answers to other views are taken",
        "distill_jax/teachers/answers/manifest.py",
        "if value is not None and stored.get(name) != value:",
        "if value is not None and 'augment' not in name and stored.get(name) != value:",
        ("tests/tasks/images/test_stored_views.py", "-k", "nothing_else"),
    ),
    Mutation(
        "every epoch has the order of the first",
        "distill_jax/data/order.py",
        "return permutation(count, seed, epoch)",
        "return permutation(count, seed, 0)",
        ("tests/data/test_order.py",),
    ),
    Mutation(
        "dropout draws the same in every step",
        "distill_jax/training/step.py",
        "own_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.step))[1]",
        "own_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), 0))[1]",
        ("tests/runs/test_golden_curves.py",),
    ),
    Mutation(
        "the parts of a batch add up instead of averaging",
        "distill_jax/training/step.py",
        "a + b / recipe.accumulate",
        "a + b",
        ("tests/training/test_step.py", "-k", "accumulation"),
    ),
    Mutation(
        "label smoothing is ignored",
        "distill_jax/tasks/images/recipe.py",
        "label_smoothing=self.label_smoothing",
        "label_smoothing=0.0",
        ("tests/runs/test_golden_curves.py",),
    ),
    Mutation(
        "weight decay acts on biases too",
        "distill_jax/optim/optimizers.py",
        'kernels_only if config.decay_mask == "kernels" else None',
        "None",
        ("tests/optim/test_optimizers.py",),
    ),
    Mutation(
        "the moving average takes the decay for its complement",
        "distill_jax/training/recipe.py",
        "1.0 - self.ema_decay",
        "self.ema_decay",
        ("tests/training/test_step.py", "-k", "average"),
    ),
    Mutation(
        "the key-value cache is read one token short",
        "distill_jax/models/language/decoder.py",
        "cache.lengths + new",
        "cache.lengths + jnp.maximum(new - 1, 0)",
        ("tests/generation/test_decode.py", "-k", "greedy"),
    ),
    Mutation(
        "a model's weights are not compared with their hash",
        "distill_jax/models/files/model_folder.py",
        "if hashlib.sha256(weights).hexdigest() != weights_hash:",
        "if False:",
        ("tests/models/files/test_model_folder.py",),
    ),
    Mutation(
        "the weights of several teachers are ignored",
        "distill_jax/tasks/images/recipe.py",
        "total = total + weight * values",
        "total = total + values / len(answers)",
        ("tests/teachers/test_online.py",),
    ),
)


def run_tests(folder: pathlib.Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Runs some tests of a copy of the repository, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", "-rf"]
    command += ["-p", "no:cacheprovider", "-m", "not nightly", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("DISTILL_JAX_DATA", str(ROOT.parent / "shared" / "data"))
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def fails_unchanged(tests: tuple[str, ...]) -> str:
    """What pytest says if the tests fail without a mutation, which would prove nothing; else ""."""
    done = run_tests(ROOT, tests)
    return "" if done.returncode == 0 else f"{done.stdout[-1000:]}{done.stderr[-1000:]}"


def survives(mutation: Mutation) -> str:
    """What is wrong if no test fails under the mutation; else ""."""
    source = (ROOT / mutation.file).read_text()
    if mutation.before not in source:
        return "the piece is no longer in the source"
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for name in COPIED:
            path = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            if path.is_dir():
                shutil.copytree(path, copy / name, ignore=ignored)
            else:
                shutil.copy(path, copy)
        changed = source.replace(mutation.before, mutation.after)
        (copy / mutation.file).write_text(changed)
        done = run_tests(copy, mutation.tests)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 1 and failed:
        test = failed[0].removeprefix("FAILED ").partition(" - ")[0]
        print(f"| {mutation.name} | `{test}` |", flush=True)
        return ""
    if done.returncode == 0:
        return "it survives"
    return "the tests did not run:\n" + done.stdout[-2000:] + done.stderr[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("word", nargs="?", default="", help="part of the names of mutations")
    parser.add_argument("--jobs", type=int, default=2, help="mutations at a time")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if arguments.word in mutation.name]
    tests = list(dict.fromkeys(mutation.tests for mutation in chosen))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        broken = [said for said in pool.map(fails_unchanged, tests) if said]
        if broken:
            print("These fail without any mutation:", *broken, sep="\n")
            return 1
        found = list(pool.map(survives, chosen))
    wrong = [(m.name, said) for m, said in zip(chosen, found, strict=True) if said]
    for name, said in wrong:
        print(f"NOT CAUGHT: {name}: {said}")
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} mutations are caught")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
