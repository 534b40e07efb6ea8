"""What lies in a bucket, and how a test changes it."""

from distill_jax.storage import gcs


def sealed(directory) -> list[int]:
    names = [name for name in gcs.list_names(directory) if name.isdigit()]
    return [int(name) for name in names if "MANIFEST.sha256" in gcs.list_names(directory / name)]


def damage(checkpoint) -> None:
    """Changes one bit of its largest object."""
    name = max(gcs.list_objects(checkpoint), key=lambda name: gcs.size(checkpoint / name))
    content = bytearray(gcs.read(checkpoint / name))
    content[len(content) // 2] ^= 1
    gcs.write(checkpoint / name, bytes(content))


def put(folder, bucket) -> None:
    """Copies the files of a local folder."""
    for file in folder.iterdir():
        gcs.write(bucket / file.name, file.read_bytes())
