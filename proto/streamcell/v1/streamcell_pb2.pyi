from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OutputMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_MODE_UNSPECIFIED: _ClassVar[OutputMode]
    OUTPUT_MODE_ALL: _ClassVar[OutputMode]
    OUTPUT_MODE_LAST: _ClassVar[OutputMode]
    OUTPUT_MODE_NONE: _ClassVar[OutputMode]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_NONE: _ClassVar[Durability]
    DURABILITY_PROCESS: _ClassVar[Durability]
    DURABILITY_STORE_ASYNC: _ClassVar[Durability]
    DURABILITY_STORE_SYNC: _ClassVar[Durability]

class Feedback(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_UNSPECIFIED: _ClassVar[Feedback]
    FEEDBACK_VALUE: _ClassVar[Feedback]
    FEEDBACK_ARGMAX: _ClassVar[Feedback]
    FEEDBACK_SAMPLE: _ClassVar[Feedback]

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_STEPS: _ClassVar[StopReason]
    STOP_REASON_CLASS: _ClassVar[StopReason]
    STOP_REASON_REQUEST: _ClassVar[StopReason]
    STOP_REASON_NON_FINITE: _ClassVar[StopReason]

class FramePart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_PART_UNSPECIFIED: _ClassVar[FramePart]
    FRAME_PART_ROW: _ClassVar[FramePart]
    FRAME_PART_CLOSE: _ClassVar[FramePart]
    FRAME_PART_RESET: _ClassVar[FramePart]
    FRAME_PART_OPEN: _ClassVar[FramePart]
    FRAME_PART_FORK: _ClassVar[FramePart]
    FRAME_PART_SNAPSHOT: _ClassVar[FramePart]
    FRAME_PART_RESTORE: _ClassVar[FramePart]

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATE_UNSPECIFIED: _ClassVar[SessionState]
    SESSION_STATE_OPEN: _ClassVar[SessionState]
    SESSION_STATE_ACTIVE: _ClassVar[SessionState]
    SESSION_STATE_DETACHED: _ClassVar[SessionState]
OUTPUT_MODE_UNSPECIFIED: OutputMode
OUTPUT_MODE_ALL: OutputMode
OUTPUT_MODE_LAST: OutputMode
OUTPUT_MODE_NONE: OutputMode
DURABILITY_UNSPECIFIED: Durability
DURABILITY_NONE: Durability
DURABILITY_PROCESS: Durability
DURABILITY_STORE_ASYNC: Durability
DURABILITY_STORE_SYNC: Durability
FEEDBACK_UNSPECIFIED: Feedback
FEEDBACK_VALUE: Feedback
FEEDBACK_ARGMAX: Feedback
FEEDBACK_SAMPLE: Feedback
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_STEPS: StopReason
STOP_REASON_CLASS: StopReason
STOP_REASON_REQUEST: StopReason
STOP_REASON_NON_FINITE: StopReason
FRAME_PART_UNSPECIFIED: FramePart
FRAME_PART_ROW: FramePart
FRAME_PART_CLOSE: FramePart
FRAME_PART_RESET: FramePart
FRAME_PART_OPEN: FramePart
FRAME_PART_FORK: FramePart
FRAME_PART_SNAPSHOT: FramePart
FRAME_PART_RESTORE: FramePart
SESSION_STATE_UNSPECIFIED: SessionState
SESSION_STATE_OPEN: SessionState
SESSION_STATE_ACTIVE: SessionState
SESSION_STATE_DETACHED: SessionState

class OpenSession(_message.Message):
    __slots__ = ("model", "version", "output_mode", "dtypes", "inputs", "session", "token", "durability", "window", "received", "resume", "snapshot", "attempt", "held", "first", "received_steps")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_STEPS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    output_mode: OutputMode
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[OpenInput]
    session: bytes
    token: bytes
    durability: Durability
    window: int
    received: int
    resume: bool
    snapshot: bytes
    attempt: int
    held: int
    first: int
    received_steps: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., dtypes: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[OpenInput, _Mapping]]] = ..., session: _Optional[bytes] = ..., token: _Optional[bytes] = ..., durability: _Optional[_Union[Durability, str]] = ..., window: _Optional[int] = ..., received: _Optional[int] = ..., resume: bool = ..., snapshot: _Optional[bytes] = ..., attempt: _Optional[int] = ..., held: _Optional[int] = ..., first: _Optional[int] = ..., received_steps: _Optional[int] = ...) -> None: ...

class OpenInput(_message.Message):
    __slots__ = ("name", "value", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Generate(_message.Message):
    __slots__ = ("steps", "feedback", "temperature", "top_k", "seed", "stop", "no_stop", "from_output", "steps_per_reply", "beam")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    NO_STOP_FIELD_NUMBER: _ClassVar[int]
    FROM_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_REPLY_FIELD_NUMBER: _ClassVar[int]
    BEAM_FIELD_NUMBER: _ClassVar[int]
    steps: int
    feedback: Feedback
    temperature: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[int]
    no_stop: bool
    from_output: bool
    steps_per_reply: int
    beam: BeamSearch
    def __init__(self, steps: _Optional[int] = ..., feedback: _Optional[_Union[Feedback, str]] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[int]] = ..., no_stop: bool = ..., from_output: bool = ..., steps_per_reply: _Optional[int] = ..., beam: _Optional[_Union[BeamSearch, _Mapping]] = ...) -> None: ...

class BeamSearch(_message.Message):
    __slots__ = ("width", "results", "length_power")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_POWER_FIELD_NUMBER: _ClassVar[int]
    width: int
    results: int
    length_power: float
    def __init__(self, width: _Optional[int] = ..., results: _Optional[int] = ..., length_power: _Optional[float] = ...) -> None: ...

class Hypothesis(_message.Message):
    __slots__ = ("classes", "log_probability", "score", "stopped")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LOG_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[int]
    log_probability: float
    score: float
    stopped: bool
    def __init__(self, classes: _Optional[_Iterable[int]] = ..., log_probability: _Optional[float] = ..., score: _Optional[float] = ..., stopped: bool = ...) -> None: ...

class Generated(_message.Message):
    __slots__ = ("steps", "chosen", "first", "stop_reason", "seed", "hypotheses")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESES_FIELD_NUMBER: _ClassVar[int]
    steps: int
    chosen: bytes
    first: bytes
    stop_reason: StopReason
    seed: int
    hypotheses: _containers.RepeatedCompositeFieldContainer[Hypothesis]
    def __init__(self, steps: _Optional[int] = ..., chosen: _Optional[bytes] = ..., first: _Optional[bytes] = ..., stop_reason: _Optional[_Union[StopReason, str]] = ..., seed: _Optional[int] = ..., hypotheses: _Optional[_Iterable[_Union[Hypothesis, _Mapping]]] = ...) -> None: ...

class GenerationSpec(_message.Message):
    __slots__ = ("output", "input", "head", "encoding", "offset", "start", "stop", "max_steps")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    output: str
    input: str
    head: str
    encoding: str
    offset: int
    start: int
    stop: int
    max_steps: int
    def __init__(self, output: _Optional[str] = ..., input: _Optional[str] = ..., head: _Optional[str] = ..., encoding: _Optional[str] = ..., offset: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., max_steps: _Optional[int] = ...) -> None: ...

class StateCopy(_message.Message):
    __slots__ = ("snapshot", "fork", "restore")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    snapshot: bool
    fork: Fork
    restore: bytes
    def __init__(self, snapshot: bool = ..., fork: _Optional[_Union[Fork, _Mapping]] = ..., restore: _Optional[bytes] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("session", "token", "durability", "window")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    token: bytes
    durability: Durability
    window: int
    def __init__(self, session: _Optional[bytes] = ..., token: _Optional[bytes] = ..., durability: _Optional[_Union[Durability, str]] = ..., window: _Optional[int] = ...) -> None: ...

class StateCopied(_message.Message):
    __slots__ = ("snapshot", "applied", "error")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    applied: int
    error: StateCopyError
    def __init__(self, snapshot: _Optional[bytes] = ..., applied: _Optional[int] = ..., error: _Optional[_Union[StateCopyError, _Mapping]] = ...) -> None: ...

class StateCopyError(_message.Message):
    __slots__ = ("reason", "text", "metadata", "code")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    text: str
    metadata: _containers.ScalarMap[str, str]
    code: int
    def __init__(self, reason: _Optional[str] = ..., text: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., code: _Optional[int] = ...) -> None: ...

class SnapshotContent(_message.Message):
    __slots__ = ("model", "version", "model_sha256", "states", "values", "step_indices", "given", "last_output", "handles", "frames", "tenant")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STEP_INDICES_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    LAST_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    model_sha256: bytes
    states: _containers.RepeatedCompositeFieldContainer[StateSpec]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    step_indices: bytes
    given: _containers.RepeatedScalarFieldContainer[bytes]
    last_output: bytes
    handles: bytes
    frames: bool
    tenant: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., model_sha256: _Optional[bytes] = ..., states: _Optional[_Iterable[_Union[StateSpec, _Mapping]]] = ..., values: _Optional[_Iterable[bytes]] = ..., step_indices: _Optional[bytes] = ..., given: _Optional[_Iterable[bytes]] = ..., last_output: _Optional[bytes] = ..., handles: _Optional[bytes] = ..., frames: bool = ..., tenant: _Optional[str] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("open", "inputs", "steps", "output_mode", "tag", "generate", "stop_generation", "copy", "received", "received_steps", "outcome")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    STOP_GENERATION_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    steps: int
    output_mode: OutputMode
    tag: int
    generate: Generate
    stop_generation: int
    copy: StateCopy
    received: int
    received_steps: int
    outcome: Outcome
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., inputs: _Optional[_Iterable[bytes]] = ..., steps: _Optional[int] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., tag: _Optional[int] = ..., generate: _Optional[_Union[Generate, _Mapping]] = ..., stop_generation: _Optional[int] = ..., copy: _Optional[_Union[StateCopy, _Mapping]] = ..., received: _Optional[int] = ..., received_steps: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("steps", "chosen", "first", "stop_reason", "seed")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    steps: int
    chosen: bytes
    first: bytes
    stop_reason: StopReason
    seed: int
    def __init__(self, steps: _Optional[int] = ..., chosen: _Optional[bytes] = ..., first: _Optional[bytes] = ..., stop_reason: _Optional[_Union[StopReason, str]] = ..., seed: _Optional[int] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("replica", "address")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    address: str
    def __init__(self, replica: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class StoredSession(_message.Message):
    __slots__ = ("state", "token_hash", "attempt", "window", "output_mode", "applied", "reply_places", "reply_bytes", "generation", "durability")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_HASH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REPLY_PLACES_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    state: SnapshotContent
    token_hash: bytes
    attempt: int
    window: int
    output_mode: OutputMode
    applied: int
    reply_places: bytes
    reply_bytes: bytes
    generation: StoredGeneration
    durability: Durability
    def __init__(self, state: _Optional[_Union[SnapshotContent, _Mapping]] = ..., token_hash: _Optional[bytes] = ..., attempt: _Optional[int] = ..., window: _Optional[int] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., applied: _Optional[int] = ..., reply_places: _Optional[bytes] = ..., reply_bytes: _Optional[bytes] = ..., generation: _Optional[_Union[StoredGeneration, _Mapping]] = ..., durability: _Optional[_Union[Durability, str]] = ...) -> None: ...

class StoredReply(_message.Message):
    __slots__ = ("number", "begin", "end", "data")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    number: int
    begin: int
    end: int
    data: bytes
    def __init__(self, number: _Optional[int] = ..., begin: _Optional[int] = ..., end: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StoredGeneration(_message.Message):
    __slots__ = ("number", "base", "request", "replies")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    number: int
    base: int
    request: bytes
    replies: _containers.RepeatedCompositeFieldContainer[StoredReply]
    def __init__(self, number: _Optional[int] = ..., base: _Optional[int] = ..., request: _Optional[bytes] = ..., replies: _Optional[_Iterable[_Union[StoredReply, _Mapping]]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("session_id", "model", "version", "inputs", "outputs", "max_steps_per_message", "idle_timeout_s", "generation", "applied", "step_index", "durability", "replica", "linger_s", "window", "applied_steps", "open_inputs", "durable", "generating", "max_message_bytes", "address")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    LINGER_S_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    APPLIED_STEPS_FIELD_NUMBER: _ClassVar[int]
    OPEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    GENERATING_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    version: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    max_steps_per_message: int
    idle_timeout_s: float
    generation: GenerationSpec
    applied: int
    step_index: int
    durability: Durability
    replica: str
    linger_s: float
    window: int
    applied_steps: int
    open_inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    durable: int
    generating: int
    max_message_bytes: int
    address: str
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., max_steps_per_message: _Optional[int] = ..., idle_timeout_s: _Optional[float] = ..., generation: _Optional[_Union[GenerationSpec, _Mapping]] = ..., applied: _Optional[int] = ..., step_index: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., replica: _Optional[str] = ..., linger_s: _Optional[float] = ..., window: _Optional[int] = ..., applied_steps: _Optional[int] = ..., open_inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., durable: _Optional[int] = ..., generating: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("opened", "outputs", "steps", "step_index", "tag", "generated", "copied", "durable", "moved")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    steps: int
    step_index: int
    tag: int
    generated: Generated
    copied: StateCopied
    durable: int
    moved: Moved
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., outputs: _Optional[_Iterable[bytes]] = ..., steps: _Optional[int] = ..., step_index: _Optional[int] = ..., tag: _Optional[int] = ..., generated: _Optional[_Union[Generated, _Mapping]] = ..., copied: _Optional[_Union[StateCopied, _Mapping]] = ..., durable: _Optional[int] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ...) -> None: ...

class OpenFrames(_message.Message):
    __slots__ = ("model", "version", "output_mode", "dtypes", "current_only", "session", "token", "durability", "window", "received", "resume", "snapshot", "attempt", "held", "first")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ONLY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    output_mode: OutputMode
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    current_only: bool
    session: bytes
    token: bytes
    durability: Durability
    window: int
    received: int
    resume: bool
    snapshot: bytes
    attempt: int
    held: int
    first: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., dtypes: _Optional[_Iterable[str]] = ..., current_only: bool = ..., session: _Optional[bytes] = ..., token: _Optional[bytes] = ..., durability: _Optional[_Union[Durability, str]] = ..., window: _Optional[int] = ..., received: _Optional[int] = ..., resume: bool = ..., snapshot: _Optional[bytes] = ..., attempt: _Optional[int] = ..., held: _Optional[int] = ..., first: _Optional[int] = ...) -> None: ...

class FrameRequest(_message.Message):
    __slots__ = ("open", "open_sessions", "close", "reset", "handles", "lengths", "steps", "inputs", "output_mode", "tag", "answered", "received", "snapshot", "restore", "fork", "open_inputs")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPEN_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    OPEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    open: OpenFrames
    open_sessions: int
    close: bytes
    reset: bytes
    handles: bytes
    lengths: bytes
    steps: int
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    output_mode: OutputMode
    tag: int
    answered: int
    received: int
    snapshot: bool
    restore: bytes
    fork: bytes
    open_inputs: _containers.RepeatedCompositeFieldContainer[OpenInput]
    def __init__(self, open: _Optional[_Union[OpenFrames, _Mapping]] = ..., open_sessions: _Optional[int] = ..., close: _Optional[bytes] = ..., reset: _Optional[bytes] = ..., handles: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., steps: _Optional[int] = ..., inputs: _Optional[_Iterable[bytes]] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., tag: _Optional[int] = ..., answered: _Optional[int] = ..., received: _Optional[int] = ..., snapshot: bool = ..., restore: _Optional[bytes] = ..., fork: _Optional[bytes] = ..., open_inputs: _Optional[_Iterable[_Union[OpenInput, _Mapping]]] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("part", "index", "reason", "text", "metadata", "session_ended", "code")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PART_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SESSION_ENDED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    part: FramePart
    index: int
    reason: str
    text: str
    metadata: _containers.ScalarMap[str, str]
    session_ended: bool
    code: int
    def __init__(self, part: _Optional[_Union[FramePart, str]] = ..., index: _Optional[int] = ..., reason: _Optional[str] = ..., text: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., session_ended: bool = ..., code: _Optional[int] = ...) -> None: ...

class FrameResponse(_message.Message):
    __slots__ = ("opened", "handles", "outputs", "steps", "step_indices", "errors", "tag", "snapshot", "forked")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_INDICES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    handles: bytes
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    steps: int
    step_indices: bytes
    errors: _containers.RepeatedCompositeFieldContainer[FrameError]
    tag: int
    snapshot: bytes
    forked: bytes
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., handles: _Optional[bytes] = ..., outputs: _Optional[_Iterable[bytes]] = ..., steps: _Optional[int] = ..., step_indices: _Optional[bytes] = ..., errors: _Optional[_Iterable[_Union[FrameError, _Mapping]]] = ..., tag: _Optional[int] = ..., snapshot: _Optional[bytes] = ..., forked: _Optional[bytes] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "inputs", "batch", "steps", "output_mode", "dtypes", "open_inputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_MODE_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    OPEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    batch: int
    steps: int
    output_mode: OutputMode
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    open_inputs: _containers.RepeatedCompositeFieldContainer[OpenInput]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., inputs: _Optional[_Iterable[bytes]] = ..., batch: _Optional[int] = ..., steps: _Optional[int] = ..., output_mode: _Optional[_Union[OutputMode, str]] = ..., dtypes: _Optional[_Iterable[str]] = ..., open_inputs: _Optional[_Iterable[_Union[OpenInput, _Mapping]]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("outputs", "batch", "steps", "model", "version")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    batch: int
    steps: int
    model: str
    version: str
    def __init__(self, outputs: _Optional[_Iterable[bytes]] = ..., batch: _Optional[int] = ..., steps: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "step_shape", "distribution", "index_ranges", "optional")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STEP_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    INDEX_RANGES_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    step_shape: _containers.RepeatedScalarFieldContainer[int]
    distribution: str
    index_ranges: _containers.RepeatedCompositeFieldContainer[IndexRange]
    optional: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., step_shape: _Optional[_Iterable[int]] = ..., distribution: _Optional[str] = ..., index_ranges: _Optional[_Iterable[_Union[IndexRange, _Mapping]]] = ..., optional: bool = ...) -> None: ...

class IndexRange(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: int
    high: int
    def __init__(self, low: _Optional[int] = ..., high: _Optional[int] = ...) -> None: ...

class StateSpec(_message.Message):
    __slots__ = ("input", "output", "dtype", "shape", "bytes")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    input: str
    output: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    bytes: int
    def __init__(self, input: _Optional[str] = ..., output: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., bytes: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "kind", "inputs", "outputs", "states", "card_json", "live_sessions", "max_sessions", "generation", "restrictions", "open_inputs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    LIVE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RESTRICTIONS_FIELD_NUMBER: _ClassVar[int]
    OPEN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    kind: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    states: _containers.RepeatedCompositeFieldContainer[StateSpec]
    card_json: str
    live_sessions: int
    max_sessions: int
    generation: GenerationSpec
    restrictions: _containers.RepeatedScalarFieldContainer[str]
    open_inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., kind: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[StateSpec, _Mapping]]] = ..., card_json: _Optional[str] = ..., live_sessions: _Optional[int] = ..., max_sessions: _Optional[int] = ..., generation: _Optional[_Union[GenerationSpec, _Mapping]] = ..., restrictions: _Optional[_Iterable[str]] = ..., open_inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "replica")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    replica: Replica
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., replica: _Optional[_Union[Replica, _Mapping]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("name", "address", "store", "lease_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    store: str
    lease_s: float
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., store: _Optional[str] = ..., lease_s: _Optional[float] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "model", "version", "state", "step_index", "queued_messages", "age_s", "idle_s", "peer", "members")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    QUEUED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    version: str
    state: SessionState
    step_index: int
    queued_messages: int
    age_s: float
    idle_s: float
    peer: str
    members: int
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., step_index: _Optional[int] = ..., queued_messages: _Optional[int] = ..., age_s: _Optional[float] = ..., idle_s: _Optional[float] = ..., peer: _Optional[str] = ..., members: _Optional[int] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("live_sessions", "grace_s")
    LIVE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    live_sessions: int
    grace_s: float
    def __init__(self, live_sessions: _Optional[int] = ..., grace_s: _Optional[float] = ...) -> None: ...

class DrainReplicaRequest(_message.Message):
    __slots__ = ("fraction",)
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    fraction: float
    def __init__(self, fraction: _Optional[float] = ...) -> None: ...

class DrainReplicaResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    def __init__(self, sessions: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "token")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token: bytes
    def __init__(self, session_id: _Optional[str] = ..., token: _Optional[bytes] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("step_index",)
    STEP_INDEX_FIELD_NUMBER: _ClassVar[int]
    step_index: int
    def __init__(self, step_index: _Optional[int] = ...) -> None: ...
