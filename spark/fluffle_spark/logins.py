"""How each site logs in to RabbitMQ: one login for all, a password of its own, or a user made for the run.

A site's RabbitMQ user has the name of its worker, so that no site can speak for another.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from fluffle.errors import BrokerError, ConfigError
from fluffle.logs import get_logger
from fluffle.management import Account, Management, ManagementSettings
from fluffle.rights import MADE_FOR_A_RUN, Rights, password_hash, rights_of
from fluffle.settings import SharedSettings

log = get_logger(__name__)

SALT_BYTES = 4
# The setting of a process that has the password in its broker URL: its environment may name the file too.
NO_PASSWORD_FILE = {"broker_password_file": None}


def url_with(url: str, user: str, password: str) -> str:
    """Return a broker URL with this login in the place of its own."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()


def own_url(settings: SharedSettings) -> str:
    """Return the broker URL with its password, also where that is in a file of the driver's."""
    user, password = settings.broker_address().login()
    if settings.broker_password_file is None or password is None:
        return settings.broker_url
    return url_with(settings.broker_url, user, password)


def urls_from_files(url: str, folder: Path, sites: Sequence[str]) -> dict[str, str]:
    """Return a broker URL for each site, with the password in FOLDER/SITE on the driver's machine.

    Raises ConfigError, which names the sites, when a file is missing or empty.
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for site in sites:
        try:
            password = (folder / site).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            password = ""
        if password:
            found[site] = url_with(url, site, password)
        else:
            missing.append(site)
    if missing:
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise ConfigError(
            f"{folder} has no password of {', '.join(missing[:3])}{more}: it must hold a file SITE "
            f"for each site, as `fluffle user add {missing[0]} --role worker --password-file "
            f"{folder / missing[0]}` makes it"
        )
    return found


@contextmanager
def users_for_the_run(settings: ManagementSettings, sites: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Make a RabbitMQ user for each site with a new password, yield their broker URLs, and remove them again.

    The broker URL's own login must be an administrator's. Raises ConfigError for a user that exists, which is
    not touched, unless a call for the same federation made it whose driver was killed.
    """
    made: dict[str, str] = {}
    rights = {site: _rights(settings.federation, site) for site in sites}
    with settings.management() as management:
        known = [account for account in management.accounts() if account.name in rights]
        left = [each.name for each in known if _was_left(each, rights[each.name], management)]
        if taken := sorted({each.name for each in known} - set(left)):
            raise ConfigError(
                f"RabbitMQ has a user {taken[0]!r} already, so that none can be made for this site: remove "
                f"it with `fluffle user remove {taken[0]}`, or give password_folder"
            )
        if left:
            log.info("users of an earlier call get new passwords", users=len(left))
        with ExitStack() as undoing:
            for site in sites:
                password = secrets.token_urlsafe(24)
                hashed = password_hash(password, secrets.token_bytes(SALT_BYTES))
                undoing.callback(_remove, management, site)
                management.put_user(site, rights[site], hashed)
                made[site] = url_with(settings.broker_url, site, password)
            log.info("made a RabbitMQ user for each site", sites=len(made))
            yield made


def _rights(federation: str, site: str) -> Rights:
    return replace(rights_of("worker", federation, site), tags=frozenset({MADE_FOR_A_RUN}))


def _was_left(account: Account, rights: Rights, management: Management) -> bool:
    """Tell whether a call that has ended made this user, and could not remove it any more."""
    is_made = account.tags == rights.tags and account.rights in ({}, {management.vhost: rights})
    return is_made and not management.connections_of(account.name)


def _remove(management: Management, site: str) -> None:
    try:
        management.delete_user(site)
    except BrokerError as error:
        log.warning("a RabbitMQ user could not be removed", user=site, because=str(error))
