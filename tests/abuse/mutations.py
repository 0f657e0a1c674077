"""Seeded ways to spoil a model file."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kqeq_md.archive import SUMS, pack

NUMBERS = (0, -1, 1, 0.5, 1e-308, 1e308, -1e308, -0.0, float("nan"), float("inf"), 10**400, 2**63, 1e6, 1e-12)
VALUES = (*NUMBERS, None, True, "", "1", "Na", "\x00", [], {}, [[]], [1, 2], {"a": 1}, ["Na", "Na"], "x" * 10_000)
NAMES = ("../outside", "/tmp/outside", "..\\outside", "a/../../outside", "header.json/", "", "weights_Na.npy\x00.txt")
HEADS = (
    "{'descr': '<f8', 'fortran_order': False, 'shape': (88888888888888, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-8, -2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (8, 2), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (8, 2), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999, ), }",
    "{'descr': '<U99999999', 'fortran_order': False, 'shape': (1, ), }",
    "{'descr': [('a', '<f8')] * 9, 'fortran_order': False, 'shape': (8, 2), }",
    "__import__('os').system('touch trap')",
    "(" * 5000,
    "{'shape': " + "-" * 5000 + "1}",
    "",
)


class Opens:
    """Unpickling this would create the file `trap`."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, ("trap", "w"))


@dataclass(frozen=True)
class Mutated:
    """A spoiled file.

    Attributes:
        kind: what was done.
        content: all bytes.
        signed: whether its checksums fit what it holds: somebody made it, rather than that it was damaged.
    """

    kind: str
    content: bytes
    signed: bool = False


Members = dict[str, bytes]
Random = np.random.Generator


def mutated(original: bytes, random: Random) -> Mutated:
    """One of the kinds below, at random."""
    kinds = {**BYTES, **ARCHIVES, **MEMBERS}
    kind = str(random.choice([*kinds]))
    if kind in BYTES:
        return Mutated(kind, BYTES[kind](original, random))
    members = members_of(original)
    if kind in ARCHIVES:
        return Mutated(kind, ARCHIVES[kind](members, random))
    spoiled = {name: data for name, data in MEMBERS[kind](members, random).items() if name != SUMS}
    if random.random() < 0.5:  # with checksums that fit
        return Mutated(f"{kind}, signed", pack(spoiled), signed=True)
    return Mutated(kind, plain(spoiled | {SUMS: members[SUMS]}))


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def plain(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return whole.getvalue()


# --- bytes


def flipped(content: bytes, random: Random) -> bytes:
    out = bytearray(content)
    for at in random.integers(len(out), size=random.integers(1, 5)):
        out[at] ^= int(random.integers(1, 256))
    return bytes(out)


def flipped_structure(content: bytes, random: Random) -> bytes:
    """Bytes of the zip archive's own records."""
    out = bytearray(content)
    records = [at for at in range(len(out)) if out[at : at + 2] == b"PK"]
    for _ in range(random.integers(1, 4)):
        at = int(random.choice(records)) + int(random.integers(46))
        if at < len(out):
            out[at] = int(random.choice((0, 0xFF, 0x7F, int(random.integers(256)))))
    return bytes(out)


def truncated(content: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))]


def lost_block(content: bytes, random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(2 ** random.integers(1, 18))
    return content[:at] + content[at + length :]


def zeroed_block(content: bytes, random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(2 ** random.integers(1, 18))
    block = content[at : at + length]
    return content[:at] + bytes(len(block)) + content[at + len(block) :]


def longer(content: bytes, random: Random) -> bytes:
    more = random.bytes(int(random.integers(1, 100_000)))
    return more + content if random.random() < 0.5 else content + more


def doubled(content: bytes, random: Random) -> bytes:
    """The tail of a file behind another: two directories."""
    return content + content[random.integers(len(content)) :]


def noise(content: bytes, random: Random) -> bytes:
    return random.bytes(int(random.integers(0, 10_000)))


BYTES = {
    "bytes flipped": flipped, "zip records overwritten": flipped_structure, "truncated": truncated,
    "a block lost": lost_block, "a block of zeros": zeroed_block, "longer": longer, "two tails": doubled,
    "noise": noise,
}  # fmt: skip

# --- archives


def foreign_names(members: Members, random: Random) -> bytes:
    return plain(members | {str(random.choice(NAMES)): random.bytes(100)})


def repeated_member(members: Members, random: Random) -> bytes:
    content, name = plain(members), str(random.choice([*members]))
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo("\x01" * len(name)), random.bytes(100))
    return whole.getvalue().replace(b"\x01" * len(name), name.encode())


def bomb(members: Members, random: Random) -> bytes:
    """A quarter of a megabyte of file that would be 256 of memory."""
    return plain(members | {str(random.choice([*members])): bytes(2**28)}, zipfile.ZIP_DEFLATED)


def compressed(members: Members, random: Random) -> bytes:
    return plain(members, int(random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))))


def lost_member(members: Members, random: Random) -> bytes:
    lost = str(random.choice([*members]))
    return plain({name: data for name, data in members.items() if name != lost})


def shuffled(members: Members, random: Random) -> bytes:
    """Another order of the members, other time stamps: the same model."""
    return plain({str(name): members[str(name)] for name in random.permutation([*members])})


ARCHIVES = {
    "foreign names": foreign_names, "a member twice": repeated_member, "a bomb": bomb, "compressed": compressed,
    "a member lost": lost_member, "shuffled": shuffled,
}  # fmt: skip

# --- members


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, below in inside for place in places(below, (*path, key)))]


def in_header(members: Members, random: Random) -> tuple[Any, Any, Any]:
    """The header, and what holds one of its values under which key; few of the long tables' entries."""
    header = json.loads(members["header.json"])
    found = places({name: value for name, value in header.items() if name not in ("reference", "training", "fragment")})
    if random.random() < 0.2:
        found = places({name: header[name] for name in ("reference", "training", "fragment")})
    path = found[int(random.integers(len(found)))]
    parent = header
    for key in path[:-1]:
        parent = parent[key]
    return header, parent, path[-1]


def as_header(members: Members, header: Any) -> Members:
    return members | {"header.json": json.dumps(header, indent=1, sort_keys=True).encode()}


def other_value(members: Members, random: Random) -> Members:
    header, parent, key = in_header(members, random)
    parent[key] = VALUES[int(random.integers(len(VALUES)))]
    return as_header(members, header)


def other_number(members: Members, random: Random) -> Members:
    """A number scaled: most of these are legal."""
    for _ in range(100):
        header, parent, key = in_header(members, random)
        if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = type(parent[key])(parent[key] * random.choice((0.5, 0.99, 1.01, 2, 10, -1, 1000)))
            break
    return as_header(members, header)


def lost_key(members: Members, random: Random) -> Members:
    header, parent, key = in_header(members, random)
    del parent[key]
    return as_header(members, header)


def repeated_key(members: Members, random: Random) -> Members:
    name = random.choice(("hardness", "species", "terms", "version"))
    value = random.choice(("[]", "0", "null", '"Na"'))
    text = members["header.json"].rstrip()
    return members | {"header.json": text[:-1] + f', "{name}": {value}}}'.encode()}


def deep_header(members: Members, random: Random) -> Members:
    depth = int(10 ** random.uniform(2, 5.3))
    opening, closing = ((b"[", b"]"), (b'{"a":[', b"]}"))[int(random.integers(2))]
    name = str(random.choice(("training", "hardness", "fragment"))).encode()
    text = members["header.json"].rstrip()
    return members | {"header.json": text[:-1] + b', "' + name + b'": ' + opening * depth + closing * depth + b"}"}


def spoiled_text(members: Members, random: Random) -> Members:
    text = bytearray(members["header.json"])
    for at in random.integers(len(text), size=random.integers(1, 4)):
        text[at] = int(random.integers(256))
    return members | {"header.json": bytes(text)}


def array_of(members: Members, random: Random) -> tuple[str, np.ndarray]:
    name = str(random.choice([name for name in members if name.endswith(".npy")]))
    return name, np.load(io.BytesIO(members[name]))


def npy(array: Any, fortran: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array) if fortran else array, allow_pickle=True)
    return buffer.getvalue()


def spoiled_numbers(members: Members, random: Random) -> Members:
    name, array = array_of(members, random)
    with np.errstate(over="ignore"):
        array.flat[random.integers(array.size, size=random.integers(1, 5))] = random.choice(
            (np.nan, np.inf, -np.inf, -0.0, 1e308, -1e308, 1e-308, 0.0, 1e30)
        )
        if random.random() < 0.2:
            array[...] = random.choice((np.nan, -0.0, 0.0, 1e308, 1.0))
    return members | {name: npy(array)}


def other_shape(members: Members, random: Random) -> Members:
    name, array = array_of(members, random)
    shapes: tuple[Any, ...] = (array[:-1], array[:, :-1], array.T, array.ravel(), array[:0], array[None], array.sum(),
                               np.concatenate([array, array]), array[:, :0])  # fmt: skip
    return members | {name: npy(shapes[int(random.integers(len(shapes)))])}


def other_type(members: Members, random: Random) -> Members:
    name, array = array_of(members, random)
    kind = random.choice(("f2", ">f8", "i4", "c16", "S8", "U8", "bool", "f4"))
    with np.errstate(over="ignore"):
        return members | {name: npy(array.astype(kind))}


def fortran_order(members: Members, random: Random) -> Members:
    name, array = array_of(members, random)
    return members | {name: npy(array, fortran=True)}


def pickled(members: Members, random: Random) -> Members:
    name = str(random.choice([*members]))
    return members | {name: npy(np.array([Opens()], dtype=object)) if random.random() < 0.5 else pickle.dumps(Opens())}


def other_head(members: Members, random: Random) -> Members:
    name, _ = array_of(members, random)
    head = HEADS[int(random.integers(len(HEADS)))].encode()
    data = members[name]
    behind = data[10 + int.from_bytes(data[8:10], "little") :]
    version = bytes([int(random.choice((1, 1, 1, 2, 3, 9))), 0])
    return members | {name: data[:6] + version + len(head).to_bytes(2, "little") + head + behind}


def swapped(members: Members, random: Random) -> Members:
    one, other = (str(name) for name in random.choice([*members], size=2, replace=False))
    return members | {one: members[other], other: members[one]}


MEMBERS = {
    "another value in the header": other_value, "another number in the header": other_number,
    "a key lost": lost_key, "a key twice": repeated_key, "a header nested deeply": deep_header,
    "text of the header spoiled": spoiled_text, "numbers of an array spoiled": spoiled_numbers,
    "another shape": other_shape, "another type of numbers": other_type, "Fortran order": fortran_order,
    "a pickle": pickled, "another head of an array": other_head, "members swapped": swapped,
}  # fmt: skip
