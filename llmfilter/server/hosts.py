"""Names of hosts: whether one can be looked up, and whether it is this machine. Pure."""

import ipaddress
import socket


def check_host(host: str) -> str:
    """Return the host if a resolver would take it; raise ValueError otherwise."""
    ascii_host = host if host.isascii() else host.encode("idna").decode()
    if any(not 0 < len(label) < 64 for label in ascii_host.removesuffix(".").split(".")) and host:
        raise ValueError(f"the host {host!r} has an empty or too long part between its dots")
    return host


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, in any spelling that a resolver takes: 127.1, 0.0.0.0, localhost. too."""
    host = host.removesuffix(".")
    try:
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (OSError, ValueError):
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # Linux takes the latter for itself
