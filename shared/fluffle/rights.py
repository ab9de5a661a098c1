"""Who may do what on the broker: roles as RabbitMQ's rights, and users as it stores them. Pure.

RabbitMQ searches three patterns in the names of exchanges and queues: what a user may configure (declare and
delete), write to, and read from. To bind takes writing to the queue and reading from the exchange.

Standard library alone: `make secrets` reads this module before anything is installed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

NOTHING, EVERYTHING = "^$", ".*"
HASHING_ALGORITHM = "rabbit_password_hashing_sha256"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do on one virtual host, as patterns, and on the whole broker, as tags."""

    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    tags: frozenset[str] = frozenset()

    @property
    def patterns(self) -> dict[str, str]:
        """The patterns by RabbitMQ's names for them."""
        return {"configure": self.configure, "write": self.write, "read": self.read}


def _worker(own: str, name: str) -> Rights:
    # The lock and the bell of its own name (fluffle.rabbit.worker_name): nobody may send to them.
    queues = rf"worker\.{name}(/bell)?"
    return Rights(
        configure=rf"^{own}\.{queues}$",
        write=rf"^{own}\.(updates|member-events)$",
        read=rf"^{own}\.(models|{queues})$",
    )


def _evaluator(own: str, _name: str) -> Rights:
    return Rights(write=rf"^{own}\.(evaluations|member-events)$", read=rf"^{own}\.models$")


def _aggregator(own: str, _name: str) -> Rights:
    # Not amq.default, the default exchange: through it one writes to every queue, of other federations too.
    return Rights(rf"^{own}\.", rf"^{own}\.", rf"^{own}\.")


def _monitor(own: str, _name: str) -> Rights:
    # Its own queues, to listen to what happens, and the models, whose records say what has happened.
    listens = rf"^{own}\.events\."
    return Rights(listens, listens, rf"^{own}\.(events|events\..*|models)$", frozenset({"monitoring"}))


def _operator(_own: str, _name: str) -> Rights:
    # An impersonator may send a refused update again in its worker's name.
    return Rights(EVERYTHING, EVERYTHING, EVERYTHING, frozenset({"administrator", "impersonator"}))


# The user of a worker or evaluator is named as it is itself: RabbitMQ lets nobody speak for another.
ROLES: Mapping[str, Callable[[str, str], Rights]] = {
    "worker": _worker,
    "evaluator": _evaluator,
    "aggregator": _aggregator,
    "monitor": _monitor,
    "operator": _operator,
}


def rights_of(role: str, federation: str, name: str) -> Rights:
    """Return what a user of this name may do as a role in a federation; operators do the same in each."""
    return ROLES[role](re.escape(federation), re.escape(name))


def role_of(rights: Rights, federation: str, name: str) -> str | None:
    """Return the role in a federation whose rights a user of this name has exactly, if there is one.

    An aggregator may have the tag `management` too, with which it may look at the broker's policies.
    """
    if rights == replace(rights_of("aggregator", federation, name), tags=frozenset({"management"})):
        return "aggregator"
    return next((role for role in ROLES if rights_of(role, federation, name) == rights), None)


def password_hash(password: str, salt: bytes) -> str:
    """Hash as RabbitMQ does: base64 of the salt (4 bytes) and then sha256(salt + password)."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


def user_definition(name: str, rights: Rights, hashed: str) -> dict[str, object]:
    """Return a user as RabbitMQ's definitions and its HTTP interface have it."""
    return {
        "name": name,
        "password_hash": hashed,
        "hashing_algorithm": HASHING_ALGORITHM,
        "tags": sorted(rights.tags),
    }


def permission_definition(name: str, rights: Rights, vhost: str) -> dict[str, object]:
    """Return a user's rights on a virtual host, likewise."""
    return {"user": name, "vhost": vhost, **rights.patterns}
