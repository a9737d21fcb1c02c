"""What a picture file says of itself beside its pixels: EXIF, XMP, IPTC and resolution, of Pillow's pictures and TIFF
tags.

Metadata of foreign files may be anything. What is broken counts as none, as in any viewer: the pixels are fine.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from training.deep_pixels import first_number

# Of a TIFF, whose EXIF block is the file's own directory: description, make, model, software, date, artist, copyright.
TIFF_TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
XMP_TAG, IPTC_TAG = 700, 33723
# Number of IPTC records among the resources of Photoshop, in whose segment a JPEG has them.
IPTC_RESOURCE = 0x0404
# Of the box in which a JPEG 2000 has its XMP. Source: the XMP specification, part 3.
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_MOST_BOXES, _LARGEST_PACKET_BYTES = 100, 1 << 24
# Of segments of a JPEG with what its packet has no room for and names by a hash, such as depth. Source: as above.
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_ACROSS_TAG, _DOWN_TAG, _UNIT_TAG = 282, 283, 296
_INCH, _CENTIMETRE = 2, 3
_XMP_ORIENTATION = re.compile(
    rb"""tiff:Orientation\s*=\s*(?:"\d"|'\d')|<tiff:Orientation>\s*\d\s*</tiff:Orientation>"""
)


@dataclass(frozen=True)
class Metadata:
    """What is kept of a picture's own metadata; empty, or None, where there is none that can be read.

    Attributes:
        exif: an EXIF block without the orientation; of a TIFF its texts alone.
        xmp: an XMP packet as the file has it, perhaps damaged; without the orientation, but of a JPEG 2000, which is
            not turned.
        extended_xmp: the contents of a JPEG's segments that its packet goes on in.
        iptc: IPTC-IIM records.
        dots_per_inch: across and down.
    """

    exif: bytes = b""
    xmp: bytes = b""
    extended_xmp: tuple[bytes, ...] = ()
    iptc: bytes = b""
    dots_per_inch: tuple[float, float] | None = None


def read_metadata(picture: Image.Image) -> Metadata:
    """The metadata of a picture that was loaded and turned upright."""
    tags = getattr(picture, "tag_v2", {})
    resources = picture.info.get("photoshop")
    iptc = resources.get(IPTC_RESOURCE) if isinstance(resources, dict) else _as_bytes(tags, IPTC_TAG)
    return Metadata(
        exif=_read_exif(picture),
        xmp=_as_packet(picture.info.get("xmp")),
        extended_xmp=_read_extension(picture),
        iptc=iptc if isinstance(iptc, bytes) else b"",
        dots_per_inch=_read_dots(picture.info),
    )


def find_jp2_packet(stream: BinaryIO) -> bytes:
    """The XMP of a JPEG 2000, which Pillow does not read; empty where there is none."""
    place = 0
    for _ in range(_MOST_BOXES):
        stream.seek(place)
        head = stream.read(32)
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:  # too large for four bytes
            size, start = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] == b"uuid" and head[start : start + 16] == XMP_UUID:
            stream.seek(place + start + 16)
            length = size - start - 16 if size else _LARGEST_PACKET_BYTES  # the last box need not say its size
            return stream.read(min(max(0, length), _LARGEST_PACKET_BYTES))
        if size < start or len(head) < 8:
            break
        place += size
    return b""


def read_tiff_metadata(tags: Mapping[int, Any]) -> Metadata:
    """The metadata of a TIFF page that Pillow does not read."""
    try:
        exif = _text_exif(tags)
    except Exception:
        exif = b""
    iptc = _as_bytes(tags, IPTC_TAG)
    return Metadata(exif, _as_packet(_as_bytes(tags, XMP_TAG)), iptc=iptc, dots_per_inch=_read_dots(tags))


def _as_packet(found: Any) -> bytes:
    """A packet without the orientation: pixels are upright, and viewers take it where EXIF has none."""
    packet = found.encode("utf-8", "replace") if isinstance(found, str) else found
    return _XMP_ORIENTATION.sub(b"", packet) if isinstance(packet, bytes) else b""


def _read_extension(picture: Image.Image) -> tuple[bytes, ...]:
    segments = getattr(picture, "applist", ())
    found = tuple(each for name, each in segments if name == "APP1" and each.startswith(_EXTENDED_XMP))
    return found if sum(map(len, found)) <= _LARGEST_PACKET_BYTES else ()


def _as_bytes(tags: Mapping[int, Any], tag: int) -> bytes:
    """The bytes of a tag, which some programs write as whole numbers of one or four bytes."""
    found = tags.get(tag, b"")
    if isinstance(found, bytes):
        return found
    order = ">" if getattr(tags, "prefix", b"II") == b"MM" else "<"
    try:
        numbers = [int(each) for each in found]
        return struct.pack(f"{order}{len(numbers)}{'B' if max(numbers) < 256 else 'I'}", *numbers)
    except (TypeError, ValueError, struct.error):
        return b""


def _read_dots(info: Mapping[Any, Any]) -> tuple[float, float] | None:
    """Dots an inch, across and down, of Pillow's information or of TIFF tags; None where they make no sense."""
    try:
        if "dpi" in info:
            across, down = (float(each) for each in info["dpi"])
        else:
            unit = {_INCH: 1.0, _CENTIMETRE: 2.54}[first_number(info, _UNIT_TAG)]
            across, down = (unit * info[tag][0] / info[tag][1] for tag in (_ACROSS_TAG, _DOWN_TAG))
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 1.0 <= across <= 1e5 and 1.0 <= down <= 1e5 else None


def _read_exif(picture: Image.Image) -> bytes:
    """The EXIF block without the orientation; empty where there is none or it is broken."""
    try:
        exif = picture.getexif()
        if picture.format == "TIFF":
            return _text_exif(exif)
        exif.pop(ExifTags.Base.Orientation, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:
        return b""


def _text_exif(tags: Mapping[int, Any]) -> bytes:
    """An EXIF block of the texts in the tags of a TIFF page."""
    exif = Image.Exif()
    exif.update({tag: tags[tag] for tag in TIFF_TEXT_TAGS if tag in tags})
    return exif.tobytes() if len(exif) else b""
