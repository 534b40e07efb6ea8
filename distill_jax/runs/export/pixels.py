"""An image model as a function of raw pixels: StableHLO by `jax.export`, and ONNX.

The exported function takes uint8 [batch, H, W, C], levels from 0 to 255 with the channels last,
scales and normalises them as the model was trained, and returns float32 logits [batch, K]; `batch`
is free. model.json states this, the classes and the network. Resizing and cropping stay outside.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import models
from distill_jax.data.images import augment
from distill_jax.models.files import onnx_graph
from distill_jax.runs.export.source import Source

INPUT, OUTPUT = "pixels", "logits"
STABLEHLO, ONNX = "model.stablehlo", "model.onnx"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    source: Source, folder: pathlib.Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes model.stablehlo, which `jax.export.deserialize` reads, and model.json."""
    del options
    saved = models.load(source.folder, key="--workdir")
    exported = jax.export.export(jax.jit(_network(saved)), platforms=PLATFORMS)(_argument(saved))
    content = exported.serialize()
    (folder / STABLEHLO).write_bytes(content)
    about = {
        "file": STABLEHLO,
        "read_by": "jax.export.deserialize(open('model.stablehlo', 'rb').read()).call(pixels)",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    return _describe(saved, folder, about, len(content))


def write_onnx(source: Source, folder: pathlib.Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Writes model.onnx, which onnxruntime reads, and model.json."""
    onnx_graph.require("--format=onnx")
    saved = models.load(source.folder, key="--workdir")
    metadata = {
        "fingerprint": saved.fingerprint,
        "licence": str(options["licence"]),
        "class_names": json.dumps(list(saved.spec.class_names)),
        "mean": json.dumps(list(saved.spec.mean)),
        "std": json.dumps(list(saved.spec.std)),
        "normalisation": "in the graph: (pixels / 255 - mean) / std",
    }
    content = onnx_graph.model(
        _network(saved),
        _argument(saved),
        names=(INPUT, OUTPUT),
        metadata=metadata,
        key="--format=onnx",
    )
    (folder / ONNX).write_bytes(content)
    return _describe(saved, folder, {"file": ONNX, "opset": onnx_graph.OPSET}, len(content))


def _network(saved: models.Saved) -> Callable[[jax.Array], jax.Array]:
    """The function from raw pixels to logits."""
    spec = saved.spec
    module = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    graphdef = models.split(module)[0]

    def logits(pixels: jax.Array) -> jax.Array:
        inputs = models.normalise(augment.scaled(pixels), spec.mean, spec.std)
        return models.apply(graphdef, saved.params, saved.stats, inputs)[0].logits

    return logits


def _argument(saved: models.Saved) -> jax.ShapeDtypeStruct:
    (batch,) = jax.export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *saved.spec.input_shape), jnp.uint8)


def _describe(
    saved: models.Saved, folder: pathlib.Path, about: dict[str, Any], size: int
) -> dict[str, Any]:
    """Writes model.json; what the command prints."""
    spec = saved.spec
    content = {
        **about,
        "fingerprint": saved.fingerprint,
        "spec": spec.to_json(),
        "class_names": list(spec.class_names),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", *spec.input_shape],
            "meaning": "levels 0 to 255, [batch, height, width, channels]; the model scales and "
            "normalises them by mean and std of the spec",
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", spec.num_classes]},
    }
    (folder / "model.json").write_text(json.dumps(content, indent=2) + "\n")
    return {"model": spec.name, "fingerprint": saved.fingerprint, "bytes": size}
