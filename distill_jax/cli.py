"""The command line: one verb a function, which parses, calls and prints, and nothing else.

    distill-jax train  --config=FILE[:arg] --workdir=DIR [--config.key=value ...]
    distill-jax eval   --workdir=DIR [--split=test|validation] [--which=final|selected]
    distill-jax plan   --config=FILE[:arg] --target=tpu:v5p:4x4x4 [--search] [--out=FILE]
    distill-jax report --workdir=DIR
    distill-jax import FILE --model=NAME --classes=N --mean=R,G,B --std=R,G,B --workdir=DIR
    distill-jax store  --config=FILE[:arg] --workdir=DIR [--config.key=value ...]
    distill-jax generate --config=FILE[:arg] --workdir=DIR [--config.key=value ...]
    distill-jax export --workdir=DIR --out=DIR [--which=final|selected]

`train` and `eval` run in many processes too, each started by the same command (docs/hosts.md).

Exit codes: 0 done, or stopped by SIGTERM with the state saved; 1 the run failed, or does not fit
where it is planned; 2 a mistake in the command, the config or a path, said in one line. Many
processes end with the same code.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

from distill_jax import __version__, storage
from distill_jax.errors import UsageError
from distill_jax.processes import coordination, discovery
from distill_jax.storage import gcs

#: The verbs whose paths may lie in a bucket, gs://.
_BUCKETS = {
    "workdir": ("train", "eval", "plan", "report", "export", "import"),
    "out": ("plan", "export"),
    "file": (),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other mistake."""

    def error(self, message: str):
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="distill-jax", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"distill_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    train = verbs.add_parser("train", help="train a teacher, a baseline or a student; resumes")
    train.add_argument("--config", metavar="FILE[:ARG]", help="Python file with get_config()")
    train.add_argument("--workdir", help="folder of the run")
    train.add_argument("--help-config", action="store_true", help="print every key and exit")
    train.add_argument(
        "--print-config", action="store_true", help="print the resolved config, exit"
    )
    _add_hosts(train)
    evaluate = verbs.add_parser("eval", help="evaluate the student of a finished run")
    _add_hosts(evaluate)
    evaluate.add_argument("--workdir", required=True)
    evaluate.add_argument("--split", choices=("test", "validation"), default="test")
    evaluate.add_argument("--which", choices=("final", "selected"), default="final")
    plan = verbs.add_parser("plan", help="say whether a run fits chips, and how fast it can be")
    plan.add_argument("--config", metavar="FILE[:ARG]", required=True)
    plan.add_argument("--target", required=True, help="tpu:v5p:4x4x4, gpu:h100:8, local, ...")
    plan.add_argument("--search", action="store_true", help="rank meshes, remat, teacher dtypes")
    plan.add_argument("--workdir", help="folder for plan.json")
    plan.add_argument("--out", help="file for the JSON, in place of it")
    report = verbs.add_parser("report", help="write report.html of a run, finished or not")
    report.add_argument("--workdir", required=True)
    imported = verbs.add_parser("import", help="make a teacher of a PyTorch state dict")
    imported.add_argument("file", metavar="FILE")
    imported.add_argument("--model", required=True, help="which network the weights are of")
    imported.add_argument("--classes", type=int, required=True)
    imported.add_argument("--mean", required=True, metavar="R,G,B", help="of pixels in [0, 1]")
    imported.add_argument("--std", required=True, metavar="R,G,B", help="of pixels in [0, 1]")
    imported.add_argument("--image", default="32,32,3", metavar="H,W,C")
    imported.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    imported.add_argument("--workdir", required=True, help="new model folder")
    store = verbs.add_parser(
        "store", help="write a teacher's answers to all training data; resumes"
    )
    store.add_argument("--config", metavar="FILE[:ARG]", required=True, help="of the later runs")
    store.add_argument("--workdir", required=True, help="folder of the store")
    store.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="float16")
    store.add_argument("--taps", metavar="NAME,NAME", help="of images: pooled; '' for none")
    store.add_argument(
        "--answers", metavar="KIND:N", help="of text: sampled:50, or top_k:64, of each token"
    )
    generate = verbs.add_parser("generate", help="let a teacher answer prompts; resumes")
    generate.add_argument("--config", metavar="FILE[:ARG]", required=True)
    generate.add_argument("--workdir", required=True)
    export = verbs.add_parser("export", help="write a decoder for other libraries")
    export.add_argument("--workdir", required=True)
    export.add_argument("--format", choices=("huggingface",), default="huggingface")
    export.add_argument("--out", required=True, help="new folder")
    export.add_argument("--which", choices=("final", "selected"), default="final")
    return parser


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    """The flags of a run in many processes; texts, so that `hosts` words their errors."""
    group = parser.add_argument_group("many processes", "what SLURM, Open MPI and TPUs tell alone")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    group.add_argument("--num_processes", metavar="N", help="how many there are; 1: ask nobody")
    group.add_argument("--process_id", metavar="I", help="which this is, from 0")
    group.add_argument(
        "--host_timeout",
        metavar="SECONDS",
        default=str(coordination.HEARTBEAT_TIMEOUT),
        help="a process that is not heard of for so long ends all (%(default)s)",
    )
    group.add_argument(
        "--step_timeout",
        metavar="SECONDS",
        default=str(coordination.STEP_TIMEOUT),
        help="when no process goes on for so long, all end; 0: never (%(default)s)",
    )


def _join(arguments: argparse.Namespace) -> None:
    """Joins the other processes of the run, before JAX is used."""
    (timeout,) = _numbers("host_timeout", arguments.host_timeout, float)
    if not 1 <= timeout <= 86400:
        raise UsageError(f"--host_timeout={timeout:g}: expected seconds from 1 to 86400")
    (step_timeout,) = _numbers("step_timeout", arguments.step_timeout, float)
    if step_timeout and not 1 <= step_timeout <= 604800:
        raise UsageError(
            f"--step_timeout={step_timeout:g}: expected 0, or seconds from 1 to 604800"
        )
    how = discovery.discover(arguments.coordinator, arguments.num_processes, arguments.process_id)
    together = arguments.verb == "train"
    coordination.join(how, stop_together=together, timeout=timeout, step_timeout=step_timeout)


def _numbers(flag: str, said: str, kind: type) -> tuple:
    try:
        return tuple(kind(part) for part in said.split(","))
    except ValueError:
        raise UsageError(f"--{flag}={said}: expected numbers with commas between") from None


def _import(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax import config as configs
    from distill_jax import models

    if overrides:
        raise UsageError(f"--config.{next(iter(overrides))}: import takes no config keys")
    options = {}
    for said in arguments.option:
        name, equals, value = said.partition("=")
        if not equals:
            raise UsageError(f"--option={said}: expected NAME=VALUE, such as shortcut=pad")
        options[name] = configs.literal(value)
    spec = models.Spec(
        name=arguments.model,
        options=models.check_options(arguments.model, options),
        input_shape=_numbers("image", arguments.image, int),
        num_classes=arguments.classes,
        mean=_numbers("mean", arguments.mean, float),
        std=_numbers("std", arguments.std, float),
    )
    saved = models.load(arguments.file, spec=spec, key="import")
    if storage.is_remote(arguments.workdir) and gcs.list_names(arguments.workdir):
        raise UsageError(
            f"--workdir={arguments.workdir}: there are objects under this name; expected a new one"
        )
    with storage.staging_folder(arguments.workdir, "model.json") as folder:
        fingerprint = models.save(folder, spec, saved.params, saved.stats)
    found = {"model": arguments.model, "parameters": models.parameter_count(saved.params)}
    print(json.dumps({"path": str(arguments.workdir), **found, "fingerprint": fingerprint}))


def _store(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax import config as configs
    from distill_jax.commands import precompute

    config = configs.load(arguments.config, overrides)
    options = {name: getattr(arguments, name) for name in ("dtype", "answers")}
    if arguments.taps is not None:
        options["taps"] = tuple(name for name in arguments.taps.split(",") if name)
    print(json.dumps(precompute.write(config, arguments.workdir, **options)))


def _generate(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax import config as configs
    from distill_jax.commands import generate as generating

    teacher, settings = generating.settings_of(configs.read(arguments.config, overrides))
    print(json.dumps(generating.write(settings, teacher, arguments.workdir)))


def _export(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax.commands import export as exporting

    if overrides:
        raise UsageError(f"--config.{next(iter(overrides))}: export takes no config keys")
    print(json.dumps(exporting.write(arguments.workdir, arguments.out, arguments.which)))


def _plan(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    from distill_jax.planning import targets

    targets.prepare_process(arguments.target)  # before JAX is there
    from distill_jax import config as configs
    from distill_jax import planning

    config = configs.load(arguments.config, overrides)
    out = arguments.out
    if out is None and arguments.workdir is not None:
        out = arguments.workdir / "plan.json"
    chosen = planning.search if arguments.search else planning.check
    fits, text, content = chosen(config, targets.open_target(arguments.target))
    if out is not None:
        with storage.reporting_unreachable(out, "--out"):
            storage.make_folder(out.parent)
            out.write_text(json.dumps(content, indent=2) + "\n")
    print(text)
    return 0 if fits else 1


def _train(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax import config as configs  # here, so that --help needs no JAX
    from distill_jax.config import schema
    from distill_jax.runs import experiment
    from distill_jax.runs.workdir import Workdir

    if arguments.help_config:
        print(schema.describe())
        return
    if not arguments.print_config:
        _join(arguments)
    if arguments.config is not None:
        config = configs.load(arguments.config, overrides)
    elif arguments.workdir is not None:
        with storage.reporting_unreachable(arguments.workdir, "--workdir"):
            config = Workdir(arguments.workdir).stored_config()
        if config is None:
            raise UsageError(f"--workdir={arguments.workdir}: no run to resume; expected --config")
        config = configs.resolve(configs.apply_overrides(config, overrides))
    else:
        raise UsageError(
            "distill-jax train: expected --config=FILE, or --workdir of a run to resume"
        )
    if arguments.print_config:
        print(configs.to_json(config), end="")
        return
    if arguments.workdir is None:
        raise UsageError("train: expected --workdir=DIR, the folder of the run")
    result = experiment.run(config, arguments.workdir)
    final = result.values["final"]
    _print_once(json.dumps({"workdir": str(result.workdir), **experiment.headline(final["test"])}))


def _evaluate(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    _join(arguments)
    from distill_jax import reports
    from distill_jax.runs import experiment

    values = experiment.evaluate(arguments.workdir, arguments.split, arguments.which, overrides)
    _print_once(reports.metrics_text(values))


def _print_once(text: str) -> None:
    if coordination.is_first():
        print(text)


def _report(arguments: argparse.Namespace, overrides: dict[str, str]) -> None:
    from distill_jax import reports
    from distill_jax.runs.workdir import Workdir

    if overrides:
        raise UsageError(f"--config.{next(iter(overrides))}: report takes no config keys")
    with storage.reporting_unreachable(arguments.workdir, "--workdir"):
        stored = Workdir(arguments.workdir).stored_config()
    if stored is None:
        raise UsageError(f"--workdir={arguments.workdir}: no run there; expected a config.json")
    print(reports.run_report(arguments.workdir))


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.key=value` out of the arguments."""
    rest, overrides = [], {}
    for argument in argv:
        if argument.startswith("--config."):
            path, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals or not path:
                raise UsageError(f"{argument}: expected --config.key=value")
            overrides[path] = value
        else:
            rest.append(argument)
    return rest, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    try:
        rest, overrides = _split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _parser().parse_args(rest)
        for name, key in (("workdir", "--workdir"), ("out", "--out"), ("file", "FILE")):
            if getattr(arguments, name, None) is not None:
                path = (
                    storage.resolve_path if arguments.verb in _BUCKETS[name] else storage.local_path
                )
                setattr(arguments, name, path(getattr(arguments, name), key))
        run = {
            "train": _train,
            "eval": _evaluate,
            "plan": _plan,
            "report": _report,
            "import": _import,
            "store": _store,
            "generate": _generate,
            "export": _export,
        }
        code = run[arguments.verb](arguments, overrides) or 0
        coordination.leave()
        return code
    except UsageError as error:
        return _ended(2, f"distill-jax: error: {error}")
    except Exception as error:
        return _failed(error)
    except KeyboardInterrupt:
        coordination.abort(1, "distill-jax: failed: interrupted")
        raise


def _failed(error: Exception) -> int:
    """One line and the exit code for what a run is known to end with; re-raises a defect."""
    from distill_jax.training import checkpoints, loop

    if isinstance(error, loop.Preempted):
        if coordination.is_first():
            print("distill-jax: stopped by SIGTERM; the same command resumes", file=sys.stderr)
        coordination.leave()
        return 0
    if coordination.is_distributed() and _of_devices(error):
        gone = coordination.find_lost_process()
        if gone is not None:
            reason = f"lost process {gone} of {coordination.process_count()}"
            coordination.abort(1, coordination.failure_line(reason))
    known = (
        loop.Diverged,
        checkpoints.CheckpointError,
        coordination.CoordinationError,
        gcs.BucketError,
    )
    if isinstance(error, known):
        return _ended(1, f"distill-jax: failed: {error}")
    if coordination.is_distributed():
        traceback.print_exc()
        said = " ".join(str(error).split())[:300]
        name = f"process {coordination.process_index()} of {coordination.process_count()}"
        coordination.abort(1, f"distill-jax: failed: {name}: {type(error).__name__}: {said}")
    raise error


def _of_devices(error: BaseException | None) -> bool:
    """Whether a computation on the devices has failed, by itself or as the cause of another."""
    import jax

    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _ended(code: int, line: str) -> int:
    """Says why a run ends; of many processes ends all of them."""
    coordination.abort(code, line)
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
