"""Makes the photographs of this folder, and their notice, from the packages that `origins.csv` names.

    python training/photographs/make_photographs.py PACKAGES

PACKAGES holds one folder for each package, named as the package is: a Debian package unpacked with `dpkg-deb -x`, and
the unzipped wheel of scikit-image. Old versions are at snapshot.debian.org. Another version of a file is refused.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from colorpress.core.config import DataConfig
from colorpress.core.errors import ColorpressError, InputError
from colorpress.core.files import atomic_write, sha256_file, write_text
from training.photos import load_rgb

HERE = Path(__file__).parent
LONG_SIDE = 160
# A wider picture loses its ends, so that a crop of 96 pixels need not be enlarged.
_WIDEST = 5 / 3
_QUALITY = 88
# 4:4:4: what is learned from them is colour.
_SUBSAMPLING = 0

_NOTICE = f"""# The photographs of this folder, their authors and licences

They are not under the licence of colorpress. Each keeps its own, named below as the copyright file of its package has
it. **All were changed**: reduced to at most {LONG_SIDE} pixels on the long side, wide ones cut to 5:3 at both ends,
converted to sRGB, stored as JPEG without metadata. `origins.csv` names the source file of each with its SHA-256, and
`make_photographs.py` makes them again; the sources are in the Debian archive (https://snapshot.debian.org), and in the
wheel of scikit-image. No author endorses colorpress or its use.

Texts of the licences:

| licence | text |
|---|---|
| CC0-1.0 | https://creativecommons.org/publicdomain/zero/1.0/legalcode |
| CC-BY-2.0 | https://creativecommons.org/licenses/by/2.0/legalcode |
| CC-BY-3.0 | https://creativecommons.org/licenses/by/3.0/legalcode |
| CC-BY-4.0 | https://creativecommons.org/licenses/by/4.0/legalcode |
| CC-BY-SA-3.0 | https://creativecommons.org/licenses/by-sa/3.0/legalcode |
| CC-BY-SA-4.0 | https://creativecommons.org/licenses/by-sa/4.0/legalcode |
| GPL-2.0-or-later | [GPL-2.txt](GPL-2.txt), [GPL-3.txt](GPL-3.txt) |
| LGPL-2.1-or-later, LGPL-3.0 | [LGPL-3.txt](LGPL-3.txt) and [GPL-3.txt](GPL-3.txt), to which it refers |

What is under CC-BY-SA may be passed on under that licence only, what is under GPL or LGPL under those; both hold for
these small copies too.

| file | title | author, as the package or its upstream says | licence | package |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Origin:
    """One line of `origins.csv`.

    Attributes:
        photograph: name of the small copy, without suffix.
        package, version, source: the package and the path of the file in it.
        sha256: of that file.
        origin: address of the photograph before it was packaged; empty where that is not known.
    """

    photograph: str
    title: str
    author: str
    licence: str
    package: str
    version: str
    source: str
    sha256: str
    origin: str

    @property
    def file(self) -> str:
        return f"{self.photograph}.jpg"


def read_origins() -> tuple[Origin, ...]:
    """Every line of `origins.csv`."""
    with (HERE / "origins.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(Origin(**row) for row in csv.DictReader(stream))


def make_photographs(origins: Sequence[Origin], packages: Path, target: Path) -> None:
    """Write the small copy of each photograph, and NOTICE.md, to a folder.

    Raises:
        InputError: a source is not there, or is not the file that the origin names; nothing was written then.
    """
    for origin in origins:
        _check_source(origin, packages)
    for origin in origins:
        with atomic_write(target / origin.file) as path:
            picture = reduce_photograph(_source(origin, packages))
            picture.save(path, "JPEG", quality=_QUALITY, subsampling=_SUBSAMPLING, optimize=True)
    write_text(target / "NOTICE.md", _NOTICE + "\n".join(map(_notice_row, origins)) + "\n")


def reduce_photograph(path: Path) -> Image.Image:
    """A photograph in sRGB, at most 160 pixels long and at most 5:3 wide or high; what is wider loses its ends."""
    picture = Image.fromarray(load_rgb(path, max_pixels=DataConfig().max_pixels))
    width, height = picture.size
    width, height = min(width, round(height * _WIDEST)), min(height, round(width * _WIDEST))
    ratio = min(1.0, LONG_SIDE / max(width, height))
    return ImageOps.fit(picture, (round(width * ratio), round(height * ratio)), Image.Resampling.LANCZOS)


def _source(origin: Origin, packages: Path) -> Path:
    return packages / origin.package / origin.source


def _check_source(origin: Origin, packages: Path) -> None:
    path, package = _source(origin, packages), f"{origin.package} {origin.version}"
    if not path.is_file():
        raise InputError("photograph", path, "no such file", f"unpack {package} into {packages / origin.package}")
    if sha256_file(path) != origin.sha256:
        raise InputError("photograph", path, "another file than origins.csv names", f"unpack {package}, no other one")


def _notice_row(origin: Origin) -> str:
    address = origin.origin.replace("(", "%28").replace(")", "%29")
    title = f"[{origin.title}]({address})" if address else origin.title
    cells = (origin.file, title, origin.author, origin.licence, f"{origin.package} {origin.version}")
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make them all; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="make_photographs.py"
    )
    parser.add_argument("packages", type=Path, help="folder of unpacked packages")
    try:
        make_photographs(read_origins(), parser.parse_args(arguments).packages, HERE)
    except ColorpressError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
