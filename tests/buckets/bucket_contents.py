"""What lies in a bucket, and how a test changes it."""

from distill_jax import buckets


def sealed(directory) -> list[int]:
    names = [name for name in buckets.names(directory) if name.isdigit()]
    return [int(name) for name in names if "MANIFEST.sha256" in buckets.names(directory / name)]


def damage(checkpoint) -> None:
    """Changes one bit of its largest object."""
    name = max(buckets.objects(checkpoint), key=lambda name: buckets.size(checkpoint / name))
    content = bytearray(buckets.read(checkpoint / name))
    content[len(content) // 2] ^= 1
    buckets.write(checkpoint / name, bytes(content))


def put(folder, bucket) -> None:
    """Copies the files of a local folder."""
    for file in folder.iterdir():
        buckets.write(bucket / file.name, file.read_bytes())
