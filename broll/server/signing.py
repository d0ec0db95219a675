"""URLs that open one thing for a while, without a key.

    /v1/jobs/job_01k8/content?exp=1767225600&kid=3f2a90bc&sig=...

    sig = base64url(HMAC-SHA256(secret, exp, kid, path))      kid = first 8 hexadecimal digits of SHA-256(secret)

GET and HEAD share a URL, so the method is not signed; the query beside these three is not either. `exp` moves in steps
of half a lifetime: within a step a URL stays the same, so that browsers and proxies can cache it, and a fresh one is
good for half of its lifetime at least and for all of it at most. That is also the room for clocks which differ.

Rotation: put the new secret first, and drop the old one after a lifetime. One secret of the service is enough:
`derive` makes independent ones from it, as HKDF does (RFC 5869).
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

from broll.errors import BadOption

MIN_SECRET = 16
EXPIRY = re.compile(r"[1-9][0-9]{0,14}")


def derive(root: bytes, purpose: str) -> bytes:
    """32 bytes that tell nothing about the root or about those for other purposes."""
    key = hmac.digest(b"broll", root, "sha256")
    return hmac.digest(key, purpose.encode() + b"\x01", "sha256")


def key_id(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()[:8]


def signature(secret: bytes, path: str, exp: str, kid: str) -> str:
    # Neither exp nor kid can hold a line break, so no two triples give the same message.
    message = f"broll-url\n{exp}\n{kid}\n{path}".encode(errors="surrogatepass")
    return base64.urlsafe_b64encode(hmac.digest(secret, message, "sha256")).rstrip(b"=").decode()


def same(one: str, other: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="surrogatepass"), other.encode(errors="surrogatepass"))


class Signer:
    """The first secret signs; all of them count."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets or min(map(len, secrets)) < MIN_SECRET:
            raise BadOption(f"URLs are signed with one or more secrets of {MIN_SECRET} bytes or more")
        self._keys = [(key_id(secret), secret) for secret in secrets]

    def sign(self, path: str, *, now: float, life_s: float) -> str:
        """The query of a URL for `path`; half a lifetime is a whole number of seconds."""
        half = int(life_s // 2)
        if half < 1:
            raise BadOption(f"a URL cannot live for {life_s:g} s; 2 s is the shortest")
        kid, secret = self._keys[0]
        exp = str((int(now // half) + 2) * half)
        return f"exp={exp}&kid={kid}&sig={signature(secret, path, exp, kid)}"

    def verify(self, path: str, query: Mapping[str, str], *, now: float) -> bool:
        exp, kid, sig = (query.get(name, "") for name in ("exp", "kid", "sig"))
        if not EXPIRY.fullmatch(exp):
            return False
        genuine = False
        for known, secret in self._keys:
            genuine |= same(sig, signature(secret, path, exp, known)) and same(kid, known)
        return genuine and now < int(exp)
