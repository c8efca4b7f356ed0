"""What the containers PNG and JPEG say about their completeness: decoders forgive missing ends and rows, and fill them in grey."""

import re
import zlib

from stages.sources._problems import Fault

OTHERS = (  # (offset, bytes there, name)
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftyp", "HEIC or AVIF"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or XML"),
    (0, b"8BPS", "Photoshop"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"P5", "PGM"),
    (0, b"P6", "PPM"),
)
LARGEST = 64_000_000  # pixels of one picture, by its header
SCANS = 100  # of one JPEG: progressive ones have about ten; each of thousands would cost a pass over all pixels
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # as decoders look for it: filling, escaped bytes and restarts inside scans are none
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type of a PNG
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7: x, y, step in x and y
PIECE = 1 << 20  # bytes that are unpacked at a time


def name_of(data: bytes) -> str | None:
    """What a file is that is neither PNG nor JPEG, as far as its first bytes tell."""
    return next((name for at, magic, name in OTHERS if data[at : at + len(magic)] == magic), None)


def check_whole(data: bytes) -> None:
    """Fault if a part of a PNG or JPEG is missing, or a checksum is wrong. Once, when data are first seen."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        check_png(memoryview(data))
    elif data.startswith(b"\xff\xd8"):
        check_jpeg(data)


def check_png(data: memoryview) -> None:
    """Walks the chunks to IEND, checks their sums, and counts the rows. What follows IEND belongs to nobody and is passed over."""
    at, packed = 8, []
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        name = bytes(data[at + 4 : at + 8])
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise Fault("damaged: a checksum inside the PNG is wrong", "copy it again")
        if (at == 8) != (name == b"IHDR") or (at == 8 and end - at != 25):
            raise Fault("damaged: the header of the PNG is not where it must be", "copy it again")
        if name == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        if name == b"IEND":
            return check_rows(bytes(data[16:29]), packed)
        at = end
    raise Fault("cut off before the end of the PNG", "copy it again")


def check_rows(header: bytes, packed: list[memoryview]) -> None:
    wide, high, depth, colour = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"), header[8], header[9]
    if not wide or not high:
        raise Fault(f"a picture of {wide}x{high} pixels", "copy it again")
    if wide * high > LARGEST:
        raise Fault(f"{wide}x{high} pixels, more than 64 million", "make it smaller")
    if colour not in CHANNELS:
        raise Fault(f"damaged: colour type {colour} of the PNG does not exist", "copy it again")
    passes = PASSES if header[12] else ((0, 0, 1, 1),)
    sizes = [((wide - x + dx - 1) // dx, (high - y + dy - 1) // dy) for x, y, dx, dy in passes]
    wanted = sum(rows * (1 + (columns * depth * CHANNELS[colour] + 7) // 8) for columns, rows in sizes if columns > 0)
    if (found := unpacked(packed, wanted)) < wanted:
        raise Fault(f"its rows are missing from byte {found:,} of {wanted:,} on", "copy it again")


def unpacked(packed: list[memoryview], enough: int) -> int:
    """How many bytes come out, up to `enough`."""
    stream, total = zlib.decompressobj(), 0
    try:
        for piece in packed:
            rest = bytes(piece)
            while rest and total < enough and not stream.eof:
                total += len(stream.decompress(rest, PIECE))
                rest = stream.unconsumed_tail
        return total + (len(stream.flush()) if total < enough else 0)
    except zlib.error:
        raise Fault("damaged: the pixels of the PNG cannot be unpacked", "copy it again") from None


def check_jpeg(data: bytes) -> None:
    """Walks segments and scans to the end marker. What follows it (previews, trailers of cameras) is passed over."""
    at, scans = 2, 0
    while (scans or data[at : at + 1] == b"\xff") and (found := MARKER.search(data, at)):
        at = found.start()
        marker = data[at + 1]
        if marker == 0xD9 and scans:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        scans += marker == 0xDA
        if scans > SCANS:
            raise Fault(f"a JPEG of more than {SCANS} scans", "save it again as an ordinary JPEG")
    raise Fault("cut off before the end of the JPEG", "copy it again")
