"""The settings that all parts share, and how every part's settings are read.

A setting has one name everywhere: `--broker-url` is `FLUFFLE_BROKER_URL` is `broker_url` in the TOML file.
A flag wins over the environment, that over the part's own table of the file, that over the file's top level,
and that over the default. A wrong setting becomes one sentence that names it by where it was written.

A part subclasses `SharedSettings`, sets `part` (the name of its table) and adds fields: text, numbers,
choices, paths and yes-or-no, each with a description. A field's validator raises ValueError("must be ..."),
and the setting's name is put in front; a validator of the whole raises ValueError with a whole sentence.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from fluffle.address import BrokerAddress, parse_address, require_management_url, without_password
from fluffle.errors import ConfigError
from fluffle.fields import MAX_NAME_LENGTH, is_name
from fluffle.rights import require_federation_name
from fluffle.tls import ClientCertificate, TlsFiles
from fluffle.topology import MAX_MESSAGE_BYTES, MIB

ENV_PREFIX = "FLUFFLE_"
CONFIG_VARIABLE = "FLUFFLE_CONFIG"
DEFAULT_CONFIG = Path("fluffle.toml")
# The tables of one file that several parts read: each part passes over those of the others.
TABLES = (
    *("aggregator", "worker", "evaluator", "broker", "demo", "status", "dashboard", "model", "rejected"),
    *("trace", "report", "check"),
)

# For the parts that serve what they count.
MetricsPort = Annotated[
    int | None,
    Field(
        ge=1,
        le=65535,
        description="Port to serve metrics on for Prometheus; without one none are.",
        json_schema_extra={"panel": "Metrics"},
    ),
]
MetricsHost = Annotated[
    str,
    Field(
        description="Address to serve them on; they are for whoever can reach it.",
        json_schema_extra={"panel": "Metrics"},
    ),
]
# For the parts that ask RabbitMQ's management interface.
ManagementUrl = Annotated[
    str | None,
    AfterValidator(require_management_url),
    Field(
        description="RabbitMQ's management interface; the login is the broker URL's. By default "
        "http://HOST:15672 on the broker's host, or https://HOST:15671 for amqps://.",
    ),
]
LogFormat = Literal["auto", "pretty", "json"]
S = TypeVar("S", bound="SharedSettings")


class SharedSettings(BaseSettings):
    """What every process of a federation needs to know. Frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )
    part: ClassVar[str] = ""
    # Whether it runs until it is told to stop, and not for the person who has called it.
    is_service: ClassVar[bool] = False

    federation: str = Field("digits", description="Name of the federation; its queues begin with it.")
    broker_url: str = Field(
        "amqp://127.0.0.1:5672/%2F",
        description="Where RabbitMQ is: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS. The nodes "
        "of a cluster are HOST:PORT,HOST:PORT; whichever answers is taken.",
        repr=False,
    )
    broker_password_file: Path | None = Field(
        None, description="File with the broker password (a container secret), instead of one in the URL."
    )
    broker_ca_file: Path | None = Field(
        None, description="File with the authorities to trust (PEM); by default the system's. For amqps://."
    )
    broker_cert_file: Path | None = Field(
        None, description="File with the certificate to show (PEM). Without a password it is the login."
    )
    broker_key_file: Path | None = Field(None, description="File with that certificate's private key (PEM).")
    heartbeat_s: int = Field(
        20,
        ge=1,
        le=3600,
        description="Seconds between heartbeats; a frozen process is replaced after 3.",
    )
    connect_timeout_s: float = Field(
        300.0, gt=0, description="Seconds to wait for a broker that is not there yet."
    )
    login_patience: float = Field(
        120.0,
        ge=0,
        description="Seconds to try again when the broker refuses the login of a process that it has let in "
        "before; password file and certificates are read anew each time.",
    )
    max_message_mib: int = Field(
        MAX_MESSAGE_BYTES // MIB,
        ge=1,
        le=MAX_MESSAGE_BYTES // MIB,
        description="MiB that RabbitMQ takes in one message, where its max_message_size is smaller.",
    )
    log_format: LogFormat = Field(
        "auto",
        description="How log lines look; auto is json for a part that runs without a terminal, else pretty.",
    )
    verbose: bool = Field(False, description="Log details, and show the traceback of an error.")

    @field_validator("federation")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return require_federation_name(name)

    @field_validator("broker_url")
    @classmethod
    def _is_an_amqp_url(cls, url: str) -> str:
        try:
            parse_address(url)
        except ValueError as error:
            raise ValueError(
                f"must look like amqp://user:password@host:5672/%2F (percent-encode special characters), "
                f"but {without_password(url)!r} {error}"
            ) from error
        return url

    @model_validator(mode="after")
    def _has_one_password_at_most(self) -> Self:
        if self.broker_password_file is None:
            return self
        address = parse_address(self.broker_url)
        if address.password is not None:
            raise ValueError("broker_url has a password and broker_password_file is set too: give only one")
        if not address.user:
            scheme, _, place = self.broker_url.partition("://")
            raise ValueError(
                f"broker_password_file needs a user in broker_url, as in {scheme}://{self.part or 'user'}@"
                f"{place.partition('/')[0]}, but there is none"
            )
        return self

    @model_validator(mode="after")
    def _has_what_tls_needs(self) -> Self:
        if (self.broker_cert_file is None) != (self.broker_key_file is None):
            there, missing = ("key", "cert") if self.broker_cert_file is None else ("cert", "key")
            raise ValueError(f"broker_{there}_file is set but not broker_{missing}_file: one needs the other")
        given = [name for name in ("broker_ca_file", "broker_cert_file") if getattr(self, name) is not None]
        if given and parse_address(self.broker_url).tls is None:
            raise ValueError(
                f"{given[0]} is set, but {self.shown_broker_url} is in plain text: for TLS it begins with amqps://"
            )
        return self

    @field_serializer("broker_url")
    def _dump_broker_url(self, url: str) -> str:
        return without_password(url)

    def __repr_args__(self) -> Iterable[tuple[str | None, object]]:
        """Show every setting, the URL without its password."""
        yield from super().__repr_args__()
        yield "shown_broker_url", self.shown_broker_url

    @property
    def shown_broker_url(self) -> str:
        """The broker's URL for logs and screens: never with a password."""
        return without_password(self.broker_url)

    @property
    def max_message_bytes(self) -> int:
        """The bytes of the largest message that is sent."""
        return self.max_message_mib * MIB

    def broker_address(self) -> BrokerAddress:
        """Return where to connect and how to log in, the password filled in from `broker_password_file`.

        Read anew at each call, so that a changed password file is seen. Raises ConfigError when the file
        cannot be read or is empty.
        """
        certificate = None
        if self.broker_cert_file is not None and self.broker_key_file is not None:
            certificate = ClientCertificate(self.broker_cert_file, self.broker_key_file)
        files = TlsFiles(self.broker_ca_file, certificate)
        return parse_address(self.broker_url, password=self._password_of_file(), files=files)

    def _password_of_file(self) -> str | None:
        if self.broker_password_file is None:
            return None
        name = f"broker_password_file {self.broker_password_file}"
        try:
            password = self.broker_password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name} cannot be read: {_reason(error)}") from error
        if not password:
            raise ConfigError(f"{name} is empty: it must hold the broker password")
        return password

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {"federation": self.federation}


def load_settings(
    settings_class: type[S],
    given: Mapping[str, object],
    *,
    config: Path | None = None,
    named: Callable[[str], str] | None = None,
) -> S:
    """Build settings from flags (`given`), the environment, the TOML file and the defaults, in that order.

    `config` is the TOML file; without it FLUFFLE_CONFIG, or `fluffle.toml` in the working folder if there is
    one. Raises ConfigError with one sentence that names each wrong setting by where it was written; `named`
    says how a given one is called, by default as a flag.
    """
    in_environment = {name.upper() for name, value in os.environ.items() if value}
    written = _read_config(settings_class, config)
    origin = {name: where for name, (_, where) in written.items()}
    origin |= {name: env for name in settings_class.model_fields if (env := env_name(name)) in in_environment}
    origin |= {name: named(name) if named else _typed_as(settings_class, name) for name in given}
    values = {name: value for name, (value, where) in written.items() if origin[name] == where}
    try:
        return settings_class.model_validate(values | dict(given))
    except ValidationError as error:
        # The chained error hides its inputs (hide_input_in_errors): a traceback shows no password either.
        sentences = [_sentence(settings_class, origin, fault) for fault in error.errors(include_url=False)]
        raise ConfigError("; ".join(sentences)) from error


def load_arguments(settings_class: type[S], given: Mapping[str, object]) -> S:
    """Build settings from a function's keyword arguments, then as `load_settings` does.

    Raises ConfigError with one sentence that names each wrong argument.
    """
    for name in given:
        _check_known(name, set(settings_class.model_fields), "as an argument")
    return load_settings(settings_class, given, named=str)


def require_name(name: str) -> str:
    """Return a name that may stand in a message, for a validator; raise ValueError for any other."""
    if not is_name(name):
        raise ValueError(
            f"must be 1 to {MAX_NAME_LENGTH} letters, digits and _ . @ : -, beginning with a letter or "
            f"digit, not {name!r}"
        )
    return name


def env_name(name: str) -> str:
    """Return the environment variable of a setting: FLUFFLE_BUFFER_SIZE for buffer_size."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the flag of a setting: --buffer-size for buffer_size."""
    return "--" + name.replace("_", "-")


def is_argument(field: FieldInfo) -> bool:
    """Tell whether a setting stands behind the command, without a flag: `user add NAME`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("argument") is True


def _typed_as(settings_class: type[SharedSettings], name: str) -> str:
    field = settings_class.model_fields.get(name)
    return name.upper() if field is not None and is_argument(field) else flag_name(name)


def _read_config(settings_class: type[SharedSettings], config: Path | None) -> dict[str, tuple[object, str]]:
    """Return what the TOML file says: a setting's value and where it stands, by the setting's name."""
    path, said_by = config, "--config"
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path, said_by = Path(os.environ[CONFIG_VARIABLE]), CONFIG_VARIABLE
    if path is None and not DEFAULT_CONFIG.exists():
        return {}
    path = path or DEFAULT_CONFIG
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{said_by} names the file {path}, but there is none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {_reason(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration {path} is not valid TOML: {error}") from error

    part, own = settings_class.part, set(settings_class.model_fields)
    shared = set(SharedSettings.model_fields)
    top = {key: value for key, value in document.items() if key not in {*TABLES, part}}
    for key in top:
        if key in own - shared:
            raise ConfigError(f"{key} in {path} must stand in the table [{part}], not at the top level")
        _check_known(key, shared, f"in {path}", tables=sorted({*TABLES, part} - {""}))
    table = document.get(part, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{part} in {path} must be a table, written [{part}], not {table!r}")
    for key in table:
        _check_known(key, own, f"in [{part}] of {path}")
    return {key: (value, f"{key} in {path}") for key, value in top.items()} | {
        key: (value, f"{key} in [{part}] of {path}") for key, value in table.items()
    }


def _check_known(key: str, known: set[str], where: str, *, tables: list[str] | None = None) -> None:
    if key in known:
        return
    close = get_close_matches(key.replace("-", "_").lower(), [*known, *(tables or [])], n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    also = f", and the tables {', '.join(tables)}" if tables else ""
    raise ConfigError(f"unknown setting {key!r} {where}{meant}: known are {', '.join(sorted(known))}{also}")


def _sentence(settings_class: type[SharedSettings], origin: Mapping[str, str], fault: ErrorDetails) -> str:
    """Turn one of pydantic's faults into a sentence, such as "--buffer-size must be at least 1, not 0"."""
    ctx, kind = fault.get("ctx", {}), fault["type"]
    if not fault["loc"]:
        return str(ctx.get("error", fault["msg"]))
    name = str(fault["loc"][0])
    if kind == "missing":
        table = f" in [{settings_class.part}] of the TOML file" if settings_class.part else ""
        return f"{name} is not set: give {flag_name(name)}, {env_name(name)} or {name}{table}"
    where = origin.get(name, name)
    if kind == "value_error":
        return f"{where} {ctx['error']}"
    field = settings_class.model_fields.get(name)
    found = f", not {_shown(fault['input'])}" if field is not None and field.repr else ""
    return f"{where} {_demand(kind, ctx, fault['msg'])}{found}"


def _demand(kind: str, ctx: Mapping[str, object], message: str) -> str:
    exact = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be more than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "literal_error": "must be one of {expected}",
        "enum": "must be one of {expected}",
        "string_too_short": "must have at least {min_length} characters",
        "string_too_long": "must have at most {max_length} characters",
        "string_pattern_mismatch": "must match {pattern}",
        "finite_number": "must be a finite number",
    }
    if kind in exact:
        return exact[kind].format(**{key: _shown(value, quoted=False) for key, value in ctx.items()})
    for prefix, demand in (
        ("int", "must be a whole number"),
        ("float", "must be a number"),
        ("bool", "must be true or false"),
        ("string", "must be text"),
        ("path", "must be a path"),
    ):
        if kind.startswith(prefix):
            return demand
    return message[:1].lower() + message[1:]


def _shown(value: object, *, quoted: bool = True) -> str:
    """Show a number as a person types it, and text in quotes."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+([.][0-9]+)?", value)
    return repr(value) if isinstance(value, str) and quoted and not is_number else str(value)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
