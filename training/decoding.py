"""One picture file of any origin to sRGB, page by page, or one plain reason why not.

Files are foreign: the type is told by content and taken from a short list, sizes are checked in the header before
a pixel is decoded, and everything that a decoder may throw ends as InputError.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from colorpress.core.errors import InputError
from colorpress.core.files import find_impostor
from training.decoder_limits import (
    LARGEST_PROFILE_BYTES,
    MOST_PAGES,
    MOST_SCANS,
    count_scans,
    has_oversized_tiles,
    may_have_scans,
)
from training.deep_pixels import (
    Deep,
    DeepPixels,
    DeepRefusal,
    count_deep_pages,
    deep_rawmode,
    describe_excess,
    first_number,
    is_misread,
    read_deep_colors,
    read_deep_grey,
    read_deep_tiff,
)
from training.matrix_profile import convert_deep
from training.picture_metadata import Metadata, find_jp2_packet, read_metadata, read_tiff_metadata
from training.picture_types import HEAD_BYTES, PictureType, find_type, names_of_read_types

_SUBFILE_TAG, _SUB_IFDS_TAG, _DNG_TAG, _PROFILE_TAG, _COMPRESSION_TAG = 254, 330, 50706, 34675, 259
_REDUCED, _UNPACKED = 1, 1

# Thread-safe, unlike warnings.catch_warnings: over Pillow's own limit a picture fails before it is decoded.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Remarks about odd metadata that name no file; whether the file can be used is said by us.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


# Pillow refuses a PNG with more than a megabyte in one of its texts or in its profile, which programs do write.
PngImagePlugin.MAX_TEXT_CHUNK = LARGEST_PROFILE_BYTES


@dataclass(frozen=True)
class DecodedPhoto:
    """A decoded picture, upright."""

    picture: Image.Image  # 8-bit sRGB, mode RGB, or L of a grey one; of a JPEG perhaps smaller (see `decode_photo`)
    alpha: Image.Image | None  # mode L, same size as `picture`; None where nothing is transparent
    width: int  # of the picture in the file, in pixels, after EXIF orientation
    height: int
    metadata: Metadata
    profile: bytes  # an ICC profile of sRGB, where the file has one of any colour space; else empty
    deep: Deep | None = None  # 16-bit sRGB (H, W, 1 or 3), of a file of more than 8 bits a channel
    white: int = 0  # what was taken for white in such a file of 16 bits
    is_packed: bool = True  # a TIFF may say no

    @property
    def rgb(self) -> Image.Image:
        """The picture in mode RGB, whatever its own."""
        return self.picture if self.picture.mode == "RGB" else self.picture.convert("RGB")


class _Refusal(Exception):
    """Why a picture cannot be used, in a few words, and what to do about it where there is something else to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


@contextmanager
def open_regular_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file (or a link to one) for reading; a FIFO or device is never opened, so nothing hangs.

    Raises:
        InputError: there is no such file, it is not a regular file, or reading it fails inside the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unusable(path, "not a regular file")
        # Without blocking, should a FIFO have taken its place since.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise _unusable(path, "not a regular file")
            yield stream
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror or error}"
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            reason = "not a regular file"
        raise _unusable(path, reason) from error


def _unusable(path: Path, reason: str, hint: str = "") -> InputError:
    hint = hint or "leave it out, or save it again as JPEG or PNG"
    if "Git LFS" in reason:
        hint = "run `git lfs pull`"
    if reason == "no such file":
        hint = "check the path"
    if "--max-pixels" in reason:
        hint = "raise --max-pixels if you trust the file, or save it smaller"
    return InputError("photo", path, reason, hint)


def decode_photo(stream: BinaryIO, path: Path, *, max_pixels: int, at_least: int | None = None) -> DecodedPhoto:
    """Decode all of a picture file: its first page or frame, upright, as 8-bit sRGB.

    Deeper pictures are scaled, not clipped, with what counts as white as `find_white` says; CMYK, Lab and embedded
    ICC profiles are converted to sRGB; the colours under transparent pixels are kept as they are.

    Args:
        stream: the file's content, at its start; `path` only names it in errors.
        max_pixels: a picture with more pixels by its header is refused before anything is decoded.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side does not go below
            this; None: at full size.
    Raises:
        InputError: the file is no picture, damaged, truncated, too large, or of a format that is not accepted.
    """
    return next(_decode_file(stream, path, max_pixels, at_least))


def decode_pages(stream: BinaryIO, path: Path, *, max_pixels: int) -> Iterator[DecodedPhoto]:
    """Decode every page of a TIFF in turn, but those that are smaller copies of others; of other types the first frame.

    Args and errors are those of `decode_photo`; an error of a later page says its number.
    """
    if count_frames(stream) > MOST_PAGES:
        raise _unusable(path, f"has more than {MOST_PAGES} pages")
    stream.seek(0)
    yield from _decode_file(stream, path, max_pixels, None)


def count_frames(stream: BinaryIO) -> int:
    """How many pages or frames a picture at the start of `stream` has that can be read; 1 where it does not say.

    Of a JPEG it is always 1: what its maker put behind it are copies or parts of the same photograph.
    """
    return measure_frames(stream)[0]


def measure_frames(stream: BinaryIO) -> tuple[int, int]:
    """`count_frames`, and how many pixels the first one has by its header; 0 where that cannot be read."""
    count, pixels = 1, 0
    try:
        stream.seek(0)
        kind = find_type(stream.read(HEAD_BYTES))
        stream.seek(0)
        if kind is None or not kind.is_read:
            return 1, 0
        if kind.pillow == "TIFF":
            count = _count_pages(stream)
            stream.seek(0)
        picture = Image.open(stream, formats=[kind.pillow])
        pixels = picture.width * picture.height
        if kind.pillow not in ("JPEG", "TIFF") and getattr(picture, "is_animated", False):
            count = int(getattr(picture, "n_frames", 1))
    except Exception:  # as `_decode_file`, which says what is wrong
        return count, pixels
    return count, pixels


def _count_pages(stream: BinaryIO) -> int:
    """Pages of a TIFF, one more than `MOST_PAGES` at most: Pillow would take minutes to count a hundred thousand."""
    try:
        file = Image.open(stream, formats=["TIFF"])
    except UnidentifiedImageError:
        return count_deep_pages(stream)
    for number in range(1, MOST_PAGES + 1):
        try:
            file.seek(number)
        except EOFError:
            return number
    return MOST_PAGES + 1


def _decode_file(stream: BinaryIO, path: Path, max_pixels: int, at_least: int | None) -> Iterator[DecodedPhoto]:
    head, done = stream.read(HEAD_BYTES), 0
    stream.seek(0)
    try:
        kind = _check_type(head)
        if kind.pillow != "TIFF":
            yield _decode_frame(stream, kind, max_pixels, at_least)
            return
        for page in _decode_tiff(stream, kind, max_pixels):
            yield page
            done += 1
    except Exception as error:
        # Decoders of damaged files throw nearly anything: OSError, SyntaxError, struct.error, KeyError ...
        place = f"after {done} pages: " if done else ""
        hint = error.hint if isinstance(error, _Refusal) else ""
        raise _unusable(path, place + _decoding_reason(head, error), hint) from error


def _check_type(head: bytes) -> PictureType:
    if reason := find_impostor(head):
        raise _Refusal(reason)
    kind = find_type(head)
    if kind is None:
        raise _Refusal("not an image (cannot identify)")
    if kind.is_read:
        return kind
    if kind.extra:
        hint = f"pip install {kind.package} (it is the extra [{kind.extra}] of colorpress), or save it as JPEG or PNG"
        raise _Refusal(f"format {kind.name} needs the extra colorpress[{kind.extra}]", hint)
    raise _Refusal(f"format {kind.name} not accepted ({names_of_read_types()})")


def _decode_frame(stream: BinaryIO, kind: PictureType, max_pixels: int, at_least: int | None) -> DecodedPhoto:
    """The first frame of what is no TIFF."""
    picture = _open_header(stream, kind, max_pixels)
    full = None
    if kind.pillow == "JPEG" and may_have_scans(picture, stream) and (scans := count_scans(stream)) > MOST_SCANS:
        raise _Refusal(f"has {scans} scans, and at most {MOST_SCANS} are read")
    if picture.format == "JPEG" and at_least is not None:
        full = picture.size
        ratio = min(1.0, at_least / min(full))
        picture.draft(None, (math.ceil(full[0] * ratio), math.ceil(full[1] * ratio)))
    decoded = _decode(picture, full, lambda: _open_header(stream, kind, max_pixels), {})
    if kind.pillow != "JPEG2000":
        return decoded
    return replace(decoded, metadata=replace(decoded.metadata, xmp=find_jp2_packet(stream)))


def _decode_tiff(stream: BinaryIO, kind: PictureType, max_pixels: int) -> Iterator[DecodedPhoto]:
    """The pages of a TIFF without smaller copies of them, each decoded when its turn comes."""
    try:
        file = _open_header(stream, kind, max_pixels)
    except UnidentifiedImageError as error:
        # Its first page has pixels that Pillow has no mode for; those of the others are no more usual.
        yield from _decode_odd_pages(stream, max_pixels, error)
        return
    twin = cache(lambda: _open_header(stream, kind, max_pixels))  # at the same page whenever it is asked for
    shown = 0
    for number in range(MOST_PAGES):
        try:
            file.seek(number)
        except EOFError:
            break
        if not first_number(_tags_of(file), _SUBFILE_TAG) & _REDUCED:
            shown += 1
            yield _decode_page(stream, file, twin, max_pixels)
    if not shown:
        file.seek(0)
        if _DNG_TAG in _tags_of(file) or _SUB_IFDS_TAG in _tags_of(file):
            raise _Refusal("raw photograph, of which only a preview can be read")
        yield _decode_page(stream, file, twin, max_pixels)


def _tags_of(file: Image.Image) -> Mapping[int, Any]:
    return getattr(file, "tag_v2", {})


def _decode_page(stream: BinaryIO, file: Image.Image, twin: Callable[[], Image.Image], max_pixels: int) -> DecodedPhoto:
    """The page of a TIFF at which `file` stands; `twin` opens the same file again."""
    tags, number = _tags_of(file), file.tell()
    if has_oversized_tiles(tags):
        raise _Refusal("damaged (tiles larger than the picture)")
    if is_misread(tags):
        return _decode_odd_page(stream, number, max_pixels)
    _check_size(file, max_pixels)

    def reopen() -> Image.Image:
        again = twin()
        again.seek(number)
        return again

    return _decode(file, None, reopen, tags)


def _decode_odd_pages(stream: BinaryIO, max_pixels: int, error: Exception) -> Iterator[DecodedPhoto]:
    """The pages of a TIFF that Pillow does not read; `error` says so, where nothing else reads them either."""
    for number in range(MOST_PAGES):
        try:
            page = _decode_odd_page(stream, number, max_pixels)
        except IndexError:
            if number == 0:
                raise error from None
            return
        except (DeepRefusal, MemoryError):
            raise
        except Exception:
            raise error from None
        yield page


def _decode_odd_page(stream: BinaryIO, number: int, max_pixels: int) -> DecodedPhoto:
    deep, tags = read_deep_tiff(stream, number, max_pixels)
    profile = tags.get(_PROFILE_TAG)
    return _as_photo(deep, read_tiff_metadata(tags), profile if isinstance(profile, bytes) else b"", tags)


def _open_header(stream: BinaryIO, kind: PictureType, max_pixels: int) -> Image.Image:
    # Pillow's limit is one number for the process; a larger one of ours must get past it.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    stream.seek(0)
    try:
        picture = Image.open(stream, formats=[kind.pillow])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        found = re.search(r"(\d+) pixels", str(error))
        raise _Refusal(describe_excess(int(found[1]) if found else max_pixels + 1, max_pixels)) from error
    _check_size(picture, max_pixels)
    return picture


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise _Refusal(describe_excess(picture.width * picture.height, max_pixels))
    if picture.width < 1 or picture.height < 1:
        raise _Refusal("damaged (no pixels)")


def _decoding_reason(head: bytes, error: Exception) -> str:
    text = str(error)
    if isinstance(error, _Refusal | DeepRefusal):
        return text
    if isinstance(error, UnidentifiedImageError):
        return "truncated or damaged (header)"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower():
        return "truncated"
    return f"damaged ({text.lower().partition(chr(10))[0][:80] or type(error).__name__})"


def _decode(
    picture: Image.Image, full: tuple[int, int] | None, reopen: Callable[[], Image.Image], tags: Mapping[int, Any]
) -> DecodedPhoto:
    """Load a picture that was opened.

    Args:
        full: width and height in the file, of a JPEG that is perhaps loaded smaller.
        reopen: opens it again, for a picture of 16 bits a channel.
        tags: of a TIFF page.
    """
    if rawmode := deep_rawmode(picture):
        sources = iter((picture, None))
        deep = read_deep_colors(rawmode, lambda change: _load_changed(next(sources) or reopen(), change), tags)
        return _as_photo(deep, read_metadata(picture), picture.info.get("icc_profile") or b"", tags)
    picture.load()
    # After loading: Pillow turns TIFF pictures upright itself and then drops the tag.
    on_its_side = _turn_upright_(picture)
    metadata, icc = read_metadata(picture), picture.info.get("icc_profile") or b""
    if picture.mode[0] == "I" or picture.mode == "F":
        return _as_photo(read_deep_grey(picture, tags), metadata, icc, tags)
    plain, alpha, profile = _to_srgb(picture, icc)
    width, height = plain.size if full is None else full[::-1] if on_its_side else full
    return DecodedPhoto(plain, alpha, width, height, metadata, profile, is_packed=_is_packed(tags))


def _load_changed(picture: Image.Image, change: Callable[[str], str]) -> Image.Image:
    """Load a picture with its raw mode changed, and turn it upright."""
    file: Any = picture
    file.tile = [
        tile._replace(args=change(tile.args) if isinstance(tile.args, str) else (change(tile.args[0]), *tile.args[1:]))
        for tile in file.tile
    ]
    picture.load()
    _turn_upright_(picture)
    return picture


def _as_photo(deep: DeepPixels, metadata: Metadata, icc: bytes, tags: Mapping[int, Any]) -> DecodedPhoto:
    eight = deep.to_8_bits()
    plain = Image.fromarray(eight if eight.shape[2] == 3 else eight[..., 0])
    picture, profile = _apply_profile(plain, icc)
    kept: Deep | None = deep.to_16_bits()
    if picture is not plain:  # converted, which Pillow's colour management does in 8 bits
        kept = _convert_deep(deep.to_16_bits(), icc)
    alpha = None if deep.alpha is None else Image.fromarray(deep.alpha)
    return DecodedPhoto(
        picture, alpha, *picture.size, metadata, profile, deep=kept, white=deep.white, is_packed=_is_packed(tags)
    )


def _convert_deep(values: Deep, icc: bytes) -> Deep | None:
    try:
        return convert_deep(values, icc)
    except Exception:  # a profile that one reader takes and the other does not
        return None


def _is_packed(tags: Mapping[int, Any]) -> bool:
    return first_number(tags, _COMPRESSION_TAG) != _UNPACKED


def _turn_upright_(picture: Image.Image) -> bool:
    """Turn the pixels as the EXIF orientation says; whether width and height changed places."""
    on_its_side = False
    try:
        on_its_side = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception:  # broken metadata counts as none, as in any viewer: the pixels are fine
        return on_its_side
    return on_its_side


def _to_srgb(picture: Image.Image, icc: bytes) -> tuple[Image.Image, Image.Image | None, bytes]:
    """A picture of 8 bits a channel in mode RGB or L, its transparency, and the profile of sRGB where it had one."""
    alpha = None
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        alpha, plain = rgba.getchannel("A"), rgba.convert("RGB")
    else:
        plain = picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")
    # A second picture of this size may be more than the memory has; that of a TIFF is the place of its next page too.
    in_place = plain.mode == "RGB" and plain.format != "TIFF"
    converted, profile = _apply_profile(plain, icc, in_place=in_place)
    return converted if converted.mode in ("L", "RGB") else converted.convert("RGB"), alpha, profile


def _apply_profile(picture: Image.Image, profile: bytes, *, in_place: bool = False) -> tuple[Image.Image, bytes]:
    """`picture` (L, RGB or CMYK) converted to sRGB, and a profile that says so; as it is where there is none."""
    if not profile or len(profile) > LARGEST_PROFILE_BYTES:
        return picture, b""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture, profile if picture.mode == "RGB" else b""
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB", inPlace=in_place)
        return converted or picture, target.tobytes()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture, b""  # of another colour space than the pixels, or broken: viewers ignore such profiles too
