"""Roles as RabbitMQ's rights, and users as RabbitMQ stores them. Pure.

RabbitMQ searches three patterns in the names of exchanges and queues: what a user may configure (declare and
delete), write to, and read from. To bind takes writing to the queue and reading from the exchange.

Needs only the standard library: `make secrets` reads this module before anything is installed.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

NOTHING, EVERYTHING = "^$", ".*"
# Without a dot, so that a wildcard cannot reach beyond it. Names that begin with `amq.` are RabbitMQ's own.
FEDERATION_NAME = r"(?!amq\Z)[a-z][a-z0-9_-]{0,47}"
WILDCARD, ANY_NAME_PART = "*", "[a-z0-9_-]*"
NOT_RABBITMQS = "(?!amq[.])"
HASHING_ALGORITHM = "rabbit_password_hashing_sha256"
# The tag of users that are removed when what they were made for has ended. It gives no right.
MADE_FOR_A_RUN = "fluffle-run"


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


# The lock and the bell of a worker's own name (fluffle.rabbit.worker_name): nobody may send to them.
_OWN_QUEUES = r"worker\.NAME(/bell)?"
# OWN stands for the federations, NAME for the user: that of a worker or evaluator is named as it is itself,
# because RabbitMQ lets nobody speak for another.
ROLES: Mapping[str, Rights] = {
    "worker": Rights(
        rf"^OWN\.{_OWN_QUEUES}$",
        r"^OWN\.(updates|member-events)$",
        rf"^OWN\.(models|best|records|{_OWN_QUEUES})$",
    ),
    "helper": Rights(
        rf"^OWN\.({_OWN_QUEUES}|digests\.NAME)$",
        r"^OWN\.(openings|member-events|digests|digests\.NAME)$",
        rf"^OWN\.(closes|digests|digests\.NAME|{_OWN_QUEUES})$",
    ),
    "evaluator": Rights(write=r"^OWN\.(evaluations|member-events)$", read=r"^OWN\.(models|best|records)$"),
    # Not amq.default, the default exchange: it gives write access to every queue of every federation.
    "aggregator": Rights(r"^OWN\.", r"^OWN\.", r"^OWN\."),
    # Its own queues, to listen to events, and the records of all versions. Not the models.
    "monitor": Rights(
        *(r"^OWN\.events\.", r"^OWN\.events\.", r"^OWN\.(events|events\..*|records)$"),
        tags=frozenset({"monitoring"}),
    ),
    # An impersonator may send a refused update again in its worker's name.
    "operator": Rights(EVERYTHING, EVERYTHING, EVERYTHING, frozenset({"administrator", "impersonator"})),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """The federations that a user has rights in: names, and patterns in which `*` is any part of a name."""

    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Read "digits" or "gym-*,digits"; ValueError says what is wrong with it."""
        names = tuple(dict.fromkeys(each.strip() for each in text.split(",")))
        for each in names:
            # With a letter in its place, a pattern is a name.
            if not re.fullmatch(FEDERATION_NAME, each.replace(WILDCARD, "x")):
                raise ValueError(
                    "must be federations such as digits,gym-* (each 1 to 48 of a-z, 0-9, _ and -, beginning "
                    f"with a letter; * stands for any of these; amq is RabbitMQ's own), not {each!r}"
                )
        return cls(names)

    def __str__(self) -> str:
        return ",".join(self.names)

    def __contains__(self, name: str) -> bool:
        """Tell whether a federation, or all that a pattern stands for, is among these."""
        return name != "amq" and any(
            re.fullmatch(_expression(each).replace(ANY_NAME_PART, "[a-z0-9_*-]*"), name)
            for each in self.names
        )

    def includes(self, other: "Scope") -> bool:
        """Tell whether all federations of another scope are in this one."""
        return all(each in self for each in other.names)


@dataclass(frozen=True, slots=True)
class Membership:
    """A role, and the federations in which somebody has it; an operator has it in all."""

    role: str
    scope: Scope


def rights_of(role: str, federations: str, name: str) -> Rights:
    """Return what a user of this name may do as a role in federations, written as `Scope.parse` reads them.

    Operators may do the same in each.
    """
    expressions = [_expression(each) for each in Scope.parse(federations).names]
    own = expressions[0] if len(expressions) == 1 else f"({'|'.join(expressions)})"
    patterns = ROLES[role].patterns.values()
    configure, write, read = (each.replace("OWN", own).replace("NAME", re.escape(name)) for each in patterns)
    return Rights(configure, write, read, ROLES[role].tags)


def membership_of(rights: Rights, name: str) -> Membership | None:
    """Return the role whose rights these are exactly, and its federations; None if there is none.

    An aggregator may have the tag `management` too, with which it may look at the broker's policies.
    """
    rights = replace(rights, tags=rights.tags - {MADE_FOR_A_RUN})
    if rights == ROLES["operator"]:
        return Membership("operator", Scope((WILDCARD,)))
    # The federations stand before the dot.
    own, _, _ = rights.read.removeprefix("^").partition(r"\.")
    # Undo what `rights_of` makes of the names of federations.
    names = own.replace(NOT_RABBITMQS, "").replace(ANY_NAME_PART, WILDCARD)
    try:
        scope = Scope.parse(names.removeprefix("(").removesuffix(")").replace("|", ",").replace("\\", ""))
    except ValueError:
        return None
    if rights == replace(rights_of("aggregator", str(scope), name), tags=frozenset({"management"})):
        return Membership("aggregator", scope)
    role = next((role for role in ROLES if rights_of(role, str(scope), name) == rights), None)
    return Membership(role, scope) if role else None


def require_federation_name(name: str) -> str:
    """Return a name that a federation may have, for a validator; raise ValueError for any other."""
    if not re.fullmatch(FEDERATION_NAME, name):
        raise ValueError(
            f"must be 1 to 48 of a-z, 0-9, _ and -, beginning with a letter, such as digits, not {name!r}"
            + (", which RabbitMQ keeps for itself" if name == "amq" else "")
        )
    return name


def _expression(name: str) -> str:
    expression = ANY_NAME_PART.join(map(re.escape, name.split(WILDCARD)))
    # Otherwise `*` would let an aggregator write to amq.default, and so to every queue.
    return NOT_RABBITMQS + expression if WILDCARD in name else expression


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
