"""The model that an export writes: found, finished, and the very one of its run."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any, Literal

from distill_jax.config.schema import IMAGES, TEXT
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.runs.workdir import Workdir
from distill_jax.storage import resolve_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A saved model, of a finished run or without a run.

    Attributes:
      root: the workdir, or the folder of the model itself, such as an imported one.
      folder: of the saved model.
      kind: of its data, TEXT or IMAGES.
      manifest: the content of manifest.json; {} without a run.
      result: the entry of the model in result.json; {} without a run.
    """

    root: pathlib.Path
    folder: pathlib.Path
    kind: Literal["text", "images"]
    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)

    def open_tokenizer(self) -> text.Tokenizer:
        """The tokenizer that the model was trained with; its `path` names folder or file.

        Raises:
          UsageError: there is none, or another one lies there now.
        """
        if not self.manifest:
            return text.load_tokenizer(self.folder, key="--workdir")
        known = self.manifest["data"].get("tokenizer")
        if not isinstance(known, dict) or not {"path", "fingerprint"} <= known.keys():
            raise UsageError(
                f"--workdir={self.root}: manifest.json names no tokenizer; expected one"
            )
        file = resolve_path(known["path"], "data.tokenizer")
        tokenizer = text.load_tokenizer(file)
        if tokenizer.fingerprint != known["fingerprint"]:
            raise UsageError(
                f"data.tokenizer={str(file)!r}: another tokenizer than the run began with "
                f"(fingerprint {tokenizer.fingerprint[:12]}); expected {known['fingerprint'][:12]}"
            )
        return tokenizer


def find(path: str | os.PathLike, which: str) -> Source:
    """The model of a finished run, or one without a run.

    Args:
      path: the workdir, or the folder of an imported network or of a Hugging Face decoder.
      which: "final" (the last step) or "selected" (best on the validation split).

    Raises:
      UsageError: there is no such model, its run has not finished, or it is another one than the
        run saved.
    """
    paths = Workdir(resolve_path(path, "--workdir"))
    if kind := kind_without_run(paths):
        if which != "final":
            raise UsageError(f"--which={which}: an imported model is one; expected final")
        return Source(root=paths.root, folder=paths.root, kind=kind)
    config = paths.required_config()
    if not paths.result.exists():
        raise UsageError(
            f"--workdir={paths.root}: the run has not finished; expected a result.json"
        )
    result = paths.read_result()[which]
    if result is None:
        raise UsageError(f"--which={which}: the run held nothing out to select on; expected final")
    if note := paths.check_saved_model(which):
        print(f"WARNING: {note}", file=sys.stderr, flush=True)
    return Source(
        root=paths.root,
        folder=paths.saved_model(which),
        kind=TEXT if config.data.name == TEXT else IMAGES,
        manifest=paths.read_manifest(),
        result=result,
    )


def kind_without_run(paths: Workdir) -> Literal["text", "images"] | None:
    """What a folder is a model of that no run of ours made here; None for a workdir."""
    if paths.config.exists():
        try:
            found = json.loads(paths.config.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return TEXT if isinstance(found, dict) and "model_type" in found else None
    return IMAGES if (paths.root / "model.json").exists() else None
