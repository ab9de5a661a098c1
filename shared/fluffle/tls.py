"""The files that TLS needs: whom to trust, which certificate to show, and which user that is.

Errors are ConfigErrors that name the setting. The files are read at each use, so that they can be replaced.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Never

from fluffle.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate that a client shows, and its private key, in PEM files."""

    file: Path
    key: Path

    def user(self) -> str:
        """Return the common name, which is the RabbitMQ user with broker_config's ssl_cert_login_from."""
        names = [part.value for part in self._read().subject if part.rfc4514_attribute_name == "CN"]
        if len(names) != 1:
            raise ConfigError(
                f"broker_cert_file {self.file} has no common name to take the RabbitMQ user from: name the "
                "user in broker_url, as in amqps://user@host"
            )
        return str(names[0])

    def expired_on(self, now: datetime) -> str | None:
        """Return the day on which it expired, or None."""
        end = self._read().not_valid_after_utc
        return None if now < end else f"{end:%Y-%m-%d}"

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make a context show this certificate."""
        _require_readable("broker_cert_file", self.file)
        _require_readable("broker_key_file", self.key)
        try:
            context.load_cert_chain(self.file, self.key, self._refuse_to_ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"broker_key_file {self.key} is not the key of broker_cert_file {self.file}"
                ) from error
            self._read()
            raise ConfigError(f"broker_key_file {self.key} holds no private key in PEM") from error

    def _refuse_to_ask(self) -> Never:
        # Without this OpenSSL would ask for the password at the terminal.
        raise ConfigError(
            f"broker_key_file {self.key} is encrypted: use a key without a password, readable by its owner "
            "only"
        )

    def _read(self) -> x509.Certificate:
        # Here, since it is slow to load, and few need it.
        from cryptography import x509

        _require_readable("broker_cert_file", self.file)
        try:
            return x509.load_pem_x509_certificate(self.file.read_bytes())
        except ValueError as error:
            raise ConfigError(f"broker_cert_file {self.file} holds no certificate in PEM") from error


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The authorities that a client trusts (PEM; None: the system's), and the certificate that it shows."""

    authorities: Path | None = None
    certificate: ClientCertificate | None = None

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
        if self.certificate is not None:
            self.certificate.load_into(context)
        return context


def _require_readable(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{setting} {path} cannot be read: {error.strerror}") from error
