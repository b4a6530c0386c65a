"""Every setting of a node, read once: arguments, RELAY_* variables, *_FILE secrets, relay.toml.

Rules of the file: the only reader of the environment. Each field says what it is, in which unit;
docs/settings.md is checked against these fields by a test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from relay import variables
from relay.protocol.dial_allowlist import Networks
from relay.protocol.did import parse_did
from relay.protocol.errors import ErrorCode, StateError
from relay.protocol.ids import ORIGIN, Did

PREFIX: Final = "RELAY_"
MAX_PORT: Final = 65_535
CONFIG: Final = f"{PREFIX}CONFIG"

Words = Annotated[tuple[str, ...], NoDecode]
"""A list, comma-separated in a variable."""


class Settings(BaseSettings):
    """Settings of one node; nodes of one relay share all but ``data``, ``listen`` and ``admin``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data: Path = Field(
        Path("relay-data"),
        description="Directory of this node: relay key, embedded store, rollback file.",
    )
    listen: str = Field(
        "127.0.0.1:8080",
        description="Public HOST:PORT; port 0 takes a free one, [::] takes IPv4, too.",
    )
    admin: str = Field(
        "127.0.0.1:8081", description="HOST:PORT of /livez, /readyz and /metrics; never public."
    )
    public_url: str | None = Field(
        None,
        description="Origin by which agents dial this relay, https://host[:port]; "
        "default: http:// and the listen address.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix:// URL of an external Redis or Valkey; "
        "default: an embedded one in the data directory.",
    )
    redis_cluster: bool = Field(default=False, description="The Redis at redis_url is a Cluster.")
    redis_unsafe: bool = Field(
        default=False,
        description="Go on with a store whose settings can lose data; receipts then say "
        "unverified.",
    )
    store_maxmemory: str = Field(
        "256mb", pattern=r"^[0-9]+(mb|gb)$", description="Memory limit of the embedded store."
    )
    store_binary: str | None = Field(
        None, description="Server binary of the embedded store; default: the packaged one."
    )
    key_file: Path | None = Field(
        None, description="File with the relay's secret seed, mode 0600; default: DATA/relay.key."
    )
    registration: Literal["open", "allow"] = Field(
        "open", description="Who may get an inbox: anybody, or only those in allow."
    )
    allow: Words = Field((), description="DIDs that may get an inbox with allow.")
    deny: Words = Field((), description="DIDs that this relay does not serve.")
    window_count: int = Field(64, ge=1, le=1024, description="Envelopes handed over unacked.")
    window_bytes: int = Field(
        1024 * 1024, ge=1024, le=16 * 1024 * 1024, description="Wire bytes handed over unacked."
    )
    max_body_bytes: int = Field(
        256 * 1024, ge=1024, le=1024 * 1024, description="Largest body of an envelope, bytes."
    )
    inbox_count: int = Field(10_000, ge=1, description="Envelopes that one inbox keeps.")
    inbox_bytes: int = Field(64 * 1024 * 1024, ge=1, description="Wire bytes one inbox keeps.")
    sender_count: int = Field(1_000, ge=1, description="Envelopes of one sender in one inbox.")
    sender_bytes: int = Field(
        8 * 1024 * 1024, ge=1, description="Wire bytes of one sender in one inbox."
    )
    stranger_count: int = Field(
        1_000, ge=0, description="Envelopes of all senders that an inbox does not know, in it."
    )
    stranger_bytes: int = Field(
        8 * 1024 * 1024, ge=0, description="Wire bytes of all such senders in one inbox."
    )
    dedupe_entries: int = Field(50_000, ge=100, description="Ids that one inbox remembers.")
    sender_rate: int = Field(600, ge=1, description="Envelopes a minute of one sender.")
    stranger_rate: int = Field(
        600,
        ge=1,
        description="Envelopes a minute from one network (IPv4: /24, IPv6: /56) of senders that "
        "their recipients do not know.",
    )
    peer_stranger_rate: int = Field(
        6_000, ge=1, description="Envelopes a minute of such senders that one peer brings."
    )
    max_connections: int = Field(20_000, ge=1, description="WebSocket connections of this node.")
    max_connections_per_ip: int = Field(
        4_096, ge=1, description="WebSocket connections from one address (IPv6: one /64)."
    )
    trusted_proxies: Words = Field(
        (),
        description="Addresses and networks (192.0.2.7, 10.0.0.0/8) of proxies whose "
        "X-Forwarded-For is believed.",
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Seconds between pings.")
    ping_timeout_s: float = Field(25.0, gt=0, description="Seconds until an unanswered ping kills.")
    write_timeout_s: float = Field(
        10.0, gt=0, description="Seconds that a reader may leave its socket full."
    )
    drain_s: float = Field(10.0, ge=0, description="Seconds that a shutdown may take.")
    disk_floor_bytes: int | None = Field(
        None,
        ge=0,
        description="Free bytes beside the embedded store below which submits are refused; "
        "default: 3/4 of store_maxmemory and 16 MiB, so that a rewrite always fits.",
    )
    trust_clock: bool = Field(
        default=False,
        description="Believe the clock at start although it is far from the last one seen.",
    )
    federation: Literal["closed", "open", "off"] = Field(
        "closed",
        description="Which relays this one deals with: those in peers and those that the operator "
        "adds, any, or none.",
    )
    peers: Words = Field(
        (), description="Relays that count as added, each DID@https://host[:port]."
    )
    dial_networks: Words = Field(
        (),
        description="Networks (127.0.0.0/8, fd00::/8) with private or loopback addresses that this "
        "relay may dial, there also without TLS.",
    )
    directory_records: int = Field(
        1_000_000, ge=1_000, description="Endpoint records that are kept, of agents anywhere."
    )
    return_wait_s: float = Field(
        20.0,
        ge=0,
        description="Seconds that a node which starts asks other relays where its agents live now, "
        "before it lets them in all the same.",
    )
    outbox_count: int = Field(
        10_000,
        ge=1,
        description="Envelopes that may wait for one other relay, per partition: a Cluster has 16.",
    )
    outbox_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1,
        description="Wire bytes that may wait for one other relay, per partition, too.",
    )
    contact: str | None = Field(
        None, description="How to reach the operator, as published in agent-relay.json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )

    @field_validator("listen", "admin")
    @classmethod
    def _host_port(cls, value: str) -> str:
        split_host_port(value)
        return value

    @field_validator("public_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        if value is not None and ORIGIN.fullmatch(value) is None:
            raise ValueError("must be an origin: https://host[:port], without a path")
        return value

    @field_validator("allow", "deny", "trusted_proxies", "peers", "dial_networks", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            split_peer(word)
        return value

    @field_validator("allow", "deny")
    @classmethod
    def _dids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            try:
                parse_did(word)
            except ValueError as exc:
                raise ValueError(f"{word!r}: {exc}") from exc
        return value

    @field_validator("dial_networks", "trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Networks.of(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then variables, then ``*_FILE`` variables, then relay.toml; no dotenv."""
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, *_files(settings_cls))

    @property
    def disk_floor(self) -> int:
        """Free bytes that the embedded store needs beside it."""
        if self.disk_floor_bytes is not None:
            return self.disk_floor_bytes
        unit = 1024**3 if self.store_maxmemory.endswith("gb") else 1024**2
        return int(self.store_maxmemory[:-2]) * unit * 3 // 4 + 16 * 1024**2

    @property
    def relay_key_file(self) -> Path:
        """The path of the relay's secret seed."""
        return self.key_file or self.data / "relay.key"


class FileVariables(PydanticBaseSettingsSource):
    """``RELAY_X_FILE`` names a file whose content is the value of ``x``: how secrets come in."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The file's content without surrounding white space, or None."""
        del field
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        name = os.environ.get(variable)
        # RELAY_KEY_FILE is the setting key_file itself, not a file that holds a setting "key"
        text = Path(name).read_text(encoding="utf-8").strip() if name else None
        return text, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All values that come from files."""
        fields = self.settings_cls.model_fields.items()
        found = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in found.items() if value is not None}


def _files(cls: type[BaseSettings]) -> list[PydanticBaseSettingsSource]:
    sources: list[PydanticBaseSettingsSource] = [FileVariables(cls)]
    config = os.environ.get(CONFIG)
    if config is not None:
        if not Path(config).is_file():
            raise StateError(ErrorCode.UNSUPPORTED, f"{CONFIG}: {config} is not a file")
        sources.append(TomlConfigSettingsSource(cls, toml_file=config))
    return sources


def split_host_port(value: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[v6]:PORT``.

    Raises:
        ValueError: another form.
    """
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > MAX_PORT:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def split_peer(value: str) -> tuple[Did, str]:
    """``DID@ORIGIN``.

    Raises:
        ValueError: another form.
    """
    did, at, url = value.partition("@")
    if not at or ORIGIN.fullmatch(url) is None:
        raise ValueError(f"{value!r} is not DID@https://host[:port]")
    return parse_did(did).did, url


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings of this process.

    Args:
        overrides: command-line values; None means not given.

    Raises:
        StateError: ``unsupported``, with a sentence that names the setting.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name, right in unknown_variables().items():
        if right is not None:
            detail = f"there is no setting {name}; did you mean {right}?"
            raise StateError(ErrorCode.UNSUPPORTED, detail)
    try:
        return Settings(**given)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            right = variables.nearest(name, Settings.model_fields)
            hint = f"; did you mean {right}?" if right else ""
            detail = f"there is no setting {name}{hint}"
            raise StateError(ErrorCode.UNSUPPORTED, detail) from None
        raise StateError(ErrorCode.UNSUPPORTED, f"setting {name}: {first['msg']}") from None
    except (SettingsError, OSError, ValueError) as exc:
        raise StateError(ErrorCode.UNSUPPORTED, f"settings: {exc}") from exc


def unknown_variables() -> dict[str, str | None]:
    """Return variables that look like settings and are none, each with the name that was meant.

    None: no setting is similar.
    """
    return variables.unknown(os.environ, PREFIX, Settings.model_fields)


def unset_foreign_variables() -> None:
    """Unset variables that libraries read, before those are imported: the settings decide alone."""
    for name in variables.WITHOUT_EFFECT:
        os.environ.pop(name, None)


def origins(overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the origin of each setting: argument, variable, file or default."""
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    found = dict.fromkeys(Settings.model_fields, "default")
    files = _files(Settings)
    for label, layer in (
        *((f"file {os.environ.get(CONFIG)}", source()) for source in files[1:]),
        ("variable {}_FILE", files[0]()),
        ("variable {}", EnvSettingsSource(Settings, env_prefix=PREFIX)()),
        ("argument", given),
    ):
        found.update({name: label.format(f"{PREFIX}{name.upper()}") for name in layer})
    return found
