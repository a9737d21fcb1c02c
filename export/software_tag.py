"""The tag that says of a photograph that software coloured it: a property of its XMP packet.

The packet of the original stays as it is, but for this property. Packets are XML of anybody's: a document type, by
which entities would expand, is refused, and so is what is very large or nested very deeply.

Source: IPTC Photo Metadata Standard 2025.1, property Digital Source Type, and its vocabulary, NewsCodes.
"""

from __future__ import annotations

from xml.dom import minidom

from colorpress.core.errors import InputError

# "Modification or correction by algorithm" that leaves the main content as it was: no generative source, no human edit.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
# A photograph's texts take kilobytes; histories that editors pile up take megabytes, and say nothing of it.
_LARGEST_BYTES = 1 << 20
_TOOL = "colorpress"
_IPTC_EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_HEAD, _TAIL = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n', '\n<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'
_BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def tag_packet(packet: bytes) -> bytes:
    """An XMP packet that says that software coloured the picture, with all else that `packet` says.

    Its Digital Source Type is set, and its Creator Tool where none is named.

    Args:
        packet: of the original; empty where it has none.
    Returns:
        UTF-8, without the room for changes that many programs leave behind their text.
    Raises:
        InputError: the packet is damaged, hostile or larger than a mebibyte; `why` says which.
    """
    try:
        document = minidom.parseString(_read_text(packet) if packet else _EMPTY)
        _tag_(document)
        root = document.documentElement
        assert root is not None
        return (_HEAD + root.toxml() + _TAIL).encode()
    except Exception as error:  # expat and minidom raise nearly anything of a damaged one
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise InputError("XMP", None, f"cannot be read ({reason})", "leave it as it is with --no-tag") from error


def _read_text(packet: bytes) -> str:
    """The XML of a packet: as text, for which no parser looks up the encoding that it may name."""
    if len(packet) > _LARGEST_BYTES:
        raise ValueError("larger than a mebibyte")
    found = (encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if packet.startswith(mark))
    text = packet.decode(next(found, "utf-8")).strip("\ufeff\0 \t\r\n")
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):
        raise ValueError("a document type")
    return text


def _tag_(document: minidom.Document) -> None:
    """Set the properties in the first description, and take those of that name from all others."""
    parents = document.getElementsByTagNameNS(_RDF, "RDF")
    if not parents:
        raise ValueError("no RDF")
    descriptions = [each for each in _elements(parents[0]) if _is(each, _RDF, "Description")]
    if not descriptions:
        descriptions = [_append(document, parents[0], _RDF, "rdf:Description")]
        descriptions[0].setAttributeNS(_RDF, "rdf:about", "")
    has_tool = any(_has(each, _XMP, "CreatorTool") for each in descriptions)
    for each in descriptions:
        _remove_(each, _IPTC_EXTENSION, "DigitalSourceType")
    _append(document, descriptions[0], _IPTC_EXTENSION, "Iptc4xmpExt:DigitalSourceType", SOURCE_TYPE)
    if not has_tool:
        _append(document, descriptions[0], _XMP, "xmp:CreatorTool", _TOOL)


def _append(
    document: minidom.Document, parent: minidom.Element, namespace: str, name: str, text: str = ""
) -> minidom.Element:
    made = document.createElementNS(namespace, name)
    made.setAttributeNS(_XMLNS, f"xmlns:{name.partition(':')[0]}", namespace)
    if text:
        made.appendChild(document.createTextNode(text))
    parent.appendChild(made)
    return made


def _elements(parent: minidom.Element) -> list[minidom.Element]:
    return [each for each in parent.childNodes if isinstance(each, minidom.Element)]


def _is(element: minidom.Element, namespace: str, name: str) -> bool:
    return element.namespaceURI == namespace and element.localName == name


def _has(description: minidom.Element, namespace: str, name: str) -> bool:
    """Whether a description has a property, which may be an attribute or a child."""
    return description.hasAttributeNS(namespace, name) or any(
        _is(each, namespace, name) for each in _elements(description)
    )


def _remove_(description: minidom.Element, namespace: str, name: str) -> None:
    if description.hasAttributeNS(namespace, name):
        description.removeAttributeNS(namespace, name)
    for child in _elements(description):
        if _is(child, namespace, name):
            description.removeChild(child)
