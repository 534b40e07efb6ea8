"""Lists of SHA-256 sums that lie beside a model: those written here, and those from elsewhere."""

import hashlib
import subprocess

import pytest

from distill_jax.errors import UsageError
from distill_jax.models.files import checksums

FILES = {"config.json": b"{}", "model.safetensors": b"numbers"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def sum_of(name):
    return hashlib.sha256(FILES[name]).hexdigest()


def test_what_is_written_here_is_read_by_sha256sum(folder):
    text = checksums.render({name: sum_of(name) for name in FILES}, "ab" * 32)
    (folder / checksums.NAME).write_text(text)
    subprocess.run(["sha256sum", "--strict", "-c", checksums.NAME], cwd=folder, check=True)
    checksums.verify(folder, FILES)
    assert checksums.identity(folder) == "ab" * 32
    with pytest.raises(UsageError, match="model-2.safetensors is not in SHA256SUMS"):
        checksums.verify(folder, [*FILES, "model-2.safetensors"])
    (folder / "model.safetensors").write_bytes(b"numberz")
    with pytest.raises(UsageError, match="model.safetensors is damaged or was changed"):
        checksums.verify(folder, FILES)
    checksums.verify(folder, ["config.json"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sha256sum.txt", "{}  model.safetensors\n"),
        ("SHA256SUMS.txt", "{} *./model.safetensors\r\n"),
        ("checksums.sha256", "# a comment\n{}  model.safetensors\n"),
        ("model.safetensors.sha256", "{}\n"),
        ("model.safetensors.sha256", "{}  model.safetensors\n"),
    ],
)
def test_a_list_from_elsewhere_is_compared_as_far_as_it_goes(folder, name, content):
    (folder / name).write_text(content.format(sum_of("model.safetensors").upper()))
    checksums.verify(folder, FILES)
    (folder / "config.json").write_bytes(b"{ }")  # not in the list
    checksums.verify(folder, FILES)
    (folder / "model.safetensors").write_bytes(b"numberz")
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        checksums.verify(folder, FILES)


def test_other_files_are_no_lists(folder):
    (folder / "notes.txt").write_text("0" * 64 + "  model.safetensors\n")
    (folder / "absent.safetensors.sha256").write_text("0" * 64 + "\n")
    checksums.verify(folder, FILES)
    assert checksums.identity(folder) is None
