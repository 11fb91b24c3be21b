"""Certificates made for one test: an authority, and servers' with whatever is wrong with them."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority"]

DAY = datetime.timedelta(days=1)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A certificate authority of its own.

    :ivar pem: its certificate.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name_of("Authority of a test")
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *names: str | x509.GeneralName | bytes,
        days: tuple[int, int] = (-1, 1),
        self_signed: bool = False,
        client: bool = False,
        subject: str = "",
    ) -> tuple[Path, Path]:
        """The files of a key and its certificate for ``names``, good from so many days from now to so many; a server's
        unless it is a ``client``'s.

        :param names: hosts and addresses, or names of other kinds; bytes are a subjectAltName by themselves, as they
            are. Without any the certificate has none.
        :param subject: its commonName; the first name when it is left out.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        own_name = name_of(subject or str(names[0]))
        now = datetime.datetime.now(datetime.UTC)
        alternatives: list[x509.GeneralName] = []
        for name in names:
            if not isinstance(name, str):
                alternatives += [name] if isinstance(name, x509.GeneralName) else []
                continue
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = (
            x509.CertificateBuilder()
            .subject_name(own_name)
            .issuer_name(own_name if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        for content in (name for name in names if isinstance(name, bytes)):
            oid = x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, content), critical=False)
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        paths = (
            self._directory / f"{certificate.serial_number:x}.key",
            self._directory / f"{certificate.serial_number:x}.pem",
        )
        paths[0].touch(mode=0o600)
        paths[0].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        paths[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return paths
