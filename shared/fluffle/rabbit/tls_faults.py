"""Find out why a TLS connection failed.

pika's exceptions seldom say so: in TLS 1.3 the client's handshake ends before the server has checked the
client's certificate, and a TLS server only hangs up on plain text. Then one more handshake asks the server,
without a login.
"""

import socket
import ssl
from datetime import UTC, datetime

import pika.exceptions

from fluffle.errors import LoginRefused
from fluffle.tls import TlsFiles, expired_on

PROBE_TIMEOUT_S = 3.0
# OpenSSL's numbers for what is wrong with a certificate: X509_V_ERR_...
EXPIRED, UNKNOWN_ISSUERS, WRONG_HOSTS = 10, {2, 18, 19, 20, 21}, {62, 64}


def tls_refusal(error: Exception, tls: TlsFiles | None, host: str, port: int) -> LoginRefused | None:
    """Return why TLS failed; None when TLS is not the problem.

    `error` is what pika raised; `tls` is None when the connection was in plain text.
    """
    where = f"RabbitMQ at {host}:{port}"
    # pika raises this when a connection ends before the server has sent anything.
    hung_up = isinstance(error, pika.exceptions.IncompatibleProtocolError)
    if tls is None:
        if hung_up and _speaks_tls(host, port):
            return LoginRefused(f"{where} speaks TLS: broker_url must begin with amqps://, not amqp://")
        return None
    if hung_up:
        error = _late_alert(host, port, tls) or error
    if isinstance(error, ssl.SSLCertVerificationError):
        return LoginRefused(f"the certificate of {where} {_distrust(error, tls)}")
    if not isinstance(error, ssl.SSLError):
        return None
    if error.reason == "WRONG_VERSION_NUMBER":
        return LoginRefused(
            f"{where} does not speak TLS on this port: name its TLS port (5671 by default) in broker_url"
        )
    alert = _alert(error)
    return LoginRefused(f"{where} {_rejection(alert, tls)}") if alert else None


def _distrust(error: ssl.SSLCertVerificationError, tls: TlsFiles) -> str:
    if error.verify_code == EXPIRED:
        return "has expired: its operator must renew it"
    if error.verify_code in WRONG_HOSTS:
        return f"is for another host: correct broker_url, or the certificate ({error.verify_message})"
    if error.verify_code in UNKNOWN_ISSUERS:
        trusted = tls.authorities or "the system's authorities"
        return f"was issued by an authority that is not trusted ({trusted}): set broker_ca_file to its file"
    return f"cannot be trusted: {error.verify_message}"


def _rejection(alert: str, tls: TlsFiles) -> str:
    if tls.certificate is None:
        if alert in {"certificate required", "handshake failure"}:
            return "asks for a client's certificate: set broker_cert_file and broker_key_file"
        return f"refused the TLS connection ({alert})"
    shown = f"broker_cert_file {tls.certificate}"
    if day := expired_on(tls.certificate, datetime.now(UTC)):
        return f"refused {shown}, which expired on {day}: renew it"
    if alert == "unknown ca":
        return f"refused {shown}, whose issuer is not in the server's ssl_options.cacertfile"
    return f"refused {shown} ({alert})"


def _speaks_tls(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as plain:
            ssl.create_default_context().wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLError as error:
        # It speaks TLS, whether its certificate is trusted or not.
        return isinstance(error, ssl.SSLCertVerificationError) or bool(_alert(error))
    except OSError:
        return False
    return True


def _late_alert(host: str, port: int, tls: TlsFiles) -> ssl.SSLError | None:
    """Return the alert after a handshake. Nothing is written: that could discard the alert."""
    try:
        with (
            socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as plain,
            tls.context().wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


def _alert(error: ssl.SSLError) -> str:
    """Return the name of the TLS alert in an error ("unknown ca"); "" for none, and for one that may pass."""
    alert = (error.reason or "").partition("ALERT_")[2].replace("_", " ").lower()
    return "" if alert == "internal error" else alert
