"""Names of things: a prefix that says what it is, then time and chance, so that newer ones sort behind older ones."""

import secrets
import time

LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def new(prefix: str) -> str:
    """`job_01k8...`: 48 bits of milliseconds and 80 of chance, as in a ULID."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(LETTERS[number >> shift & 31] for shift in range(125, -5, -5))
