"""RabbitMQ's management interface, for whoever may ask it: the only module that knows httpx."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from fluffle.address import BrokerAddress
from fluffle.errors import (
    AccessRefused,
    BrokerError,
    ConfigError,
    ConnectionLost,
    LoginRefused,
    QuotaReached,
    RequestRefused,
    TopologyMismatch,
    TopologyMissing,
)
from fluffle.policies import BrokerPolicy
from fluffle.tls import TlsFiles
from fluffle.topology import OTHER_ARGUMENTS

TIMEOUT_S = 10.0
# For who has other work to do.
SHORT_TIMEOUT_S = 3.0
NOT_LET_IN, NOT_FOUND, FAILS_ITSELF = 401, 404, 500
ADMINISTRATOR, MONITORING, MANAGEMENT = "administrator", "monitoring", "management"
# Each tag, and those that include it.
INCLUDED_IN = {
    ADMINISTRATOR: {ADMINISTRATOR},
    MONITORING: {MONITORING, ADMINISTRATOR},
    MANAGEMENT: {MANAGEMENT, "policymaker", MONITORING, ADMINISTRATOR},
}


class ManagementClient:
    """A login to the management interface, and one virtual host.

    What goes wrong is a BrokerError with RabbitMQ's own reason: ConnectionLost when nothing or something else
    answers, LoginRefused for a wrong login or virtual host, AccessRefused without the tag or the right,
    TopologyMissing and TopologyMismatch for what is not there or has other arguments, QuotaReached, and
    RequestRefused for the rest.
    """

    def __init__(
        self, address: BrokerAddress, url: str | None, *, tag: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Log in at `url`, by default on the broker's host, and require a tag that includes `tag`."""
        self._tag = tag
        self.user, password = address.login()
        if password is None:
            raise ConfigError(
                "RabbitMQ's management interface wants a password: put an operator's user and password into "
                "FLUFFLE_BROKER_URL, or the password into FLUFFLE_BROKER_PASSWORD_FILE"
            )
        self.vhost = address.virtual_host
        self._url = url or address.management_urls[0]
        self._client = httpx.Client(
            base_url=f"{self._url.rstrip('/')}/api/",
            auth=httpx.BasicAuth(self.user, password),
            timeout=timeout_s,
            verify=(address.tls or TlsFiles()).context(),
            # No proxy of the environment: it would see the login.
            trust_env=False,
        )
        try:
            self._require_tag()
        except BaseException:
            self._client.close()
            raise

    def policies(self) -> tuple[BrokerPolicy, ...]:
        """Return the policies and operator policies of the virtual host, which the tag management may see."""
        found: list[BrokerPolicy] = []
        for kind in ("policies", "operator-policies"):
            rows = self._get(f"{kind}/{quoted(self.vhost)}")
            if not isinstance(rows, list):
                raise self._nothing_there("something else answers")
            found += [_policy(row, is_operator=kind == "operator-policies") for row in rows]
        return tuple(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def _require_tag(self) -> None:
        account = self._get("whoami")
        if not isinstance(account, dict) or "tags" not in account:
            raise self._nothing_there("something else answers")
        if not INCLUDED_IN[self._tag] & set(account["tags"]):
            raise self._has_no_tag()

    def _get(self, path: str) -> Any:
        response = self._do("GET", path, path)
        try:
            return response.json()
        except ValueError as error:
            raise self._nothing_there("something else answers") from error

    def _do(
        self, method: str, path: str, what: str, body: Mapping[str, object] | None = None
    ) -> httpx.Response:
        try:
            response = self._request(method, path, body)
        except httpx.HTTPError as error:
            raise self._nothing_there(str(error) or type(error).__name__) from error
        if response.is_success:
            return response
        if response.status_code == NOT_FOUND and path == "whoami":
            raise self._nothing_there("something else answers")
        raise self._refusal(response.status_code, _reason(response), what)

    def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body)
        except httpx.RemoteProtocolError:
            # RabbitMQ has closed a connection that was kept open. All that is asked here may be asked twice.
            return self._client.request(method, path, json=body)

    def _refusal(self, code: int, reason: str, what: str) -> BrokerError:
        """Return what RabbitMQ refused, with its own reason, as the error that says what to do."""
        if code == NOT_LET_IN and "user" in reason:  # "Not management user"
            return self._has_no_tag()
        if code == NOT_LET_IN and "Access" in reason:  # "Access refused."
            return AccessRefused(f"{self._url}: the user {self.user!r} has no right to {what} ({reason})")
        if code == NOT_LET_IN:
            return LoginRefused(f"{self._url} refused the user {self.user!r} or its password ({reason})")
        if "vhost" in reason and "not_found" in reason:
            return LoginRefused(
                f"{self._url} has no virtual host {self.vhost!r} for {what}: make it first ({reason})"
            )
        if code == NOT_FOUND:
            return TopologyMissing(f"{self._url} does not have {what} ({reason})")
        if "inequivalent" in reason:
            return TopologyMismatch(f"{what} {OTHER_ARGUMENTS} ({reason})")
        if "limit" in reason and "is reached" in reason:
            return QuotaReached(
                f"{self._url} makes no more of them, and {what} is not there: raise the limit, or delete "
                f"what is not needed ({reason})"
            )
        if code >= FAILS_ITSELF:
            return ConnectionLost(f"{self._url} cannot answer about {what} for now: {code} {reason}")
        return RequestRefused(f"{self._url} refused {what}, and would again: {code} {reason}")

    def _nothing_there(self, reason: str) -> ConnectionLost:
        return ConnectionLost(
            f"no management interface of RabbitMQ answers at {self._url} ({reason}): switch it on there "
            "(rabbitmq-plugins enable rabbitmq_management), or say where it is with FLUFFLE_MANAGEMENT_URL"
        )

    def _has_no_tag(self) -> AccessRefused:
        if self._tag == MANAGEMENT:
            return AccessRefused(
                f"the user {self.user!r} may not ask RabbitMQ's management interface: it needs the tag "
                f"management (rabbitmqctl set_user_tags {self.user} management)"
            )
        if self._tag == MONITORING:
            return AccessRefused(
                f"the user {self.user!r} has not the tag {self._tag} in RabbitMQ, as its role monitor has"
            )
        return AccessRefused(
            f"the user {self.user!r} is no administrator of RabbitMQ: put an operator's login into "
            "FLUFFLE_BROKER_URL"
        )


def policies_at(address: BrokerAddress, url: str | None) -> tuple[BrokerPolicy, ...]:
    """Ask for the policies of the broker's virtual host, for a part that works without them too.

    Without a `url` each node of the cluster is asked, until one answers. Raises BrokerError or ConfigError,
    which say why nobody can be asked: no management interface answers, or not this user.
    """
    if url is None and not address.has_usual_ports:
        raise ConfigError(
            "the broker listens on a port of its own, so that its management interface may be anywhere: say "
            "where with FLUFFLE_MANAGEMENT_URL"
        )
    *others, last = (url,) if url else address.management_urls
    for each in others:
        with suppress(ConnectionLost):
            return _policies_at(address, each)
    return _policies_at(address, last)


def _policies_at(address: BrokerAddress, url: str) -> tuple[BrokerPolicy, ...]:
    with ManagementClient(address, url, tag=MANAGEMENT, timeout_s=SHORT_TIMEOUT_S) as client:
        return client.policies()


def quoted(name: str) -> str:
    """Return a name as it stands in a path."""
    return quote(name, safe="")


def _policy(row: Mapping[str, Any], *, is_operator: bool) -> BrokerPolicy:
    return BrokerPolicy(
        name=row["name"],
        pattern=row["pattern"],
        definition=row["definition"],
        applies_to=row["apply-to"],
        priority=row["priority"],
        is_operator=is_operator,
    )


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()
    except ValueError:
        return response.reason_phrase
    return str(said.get("reason", said)) if isinstance(said, dict) else str(said)
