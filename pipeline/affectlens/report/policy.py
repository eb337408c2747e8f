"""The content-security policy of a page: its own scripts run, known by their checksums, and no other one does.

What users, models and other writers wrote is escaped before it stands on a page. Should a string get through all the
same, the browser runs neither an inserted script element nor a handler in an attribute, for neither has a checksum that
the page names.
"""

from __future__ import annotations

import base64
import hashlib


def checksums(*contents: str) -> str:
    """What a policy calls elements with exactly these contents.

    Args:
        contents: every character between the tags, line breaks included.
    """
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def inside(*scripts: str) -> str:
    """The policy of a page that is one file and asks for nothing.

    Args:
        scripts: contents of the scripts that it runs, those that it adds to itself included.
    """
    return (
        f"default-src 'none'; script-src {checksums(*scripts)}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
