"""A sharded folder: parts are whole or absent, a second writer completes what a first one left."""

import errno
import json
import os
import shutil

import pytest

from distill_jax.errors import UsageError
from distill_jax.storage import sharded


class Notes(sharded.ShardedFolder):
    """Two files a part; the settings are one value."""

    content = "notes"
    parts_key = "pages"
    part_files = r"\d+[ab]\.txt"

    def __init__(self, root, setting="x"):
        super().__init__(root, {"setting": setting, "pages": {}})

    def refusal(self, reason):
        return UsageError(f"notes={self.root}: {reason}")

    def read_manifest(self):
        return json.loads((self.root / sharded.MANIFEST).read_bytes())

    def render_manifest(self):
        return json.dumps(self.manifest).encode()

    def refuse_other_settings(self, new):
        if self.manifest["setting"] != new["setting"]:
            raise self.refusal("other settings")

    def part_names(self):
        return ["0", "1", "2"]

    def files_of(self, part):
        return self.parts[part]["files"]

    def part_entry(self, files, facts):
        return {**facts, "files": files}


def write(folder: Notes, parts=None) -> None:
    folder.begin()
    for part in parts or folder.missing():
        files = ((f"{part}{name}.txt", f"{part}{name}".encode() * 9) for name in "ab")
        folder.add(part, files, title=f"page {part}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("notes") / "whole"
    write(Notes(root))
    return root


def contents(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def test_opening_writes_nothing(tmp_path):
    assert Notes(tmp_path / "new" / "folder").missing() == ["0", "1", "2"]
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_lists_parts_in_their_order_with_sizes_and_hashes(tmp_path, whole):
    folder = Notes(tmp_path)
    write(folder, ["2", "0"])
    assert folder.missing() == ["1"] and list(folder.parts) == ["0", "2"]
    write(folder)
    assert contents(tmp_path) == contents(whole)
    entry = folder.parts["1"]
    assert entry["title"] == "page 1" and list(entry["files"]) == ["1a.txt", "1b.txt"]
    assert not sharded.find_damage(tmp_path, entry["files"], hashes=True)


@pytest.mark.parametrize("file", ["0a.txt", "2b.txt"])
@pytest.mark.parametrize("fault", ["flipped", "cut", "gone"])
def test_a_damaged_part_is_missing_after_repair(tmp_path, whole, file, fault):
    root = tmp_path / "copy"
    shutil.copytree(whole, root)
    content = (root / file).read_bytes()
    if fault == "gone":
        (root / file).unlink()
    else:
        (root / file).write_bytes(content[:-1] + b"!" * (fault == "flipped"))
    folder = Notes(root)
    (damage,) = folder.repair().items()
    assert damage[0] == file[0] and file in damage[1]
    assert folder.missing() == [file[0]]
    write(folder)
    assert contents(root) == contents(whole)
    assert Notes(root).repair() == {}


def test_torn_files_are_deleted_and_others_refused(tmp_path):
    for name in (".manifest.json.ab12", ".1a.txt.x"):
        (tmp_path / name).write_text("half")
    folder = Notes(tmp_path)
    folder.repair()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".0c.txt.x").write_text("not ours")
    message = r"notes=.*: holds '.0c.txt.x' but no manifest.json; expected notes or a new folder"
    with pytest.raises(UsageError, match=message):
        Notes(tmp_path)


def test_other_settings_and_a_file_are_refused(tmp_path, whole):
    with pytest.raises(UsageError, match="notes=.*: other settings"):
        Notes(whole, setting="y")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="expected a folder that can be written"):
            Notes(path)


@pytest.mark.parametrize("fails_at", range(1, 10))
def test_a_full_disk_leaves_whole_parts(tmp_path, whole, monkeypatch, fails_at):
    """At any write: of the first manifest, of a file of a part, or of a manifest that lists one."""
    writes, write_atomically = [], sharded.write_atomically

    def full(path, content):
        writes.append(path)
        if len(writes) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, content)

    done = (fails_at - 2) // 3 if fails_at > 1 else 0
    with monkeypatch.context() as patch:
        patch.setattr(sharded, "write_atomically", full)
        with pytest.raises(UsageError, match="cannot be written: No space left on device; . of 3"):
            write(Notes(tmp_path / "notes"))
    folder = Notes(tmp_path / "notes")
    assert folder.repair() == {} and len(folder.parts) == done
    write(folder)
    assert contents(tmp_path / "notes") == contents(whole)
