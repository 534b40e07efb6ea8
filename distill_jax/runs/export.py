"""A trained decoder for other libraries: what `distill-jax export` does."""

import os
import pathlib
import sys
from typing import Any

from distill_jax.config.schema import TEXT
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language.huggingface.writing import TOKENIZER
from distill_jax.runs import export_images
from distill_jax.runs.workdir import Workdir
from distill_jax.storage import gcs, holding, is_remote, resolve_path, staging_folder


def write(
    path: str | os.PathLike, out: str | os.PathLike, which: str, form: str | None = None
) -> dict[str, Any]:
    """Writes the student of a finished run for other libraries.

    Args:
      path: the workdir, or the folder of an imported image model.
      out: the folder to write; a new one, or one that holds an export and nothing else.
      which: "final" (the last step) or "selected" (best on the validation split).
      form: "huggingface" of text, or of images one of `export_images.FORMATS`; None for the first.

    Returns:
      Of text {"path", "family", "parameters_sha256", "tokenizer"}: the folder, the decoder's
      family, the hash in the result, and the tokenizer's files; of images as
      `export_images.write`.

    Raises:
      UsageError: there is no such run, it has not finished, the format is of the other kind of
        data, or the folder holds something else.
    """
    paths = Workdir(resolve_path(path, "--workdir"))
    target = resolve_path(out, "--out")
    with holding(target, "--out", beside=True):
        return _write(paths, target, which, form)


def _write(paths: Workdir, target: pathlib.Path, which: str, form: str | None) -> dict[str, Any]:
    """As `write`, to a folder that this process holds."""
    if (paths.root / "model.json").exists() and not paths.config.exists():
        if which != "final":
            raise UsageError(f"--which={which}: an imported model is one; expected final")
        return export_images.write(paths.root, target, _image_format(form, paths))
    if paths.required_config().data.name != TEXT:
        form = _image_format(form, paths)
        _finished_result(paths, which)
        if note := paths.check_saved_model(which):
            print(f"WARNING: {note}", file=sys.stderr, flush=True)
        return export_images.write(paths.saved_model(which), target, form)
    if form not in (None, "huggingface"):
        raise UsageError(f"--format={form}: --workdir={paths.root} is a run on text; expected none")
    result = _finished_result(paths, which)
    if is_remote(target) and gcs.list_names(target):
        raise UsageError(
            f"--out={target}: there are objects under this name; expected a new folder"
        )
    if note := paths.check_saved_model(which):
        print(f"WARNING: {note}", file=sys.stderr, flush=True)
    model = language.load(paths.saved_model(which), key="--workdir")
    known = paths.read_manifest()["data"].get("tokenizer")
    if not isinstance(known, dict) or not {"path", "fingerprint"} <= known.keys():
        raise UsageError(f"--workdir={paths.root}: manifest.json names no tokenizer; expected one")
    file = resolve_path(known["path"], "data.tokenizer")
    tokenizer = text.load_tokenizer(file)
    if tokenizer.fingerprint != known["fingerprint"]:
        raise UsageError(
            f"data.tokenizer={str(file)!r}: another tokenizer than the run began with (fingerprint "
            f"{tokenizer.fingerprint[:12]}); expected {known['fingerprint'][:12]}"
        )
    tokenizer_files = _read_tokenizer_files(file)
    with staging_folder(target, "config.json") as folder:
        language.save(
            folder,
            model,
            extra_config={
                f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")
            },
            extra_files=tokenizer_files,
            identity=result["parameters_sha256"],
            key="--out",
        )
    return {
        "path": str(target),
        "family": model.config.family,
        "parameters_sha256": result["parameters_sha256"],
        "tokenizer": sorted(tokenizer_files),
    }


def _image_format(form: str | None, paths: Workdir) -> str:
    form = form or export_images.FORMATS[0]
    if form not in export_images.FORMATS:
        raise UsageError(
            f"--format={form}: --workdir={paths.root} is of images; expected "
            + " or ".join(export_images.FORMATS)
        )
    return form


def _finished_result(paths: Workdir, which: str) -> dict[str, Any]:
    """The entry of a model in result.json; UsageError where there is no such model."""
    if not paths.result.exists():
        raise UsageError(
            f"--workdir={paths.root}: the run has not finished; expected a result.json"
        )
    result = paths.read_result()[which]
    if result is None:
        raise UsageError(f"--which={which}: the run held nothing out to select on; expected final")
    return result


def _read_tokenizer_files(file: pathlib.Path) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer; {} for one of another format."""
    if file.name not in TOKENIZER:
        return {}
    files = (file.parent / name for name in TOKENIZER)
    return {path.name: path.read_bytes() for path in files if path.is_file()}
