"""The report of one run: report.html, made from the files of its workdir.

Only files are read, so a report can be made on any machine, of a run that has finished, is still
training or was interrupted. Left out on purpose: comparing runs, which is the task of a study.
"""

import io
import json
import os
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.errors import UsageError
from distill_jax.reports import curves, figures, html, language, predictions, tables
from distill_jax.reports.tables import Column, lookup
from distill_jax.storage import reporting_unreachable, resolve_path, sealed, write_atomically
from distill_jax.training.logging import writers

SPEED = {
    "examples_per_second": ("Examples per second", 1.0),
    "step_time_s": ("Step time (ms)", 1e3),
    "device_memory_bytes": ("Peak device memory (MiB)", 2.0**-20),
    "host_memory_bytes": ("Peak host memory (MiB)", 2.0**-20),
}

RECORD = "evaluation/test.npz"


def run_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into a workdir, atomically.

    Args:
      workdir: the folder of a run, with at least config.json. The page shows those of
        manifest.json, result.json, metrics.jsonl and performance.jsonl that exist. The metrics of a
        split in result.json may have "reliability" and "teacher_reliability" {"count",
        "confidence", "accuracy"} (per bin), "confusion" [K, K], and "samples" of written answers;
        manifest.json may have data.class_names.

    Returns:
      The path of the page.

    Raises:
      UsageError: config.json is missing, or a file is damaged.
    """
    folder = resolve_path(workdir, "--workdir")
    with reporting_unreachable(folder, "--workdir"):
        config = _read_json(folder / "config.json")
    if config is None:
        raise UsageError(f"--workdir={folder}: no run there; expected a config.json")
    manifest = _read_json(folder / "manifest.json") or {}
    result = _read_result(folder, manifest)
    metrics = _read_log(folder / "metrics.jsonl")
    performance = _read_log(folder / "performance.jsonl")

    shown = _shown_figures(result, metrics)
    record = _read_record(folder) if result else None
    sections = [
        _summary(result, metrics),
        _notes(manifest, result),
        *_predictions(record, result, manifest),
        _curves(metrics, performance, lookup(config, "training.batch_size")),
        _calibration(shown),
        _answers(result, metrics),
        _speed(performance),
        _settings(config, manifest),
    ]
    page = html.page(
        f"{lookup(config, 'student.name')} on {lookup(config, 'data.name')}",
        [section for section in sections if section is not None],
        subtitle=_subtitle(config, manifest, result, metrics),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def _read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; None if there is no file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--workdir={path.parent}: cannot read {path.name}: {error}") from None


def _read_result(folder: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of result.json; None for a run that has not finished.

    Raises:
      UsageError: it is damaged, was changed or is of another run, or the metrics were changed.
    """
    values = _read_json(folder / "result.json")
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UsageError(f"--workdir={folder}: result.json holds no object")
    faults = {"result.json": sealed.broken(values, run=manifest.get("run"))}
    for name in ("metrics.jsonl", "performance.jsonl", RECORD):
        content = (folder / name).read_bytes() if (folder / name).exists() else None
        if name == RECORD and content is None:
            continue  # the page does without it
        faults[name] = sealed.changed_file(values, name, content)
    for name, fault in faults.items():
        if fault:
            raise UsageError(f"--workdir={folder}: {name} {fault}; expected the run's own")
    return sealed.without(values)


def _read_record(folder: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays of evaluation/test.npz; None where there is no such file."""
    if not (folder / RECORD).exists():
        return None
    try:
        with np.load(io.BytesIO((folder / RECORD).read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise UsageError(f"--workdir={folder}: cannot read {RECORD}: {error}") from None


def _read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    return writers.read(path) if path.exists() else []


def _last_step(metrics: list[dict[str, Any]]) -> int:
    return max((record["step"] for record in metrics), default=0)


def _last_validation(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return next((r for r in reversed(metrics) if r["split"] == "validation"), {})


def _shown_figures(result: dict[str, Any] | None, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics to draw: the final test metrics, or an unfinished run's last evaluation."""
    return result["final"]["test"] if result else _last_validation(metrics)


def _subtitle(
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    metrics: list[dict[str, Any]],
) -> str:
    teachers = [
        str(teacher.get("model") or pathlib.PurePath(str(teacher.get("path"))).name)
        for teacher in manifest.get("teachers", [])
    ]
    teachers = teachers or list(lookup(config, "teacher.path") or ())
    steps = result["steps"] if result else _last_step(metrics)
    parts = [
        f"Method {lookup(config, 'method.name')}",
        f"teacher {', '.join(teachers)}" if teachers else "no teacher",
        f"seed {lookup(config, 'seed')}",
        *([str(result["device"])] if result else []),
        f"{steps:,} steps" if result else f"not finished: {steps:,} steps so far",
    ]
    return " · ".join(parts)


def _summary(result: dict[str, Any] | None, metrics: list[dict[str, Any]]) -> html.Section:
    if result is None:
        validation = _last_validation(metrics)
        if not validation:
            return "Result", ["The run has not been evaluated yet."]
        rows = {
            f"Student at step {validation['step']:,}": validation,
            "Teacher": tables.teacher_metrics(validation),
        }
        return "Result so far", [
            html.facts(_facts("Validation", validation)),
            _evaluation(rows, "Validation split, last evaluation."),
        ]
    test = result["final"]["test"]
    tiles = [
        *_facts("Test", test),
        ("Parameters", f"{result['parameters']:,}"),
        ("Training time", _time(result["training_time_s"])),
    ]
    blocks: list[html.Block] = [html.facts(tiles)]
    for split, caption in (("test", "Test split"), ("validation", "Validation split")):
        rows = {"Student, last step": result["final"].get(split)}
        if result.get("selected"):
            label = f"Student, best on validation (step {result['selected']['step']:,})"
            rows[label] = result["selected"].get(split)
        last = rows["Student, last step"]
        if last:
            rows["Teacher"] = tables.teacher_metrics(last)
            blocks.append(_evaluation(rows, f"{caption}, {tables.count_text(last)}."))
    return "Result", blocks


def _notes(manifest: Mapping[str, Any], result: Mapping[str, Any] | None) -> html.Section | None:
    """What may make the figures wrong, or not comparable."""
    lines = [*(manifest.get("notes") or ()), *((result or {}).get("notes") or ())]
    return ("To be read with the figures", list(map(str, lines))) if lines else None


def _facts(split: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The tiles of one evaluation, (label, value), for the metrics that it measured."""
    tiles = [
        (f"{split} accuracy", "accuracy", "{:.2%}"),
        (f"{split} errors", "errors", "{:,}"),
        ("NLL", "nll", "{:.4f}"),
        ("Perplexity", "perplexity", "{:.4g}"),
        ("ROUGE-L", "rouge_l", "{:.2%}"),
        ("Exact match", "exact_match", "{:.2%}"),
        ("KL to the teacher", "kl", "{:.4f}"),
        ("Calibration error", "ece", "{:.2%}"),
        ("Agreement with teacher", "agreement", "{:.2%}"),
    ]
    return [
        (label, template.format(values[key]))
        for label, key, template in tiles
        if values.get(key) is not None
    ]


def _time(seconds: float) -> str:
    """Such as "75.2 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _evaluation(rows: Mapping[str, Mapping[str, Any]], caption: str) -> html.Markup:
    table = tables.evaluation({label: values for label, values in rows.items() if values})
    return html.table(table.rows, table.columns, caption=caption)


def _curves(
    metrics: list[dict[str, Any]], performance: list[dict[str, Any]], batch_size: int | None
) -> html.Section | None:
    panel = curves.panel(metrics, performance, batch_size=batch_size)
    if panel is None:
        return None
    text = (
        "Training figures are means between two lines of the log; smoothing draws a moving average "
        "over the raw values, which stay visible."
    )
    if max(len(metrics), len(performance)) > curves.MOST_LINES:
        text += f" Of logs of more than {curves.MOST_LINES:,} lines, every n-th line is drawn."
    return "Learning curves", [text, panel]


def _predictions(
    record: dict[str, np.ndarray] | None,
    result: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> list[html.Section]:
    """What the record of the run shows, or one line about why there is none."""
    if record is not None and result is not None:
        if "rows" in record:
            return language.sections(record)
        return predictions.sections(record, result["final"]["test"])
    if result is None:
        reason = "The run writes its predictions at its end."
    else:
        reason = f"{RECORD} is not there: an earlier version ran it, or the file was removed."
        if not result["final"].get("test"):
            reason = "The run had no test split."
    title = "Dark knowledge" if manifest.get("teachers") else "Predictions"
    return [(title, [f"Single predictions are not shown. {reason}"])]


def _calibration(shown: Mapping[str, Any]) -> html.Section | None:
    keys = {"Student": "reliability", "Teacher": "teacher_reliability"}
    bins = {label: shown[key] for label, key in keys.items() if shown.get(key)}
    if not bins:
        return None
    drawing = html.Drawing(
        figures.reliability_diagram(bins),
        "Accuracy against confidence in equal bins. On the dashed line both are equal; "
        "bars below it are overconfident. Dots mark each bin's mean confidence; below, the number "
        "of predictions in each bin.",
    )
    return "Calibration", [drawing]


def _answers(result: dict[str, Any] | None, metrics: list[dict[str, Any]]) -> html.Section | None:
    """The first prompts of each split whose prompts were answered, and what was on-policy."""
    blocks: list[html.Block] = list(filter(None, [language.on_policy(metrics)]))
    for split in ("test", "validation"):
        samples = (lookup(result or {}, f"final.{split}") or {}).get("samples") or ()
        if samples:
            blocks += language.answers(samples, split)
    return ("Answers", blocks) if blocks else None


def _speed(performance: list[dict[str, Any]]) -> html.Section | None:
    rows = []
    for key, (label, factor) in SPEED.items():
        values = [r[key] * factor for r in performance if r.get(key) is not None]
        if values:
            row = {"quantity": label, "median": statistics.median(values)}
            rows.append(row | {"low": min(values), "high": max(values)})
    if not rows:
        return None
    columns = [
        Column("quantity", "Quantity"),
        Column("median", "Median", "general", 4),
        Column("low", "Smallest", "general", 4),
        Column("high", "Largest", "general", 4),
    ]
    caption = "Over the lines of performance.jsonl; the first includes compilation."
    return "Speed", [html.table(rows, columns, caption=caption)]


def _settings(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> html.Section:
    blocks: list[html.Block] = [html.details("Every key of the config", _key_table(config))]
    if manifest:
        others = {key: value for key, value in manifest.items() if key != "config"}
        blocks.append(html.details("Versions, devices, inputs and command", _key_table(others)))
    return "Settings", blocks


def _key_table(values: Mapping[str, Any]) -> html.Markup:
    rows = [{"key": key, "value": value} for key, value in _flat(values)]
    return html.table(rows, [Column("key", "Key"), Column("value", "Value")])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, json.dumps(value, ensure_ascii=False)))
    return pairs
