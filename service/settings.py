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

    models: Path = Field(description="Folder of models: NAME.onnx or NAME/VERSION/model.onnx.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    # 0 takes a free port; the log's "serving" line says which.
    port: _Port = Field(default=8500, description="gRPC port; 0 takes a free one.")
    metrics_host: str | None = Field(
        default=None,
        description="Address of the Prometheus endpoint.",
        json_schema_extra={"unset": "as --host"},
    )
    metrics_port: _Port = Field(default=9090, description="Prometheus port; 0 takes a free one.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N; never falls back.")
    lane: Literal["auto", "fast", "threaded"] = Field(default="auto", description="auto, fast or threaded.")
    frontends: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="Processes that answer calls for one that runs the models; 0: one does both."
    )
    max_sessions: _Positive = Field(default=10_000, description="Live sessions a model.")
    max_batch: _Positive = Field(default=256, description="Sessions that run together.")
    max_chunk: _Positive = Field(default=64, description="Timesteps of a session in one run.")
    max_steps_per_message: _Positive = Field(default=4096, description="Timesteps a message.")
    max_generate_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        default=16_384, description="Timesteps that a message may have generated."
    )
    max_beam_width: _Positive = Field(default=16, description="Hypotheses of a beam search.")
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4 * 1024 * 1024, description="Bytes a message."
    )
    max_infer_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=64 * 1024 * 1024, description="Bytes a request of the Open Inference Protocol."
    )
    # Whether models are loaded and unloaded while the server runs: by itself, as the folder changes, or by calls.
    model_control: Literal["none", "poll", "explicit"] = Field(
        default="none", description="Load and unload while serving: none, poll or explicit."
    )
    versions: Literal["latest", "all"] | None = Field(
        default=None,
        description="Versions served: latest or all.",
        json_schema_extra={"unset": "all; latest under model control"},
    )
    model_poll_s: Annotated[float, Field(gt=0)] = Field(
        default=15.0, description="Seconds between looks at the folder."
    )
    load_model: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Model to load at the start under explicit control, * for all; repeatable."
    )
    # Whether unloading waits for live sessions, or is refused while there are any.
    unload: Literal["wait", "refuse"] = Field(
        default="wait", description="Unloading a model in use: wait or refuse."
    )
    unload_grace_s: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="Seconds sessions get when unloading."
    )
    queue_messages: _Positive = Field(default=32, description="Messages a session may have waiting.")
    idle_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="Idle seconds before a session ends; 0: never."
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Seconds streams get after SIGTERM."
    )
    first_message_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="Seconds a call has to send its first message; 0: no limit."
    )
    reflection: bool = Field(default=True, description="Let clients ask which services there are.")
    watchdog_s: Annotated[float, Field(ge=0)] = Field(
        default=30.0,
        description="Seconds without progress after which a busy thread counts as stalled; 0: never.",
    )
    watchdog_exit: bool = Field(default=False, description="End with exit code 70 when a thread stalls.")
    run_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Seconds a run of a model may take; 0: any."
    )
    load_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="Seconds that loading a model may take; 0: any."
    )
    # How much is run to see that a model's answers depend on nothing but its own session.
    proof: Literal["off", "quick", "full"] = Field(
        default="quick", description="Prove each model when it is loaded: off, quick or full."
    )
    proof_s: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="Seconds that proving a model may take."
    )
    follow_links: bool = Field(
        default=False, description="Follow links that lead out of the folder of models."
    )
    max_concurrent_streams: _Positive | None = Field(
        default=None,
        description="HTTP/2 streams a connection.",
        json_schema_extra={"unset": "twice --max-sessions"},
    )
    max_connections: _Positive | None = Field(
        default=None,
        description="Connections a process that answers calls.",
        json_schema_extra={"unset": "twice --max-sessions, as descriptors allow"},
    )
    keepalive_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        default=20.0, description="Seconds of silence after which a connection is pinged."
    )
    keepalive_timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        default=10.0, description="Seconds that a pinged connection has to answer."
    )
    max_in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = Field(
        default=None,
        description="Bytes of half-received messages, queued work and unread replies.",
        json_schema_extra={"unset": "a quarter of the memory"},
    )
    max_connection_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = Field(
        default=None,
        description="The same of one connection.",
        json_schema_extra={"unset": "half of --max-in-flight-bytes"},
    )
    stop_s: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="Seconds that stopping may take after the grace."
    )
    # What happens to a message with NaN or infinite input.
    non_finite: Literal["reject", "allow"] = Field(
        default="reject", description="NaN and infinite input: reject or allow."
    )
    spin_us: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=100,
        description="Microseconds to look for messages before sleeping, where that pays; 0: none.",
    )
    intra_op_threads: _Positive = Field(default=1, description="ONNX Runtime threads a run.")
    fixed_shapes: bool | None = Field(
        default=None, description="Pad runs to sizes 1, 2, 4, ….", json_schema_extra={"unset": "on CUDA only"}
    )
    cell: Literal["auto", "operator", "decomposed"] | None = Field(
        default=None,
        description="Single steps of recurrent layers: auto, operator or decomposed.",
        json_schema_extra={"unset": "auto but for LSTM on CPU"},
    )
    cuda_graphs: bool | None = Field(
        default=None,
        description="Replay single steps as CUDA graphs.",
        json_schema_extra={"unset": "on CUDA, where safe"},
    )
    # On CUDA, round the float32 inputs of matrix products to 10 bits of fraction.
    tf32: bool = Field(default=False, description="TF32 matrix products on CUDA.")
    tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain; with --tls-key, serves TLS."
    )
    tls_key: Path | None = Field(default=None, description="PEM private key.")
    # The same for the metrics port, and whether it uses the gRPC port's.
    metrics_tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain of the Prometheus port; with --metrics-tls-key."
    )
    metrics_tls_key: Path | None = Field(default=None, description="PEM private key of the Prometheus port.")
    metrics_tls: bool = Field(
        default=False, description="Serve the Prometheus port with --tls-cert and --tls-key."
    )
    triton_metrics: bool = Field(default=False, description="Report nv_inference_*, Triton's names, too.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    log_format: Literal["json", "console"] = Field(default="json", description="json or console.")

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
