# Made from service/settings.py by cli/generate.py: change that file.
"""The flags of `streamcell serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_Option = typer.Option


def with_flags(run: Callable[[Path | None, dict[str, Any]], None]) -> Callable[..., None]:
    """A command with a flag for each setting. It calls `run` with the TOML file and the flags; None: not given."""

    def command(
        models: Annotated[
            Path | None, _Option(help="Folder of models: NAME.onnx or NAME/VERSION/model.onnx.")
        ] = None,
        host: Annotated[str | None, _Option(help="Address to listen on.  [127.0.0.1]")] = None,
        port: Annotated[int | None, _Option(help="gRPC port; 0 takes a free one.  [8500]")] = None,
        metrics_host: Annotated[
            str | None, _Option(help="Address of the Prometheus endpoint.  [as --host]")
        ] = None,
        metrics_port: Annotated[
            int | None, _Option(help="Prometheus port; 0 takes a free one.  [9090]")
        ] = None,
        websocket_port: Annotated[
            int | None, _Option(help="WebSocket port, for browsers; 0 takes a free one.  [none]")
        ] = None,
        websocket_origins: Annotated[
            list[str] | None,
            _Option(
                help="Origin whose pages may connect, as https://app.example; repeatable.  [the same address]"
            ),
        ] = None,
        max_websockets: Annotated[int | None, _Option(help="Maximum WebSockets at a time.  [256]")] = None,
        device: Annotated[
            str | None, _Option(help="Device: cpu, cuda or cuda:N. An unavailable device is an error.  [cpu]")
        ] = None,
        lane: Annotated[str | None, _Option(help="gRPC transport: auto, fast or threaded.  [auto]")] = None,
        frontends: Annotated[
            int | None,
            _Option(
                help="Processes that answer calls, beside one that runs the models; 0: one does both.  [0]"
            ),
        ] = None,
        max_sessions: Annotated[int | None, _Option(help="Maximum live sessions per model.  [10000]")] = None,
        slots: Annotated[
            int | None,
            _Option(
                help="Rows of a model's pool; idle sessions beyond them lie in the host's memory.  [--max-sessions]"
            ),
        ] = None,
        max_batch: Annotated[int | None, _Option(help="Maximum sessions in one run.  [256]")] = None,
        max_chunk: Annotated[
            int | None, _Option(help="Maximum timesteps of a session in one run.  [64]")
        ] = None,
        max_steps_per_message: Annotated[
            int | None, _Option(help="Maximum timesteps in a message.  [4096]")
        ] = None,
        max_generate_steps: Annotated[
            int | None, _Option(help="Maximum timesteps that one message may ask to generate.  [16384]")
        ] = None,
        max_beam_width: Annotated[
            int | None, _Option(help="Maximum hypotheses of a beam search.  [16]")
        ] = None,
        max_message_bytes: Annotated[
            int | None, _Option(help="Maximum bytes in a message.  [4194304]")
        ] = None,
        max_infer_bytes: Annotated[
            int | None, _Option(help="Maximum bytes in a request of the Open Inference Protocol.  [67108864]")
        ] = None,
        model_control: Annotated[
            str | None, _Option(help="Load and unload models while serving: none, poll or explicit.  [none]")
        ] = None,
        versions: Annotated[
            str | None,
            _Option(
                help="Versions of each model to serve: latest or all.  [all; latest under model control]"
            ),
        ] = None,
        model_poll_s: Annotated[
            float | None, _Option(help="Seconds between two looks at the folder of models.  [15]")
        ] = None,
        load_model: Annotated[
            list[str] | None,
            _Option(help="Model to load at start under explicit control, * for all; repeatable."),
        ] = None,
        unload: Annotated[
            str | None, _Option(help="Unloading a model with live sessions: wait or refuse.  [wait]")
        ] = None,
        unload_grace_s: Annotated[
            float | None,
            _Option(
                "--unload-grace-s",
                "--unload-grace",
                help="Seconds that sessions get to end when their model is unloaded.  [30]",
            ),
        ] = None,
        queue_messages: Annotated[
            int | None, _Option(help="Maximum messages that may wait in a session's queue.  [32]")
        ] = None,
        idle_timeout_s: Annotated[
            float | None, _Option(help="Idle seconds before a session ends; 0: never.  [300]")
        ] = None,
        linger_s: Annotated[
            float | None,
            _Option(help="Seconds that resumable sessions live without a stream; 0: refuse them.  [60]"),
        ] = None,
        kept_reply_bytes: Annotated[
            int | None, _Option(help="Maximum bytes of replies kept for a resumable session.  [4194304]")
        ] = None,
        max_kept_reply_bytes: Annotated[
            int | None, _Option(help="Maximum bytes of replies kept for all resumable sessions.  [268435456]")
        ] = None,
        durability: Annotated[
            str | None,
            _Option(
                help="What resumable sessions outlive: none (connections), process, store-async, store-sync.  [none]"
            ),
        ] = None,
        journal_dir: Annotated[
            Path | None, _Option(help="Folder for the sessions of --durability process.")
        ] = None,
        journal_reply_bytes: Annotated[
            int | None, _Option(help="Bytes of replies in the journal, for each session.  [32768]")
        ] = None,
        store: Annotated[
            str | None,
            _Option(
                help="Valkey or Redis that several servers keep sessions in: valkey://HOST:PORT, valkeys:// for TLS."
            ),
        ] = None,
        store_user: Annotated[
            str | None, _Option(help="User of the store.  [as in --store, or default]")
        ] = None,
        store_password_file: Annotated[Path | None, _Option(help="File with the store's password.")] = None,
        store_ca: Annotated[
            Path | None,
            _Option(
                help="PEM certificates of the authorities that the store's certificate needs.  [the system's]"
            ),
        ] = None,
        store_key_file: Annotated[
            Path | None, _Option(help="Keys that encrypt sessions in the store; the first writes, all read.")
        ] = None,
        lease_s: Annotated[
            float | None, _Option(help="Seconds after which others may take a dead server's sessions.  [5]")
        ] = None,
        snapshot_key_file: Annotated[
            Path | None, _Option(help="Key that signs snapshots; then only signed ones are restored.")
        ] = None,
        remote_drain: Annotated[
            bool | None, _Option(help="Shut down gracefully at a client's request: streamcell drain.  [off]")
        ] = None,
        replica: Annotated[
            str | None, _Option(help="Name of this server among its replicas.  [the host's name]")
        ] = None,
        advertise: Annotated[
            str | None, _Option(help="Address at which clients reach this server without a proxy, HOST:PORT.")
        ] = None,
        agent_port: Annotated[
            int | None, _Option(help="Port that answers HAProxy's agent checks; 0 takes a free one.  [none]")
        ] = None,
        journal_frame_streams: Annotated[
            int | None,
            _Option(help="Streams of frames in a model's journal; each takes --kept-reply-bytes of it.  [4]"),
        ] = None,
        grace_s: Annotated[
            float | None, _Option(help="Seconds that streams get to end after SIGTERM.  [10]")
        ] = None,
        settle_s: Annotated[
            float | None,
            _Option(
                help="Seconds after SIGTERM until new sessions are refused: proxies notice.  [2 with --store, else 0]"
            ),
        ] = None,
        first_message_s: Annotated[
            float | None, _Option(help="Seconds a call has to send its first message; 0: no limit.  [20]")
        ] = None,
        reflection: Annotated[bool | None, _Option(help="Answer gRPC reflection calls.  [on]")] = None,
        watchdog_s: Annotated[
            float | None,
            _Option(help="Seconds without progress before a busy thread counts as stalled; 0: never.  [30]"),
        ] = None,
        watchdog_exit: Annotated[
            bool | None, _Option(help="Exit with code 70 if a thread stalls.  [off]")
        ] = None,
        run_timeout_s: Annotated[
            float | None, _Option(help="Time limit of one run of a model, in seconds; 0: none.  [60]")
        ] = None,
        load_timeout_s: Annotated[
            float | None, _Option(help="Time limit of loading a model, in seconds; 0: none.  [300]")
        ] = None,
        proof: Annotated[
            str | None, _Option(help="Prove each model when it is loaded: off, quick or full.  [quick]")
        ] = None,
        proof_s: Annotated[
            float | None, _Option(help="Time limit of the proof of a model, in seconds.  [2]")
        ] = None,
        follow_links: Annotated[
            bool | None, _Option(help="Follow symbolic links that lead out of the folder of models.  [off]")
        ] = None,
        require_signature: Annotated[
            Path | None,
            _Option(help="PEM file of Ed25519 public keys: serve only models that one of them has signed."),
        ] = None,
        max_concurrent_streams: Annotated[
            int | None, _Option(help="Maximum HTTP/2 streams per connection.  [twice --max-sessions]")
        ] = None,
        max_connections: Annotated[
            int | None,
            _Option(
                help="Maximum connections per process that answers calls.  [twice --max-sessions if descriptors allow]"
            ),
        ] = None,
        keepalive_s: Annotated[
            float | None, _Option(help="Seconds of silence before the server pings a connection.  [20]")
        ] = None,
        keepalive_timeout_s: Annotated[
            float | None, _Option(help="Seconds that a client has to answer a ping.  [10]")
        ] = None,
        max_in_flight_bytes: Annotated[
            int | None,
            _Option(
                help="Maximum bytes of half-received messages, queued work, unread replies.  [a quarter of the memory]"
            ),
        ] = None,
        max_connection_bytes: Annotated[
            int | None, _Option(help="The same bound for one connection.  [half of --max-in-flight-bytes]")
        ] = None,
        stop_s: Annotated[
            float | None, _Option(help="Seconds that stopping may take after --grace-s.  [10]")
        ] = None,
        non_finite: Annotated[
            str | None, _Option(help="Messages with NaN or infinite input: reject or allow.  [reject]")
        ] = None,
        spin_us: Annotated[
            int | None,
            _Option(
                help="Microseconds to poll for messages before blocking; 0: never poll; measured at start if not given."
            ),
        ] = None,
        hold_replies: Annotated[
            bool | None,
            _Option(help="Send a batch's replies to one connection in one segment (TCP on Linux).  [on]"),
        ] = None,
        intra_op_threads: Annotated[
            int | None, _Option(help="ONNX Runtime's threads for one run.  [1]")
        ] = None,
        fixed_shapes: Annotated[
            bool | None, _Option(help="Pad batches to 1, 2, 4, … rows.  [on CUDA only]")
        ] = None,
        cell: Annotated[
            str | None,
            _Option(
                help="Recurrent layers in single steps: auto, operator, decomposed.  [auto, but for LSTM on CPU]"
            ),
        ] = None,
        arithmetic: Annotated[
            str | None,
            _Option(
                help="Products of models in int8, on CPU: float32, int8, or auto, the faster at load.  [auto]"
            ),
        ] = None,
        cuda_graphs: Annotated[
            bool | None, _Option(help="Replay single steps as CUDA graphs.  [on CUDA, if it is safe]")
        ] = None,
        tf32: Annotated[
            bool | None,
            _Option(help="Compute matrix products in TF32 on CUDA: faster, 10 bits of fraction.  [off]"),
        ] = None,
        tls_cert: Annotated[
            Path | None, _Option(help="PEM certificate chain; with --tls-key, serves TLS.")
        ] = None,
        tls_key: Annotated[Path | None, _Option(help="PEM private key.")] = None,
        tls_client_ca: Annotated[
            Path | None, _Option(help="PEM certificates of the authorities that clients' certificates need.")
        ] = None,
        token_file: Annotated[Path | None, _Option(help="TOML file of bearer tokens, hashed.")] = None,
        jwt_jwks: Annotated[
            str | None, _Option(help="Keys of the JWTs that are accepted: a JWKS file, or its https address.")
        ] = None,
        jwt_issuer: Annotated[str | None, _Option(help="What a JWT's iss must be.")] = None,
        jwt_audience: Annotated[str | None, _Option(help="What a JWT's aud must be, or contain.")] = None,
        jwt_leeway_s: Annotated[
            float | None, _Option(help="Seconds by which a JWT issuer's clock may differ.  [30]")
        ] = None,
        policy_file: Annotated[
            Path | None, _Option(help="TOML file of what each tenant may do, and how much.")
        ] = None,
        admin: Annotated[
            str | None, _Option(help="Address for operators alone: unix:/PATH, or HOST:PORT.")
        ] = None,
        sequence_scope: Annotated[
            str | None,
            _Option(help="Where a sequence_id means one sequence: server or connection.  [server]"),
        ] = None,
        jwt_tenant_claim: Annotated[
            str | None, _Option(help="The claim of a JWT that names its tenant.  [tenant]")
        ] = None,
        metrics_tls_cert: Annotated[
            Path | None, _Option(help="PEM certificate chain of the Prometheus port; with --metrics-tls-key.")
        ] = None,
        metrics_tls_key: Annotated[
            Path | None, _Option(help="PEM private key of the Prometheus port.")
        ] = None,
        metrics_tls: Annotated[
            bool | None, _Option(help="Serve the Prometheus port with --tls-cert and --tls-key.  [off]")
        ] = None,
        metrics_open: Annotated[
            bool | None,
            _Option(help="Show metrics and the status page to all who reach the Prometheus port.  [off]"),
        ] = None,
        triton_metrics: Annotated[
            bool | None, _Option(help="Also report Triton's metrics, nv_inference_*.  [off]")
        ] = None,
        triton_names: Annotated[
            bool | None,
            _Option(help="Call the server triton in the Open Inference Protocol's metadata.  [off]"),
        ] = None,
        audit_log: Annotated[
            str | None, _Option(help="File for the audit log, in JSON lines; - for standard output.")
        ] = None,
        otlp_endpoint: Annotated[
            str | None,
            _Option(help="URL of an OpenTelemetry collector (OTLP over HTTP): send it traces and metrics."),
        ] = None,
        otlp_metrics_s: Annotated[
            float | None, _Option(help="Seconds between two exports of metrics to --otlp-endpoint.  [30]")
        ] = None,
        trace_ratio: Annotated[
            float | None,
            _Option(help="Share of messages to trace on streams whose client sent no trace context.  [0]"),
        ] = None,
        log_level: Annotated[
            str | None,
            _Option(help="Least severe log lines to write: debug, info, warning or error.  [info]"),
        ] = None,
        log_format: Annotated[str | None, _Option(help="Log format: json or console.  [json]")] = None,
        config: Annotated[Path | None, _Option(help="TOML file with any of these settings.")] = None,
    ) -> None:
        """Serve every model of a folder over gRPC, with metrics for Prometheus.

        Each setting can also be given as STREAMCELL_NAME or in the TOML file; flags win over the environment,
        the environment over the file.
        """
        run(config, {key: value for key, value in locals().items() if key not in ("config", "run")})

    return command
