"""The settings that all parts share, and how the settings of every part are read.

A setting is one field of a settings class. Its name gives the flag (`--broker-url`), the environment
variable (`FLUFFLE_BROKER_URL`) and the key in the TOML file (`broker_url`). A flag wins over the environment,
which wins over the part's own table in the file, then the file's top level, then the default.

Each part subclasses `SharedSettings`, sets `part` (the name of its table in the file) and adds fields: text,
numbers, choices, paths and yes-or-no, each with a description. The validator of a field raises
ValueError("must be ..."), and the error names where the value was written; a validator of the whole class
raises ValueError with a whole sentence. After adding a setting, run `make reference`.

pydantic-settings is not used: its sources do not tell where a wrong value was written, and importing it takes
0.13 s.
"""

import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fluffle.address import BrokerAddress, parse_address, require_broker_url, require_management_url
from fluffle.errors import ConfigError
from fluffle.fields import MAX_NAME_LENGTH, is_name
from fluffle.rights import require_federation_name
from fluffle.tls import TlsFiles
from fluffle.topology import MAX_MESSAGE_BYTES, MIB

ENV_PREFIX = "FLUFFLE_"
DEFAULT_CONFIG = Path("fluffle.toml")
# The names of the settings of all parts, none of which imports those of the others.
KNOWN_SETTINGS = Path(__file__).with_name("known_settings.toml")


def require_name(name: str) -> str:
    """Return a name that may be sent in a message, for a validator; raise ValueError for any other."""
    if not is_name(name):
        raise ValueError(
            f"must be 1 to {MAX_NAME_LENGTH} letters, digits and _ . @ : -, beginning with a letter or "
            f"digit, not {name!r}"
        )
    return name


PartName = Annotated[str, AfterValidator(require_name)]
FederationName = Annotated[str, AfterValidator(require_federation_name)]
# For the parts that call RabbitMQ's management interface.
ManagementUrl = Annotated[
    str | None,
    AfterValidator(require_management_url),
    Field(
        description="URL of RabbitMQ's management interface; the login is the broker URL's. Default: "
        "http://HOST:15672 on the broker's host, or https://HOST:15671 for amqps://.",
    ),
]
LogFormat = Literal["auto", "pretty", "json"]
S = TypeVar("S", bound="SharedSettings")
T = TypeVar("T", bound="TableSettings")
# The value of each setting that is written somewhere, and how it is written there: "--buffer-size".
Written = dict[str, tuple[object, str]]


def env_name(name: str) -> str:
    """Return the environment variable of a setting: FLUFFLE_BUFFER_SIZE for buffer_size."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str, field: FieldInfo) -> str:
    """Return the flag of a setting, --buffer-size for buffer_size, or NAME for a positional argument."""
    extra = field_extra(field)
    return name.upper() if extra.get("argument") else str(extra.get("flag", f"--{name.replace('_', '-')}"))


def field_extra(field: FieldInfo) -> Mapping[str, object]:
    """Return what a field's json_schema_extra says about its flag; see `fluffle.command_line`."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def panel_of(settings_class: type["SharedSettings"], name: str) -> str:
    """Return the heading of a setting in --help: the class that it comes from, "" for the part's own."""
    for base in settings_class.__bases__:
        if name in getattr(base, "model_fields", {}):
            is_part = issubclass(base, SharedSettings)
            return panel_of(base, name) if is_part else base.__name__.removesuffix("Settings")
    return "Shared" if settings_class is SharedSettings else ""


class SharedSettings(BaseModel):
    """The settings of every process of a federation. Frozen."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, hide_input_in_errors=True
    )
    part: ClassVar[str] = ""
    # True for a part that runs until it is told to stop; False for a command that answers and ends.
    is_service: ClassVar[bool] = False

    federation: FederationName = Field(
        "digits", description="Name of the federation. The names of its queues and exchanges start with it."
    )
    broker_url: Annotated[str, AfterValidator(require_broker_url)] = Field(
        "amqp://127.0.0.1:5672/%2F",
        description="Address of RabbitMQ: amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// for TLS. List "
        "the nodes of a cluster as HOST:PORT,HOST:PORT; any node that answers is used.",
        # It may hold a password.
        repr=False,
        exclude=True,
    )
    broker_password_file: Path | None = Field(
        None,
        description="File with the broker password, such as a container secret, instead of a password in "
        "broker_url.",
    )
    broker_ca_file: Path | None = Field(
        None, description="Certificate authorities to trust for amqps:// (PEM file). Default: the system's."
    )
    broker_cert_file: Path | None = Field(
        None, description="Client certificate to present (PEM file). Without a password, it is the login."
    )
    broker_key_file: Path | None = Field(None, description="Private key of that certificate (PEM file).")
    heartbeat_s: int = Field(
        20,
        ge=1,
        le=3600,
        description="Seconds between heartbeats. A process that hangs is replaced after 3 missed heartbeats.",
    )
    connect_timeout_s: float = Field(
        300.0, gt=0, description="Seconds to wait for a broker that cannot be reached yet."
    )
    login_patience: float = Field(
        120.0,
        ge=0,
        description="Seconds to retry when the broker refuses a login that it has accepted before. Each "
        "attempt reads the password file and the certificates again.",
    )
    max_message_mib: int = Field(
        MAX_MESSAGE_BYTES // MIB,
        ge=1,
        le=MAX_MESSAGE_BYTES // MIB,
        description="The broker's max_message_size in MiB; set it if that is below "
        f"{MAX_MESSAGE_BYTES // MIB}.",
    )
    log_format: LogFormat = Field(
        "auto",
        description="Format of the log. auto means json for a service without a terminal, else pretty.",
    )
    verbose: bool = Field(
        False,
        description="Log more details, and show the traceback of an error.",
        json_schema_extra={"short": "-v"},
    )
    config: Path | None = Field(
        None,
        description=f"TOML file with settings. Default: {DEFAULT_CONFIG} in this folder, if there is one.",
        json_schema_extra={"metavar": "FILE"},
    )

    @model_validator(mode="after")
    def _logins_and_files_fit_the_url(self) -> Self:
        address = parse_address(self.broker_url)
        if self.broker_password_file is not None and address.password is not None:
            raise ValueError("broker_url has a password and broker_password_file is set too: give only one")
        if self.broker_password_file is not None and not address.user:
            raise ValueError("broker_password_file needs a user in broker_url, as in amqp://user@host:5672")
        if (self.broker_cert_file is None) != (self.broker_key_file is None):
            there, missing = ("key", "cert") if self.broker_cert_file is None else ("cert", "key")
            raise ValueError(f"broker_{there}_file is set but not broker_{missing}_file: one needs the other")
        given = [name for name in ("broker_ca_file", "broker_cert_file") if getattr(self, name) is not None]
        if given and address.tls is None:
            raise ValueError(f"{given[0]} is set, but broker_url does not start with amqps://, as TLS needs")
        return self

    @property
    def max_message_bytes(self) -> int:
        """The size of the largest message that may be sent."""
        return self.max_message_mib * MIB

    def broker_address(self) -> BrokerAddress:
        """Return where to connect and how to log in, with the password from `broker_password_file`.

        Each call reads the file again, so that a changed password is seen. Raises ConfigError when the file
        cannot be read or is empty.
        """
        password = None
        if self.broker_password_file is not None:
            name = f"broker_password_file {self.broker_password_file}"
            password = _read_text(self.broker_password_file, name).rstrip("\r\n")
            if not password:
                raise ConfigError(f"{name} is empty: it must hold the broker password")
        files = TlsFiles(self.broker_ca_file, self.broker_cert_file, self.broker_key_file)
        return parse_address(self.broker_url, password=password, files=files)

    def log_fields(self) -> dict[str, str]:
        """Return the fields that each log line of this process carries."""
        return {"federation": self.federation}


class TableSettings(BaseModel):
    """Settings that stand in Python or in a table of their own in the TOML file: no flags, no variables."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    part: ClassVar[str] = ""


class MetricsSettings(BaseModel):
    """The settings of a part that serves metrics."""

    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port for Prometheus metrics; disabled if unset."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address to serve the metrics on. Anyone who can reach it can read them."
    )


class ServiceSettings(MetricsSettings, SharedSettings):
    """The settings of a part that runs until it is told to stop."""

    is_service: ClassVar[bool] = True


@cache
def known_names(kind: Literal["tables", "variables"]) -> list[str]:
    """Return the tables that a settings file may have, or the environment variables that are read."""
    names: list[str] = tomllib.loads(KNOWN_SETTINGS.read_text(encoding="utf-8"))[kind]
    return names


def load_settings(
    settings_class: type[S],
    given: Mapping[str, object],
    *,
    name_given: Callable[[str, FieldInfo], str] = flag_name,
) -> S:
    """Build settings from flags (`given`), the environment, the TOML file and the defaults, in that order.

    Raises ConfigError with one sentence for each wrong setting, which names where it was written;
    `name_given` returns how a given one was written.
    """
    fields = settings_class.model_fields
    variables = {name.upper(): value for name, value in os.environ.items() if value}
    written: Written = {
        name: (variables[variable], variable) for name in fields if (variable := env_name(name)) in variables
    }
    written |= {name: (value, name_given(name, fields[name])) for name, value in given.items()}
    written = _read_config(settings_class, *written.get("config", (None, ""))) | written
    try:
        return settings_class.model_validate({name: value for name, (value, _) in written.items()})
    except ValidationError as error:
        # The chained error hides its inputs (hide_input_in_errors): a traceback shows no password either.
        sentences = [
            _sentence(settings_class, settings_class.part, written, fault)
            for fault in error.errors(include_url=False)
        ]
        raise ConfigError("; ".join(sentences)) from error


def load_arguments(settings_class: type[S], given: Mapping[str, object]) -> S:
    """Build settings from a function's keyword arguments, then as `load_settings` does.

    Raises ConfigError with one sentence that names each wrong argument.
    """
    for name in given:
        _require_known(name, set(settings_class.model_fields), "as an argument")
    return load_settings(settings_class, given, name_given=lambda name, _: name)


def with_table(base: T, config: Path | None) -> T | None:
    """Return `base` with what its table in the TOML file sets, or None where the file has no such table.

    `config` is the setting of that name. Raises ConfigError with one sentence for each wrong setting.
    """
    found = _read_document(config, "the configuration")
    if found is None or base.part not in found[1]:
        return None
    file, document = found
    where, table = f"in [{base.part}] of {file}", document[base.part]
    if not isinstance(table, dict):
        raise ConfigError(f"{base.part} in {file} must be a table, written [{base.part}], not {table!r}")
    for key in table:
        _require_known(key, set(type(base).model_fields), where)
    written: Written = {key: (value, f"{key} {where}") for key, value in table.items()}
    try:
        return type(base).model_validate({**base.model_dump(exclude_unset=True), **table})
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise ConfigError(
            "; ".join(_sentence(type(base), base.part, written, fault) for fault in faults)
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{error} ({where})") from error


def has_table(name: str, config: Path | None) -> bool:
    """Tell whether the TOML file has a table of this name; `config` is the setting."""
    found = _read_document(config, "the configuration")
    return found is not None and isinstance(found[1].get(name), dict)


def _read_document(path: object, name: str) -> tuple[Path, dict[str, object]] | None:
    """Return a TOML file and what is in it; None where no file is named and the default one is not there."""
    if path is None and not DEFAULT_CONFIG.exists():
        return None
    file = DEFAULT_CONFIG if path is None else Path(str(path))
    try:
        return file, tomllib.loads(_read_text(file, f"{name} {file}"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration {file} is not valid TOML: {error}") from error


def _read_config(settings_class: type[SharedSettings], path: object, written_as: str) -> Written:
    """Return what the TOML file sets: the part's own table wins over the file's top level."""
    found = _read_document(path, written_as or "the configuration")
    if found is None:
        return {}
    file, document = found
    part, tables = settings_class.part, {*known_names("tables"), settings_class.part} - {""}
    own, shared = (set(each.model_fields) - {"config"} for each in (settings_class, SharedSettings))
    written: Written = {}
    for key, value in document.items():
        # [data] is a table, and some parts have a setting of that name.
        if key in own - shared and not (key in tables and isinstance(value, dict)):
            raise ConfigError(f"{key} in {file} must stand in the table [{part}], not at the top level")
        if key not in tables:
            _require_known(key, shared, f"in {file}", tables)
            written[key] = value, f"{key} in {file}"
    table = document.get(part, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{part} in {file} must be a table, written [{part}], not {table!r}")
    for key, value in table.items():
        _require_known(key, own, f"in [{part}] of {file}")
        written[key] = value, f"{key} in [{part}] of {file}"
    return written


def _require_known(key: str, known: set[str], where: str, tables: Collection[str] = ()) -> None:
    if key in known:
        return
    close = get_close_matches(key.replace("-", "_").lower(), [*known, *tables], n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    also = f", and the tables {', '.join(sorted(tables))}" if tables else ""
    raise ConfigError(f"unknown setting {key!r} {where}{meant}: known are {', '.join(sorted(known))}{also}")


def _sentence(settings_class: type[BaseModel], part: str, written: Written, fault: ErrorDetails) -> str:
    """Turn one of pydantic's faults into a sentence: "--buffer-size must be greater than 0, not -1"."""
    if not fault["loc"]:
        return str(fault["ctx"]["error"])
    name = str(fault["loc"][0])
    field = settings_class.model_fields[name]
    if fault["type"] == "missing":
        table = f" in [{part}] of the TOML file" if part else ""
        return f"{name} is not set: give {flag_name(name, field)}, {env_name(name)} or {name}{table}"
    value, where = written.get(name, (fault["input"], name))
    if fault["type"] == "value_error":
        return f"{where} {fault['ctx']['error']}"
    # Pydantic writes "Input should be a valid integer, unable to parse string as an integer".
    message = fault["msg"].replace("Input is not", "Input should be")
    demand = re.sub(", (unable|got) .*| for <.*", "", message).partition(" should ")[2]
    if fault["type"] == "string_type":
        demand = "be text" if len(fault["loc"]) == 1 else "be a list of texts"
    if fault["type"] == "tuple_type":
        demand = f'be a list of texts, such as ["{value}"]' if isinstance(value, str) else "be a list"
    is_number = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+([.][0-9]+)?", value)
    found = f", not {value if is_number else repr(value)}" if field.repr else ""
    return f"{where} must {demand}{found}"


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} cannot be read: it is not UTF-8 text") from error
