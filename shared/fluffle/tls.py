"""The files that TLS needs: whom to trust, which certificate to show, and which user that is.

Errors are ConfigErrors that name the setting. The files are read at each use, so that they can be replaced.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fluffle.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a client: authorities to trust (None: the system's), its certificate and private key."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context that always verifies the server and its host name."""
        if self.authorities is not None:
            _require_readable("broker_ca_file", self.authorities)
        try:
            # With a file, the system's authorities are not trusted.
            context = ssl.create_default_context(cafile=self.authorities)
        except ssl.SSLError as error:
            raise ConfigError(f"broker_ca_file {self.authorities} holds no certificate in PEM") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None and self.key is not None:
            _present(context, self.certificate, self.key)
        return context


def user_of(certificate: Path) -> str:
    """Return the common name, which is the RabbitMQ user with broker_config's ssl_cert_login_from."""
    names = [part.value for part in _read(certificate).subject if part.rfc4514_attribute_name == "CN"]
    if len(names) != 1:
        raise ConfigError(
            f"broker_cert_file {certificate} has no common name to take the RabbitMQ user from: name the "
            "user in broker_url, as in amqps://user@host"
        )
    return str(names[0])


def expired_on(certificate: Path, now: datetime) -> str | None:
    """Return the day on which a certificate expired, or None."""
    end = _read(certificate).not_valid_after_utc
    return None if now < end else f"{end:%Y-%m-%d}"


def _present(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _require_readable("broker_cert_file", certificate)
    _require_readable("broker_key_file", key)

    def refuse_to_ask() -> str:
        # Without this OpenSSL would ask for the password at the terminal.
        raise ConfigError(
            f"broker_key_file {key} is encrypted: use a key without a password, readable by its owner only"
        )

    try:
        context.load_cert_chain(certificate, key, refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"is not the key of broker_cert_file {certificate}"
            raise ConfigError(f"broker_key_file {key} {problem}") from error
        _read(certificate)
        raise ConfigError(f"broker_key_file {key} holds no private key in PEM") from error


def _read(certificate: Path) -> x509.Certificate:
    # Here, since it is slow to load, and few need it.
    from cryptography import x509

    _require_readable("broker_cert_file", certificate)
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except ValueError as error:
        raise ConfigError(f"broker_cert_file {certificate} holds no certificate in PEM") from error


def _require_readable(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{setting} {path} cannot be read: {error.strerror}") from error
