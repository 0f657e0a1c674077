"""The container of a `.kqeq` file: a zip archive of plain members with their checksums.

Nothing is compressed and time stamps are fixed, so that the same content gives the same bytes. The member `SHA256SUMS`
(the form of the program sha256sum) has a line for each other member: any change of the content is seen.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kqeq_md.errors import ModelError

SUMS = "SHA256SUMS"


def pack(members: Mapping[str, bytes]) -> bytes:
    """An archive of these members, in their order, and their checksums."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (*members.items(), (SUMS, checksums(members))):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return whole.getvalue()


def unpack(path: str | Path) -> dict[str, bytes]:
    """All members of an archive, the checksums among them if it has some; nothing is written.

    Raises:
        zipfile.BadZipFile: it is no archive, or a member is damaged.
        ModelError: members are compressed, claim more bytes than the file has, or are not those of the checksums.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) != len(entries):
            raise ModelError("a member of the archive stands twice")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ModelError("the members of the archive are compressed")
        if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
            raise ModelError("the members of the archive are longer than the file")
        members = {entry.filename: archive.read(entry) for entry in entries}
    if SUMS in members and members[SUMS] != checksums(members):
        raise ModelError(f"it is damaged or was edited: the checksums in {SUMS} are not those of its members")
    return members


def checksums(members: Mapping[str, bytes]) -> bytes:
    """What stands in SUMS for these members (and SUMS itself, which has no line)."""
    lines = (
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(members.items()) if name != SUMS
    )
    return "".join(lines).encode()
