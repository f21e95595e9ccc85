"""The manifest: what a data set is, in one content-addressed document.

A dataset URI is ``<store>/datasets/<sha256 of the manifest>``. The manifest tells classes, splits, shards
with their digests, and the images that were left out. What is known of the source (listing, tags) lies
beside it and is no part of it: the same images give the same digest wherever they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tenfold.config import PixelsConfig
from tenfold.errors import DataError, first_fault
from tenfold.fingerprint import canonical_json, digest
from tenfold.storage import Store, open_store

SplitName = Literal["unlabelled", "labelled", "test"]
#: A longer list of shards lies in parts of this length beside the manifest.
SHARDS_A_PART = 10_000
SPLITS: tuple[SplitName, ...] = ("unlabelled", "labelled", "test")


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Document):
    """One WebDataset tar and its DALI index; see :func:`shard_key`.

    ``count`` samples are in the tar; those whose rows are ``dropped`` (tombstones) are no part of the data set. A tar
    that was adopted lies at ``uri``, outside of the store.
    """

    sha256: str
    size: int
    count: int
    index_sha256: str
    dropped: list[int] = []
    uri: str | None = None

    @property
    def kept(self) -> int:
        """Samples that are part of the data set."""
        return self.count - len(self.dropped)


_SHARDS = TypeAdapter(list[Shard])
_AT_ONCE = 8


class SplitShards(_Document):
    """A split: its shards in order, and how many images of each class it holds (empty: no labels inside).

    ``parts``: digests of the parts of a list of shards that is too long for the manifest itself.
    """

    count: int
    class_counts: dict[str, int]
    shards: list[Shard]
    parts: list[str] = []


class Quarantined(_Document):
    """An image that could not be used."""

    path: str
    reason: str


class Manifest(_Document):
    """A data set.

    ``leaks``: pairs of a training and a test image that are equal, where they were allowed. ``pixels``: of its images,
    where they are no 8-bit RGB or grey.
    """

    version: Literal[2] = 2
    classes: list[str]
    splits: dict[SplitName, SplitShards]
    quarantined: list[Quarantined]
    leaks: list[tuple[str, str]] = []
    pixels: PixelsConfig | None = None

    def unlabelled(self) -> Manifest:
        """Return the unlabelled split as a data set of its own.

        Which images are labelled and what they are called has no part in it, so neither in what hangs on it alone.
        """
        splits = dict.fromkeys(SPLITS, SplitShards(count=0, class_counts={}, shards=[]))
        splits["unlabelled"] = self.splits["unlabelled"]
        return Manifest(classes=[], splits=splits, quarantined=[], pixels=self.pixels)

    def divided(self) -> tuple[bytes, dict[str, bytes]]:
        """Return the bytes whose sha256 names the data set, and the parts that they name, by digest."""
        document, parts = self.model_dump(), dict[str, bytes]()
        if self.pixels is None:
            del document["pixels"]
        for split in document["splits"].values():
            shards = split["shards"]
            names = []
            for start in range(0, len(shards), SHARDS_A_PART) if len(shards) > SHARDS_A_PART else ():
                data = canonical_json(shards[start : start + SHARDS_A_PART]).encode()
                names.append(digest(data))
                parts[names[-1]] = data
            if names:
                split["shards"] = []
            split["parts"] = names
            if not names:  # as it was before there were parts
                del split["parts"]
        return canonical_json(document).encode(), parts


@dataclass(frozen=True)
class Dataset:
    """A manifest together with the store that holds it."""

    store: Store
    digest: str
    manifest: Manifest

    @property
    def uri(self) -> str:
        """The dataset URI that goes from stage to stage."""
        return f"{self.store.uri}/datasets/{self.digest}"


def manifest_key(name: str) -> str:
    """Return the key of the manifest whose digest is ``name``."""
    return f"datasets/{name}/manifest.json"


def shard_key(shard: Shard, suffix: Literal["tar", "idx"]) -> str:
    """Return the key of a shard's tar or index in the store.

    The index of an adopted tar is named by its own digest, since it tells which rows were adopted.
    """
    return f"shards/{shard.index_sha256 if shard.uri and suffix == 'idx' else shard.sha256}.{suffix}"


def locate(store: Store, shard: Shard, suffix: Literal["tar", "idx"]) -> tuple[Store, str]:
    """Return the store and the key of a shard's tar or index, wherever the tar lies."""
    if shard.uri is None or suffix == "idx":
        return store, shard_key(shard, suffix)
    return _place(shard.uri)


def address(store: str, key: str) -> str:
    """Return the address of an object of the store at ``store``."""
    return f"{store}/{quote(key) if store.startswith('file:') else key}"


def _place(uri: str) -> tuple[Store, str]:
    folder, _, name = uri.rpartition("/")
    return open_store(folder), unquote(name) if uri.startswith("file:") else name


def part_key(name: str) -> str:
    """Return the key of the part of a manifest whose digest is ``name``."""
    return f"datasets/parts/{name}.json"


def publish(store: Store, manifest: Manifest) -> Dataset:
    """Write the manifest under its digest, its parts before; the same one twice is fine."""
    data, parts = manifest.divided()
    for part, content in parts.items():
        store.create(part_key(part), content)
    name = digest(data)
    store.create(manifest_key(name), data)
    return Dataset(store, name, manifest)


def dataset_digest(uri: str) -> str:
    """Return the digest at the end of a dataset URI.

    Raises:
        DataError: the address does not end in one.
    """
    place, _, name = uri.rstrip("/").rpartition("/datasets/")
    if not place or len(name) != 64 or set(name) - set("0123456789abcdef"):
        raise DataError(f"'{uri}' is no dataset URI; those end in /datasets/<sha256>")
    return name


def open_dataset(uri: str) -> Dataset:
    """Read the manifest at ``uri`` and check it against its digest.

    Raises:
        DataError: no dataset URI, damaged, or of another version.
        StorageError: not there.
    """
    name = dataset_digest(uri)
    store = open_store(uri.rstrip("/").rpartition("/datasets/")[0])
    data = _checked(store, manifest_key(name), name)
    try:
        manifest = Manifest.model_validate_json(data)
        return Dataset(store, name, _joined(store, manifest))
    except ValidationError as error:
        raise DataError(
            f"the manifest at {uri} cannot be read by this version: {first_fault(error.errors())}"
        ) from None


def _checked(store: Store, key: str, name: str) -> bytes:
    data = store.read(key)
    if digest(data) != name:
        raise DataError(f"{store.uri}/{key} is damaged: its sha256 is {digest(data)}")
    return data


def _joined(store: Store, manifest: Manifest) -> Manifest:
    """Return the manifest with the shards that its parts hold."""
    splits = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, split in manifest.splits.items():
            read = pool.map(lambda part: _SHARDS.validate_json(_checked(store, part_key(part), part)), split.parts)
            shards = [*split.shards, *(shard for part in read for shard in part)]
            splits[name] = split.model_copy(update={"shards": shards, "parts": []})
    return manifest.model_copy(update={"splits": splits})


def is_whole(dataset: Dataset, *, adopted: bool = True) -> bool:
    """Tell whether all shards are still there; without ``adopted``, those that the store itself holds."""
    held = {entry.key for entry in dataset.store.list("shards/")}
    shards = [shard for split in dataset.manifest.splits.values() for shard in split.shards]
    own = (shard_key(shard, suffix) for shard in shards for suffix in suffixes_of(shard))
    return all(key in held for key in own) and all_there([shard for shard in shards if shard.uri and adopted])


def suffixes_of(shard: Shard) -> tuple[Literal["tar", "idx"], ...]:
    """Return what of a shard the store holds."""
    return ("idx",) if shard.uri else ("tar", "idx")


def all_there(adopted: Sequence[Shard]) -> bool:
    """Tell whether the tars of adopted shards are where they were."""
    if not adopted:
        return True
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return all(pool.map(_is_there, adopted))


def _is_there(shard: Shard) -> bool:
    assert shard.uri is not None
    store, key = _place(shard.uri)
    return store.exists(key)
