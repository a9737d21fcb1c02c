"""The tag of coloured photographs: it is in every type of file, and what the original says of itself stays."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest
import tifffile
from conftest import make_photo
from PIL import Image, ImageCms, IptcImagePlugin, PngImagePlugin

from colorpress.core.errors import InputError
from export.colorize_folder import colorize_photos
from export.photo_files import XMP_UUID
from export.software_tag import SOURCE_TYPE, tag_packet
from training.decoding import decode_photo
from training.picture_metadata import Metadata

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
# A scan, with its own tool and source, one as an attribute and one as an element, and Latin-1 beyond ASCII.
PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">
<rdf:Description rdf:about="" xmlns:ext="{_EXTENSION}" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmp:CreatorTool="a scanner" ext:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/negativeFilm"/>
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:ext="{_EXTENSION}">
<ext:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/print</ext:DigitalSourceType>
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Die Brücke &amp; der Fluß</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta>{" " * 500}
<?xpacket end="w"?>""".encode()
# The record "caption" of IPTC, number 120.
IPTC = b"\x1c\x02\x78\x00\x06bridge"


def source_types(packet: bytes) -> list[str]:
    """Every value of the property in a packet, which a strict parser has to take."""
    document = minidom.parseString(packet.decode().strip("\ufeff"))
    elements = document.getElementsByTagNameNS(_EXTENSION, "DigitalSourceType")
    attributes = [
        each.getAttributeNS(_EXTENSION, "DigitalSourceType")
        for each in document.getElementsByTagNameNS(_RDF, "Description")
    ]
    return [each.firstChild.data for each in elements] + [each for each in attributes if each]  # type: ignore[union-attr]


def metadata_of(path: Path) -> Metadata:
    with path.open("rb") as stream:
        return decode_photo(stream, path, max_pixels=100_000).metadata


def iptc_segment() -> bytes:
    resource = b"8BIM\x04\x04\0\0" + len(IPTC).to_bytes(4, "big") + IPTC + bytes(len(IPTC) % 2)
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + (len(content) + 2).to_bytes(2, "big") + content


def write_originals(folder: Path, packet: bytes) -> None:
    """A photograph of every type that holds XMP, of 8 bits and of 16."""
    photo, exif = make_photo(0), Image.Exif()
    exif[0x010F] = "a camera"
    folder.mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(folder / "a.jpg", xmp=packet, exif=exif, extra=iptc_segment(), icc_profile=profile)
    photo.save(folder / "a.webp", xmp=packet)
    photo.save(folder / "a.avif", xmp=packet)
    texts = PngImagePlugin.PngInfo()
    texts.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    photo.save(folder / "a.png", pnginfo=texts)
    Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png", pnginfo=texts)
    for name, size in (("a.jp2", 24 + len(packet)), ("last.jp2", 0)):
        photo.save(folder / name)
        with (folder / name).open("ab") as stream:
            stream.write(size.to_bytes(4, "big") + b"uuid" + XMP_UUID + packet)
    tags = [(700, 1, len(packet), packet, True), (33723, 7, len(IPTC), IPTC, True)]
    for name, dtype, factor in (("a.tif", np.uint8, 1), ("deep.tif", np.uint16, 257)):
        pixels = np.asarray(photo).astype(dtype) * dtype(factor)
        tifffile.imwrite(folder / name, pixels, photometric="rgb", extratags=tags, metadata=None)


def color(folder: Path, output: Path, **options: bool) -> dict[str, Path]:
    result = colorize_photos([folder], output, lambda pixels: np.repeat(pixels[..., :1], 3, axis=2), **options)
    assert not result.skipped
    return {path.name: path for path in result.colorized}


def test_every_type_says_that_software_coloured_it_and_keeps_what_it_said_before(tmp_path: Path) -> None:
    write_originals(tmp_path / "in", PACKET)
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    found = color(tmp_path / "in", tmp_path / "out")
    assert set(found) == {path.name for path in before}
    for name, path in found.items():
        metadata = metadata_of(path)
        assert source_types(metadata.xmp) == [SOURCE_TYPE], name
        text = metadata.xmp.decode()
        assert "Die Brücke &amp; der Fluß" in text and 'CreatorTool="a scanner"' in text, name
        assert (metadata.iptc == IPTC) == (name in ("a.jpg", "a.tif", "deep.tif")), name
    with Image.open(found["a.jpg"]) as picture:
        assert (picture.getexif()[0x010F], bool(picture.info["icc_profile"])) == ("a camera", True)
        assert IptcImagePlugin.getiptcinfo(picture) == {(2, 120): b"bridge"}
    for name, path in color(tmp_path / "in", tmp_path / "plain", is_tagged=False).items():
        assert metadata_of(path).xmp == PACKET, name
    assert {path: path.read_bytes() for path in before} == before


def test_what_a_packet_goes_on_in_is_kept_beside_it(tmp_path: Path) -> None:
    name = hashlib.md5(b"depth").hexdigest().upper()
    parts = [
        b"http://ns.adobe.com/xmp/extension/\0" + name.encode() + struct.pack(">II", 5, place) + b"depth"[place:][:3]
        for place in (0, 3)
    ]
    packet = PACKET.replace(b'rdf:about=""', f'rdf:about="" xmlns:n="adobe:note" n:HasExtendedXMP="{name}"'.encode(), 1)
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(each)) + each for each in parts)
    (tmp_path / "in").mkdir()
    for file, xmp in (("a.jpg", packet), ("stray.jpg", PACKET)):
        make_photo(0).save(tmp_path / "in" / file, xmp=xmp, extra=segments)
    found = color(tmp_path / "in", tmp_path / "out")
    kept = metadata_of(found["a.jpg"])
    assert kept.extended_xmp == tuple(parts) and f'HasExtendedXMP="{name}"' in kept.xmp.decode()
    assert metadata_of(found["stray.jpg"]).extended_xmp == (), "nothing names it"


def test_a_photograph_without_xmp_is_tagged_too_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make_photo(0).save(tmp_path / "in" / "a.bmp")
    assert source_types(metadata_of(color(tmp_path / "in", tmp_path / "out")["a.png"]).xmp) == [SOURCE_TYPE]
    assert not metadata_of(color(tmp_path / "in", tmp_path / "plain", is_tagged=False)["a.png"]).xmp


def test_a_packet_says_it_once_however_often_it_is_tagged_and_whatever_its_encoding() -> None:
    once = tag_packet(PACKET)
    assert tag_packet(once) == once == tag_packet(PACKET.decode().encode("utf-16"))
    assert len(once) < len(PACKET)  # without the room that was left in it
    assert b"CreatorTool" in (made := tag_packet(b"")) and source_types(made) == [SOURCE_TYPE]
    # RDF without any description, and under another name.
    bare = f'<r:RDF xmlns:r="{_RDF}"/>'.encode()
    assert source_types(tag_packet(bare)) == [SOURCE_TYPE]


_ENTITY = '<!DOCTYPE a [<!ENTITY x "y">]>'
_HOSTILE = {
    "syntax error": b"scanned by hand",
    "no RDF": b"<a/>",
    "a document type": f'{_ENTITY}<r:RDF xmlns:r="{_RDF}">&x;</r:RDF>'.encode(),
    # The name of an encoding in which a document type looks like nothing.
    "decode": b'<?xml version="1.0" encoding="cp037"?>'
    + f'{_ENTITY}<r:RDF xmlns:r="{_RDF}">&x;</r:RDF>'.encode("cp037"),
    "recursion": f'<r:RDF xmlns:r="{_RDF}">'.encode() + b"<a>" * 5000 + b"</a>" * 5000 + b"</r:RDF>",
    "larger than a mebibyte": PACKET + bytes(1 << 20),
}


@pytest.mark.parametrize(("why", "packet"), _HOSTILE.items(), ids=list(_HOSTILE))
def test_a_damaged_or_hostile_packet_is_refused(why: str, packet: bytes) -> None:
    with pytest.raises(InputError, match=f"cannot be read .*{why}"):
        tag_packet(packet)


def test_a_packet_that_cannot_be_kept_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    make_photo(0).save(tmp_path / "in" / "damaged.jpg", xmp=b"<a")
    texts = PngImagePlugin.PngInfo()
    texts.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PACKET.replace(b"der Flu", b"x" * 66_000))
    make_photo(0).save(tmp_path / "in" / "long.jpg", "PNG", pnginfo=texts)
    found = color(tmp_path / "in", tmp_path / "out")
    said = capsys.readouterr().err
    assert "damaged.jpg' loses its XMP, which cannot be read (unclosed token: line 1, column 0)\n" in said
    assert "long.jpg' loses its XMP, which is longer than a JPEG holds" in said
    assert all(source_types(metadata_of(path).xmp) == [SOURCE_TYPE] for path in found.values())
    plain = color(tmp_path / "in", tmp_path / "plain", is_tagged=False)
    assert (metadata_of(plain["damaged.jpg"]).xmp, metadata_of(plain["long.jpg"]).xmp) == (b"<a", b"")


def test_the_orientation_of_a_packet_goes_since_pixels_are_upright(tmp_path: Path) -> None:
    turned = PACKET.replace(b"xmlns:dc=", b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" xmlns:dc=')
    (tmp_path / "in").mkdir()
    # Programs that turn the pixels set EXIF to 1 and forget the packet.
    for value in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = value
        make_photo(0, 40, 24).save(tmp_path / "in" / f"{value}.jpg", xmp=turned, exif=exif)
    # Pillow reads no colours in floating point.
    tags = [(700, 1, len(turned), turned, True), (274, "H", 1, 6, True)]
    pixels = np.asarray(make_photo(0, 40, 24), np.float32) / 255
    tifffile.imwrite(tmp_path / "in" / "deep.tif", pixels, photometric="rgb", extratags=tags, metadata=None)
    for name, path in color(tmp_path / "in", tmp_path / "out").items():
        metadata = metadata_of(path)
        assert b"Orientation" not in metadata.xmp and "Die Brücke" in metadata.xmp.decode(), name
        with Image.open(path) as picture:
            picture.load()
            assert (picture.getexif().get(0x0112, 1), picture.size[0]) == (1, 40 if name == "1.jpg" else 24), name
