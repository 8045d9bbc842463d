"""The server's configuration: flags, then `STREAMCELL_*` variables, then a TOML file, then these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

_Positive = Annotated[int, Field(ge=1)]
_Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Everything that `streamcell serve` can be told. Unknown keys in the TOML file are errors."""

    model_config = SettingsConfigDict(env_prefix="STREAMCELL_", extra="forbid", frozen=True)

    # The folder of models: DIR/name.onnx or DIR/name/<version>/model.onnx.
    models: Path
    host: str = "127.0.0.1"
    # 0 takes a free port; the log's "serving" line says which.
    port: _Port = 8500
    metrics_host: str | None = None  # None: the same as host
    metrics_port: _Port = 9090
    device: str = "cpu"
    lane: Literal["auto", "fast", "threaded"] = "auto"
    # Processes that answer calls, apart from the one that runs the models; 0: one process does both.
    frontends: Annotated[int, Field(ge=0, le=256)] = 0
    # Live sessions a model. State memory is set aside for as many.
    max_sessions: _Positive = 10_000
    # Sessions that run together.
    max_batch: _Positive = 256
    # Timesteps of one session in one run; longer messages are cut.
    max_chunk: _Positive = 64
    max_steps_per_message: _Positive = 4096
    # Timesteps that one message may have the server generate.
    max_generate_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] = 16_384
    # Hypotheses that one beam search may follow.
    max_beam_width: _Positive = 16
    max_message_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    # The same for a request of the Open Inference Protocol, whose clients expect no limit of 4 MiB.
    max_infer_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    # Whether models are loaded and unloaded while the server runs: by itself, as the folder changes, or by calls.
    model_control: Literal["none", "poll", "explicit"] = "none"
    # Which versions of a model are served; None: the latest under model control, all without.
    versions: Literal["latest", "all"] | None = None
    # Seconds between two looks at the folder.
    model_poll_s: Annotated[float, Field(gt=0)] = 15.0
    # Models to load at the start under explicit control, "*" for all; in the environment, separated by commas.
    load_model: Annotated[tuple[str, ...], NoDecode] = ()
    # Whether unloading waits for live sessions, or is refused while there are any.
    unload: Literal["wait", "refuse"] = "wait"
    # Seconds that live sessions of a model get when it is unloaded; what is left then ends.
    unload_grace_s: Annotated[float, Field(ge=0)] = 30.0
    # Messages a session may have waiting before its stream is no longer read.
    queue_messages: _Positive = 32
    # Seconds without a message after which a session ends; 0 for never.
    idle_timeout_s: Annotated[float, Field(ge=0)] = 300.0
    # Seconds that live streams get to finish after SIGTERM.
    grace_s: Annotated[float, Field(ge=0)] = 10.0
    # Seconds that a call has to send its first message; 0: as long as it likes.
    first_message_s: Annotated[float, Field(ge=0)] = 20.0
    # Whether clients may ask which services and messages there are.
    reflection: bool = True
    # Seconds after which a thread that has work and makes no progress counts as stalled; 0: none does.
    watchdog_s: Annotated[float, Field(ge=0)] = 30.0
    # Whether the process ends, with exit code 70, when a thread of it stalls, for its supervisor to start it again.
    watchdog_exit: bool = False
    # Seconds that one run of a model may take before it is ended, with the sessions of its batch; 0: any.
    run_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    # Seconds that loading a model may take, its warm-up included; 0: any.
    load_timeout_s: Annotated[float, Field(ge=0)] = 300.0
    # Whether the folder of models may hold links to files outside it.
    follow_links: bool = False
    # HTTP/2 streams a connection; None: twice max_sessions, so that a proxy may carry every session on one.
    max_concurrent_streams: _Positive | None = None
    # Connections a process that answers calls; None: twice max_sessions, or as many as its descriptors allow.
    max_connections: _Positive | None = None
    # Seconds of silence after which a connection is asked whether it is alive, and that it has to answer.
    keepalive_s: Annotated[float, Field(ge=0.1, le=86_400)] = 20.0
    keepalive_timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] = 10.0
    # Bytes of half-received messages, queued work and unread replies, of the server; None: a quarter of its memory.
    max_in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = None
    # The same of one connection; None: half of the server's.
    max_connection_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = None
    # Seconds that all else gets to stop in after the grace; then the process ends itself.
    stop_s: Annotated[float, Field(gt=0)] = 10.0
    # What happens to a message with NaN or infinite input.
    non_finite: Literal["reject", "allow"] = "reject"
    # Microseconds to look for messages before sleeping, where the last waits were short; 0: sleep at once.
    spin_us: Annotated[int, Field(ge=0, le=10_000)] = 100
    intra_op_threads: _Positive = 1
    # Pad runs to sizes 1, 2, 4, …; None: on CUDA only.
    fixed_shapes: bool | None = None
    # What single steps compute recurrent layers with; None: auto on CUDA and for GRU and RNN, else operator.
    cell: Literal["auto", "operator", "decomposed"] | None = None
    # Replay single steps as CUDA graphs; None: on CUDA, where this ONNX Runtime does so safely.
    cuda_graphs: bool | None = None
    # On CUDA, round the float32 inputs of matrix products to 10 bits of fraction.
    tf32: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # The same for the metrics port, and whether it uses the gRPC port's.
    metrics_tls_cert: Path | None = None
    metrics_tls_key: Path | None = None
    metrics_tls: bool = False
    # Triton's own metric names beside ours.
    triton_metrics: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    # Set by `load` for the one construction it makes.
    _toml: ClassVar[Path | None] = None

    @property
    def streams_a_connection(self) -> int:
        """HTTP/2 streams that a connection may have."""
        return self.max_concurrent_streams or 2 * self.max_sessions

    @property
    def latest_only(self) -> bool:
        """Whether only the latest version of each model is served."""
        return (self.versions or ("all" if self.model_control == "none" else "latest")) == "latest"

    @property
    def metrics_pair(self) -> tuple[Path, Path] | None:
        """Certificate chain and key of the metrics port; None: plain HTTP."""
        if self.metrics_tls_cert is not None and self.metrics_tls_key is not None:
            return self.metrics_tls_cert, self.metrics_tls_key
        if self.metrics_tls and self.tls_cert is not None and self.tls_key is not None:
            return self.tls_cert, self.tls_key
        return None

    @field_validator("load_model", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.load_model and self.model_control != "explicit":
            raise ValueError("load_model is for model_control = explicit: otherwise every model is loaded")
        if 0 < self.watchdog_s < 2:
            raise ValueError(
                "watchdog_s: expected 0 or at least 2 seconds: an idle thread shows itself once a second"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if (self.metrics_tls_cert is None) != (self.metrics_tls_key is None):
            raise ValueError("metrics_tls_cert and metrics_tls_key go together")
        if self.metrics_tls and self.metrics_pair is None:
            raise ValueError(
                "metrics_tls needs tls_cert and tls_key, or metrics_tls_cert and metrics_tls_key"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, TOML: the first that names a setting wins."""
        sources = [init_settings, env_settings]
        if cls._toml is not None:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=cls._toml))
        return tuple(sources)

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Read the configuration.

        Args:
            config: a TOML file; None: the one that STREAMCELL_CONFIG names, if any.
            flags: what the command line said; None counts as not said.

        Raises:
            FileNotFoundError: the TOML file is not there.
            pydantic.ValidationError: a value is missing or out of range; the text names it.
        """
        path = config or (Path(name) if (name := os.environ.get("STREAMCELL_CONFIG")) else None)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"no configuration file at {path}")
        configured = type("Settings", (cls,), {"_toml": path, "__module__": cls.__module__})
        settings: Settings = configured(**{key: value for key, value in flags.items() if value is not None})
        return settings
