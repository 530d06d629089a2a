"""The data of SVCB and HTTPS records (RFC 9460 §2.2): its parameters, and leaving some out."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ECH", "IPV4HINT", "IPV6HINT", "MANDATORY", "ServiceBinding", "SvcbError", "read_svcb"]

# RFC 9460 §14.3.2; RFC 9848 for ECH.
MANDATORY, IPV4HINT, ECH, IPV6HINT = 0, 4, 5, 6

_LABEL_MAX = 63
_NAME_MAX = 255
_PARAMETER = struct.Struct("!HH")
_KEY = struct.Struct("!H")


class SvcbError(ValueError):
    """Not the data of such a record: lengths that don't add up, or keys out of order."""


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """The data of one record.

    Attributes:
        head: Priority and target name, as they came.
        parameters: Values by key, in ascending order of the keys.
    """

    head: bytes
    parameters: dict[int, bytes]

    def without(self, keys: set[int]) -> ServiceBinding | None:
        """The same with parameters left out; None if a client could not use it without them."""
        mandatory = self.parameters.get(MANDATORY, b"")
        needed = {key for (key,) in _KEY.iter_unpack(mandatory)}
        gone = keys & self.parameters.keys()
        if gone & needed:
            return None
        kept = {key: value for key, value in self.parameters.items() if key not in gone}
        return ServiceBinding(self.head, kept)

    def having(self, key: int, value: bytes) -> ServiceBinding:
        """The same with another value for a parameter that is there."""
        return ServiceBinding(self.head, {**self.parameters, key: value})

    def encode(self) -> bytes:
        """The record's data."""
        return self.head + b"".join(
            _PARAMETER.pack(key, len(value)) + value for key, value in self.parameters.items()
        )


def read_svcb(data: bytes) -> ServiceBinding:
    """Take a record's data apart.

    Args:
        data: All of it; the target name is not compressed (RFC 9460 §2.2).

    Raises:
        SvcbError: It is malformed: a client would refuse it, too.
    """
    position = _end_of_name(data, 2)
    head = data[:position]
    parameters: dict[int, bytes] = {}
    last = -1
    while position < len(data):
        if position + _PARAMETER.size > len(data):
            raise SvcbError("a parameter's head is cut off")
        key, length = _PARAMETER.unpack_from(data, position)
        position += _PARAMETER.size
        value = data[position : position + length]
        if len(value) < length:
            raise SvcbError("a parameter is cut off")
        if key <= last:
            raise SvcbError("keys not in ascending order")
        _check(key, value)
        parameters[key] = value
        last = key
        position += length
    return ServiceBinding(head, parameters)


# Octets of one element, where the value is a list of them that isn't empty.
_ELEMENTS = {MANDATORY: 2, IPV4HINT: 4, IPV6HINT: 16}


def _check(key: int, value: bytes) -> None:
    size = _ELEMENTS.get(key)
    if size is not None and (not value or len(value) % size):
        raise SvcbError("a list that is empty or ends within an element")


def _end_of_name(data: bytes, start: int) -> int:
    position = start
    while True:
        if position >= len(data):
            raise SvcbError("the target name is cut off")
        length = data[position]
        if length > _LABEL_MAX:
            raise SvcbError("a compressed or over-long label")
        position += 1 + length
        if position - start > _NAME_MAX:
            raise SvcbError("the target name is too long")
        if not length:
            return position
