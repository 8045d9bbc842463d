"""Protobuf's varints, which both protocols write by hand."""

from __future__ import annotations

SMALL = [bytes((number,)) for number in range(0x80)]


def varint(number: int) -> bytes:
    """`number`, 0 or more, seven bits a byte, lowest first."""
    if number < 0x80:
        return SMALL[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
