"""The formats of `distill-jax export`, and the writing of a folder in one of them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.config.schema import IMAGES, TEXT
from distill_jax.errors import UsageError, unknown
from distill_jax.provenance import card
from distill_jax.quantization import recipes
from distill_jax.runs.export import (
    cards,
    gguf,
    huggingface,
    pixels,
    quantized,
    source,
    state_dict,
)
from distill_jax.storage import (
    gcs,
    holding,
    is_remote,
    replacing_folder,
    resolve_path,
    staging_folder,
)


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of an export.

    Attributes:
      kinds: the kinds of data whose models it holds, TEXT and IMAGES.
      write: (source, folder, options) -> what the command prints of it. It writes the files into
        the folder, which is empty, and raises UsageError for a model that it cannot hold. Where
        there is a `suffix`, it writes one new file of the name `options["name"]`. The
        options are those of the command that are no key of `write` below, and "licence", the name
        of the model's own or "unknown".
      last: the file that a reader of the folder requires; "" where the export is one file.
      suffix: of the file that the export is, such as ".gguf"; "" where it is a folder.
      library: that reads the folder, as the Hub names it in a card.
    """

    kinds: tuple[str, ...]
    write: Callable[[source.Source, pathlib.Path, Mapping[str, Any]], dict[str, Any]]
    last: str
    suffix: str = ""
    library: str = dataclasses.field(default="distill_jax", kw_only=True)


_OF_FILES = frozenset(("type",))  # options of formats that are one file

#: By name; the first one of a kind is its default.
FORMATS = {
    "huggingface": Format((TEXT,), huggingface.write, "config.json", library="transformers"),
    "gguf": Format((TEXT,), gguf.write, "", ".gguf"),
    "compressed-tensors": Format(
        (TEXT,), quantized.write_text, "config.json", library="transformers"
    ),
    "safetensors": Format((IMAGES,), state_dict.write_safetensors, "model.json"),
    "npz": Format((IMAGES,), state_dict.write_npz, "model.json"),
    "quantized": Format((IMAGES,), quantized.write_images, "model.json"),
    "stablehlo": Format((IMAGES,), pixels.write_stablehlo, "model.json", library="jax"),
    "onnx": Format((IMAGES,), pixels.write_onnx, "model.json", library="onnx"),
}


def write(
    path: str | os.PathLike,
    out: str | os.PathLike,
    which: str,
    form: str | None = None,
    *,
    licence: str = "",
    teacher_permits: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Writes the student of a finished run, or an imported model, for other libraries.

    Args:
      path: the workdir, or the folder of a model without a run.
      out: the folder to write, a new or an empty one, or the new file.
      which: "final" (the last step) or "selected" (best on the validation split).
      form: of `FORMATS`; None for the first one of the model's kind.
      licence: name of the model's own licence, for its card; "" for that of the weights that it
        began with.
      teacher_permits: whether the user states that the owner of a teacher permits to train other
        models on its outputs, where its licence forbids it and its run has no such statement.
      **options: of the format.

    Returns:
      {"path", "format"} and what the format reports.

    Raises:
      UsageError: there is no such model, its run has not finished, the format does not hold it, the
        folder or file exists, an option is not of the format, or the licence of a teacher forbids
        such a student.
    """
    target = resolve_path(out, "--out")
    if form in FORMATS and FORMATS[form].suffix:
        _check_file(target, FORMATS[form].suffix)
    with holding(target, "--out", beside=True):
        found = source.find(path, which)
        chosen = _format_of(found, form)
        options = {name: value for name, value in options.items() if value is not None}
        if options.get("recipe") and chosen != quantized.form_of(found):
            raise UsageError(
                f"--recipe={options['recipe']}: has no meaning with --format={chosen}; expected "
                f"--format={quantized.form_of(found)}"
            )
        made_from = cards.models_of(found, permits=teacher_permits)
        own = {"licence": licence or card.own_licence(made_from) or "unknown"}
        if FORMATS[chosen].suffix:
            written = _write_file(found, chosen, target, options | own)
            return {"path": str(target), "format": chosen, **written}
        for name in options.keys() & _OF_FILES:
            raise UsageError(f"--{name}={options[name]}: has no meaning for --format={chosen}")
        _refuse_existing(target)
        with (
            staging_folder(target, FORMATS[chosen].last) as staging,
            replacing_folder(staging, _any_file, "an export", "--out") as folder,
        ):
            written = FORMATS[chosen].write(found, folder, options | own)
            cards.write(
                found,
                folder,
                form=chosen,
                library=FORMATS[chosen].library,
                made_from=made_from,
                licence=licence,
                written=written,
            )
    return {"path": str(target), "format": chosen, **written}


def _write_file(
    found: source.Source, chosen: str, target: pathlib.Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes an export that is one file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return FORMATS[chosen].write(found, target.parent, {**options, "name": target.name})


def _check_file(target: pathlib.Path, suffix: str) -> None:
    """UsageError for a file that cannot be written."""
    if is_remote(target) or target.suffix != suffix:
        raise UsageError(f"--out={target}: expected a new file on a disk that ends in {suffix}")
    if target.exists():
        raise UsageError(f"--out={target}: exists; expected a new file")


def write_quantized(
    path: str | os.PathLike,
    out: str | os.PathLike,
    which: str,
    recipe: str,
    *,
    calibration: str | os.PathLike | None = None,
    calibration_rows: int | None = None,
) -> dict[str, Any]:
    """Rounds matrices of a model to few bits; see `write` and `quantized`.

    Args:
      path: as of `write`, as are `out` and `which`.
      out: the folder to write.
      which: model of a run.
      recipe: what is rounded to what, see `quantization.recipes.parse`.
      calibration: a file of text for GPTQ, of decoders alone; None for the nearest codes.
      calibration_rows: how many rows of it; None for `calibration.ROWS`.
    """
    recipes.parse(recipe, "--recipe")
    found = source.find(path, which)
    if calibration is None and calibration_rows is not None:
        raise UsageError(
            f"--calibration-rows={calibration_rows}: has no meaning without --calibration=FILE"
        )
    if calibration is not None and found.kind != TEXT:
        raise UsageError(
            f"--calibration={calibration}: --workdir={found.root} is of images, whose kernels get "
            "their nearest codes; expected no calibration"
        )
    chosen: dict[str, Any] = {
        "recipe": recipe,
        "calibration": calibration,
        "calibration_rows": calibration_rows,
    }
    return write(path, out, which, quantized.form_of(found), **chosen)


def _format_of(found: source.Source, form: str | None) -> str:
    """The format to write; UsageError where it is for the other kind of data."""
    fitting = [name for name, each in FORMATS.items() if found.kind in each.kinds]
    if form is not None and form not in FORMATS:
        raise unknown("--format", form, fitting, "format")
    if form is not None and form not in fitting:
        raise UsageError(
            f"--format={form}: --workdir={found.root} is of {found.kind}; expected "
            + " or ".join(fitting)
        )
    return form or fitting[0]


def _refuse_existing(target: pathlib.Path) -> None:
    """UsageError where the folder to write has something in it already."""
    if is_remote(target):
        if gcs.list_names(target):
            raise UsageError(
                f"--out={target}: there are objects under this name; expected a new folder"
            )
    elif target.exists() and not (target.is_dir() and not os.listdir(target)):
        held = f"holds {sorted(os.listdir(target))[0]!r}" if target.is_dir() else "is a file"
        raise UsageError(f"--out={target}: exists and {held}; expected a new folder")


def _any_file(name: str) -> bool:
    """The target is new: whatever lies in its hidden predecessors, a killed export wrote."""
    return True
