"""One HTTP range, as players ask for it; anything odd is answered with the whole.

RFC 9110, section 14        https://www.rfc-editor.org/rfc/rfc9110#section-14
"""

import re

RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")


class NotSatisfiable(Exception):
    """The range lies behind the end."""


def wanted(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of a file of `size` bytes; None for the whole."""
    match = RANGE.match(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        if int(last) == 0:
            raise NotSatisfiable
        return max(0, size - int(last)), size
    start, end = int(first), size if last == "" else min(size, int(last) + 1)
    if start >= size:
        raise NotSatisfiable
    return (start, end) if end > start else None
