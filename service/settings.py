"""The server's configuration, in order of precedence: flags, `STREAMCELL_*` variables, a TOML file, defaults."""

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
    """All settings of `streamcell serve`. Unknown keys in the TOML file are errors."""

    model_config = SettingsConfigDict(env_prefix="STREAMCELL_", extra="forbid", frozen=True)

    models: Path = Field(description="Folder of models: NAME.onnx or NAME/VERSION/model.onnx.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    # The log's "serving" line names the port that 0 took.
    port: _Port = Field(default=8500, description="gRPC port; 0 takes a free one.")
    metrics_host: str | None = Field(
        default=None,
        description="Address of the Prometheus endpoint.",
        json_schema_extra={"unset": "as --host"},
    )
    metrics_port: _Port = Field(default=9090, description="Prometheus port; 0 takes a free one.")
    device: str = Field(
        default="cpu", description="Device: cpu, cuda or cuda:N. An unavailable device is an error."
    )
    lane: Literal["auto", "fast", "threaded"] = Field(
        default="auto", description="gRPC transport: auto, fast or threaded."
    )
    frontends: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="Processes that answer calls, beside one that runs the models; 0: one does both.",
    )
    max_sessions: _Positive = Field(default=10_000, description="Maximum live sessions per model.")
    max_batch: _Positive = Field(default=256, description="Maximum sessions in one run.")
    max_chunk: _Positive = Field(default=64, description="Maximum timesteps of a session in one run.")
    max_steps_per_message: _Positive = Field(default=4096, description="Maximum timesteps in a message.")
    max_generate_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        default=16_384, description="Maximum timesteps that one message may ask to generate."
    )
    max_beam_width: _Positive = Field(default=16, description="Maximum hypotheses of a beam search.")
    max_message_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=4 * 1024 * 1024, description="Maximum bytes in a message."
    )
    max_infer_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=64 * 1024 * 1024, description="Maximum bytes in a request of the Open Inference Protocol."
    )
    # How models are loaded and unloaded while the server runs: not at all, when the folder changes, or by calls.
    model_control: Literal["none", "poll", "explicit"] = Field(
        default="none", description="Load and unload models while serving: none, poll or explicit."
    )
    versions: Literal["latest", "all"] | None = Field(
        default=None,
        description="Versions of each model to serve: latest or all.",
        json_schema_extra={"unset": "all; latest under model control"},
    )
    model_poll_s: Annotated[float, Field(gt=0)] = Field(
        default=15.0, description="Seconds between two looks at the folder of models."
    )
    load_model: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Model to load at start under explicit control, * for all; repeatable."
    )
    # Whether unloading waits for live sessions or is refused if there are any.
    unload: Literal["wait", "refuse"] = Field(
        default="wait", description="Unloading a model with live sessions: wait or refuse."
    )
    unload_grace_s: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="Seconds that sessions get to end when their model is unloaded."
    )
    queue_messages: _Positive = Field(
        default=32, description="Maximum messages that may wait in a session's queue."
    )
    idle_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="Idle seconds before a session ends; 0: never."
    )
    linger_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Seconds that resumable sessions live without a stream; 0: refuse them."
    )
    kept_reply_bytes: _Positive = Field(
        default=4 * 1024 * 1024, description="Maximum bytes of replies kept for a resumable session."
    )
    max_kept_reply_bytes: _Positive = Field(
        default=256 * 1024 * 1024, description="Maximum bytes of replies kept for all resumable sessions."
    )
    # What resumable sessions outlive: their connections, or the server's processes as well.
    durability: Literal["none", "process"] = Field(
        default="none", description="What resumable sessions outlive: none (connections only) or process."
    )
    journal_dir: Path | None = Field(
        default=None, description="Folder for the sessions of --durability process."
    )
    journal_reply_bytes: _Positive = Field(
        default=32 * 1024, description="Bytes of replies in the journal, for each session."
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Seconds that streams get to end after SIGTERM."
    )
    first_message_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="Seconds a call has to send its first message; 0: no limit."
    )
    reflection: bool = Field(default=True, description="Answer gRPC reflection calls.")
    watchdog_s: Annotated[float, Field(ge=0)] = Field(
        default=30.0,
        description="Seconds without progress before a busy thread counts as stalled; 0: never.",
    )
    watchdog_exit: bool = Field(default=False, description="Exit with code 70 if a thread stalls.")
    run_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Time limit of one run of a model, in seconds; 0: none."
    )
    load_timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="Time limit of loading a model, in seconds; 0: none."
    )
    # How thoroughly a load tests that a session's outputs depend on that session alone.
    proof: Literal["off", "quick", "full"] = Field(
        default="quick", description="Prove each model when it is loaded: off, quick or full."
    )
    proof_s: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="Time limit of the proof of a model, in seconds."
    )
    follow_links: bool = Field(
        default=False, description="Follow symbolic links that lead out of the folder of models."
    )
    max_concurrent_streams: _Positive | None = Field(
        default=None,
        description="Maximum HTTP/2 streams per connection.",
        json_schema_extra={"unset": "twice --max-sessions"},
    )
    max_connections: _Positive | None = Field(
        default=None,
        description="Maximum connections per process that answers calls.",
        json_schema_extra={"unset": "twice --max-sessions if descriptors allow"},
    )
    keepalive_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        default=20.0, description="Seconds of silence before the server pings a connection."
    )
    keepalive_timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        default=10.0, description="Seconds that a client has to answer a ping."
    )
    max_in_flight_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = Field(
        default=None,
        description="Maximum bytes of half-received messages, queued work, unread replies.",
        json_schema_extra={"unset": "a quarter of the memory"},
    )
    max_connection_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = Field(
        default=None,
        description="The same bound for one connection.",
        json_schema_extra={"unset": "half of --max-in-flight-bytes"},
    )
    stop_s: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="Seconds that stopping may take after --grace-s."
    )
    non_finite: Literal["reject", "allow"] = Field(
        default="reject", description="Messages with NaN or infinite input: reject or allow."
    )
    spin_us: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None,
        description="Microseconds to poll for messages before blocking; 0: never poll; measured at start if not given.",
    )
    hold_replies: bool = Field(
        default=True,
        description="Send a batch's replies to one connection in one segment (TCP on Linux).",
    )
    intra_op_threads: _Positive = Field(default=1, description="ONNX Runtime's threads for one run.")
    fixed_shapes: bool | None = Field(
        default=None,
        description="Pad batches to 1, 2, 4, … rows.",
        json_schema_extra={"unset": "on CUDA only"},
    )
    cell: Literal["auto", "operator", "decomposed"] | None = Field(
        default=None,
        description="Recurrent layers in single steps: auto, operator, decomposed.",
        json_schema_extra={"unset": "auto, but for LSTM on CPU"},
    )
    arithmetic: Literal["auto", "float32", "int8"] = Field(
        default="auto",
        description="Products of models in int8, on CPU: float32, int8, or auto, the faster at load.",
    )
    cuda_graphs: bool | None = Field(
        default=None,
        description="Replay single steps as CUDA graphs.",
        json_schema_extra={"unset": "on CUDA, if it is safe"},
    )
    tf32: bool = Field(
        default=False, description="Compute matrix products in TF32 on CUDA: faster, 10 bits of fraction."
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain; with --tls-key, serves TLS."
    )
    tls_key: Path | None = Field(default=None, description="PEM private key.")
    metrics_tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain of the Prometheus port; with --metrics-tls-key."
    )
    metrics_tls_key: Path | None = Field(default=None, description="PEM private key of the Prometheus port.")
    metrics_tls: bool = Field(
        default=False, description="Serve the Prometheus port with --tls-cert and --tls-key."
    )
    triton_metrics: bool = Field(default=False, description="Also report Triton's metrics, nv_inference_*.")
    triton_names: bool = Field(
        default=False, description="Call the server triton in the Open Inference Protocol's metadata."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines to write: debug, info, warning or error."
    )
    log_format: Literal["json", "console"] = Field(default="json", description="Log format: json or console.")

    # `load` sets it on the subclass that it constructs.
    _toml: ClassVar[Path | None] = None

    @property
    def streams_a_connection(self) -> int:
        """Most HTTP/2 streams of a connection."""
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
            raise ValueError("load_model needs model_control = explicit: otherwise all models are loaded")
        if self.durability == "process" and self.journal_dir is None:
            raise ValueError("durability = process needs journal_dir: the folder that keeps the sessions")
        if self.durability == "process" and self.device != "cpu":
            raise ValueError(
                "durability = process needs device = cpu: a card's states cannot be kept in files yet"
            )
        if 0 < self.watchdog_s < 2:
            raise ValueError(
                "watchdog_s: expected 0 or at least 2 seconds: an idle thread shows progress once a second"
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
        """The sources in order: flags, environment, TOML; the first that names a setting wins."""
        sources = [init_settings, env_settings]
        if cls._toml is not None:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=cls._toml))
        return tuple(sources)

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Read the configuration.

        Args:
            config: a TOML file; None: the one that STREAMCELL_CONFIG names, if any.
            flags: the command line's; None: not given.

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
