"""A trained decoder for other libraries: what `distill-jax export` does."""

import os
from typing import Any

from distill_jax.config.schema import TEXT
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language.huggingface.writing import TOKENIZER
from distill_jax.runs.workdir import Workdir, read_json
from distill_jax.storage import gcs, is_remote, reporting_unreachable, resolve_path, staging_folder


def write(where: str | os.PathLike, out: str | os.PathLike, which: str) -> dict[str, Any]:
    """Writes the student of a finished run on text, with its tokenizer, as a Hugging Face folder.

    Args:
      where: the workdir.
      out: the folder to write; a new one, or one that holds a checkpoint and nothing else.
      which: "final" (the last step) or "selected" (chosen on the validation split).

    Returns:
      {"path", "family", "parameters_sha256", "tokenizer"}: what was written, by the hash of the
      result.

    Raises:
      UsageError: there is no such run, it is not of text or has not finished, or the folder holds
        something else.
    """
    paths, out = Workdir(resolve_path(where, "--workdir")), resolve_path(out, "--out")
    with reporting_unreachable(paths.root, "--workdir"):
        config = paths.saved_config()
    if config is None:
        raise UsageError(f"--workdir={where}: no run there; expected a config.json")
    if config.data.name != TEXT:
        raise UsageError(
            f"--workdir={where}: a run on images; expected one with data.name={TEXT!r}"
        )
    if not paths.result.exists():
        raise UsageError(f"--workdir={where}: the run has not finished; expected a result.json")
    result = read_json(paths.result)[which]
    if result is None:
        raise UsageError(f"--which={which}: the run held nothing out to select on; expected final")
    if is_remote(out) and gcs.list_names(out):
        raise UsageError(f"--out={out}: there are objects under this name; expected a new folder")
    model = language.load(paths.saved_model(which), key="--workdir")
    file = resolve_path(read_json(paths.manifest)["data"]["tokenizer"]["path"], "data.tokenizer")
    tokenizer = text.load_tokenizer(file)
    beside = {}
    if file.name in TOKENIZER:
        beside = {
            name: (file.parent / name).read_bytes()
            for name in TOKENIZER
            if (file.parent / name).is_file()
        }
    extra = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    with staging_folder(out, "config.json") as folder:
        language.save(folder, model, extra_config=extra, extra_files=beside, key="--out")
    return {
        "path": str(out),
        "family": model.config.family,
        "parameters_sha256": result["parameters_sha256"],
        "tokenizer": sorted(beside),
    }
