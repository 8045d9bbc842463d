"""A file's bytes as lines of text: unpacked, decoded, without comments."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from streamcell.models.errors import DataError

from .options import TableOptions

_GZIP = b"\x1f\x8b"
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Files that name no encoding and are not UTF-8 are mostly from Windows in Western Europe.
_OTHERWISE = "cp1252"
_COMMENT = "#"
# That a gzip file may hold, which can be a thousand times as long as it is.
MOST_BYTES = 2 << 30
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Text:
    """A file's rows, still as text.

    Attributes:
        lines: without comments, line ends and the empty lines at the end.
        numbers: the number of each in the file, counted from 1.
        comments: the comment lines that were left out, without their mark.
        heading: the comment right before the first row; None if there is none.
        encoding: that it was decoded with.
        packed: whether it was gzip.
    """

    lines: list[str]
    numbers: list[int]
    comments: list[str]
    heading: str | None
    encoding: str
    packed: bool


def read_text(path: Path, options: TableOptions) -> Text:
    """The rows of a file as text.

    Raises:
        DataError: the file cannot be read, unpacked or decoded, or holds more than `MOST_BYTES` if it is packed; the
            text names the option that may help.
    """
    try:
        stored = path.read_bytes()
        packed = stored.startswith(_GZIP)
        data = _unpacked(path, stored) if packed else stored
    except (OSError, EOFError, zlib.error) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"{path} cannot be read: {told}") from error
    text, encoding = _decoded(path, data, options.encoding)
    lines = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return _without_comments(lines, options, encoding, packed)


def _unpacked(path: Path, data: bytes) -> bytearray:
    unpacked = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(_CHUNK):
            unpacked += chunk
            if len(unpacked) > MOST_BYTES:
                raise DataError(f"{path} holds more than {MOST_BYTES} bytes, packed by gzip: unpack it")
    return unpacked


def _decoded(path: Path, data: bytes | bytearray, given: str) -> tuple[str, str]:
    marked = next((name for bom, name in _BOMS.items() if data.startswith(bom)), None)
    tried = [given] if given else [marked] if marked else ["utf-8", _OTHERWISE]
    for encoding in tried:
        # Given without it, the mark of UTF-8 would be part of the first name.
        reader = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
        try:
            text = data.decode(reader)
        except LookupError as error:
            raise DataError(f"{path}: --encoding {encoding} is no encoding that Python knows") from error
        except UnicodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise DataError(f"{path} is not text in {' or '.join(tried)}: give its encoding with --encoding")


def _without_comments(lines: list[str], options: TableOptions, encoding: str, packed: bool) -> Text:
    mark = options.comment or _COMMENT
    rows: list[str] = []
    numbers: list[int] = []
    comments: list[str] = []
    heading, quoted = None, False
    for number, line in enumerate(lines, 1):
        if not quoted and line.lstrip().startswith(mark):
            comments.append(line.lstrip()[len(mark) :].strip())
            heading = comments[-1] if not rows else heading
            continue
        if not rows and not line.strip():
            continue
        # Within quotes a cell may hold line ends, and then lines that begin with the mark.
        quoted ^= line.count(options.quote) % 2 == 1
        rows.append(line)
        numbers.append(number)
    return Text(rows, numbers, comments, heading, encoding, packed)
