"""Addresses of an index: what of them may be shown, and who may be told the password in one."""

from __future__ import annotations

import base64
import re
import urllib.parse
from dataclasses import dataclass

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """An address without its user name and password, and those apart.

    Attributes:
        url: the address that is asked for, and that may be shown.
        authorization: value of the HTTP header for it; empty if the address names no user.
    """

    url: str
    authorization: str = ""

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """Scheme, host and port: who is asked.

        Raises:
            ValueError: the address has no such thing.
        """
        parts = urllib.parse.urlsplit(self.url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)

    def redirected(self, location: str) -> Address:
        """Where an answer sends to. The password stays with the scheme, host and port that it was given for.

        Raises:
            ValueError: it leads from https to something else, or to no page at all.
        """
        try:
            joined = urllib.parse.urljoin(self.url, location)
        except ValueError:
            raise ValueError("it redirects to what is not a valid address") from None
        there = parse_address(joined)
        scheme, _, _ = there.origin
        if scheme not in _PORTS:
            raise ValueError(f"it redirects to {without_credentials(there.url)!r}, which is neither http nor https")
        if self.origin[0] == "https" and scheme != "https":
            raise ValueError(f"it redirects from https to {without_credentials(there.url)!r}, which anybody can change")
        return Address(there.url, self.authorization if there.origin == self.origin else "")


def parse_address(text: str) -> Address:
    """Take an address apart.

    Raises:
        ValueError: it is none. The message has nothing of it, because it may have a password in an odd place.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        user, has_password, password = parts.netloc.rpartition("@")[0].partition(":")
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        _ = parts.port
    except ValueError:
        raise ValueError("it is not a valid address") from None
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("it is not a valid address: it has a blank or a control character")
    if not user and not has_password:
        return Address(url)
    told = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}".encode()
    return Address(url, "Basic " + base64.b64encode(told).decode())


def without_credentials(text: str) -> str:
    """Text, such as an address or what pip says, without user names and passwords of addresses in it.

    A password with an unescaped slash goes too; so does, at worst, the host before an ``@`` in a path.
    """
    return re.sub(r"(?<=://)[^\s'\"<>]*@", "", text)
