"""Verified TLS for the client, and in plain words what went wrong with it."""

from __future__ import annotations

import weakref
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from cryptography.x509 import Certificate, DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName
from OpenSSL import SSL, crypto
from service_identity import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["problem", "verified"]


def verified(host: str, trust_root: Any = None) -> IOpenSSLClientConnectionCreator:
    """Makes TLS connections to one host: the chain must end at ``trust_root``, the name must be the certificate's.

    :param host: the name or address that the user asked for.
    :param trust_root: the authorities; the system's when it is ``None``.
    """
    return _Verified(host, optionsForClientTLS(host, trustRoot=trust_root))


@implementer(IOpenSSLClientConnectionCreator)
class _Verified:
    """Twisted's connections, with a verification that lets nothing pass but what it has found right: Twisted's takes a
    certificate as that of any host where its names cannot be read, or where it has none."""

    def __init__(self, host: str, made: IOpenSSLClientConnectionCreator):
        self._host = host
        self._made = made

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803 (the names are Twisted's)
        """A connection that ends as soon as the server has shown a certificate that is not its own; called by Twisted.

        The protocol's end then has the reason that :func:`problem` tells.
        """
        connection: SSL.Connection = self._made.clientConnectionForTLS(tlsProtocol)
        # The protocol has the connection, which has this.
        protocol, host = weakref.ref(tlsProtocol), self._host

        def verify(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
            if depth:
                # An authority's, whose names are nobody's address.
                return bool(ok)
            try:
                reason = _mismatch(certificate.to_cryptography(), host)
            except Exception:
                # A certificate may hold anything.
                reason = "the names in the certificate cannot be read"
            if reason and (ending := protocol()) is not None:
                ending.failVerification(Failure(_WrongNameError(reason)))
            return bool(ok) and not reason

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


class _WrongNameError(Exception):
    """The certificate is that of another; its text says so."""


def _mismatch(certificate: Certificate, host: str) -> str:
    """The reason why ``certificate`` is not that of ``host``; empty where it is (RFC 9525 section 6).

    :raises Exception: for a certificate or host that cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        return f"the certificate is for no host, {host} or other: it has no subjectAltName"
    try:
        address = ip_address(host)
    except ValueError:
        wanted = DNS_ID(host)
        for name in names.get_values_for_type(DNSName):
            # One that is none matches nothing; the others count.
            with suppress(CertificateError):
                if wanted.verify(DNSPattern.from_bytes(name.encode())):
                    return ""
    else:
        if address in names.get_values_for_type(IPAddress):
            return ""
    return f"the certificate is not for {host}"


def problem(reason: Failure) -> str:
    """The reason why TLS could not be set up; empty when the connection ended otherwise."""
    if reason.check(_WrongNameError):
        return str(reason.value)
    if not reason.check(SSL.Error):
        return ""
    details = getattr(reason.value, "args", ())
    said = " ".join(str(part) for error in details[0] for part in error) if details else ""
    if "certificate verify failed" in said:
        return "the certificate cannot be trusted: it has expired, or no known authority has signed it"
    return "no TLS could be agreed on"
