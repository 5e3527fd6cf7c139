"""UUIDs that tell for which resource they were made.

A partition table has place for a UUID and hardly any for a mark. So the UUID is the mark: it is
made of the resource's name and a random part, and whoever knows the name can see that it fits.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid

_SALT_BYTES = 6


def new(resource: str) -> str:
    """A new UUID for a resource, in lower case (RFC 9562, version 8)."""
    return _tag(secrets.token_bytes(_SALT_BYTES), resource)


def is_for(found: str, resource: str) -> bool:
    """Whether a UUID, in lower case, was made for a resource. What is no UUID was not."""
    try:
        return _tag(uuid.UUID(found).bytes[:_SALT_BYTES], resource) == found
    except ValueError:
        return False


def _tag(salt: bytes, resource: str) -> str:
    digest = hashlib.sha256(b"poolkeeper " + salt + resource.encode()).digest()
    raw = bytearray(salt + digest[: 16 - _SALT_BYTES])
    raw[6] = raw[6] & 0x0F | 0x80  # version 8, of nobody's scheme but one's own
    raw[8] = raw[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))
