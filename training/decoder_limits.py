"""Small files that would keep a decoder busy for minutes or fill the memory, told before anything is decoded.

Numbers of pixels are checked by `decoding`. What is checked here is what a header says beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import Image

# Encoders make ten scans, those that search for the smallest file some sixty. Each costs a pass over all pixels,
# whatever it holds, and takes a few bytes. Source: djpeg's -maxscans, whose documentation proposes 100.
MOST_SCANS = 100
# The largest profiles in use, of printing machines, have some 3 MB.
LARGEST_PROFILE_BYTES = 8 << 20
# Archives bind a few hundred pages.
MOST_PAGES = 2_000
_CHUNK_BYTES = 1 << 20
_START_OF_SCAN = b"\xff\xda"
# The end of the data of a scan: a marker that is neither a stuffed zero, a restart nor a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE, _START_SCAN_CODE = 0xD9, 0xDA
_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 322, 323
# Tiles are multiples of 16 pixels, and usual ones have 512 at most.
_LARGEST_TILE_EXCESS = 1024


def may_have_scans(picture: Image.Image, stream: BinaryIO) -> bool:
    """Whether a JPEG that Pillow has just opened from `stream` is decoded in more than one scan.

    Of a plain JPEG whose first scan has all channels no other is ever read, however many there are.
    """
    channels = len(picture.getbands())
    # Pillow stops behind the header of the first scan: marker, length, number of channels, two bytes for each, three.
    header = _START_OF_SCAN + (6 + 2 * channels).to_bytes(2, "big") + bytes([channels])
    stream.seek(max(0, stream.tell() - (8 + 2 * channels)))
    found = stream.read(8 + 2 * channels)
    is_whole = found.startswith(header) and found.count(_START_OF_SCAN) == 1
    return "progressive" in picture.info or not is_whole


def count_scans(stream: BinaryIO) -> int:
    """How many scans a JPEG at the start of `stream` has, and perhaps a few more where there are few.

    The stream is left at its start. Most files are read once through and nothing more: markers that stand in
    metadata or in what follows the picture are told from those of scans only where there are very many.
    """
    stream.seek(0)
    found, before = 0, b""
    while chunk := stream.read(_CHUNK_BYTES):
        found += (before + chunk).count(_START_OF_SCAN)
        before = chunk[-1:]
    stream.seek(0)
    if found > MOST_SCANS:
        found = _walk_markers(stream.read())
        stream.seek(0)
    return found


def _walk_markers(content: bytes) -> int:
    """Scans of a JPEG, marker by marker from its start to the end of the image or of sense."""
    scans, place = 0, 2
    while (marker := _MARKER.search(content, place)) is not None:
        code = content[marker.end() - 1]
        if code == _END_OF_IMAGE:
            break
        scans += code == _START_SCAN_CODE
        # The length counts its own two bytes; what is not even that long is a damaged header, and decoders go on.
        place = marker.end() + max(2, int.from_bytes(content[marker.end() : marker.end() + 2], "big"))
    return scans


def has_oversized_tiles(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF page is cut in tiles far larger than itself, which are decoded whole all the same."""
    for side, tile in ((_WIDTH, _TILE_WIDTH), (_LENGTH, _TILE_LENGTH)):
        size = tags.get(tile, 0)
        if not isinstance(size, int) or size > int(tags.get(side, 0)) + _LARGEST_TILE_EXCESS:
            return True
    return False
