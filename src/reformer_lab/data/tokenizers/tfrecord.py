"""TFRecord files of tf.Example messages with whole numbers, as Tensor2Tensor wrote its data; no TensorFlow needed.

A record is its length (8 bytes), a checksum (4), the message, a checksum (4). The message is a protocol buffer: a map from
names to lists.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from reformer_lab.errors import UserError

Example = dict[str, list[int]]


def read_examples(path: str | Path) -> Iterator[Example]:
    """Yield the lists of int64 of each record, by their names. A UserError names a damaged file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file: give a TFRecord file")
    for number, message in enumerate(_records(path)):
        try:
            yield _example(message)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise UserError(f"{path}, record {number}: no tf.Example ({error}); fetch the file again") from None


def _records(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    at = number = 0
    while at < len(content):
        header = content[at : at + 12]
        length = int.from_bytes(header[:8], "little")
        body = content[at + 12 : at + 16 + length]
        if len(header) < 12 or len(body) < length + 4:
            raise UserError(f"{path} ends within record {number}: fetch it again")
        for data, checksum in ((header[:8], header[8:]), (body[:-4], body[-4:])):
            if struct.unpack("<I", checksum)[0] != masked_crc32c(data):
                raise UserError(f"{path}: the checksum of record {number} is wrong; fetch the file again")
        yield body[:-4]
        at, number = at + 16 + length, number + 1


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of a record: Castagnoli's CRC, rotated and shifted so that it is no CRC of itself.

    >>> hex(masked_crc32c(bytes(32)))  # whose CRC is 8a9136aa (RFC 3720, B.4)
    '0xfd7fffa'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _example(message: bytes) -> Example:
    """Example.features (1) holds Features.feature (1): map entries of a name (1) and a Feature (2), here an Int64List (3)."""
    example: Example = {}
    for features in _bytes_of(message, 1):
        for entry in _bytes_of(features, 1):
            name = next(_bytes_of(entry, 1), b"").decode()
            feature = next(_bytes_of(entry, 2), b"")
            numbers: list[int] = []
            for values in _bytes_of(feature, 3):
                for field, value in _fields(values):
                    if field == 1:
                        numbers += [value] if isinstance(value, int) else _varints(value)
            example[name] = [number - (1 << 64) if number >> 63 else number for number in numbers]
    return example


def _bytes_of(message: bytes, wanted: int) -> Iterator[bytes]:
    return (value for field, value in _fields(message) if field == wanted and isinstance(value, bytes))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: numbers and values, whole numbers or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(message):
            raise ValueError("a field reaches beyond its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varints(data: bytes) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at byte `at`, seven bits a byte, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
