"""The server's configuration, in order of precedence: flags, `STREAMCELL_*` variables, a TOML file, defaults."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from .settings_consistency import check_consistent
from .settings_sources import LayeredSettings

_Positive = Annotated[int, Field(ge=1)]
_Port = Annotated[int, Field(ge=0, le=65535)]
_SETTLE_S = 2.0


class Settings(LayeredSettings):
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
    # Each WebSocket is a client of the gRPC port.
    websocket_port: _Port | None = Field(
        default=None,
        description="WebSocket port, for browsers; 0 takes a free one.",
        json_schema_extra={"unset": "none"},
    )
    websocket_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origin whose pages may connect, as https://app.example; repeatable.",
        json_schema_extra={"unset": "the same address"},
    )
    max_websockets: _Positive = Field(default=256, description="Maximum WebSockets at a time.")
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
    # Two: a step of a beam search reads one row and writes another.
    slots: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="Rows of a model's pool; idle sessions beyond them lie in the host's memory.",
        json_schema_extra={"unset": "--max-sessions"},
    )
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
    # What resumable sessions outlive: their connections, the server's processes, or its machine.
    durability: Literal["none", "process", "store-async", "store-sync"] = Field(
        default="none",
        description="What resumable sessions outlive: none (connections), process, store-async, store-sync.",
    )
    journal_dir: Path | None = Field(
        default=None, description="Folder for the sessions of --durability process."
    )
    journal_reply_bytes: _Positive = Field(
        default=32 * 1024, description="Bytes of replies in the journal, for each session."
    )
    store: str | None = Field(
        default=None,
        description="Valkey or Redis that several servers keep sessions in: valkey://HOST:PORT, valkeys:// for TLS.",
    )
    store_user: str | None = Field(
        default=None,
        description="User of the store.",
        json_schema_extra={"unset": "as in --store, or default"},
    )
    store_password_file: Path | None = Field(default=None, description="File with the store's password.")
    store_ca: Path | None = Field(
        default=None,
        description="PEM certificates of the authorities that the store's certificate needs.",
        json_schema_extra={"unset": "the system's"},
    )
    store_key_file: Path | None = Field(
        default=None, description="Keys that encrypt sessions in the store; the first writes, all read."
    )
    lease_s: Annotated[float, Field(ge=1, le=60)] = Field(
        default=5.0, description="Seconds after which others may take a dead server's sessions."
    )
    snapshot_key_file: Path | None = Field(
        default=None, description="Key that signs snapshots; then only signed ones are restored."
    )
    remote_drain: bool = Field(
        default=False, description="Shut down gracefully at a client's request: streamcell drain."
    )
    # How this server is called among those behind one proxy; it is sent as metadata.
    replica: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of this server among its replicas.",
        json_schema_extra={"unset": "the host's name"},
    )
    advertise: str | None = Field(
        default=None,
        pattern=r"^[^\s/]{1,255}:\d{1,5}$",
        description="Address at which clients reach this server without a proxy, HOST:PORT.",
    )
    agent_port: _Port | None = Field(
        default=None,
        description="Port that answers HAProxy's agent checks; 0 takes a free one.",
        json_schema_extra={"unset": "none"},
    )
    journal_frame_streams: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=4,
        description="Streams of frames in a model's journal; each takes --kept-reply-bytes of it.",
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Seconds that streams get to end after SIGTERM."
    )
    # Longer than proxies take to notice that a server is not ready.
    settle_s: Annotated[float, Field(ge=0, le=600)] | None = Field(
        default=None,
        description="Seconds after SIGTERM until new sessions are refused: proxies notice.",
        json_schema_extra={"unset": "2 with --store, else 0"},
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
    require_signature: Path | None = Field(
        default=None,
        description="PEM file of Ed25519 public keys: serve only models that one of them has signed.",
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
    tls_client_ca: Path | None = Field(
        default=None, description="PEM certificates of the authorities that clients' certificates need."
    )
    # Who calls is asked if there is one of tls_client_ca, token_file and jwt_jwks.
    token_file: Path | None = Field(default=None, description="TOML file of bearer tokens, hashed.")
    jwt_jwks: str | None = Field(
        default=None, description="Keys of the JWTs that are accepted: a JWKS file, or its https address."
    )
    jwt_issuer: str | None = Field(default=None, description="What a JWT's iss must be.")
    jwt_audience: str | None = Field(default=None, description="What a JWT's aud must be, or contain.")
    jwt_leeway_s: Annotated[float, Field(ge=0, le=300)] = Field(
        default=30.0, description="Seconds by which a JWT issuer's clock may differ."
    )
    policy_file: Path | None = Field(
        default=None, description="TOML file of what each tenant may do, and how much."
    )
    # At the other address nobody is an operator then.
    admin: str | None = Field(
        default=None,
        pattern=r"^(unix:/.*|.+:\d+)$",
        description="Address for operators alone: unix:/PATH, or HOST:PORT.",
    )
    # Whose an Open Inference Protocol's sequence is, beside its tenant's.
    sequence_scope: Literal["server", "connection"] = Field(
        default="server", description="Where a sequence_id means one sequence: server or connection."
    )
    jwt_tenant_claim: Annotated[str, Field(min_length=1)] = Field(
        default="tenant", description="The claim of a JWT that names its tenant."
    )
    metrics_tls_cert: Path | None = Field(
        default=None, description="PEM certificate chain of the Prometheus port; with --metrics-tls-key."
    )
    metrics_tls_key: Path | None = Field(default=None, description="PEM private key of the Prometheus port.")
    metrics_tls: bool = Field(
        default=False, description="Serve the Prometheus port with --tls-cert and --tls-key."
    )
    metrics_open: bool = Field(
        default=False, description="Show metrics and the status page to all who reach the Prometheus port."
    )
    triton_metrics: bool = Field(default=False, description="Also report Triton's metrics, nv_inference_*.")
    triton_names: bool = Field(
        default=False, description="Call the server triton in the Open Inference Protocol's metadata."
    )
    audit_log: str | None = Field(
        default=None, description="File for the audit log, in JSON lines; - for standard output."
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="URL of an OpenTelemetry collector (OTLP over HTTP): send it traces and metrics.",
    )
    otlp_metrics_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="Seconds between two exports of metrics to --otlp-endpoint."
    )
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of messages to trace on streams whose client sent no trace context."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log lines to write: debug, info, warning or error."
    )
    log_format: Literal["json", "console"] = Field(default="json", description="Log format: json or console.")

    @property
    def streams_a_connection(self) -> int:
        """Most HTTP/2 streams of a connection."""
        return self.max_concurrent_streams or 2 * self.max_sessions

    @property
    def latest_only(self) -> bool:
        """Whether only the latest version of each model is served."""
        return (self.versions or ("all" if self.model_control == "none" else "latest")) == "latest"

    @property
    def replica_name(self) -> str:
        """This server's name among its replicas."""
        return self.replica or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64]

    @property
    def settling_s(self) -> float:
        """Seconds between the wish to stop and the first refusal of a new session."""
        return self.settle_s if self.settle_s is not None else 0.0 if self.store is None else _SETTLE_S

    @property
    def metrics_pair(self) -> tuple[Path, Path] | None:
        """Certificate chain and key of the metrics port; None: plain HTTP."""
        if self.metrics_tls_cert is not None and self.metrics_tls_key is not None:
            return self.metrics_tls_cert, self.metrics_tls_key
        if self.metrics_tls and self.tls_cert is not None and self.tls_key is not None:
            return self.tls_cert, self.tls_key
        return None

    @field_validator("host", "metrics_host")
    @classmethod
    def _bare(cls, host: str | None) -> str | None:
        """An IPv6 address without the brackets of a URL."""
        return host[1:-1] if host is not None and host.startswith("[") and host.endswith("]") else host

    @field_validator("websocket_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers write them."""
        for origin in origins:
            if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: expected scheme, host and port as a browser sends them, such as "
                    "https://app.example or http://localhost:8000"
                )
        return origins

    @field_validator("load_model", "websocket_origins", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        check_consistent(self)
        return self
