"""Requests that are known again by their bytes: whatever a client sends is read as protobuf's parser reads it."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from streamcell.card import Signature, State, Tensor
from streamcell.proto.inference import oip
from streamcell.service.errors import ServiceError
from streamcell.service.protocols.common.protobuf import varint
from streamcell.service.protocols.oip.request_cache import RequestCache
from streamcell.service.protocols.oip.requests import ParsedRequest, ReplyTemplates, flags, parse, plan
from streamcell.service.repository.describe import Description
from streamcell.service.repository.model_file import ModelFile

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", step_shape=(3,)),),
    outputs=(Tensor(name="y", dtype="float32", step_shape=(2,)),),
    states=(State(input="h", output="h_next", dtype="float16", shape=(2, 40)),),
)
FILE = ModelFile("a_model", "3", Path("a_model.onnx"), Description(SIGNATURE, "card"), (), ())
IDS = st.text(max_size=300)


def _request(
    messages: Any,
    id_: str,
    sequence: int | str,
    payload: bytes,
    flags: tuple[bool, bool] | None = None,
    **more: Any,
) -> Any:
    """`flags`: whether it starts and ends the sequence, in parameters; None: without these."""
    request = messages.ModelInferRequest(model_name="a_model", id=id_, raw_input_contents=[payload], **more)
    request.inputs.add(name="x", datatype="FP32", shape=[len(payload) // 12, 3])
    request.outputs.add(name="y")
    if isinstance(sequence, int):
        request.parameters["sequence_id"].int64_param = sequence
    else:
        request.parameters["sequence_id"].string_param = sequence
    if flags is not None:
        request.parameters["sequence_start"].bool_param, request.parameters["sequence_end"].bool_param = flags
    return request


def _read(data: bytes, answers: ReplyTemplates) -> tuple[ParsedRequest, str, bytes] | None:
    """What a message asks for, by protobuf's parser and every check; None where it is refused."""
    try:
        request = parse(data)
        asked, payloads = plan(request, flags(request), FILE, answers)
    except ServiceError:
        return None
    return asked, request.id, payloads[0]


def _held(plans: RequestCache, answers: ReplyTemplates, data: bytes) -> bool:
    """Whether `data` is known; if so, it is what a parser makes of it, or this fails."""
    found = plans.find(data)
    if found is None:
        return False
    read = _read(data, answers)
    assert read is not None, "a message that is refused was known again"
    (kept, id_, payload), (asked, its_id, its_payload) = found, read
    assert (id_.decode(), payload) == (its_id, its_payload)
    assert (kept.flags, kept.form, kept.version) == (asked.flags, asked.form, asked.version)
    assert kept.answer is asked.answer
    return True


# Numbers of one to nine bytes on the wire, and of ten; texts of a byte a character, and of more.
SEQUENCES = st.one_of(
    st.integers(1, 3),
    st.sampled_from([127, 128, 300, 2**62, 2**63 - 1, -1, "a", "b", "ab", "é", "x" * 128, "y" * 127]),
)
FLAGS = st.sampled_from([None, (False, False), (True, False), (False, True), (True, True)])
REQUESTS = st.tuples(
    IDS,
    SEQUENCES,
    st.sampled_from([1, 2, 30, 200]),
    st.binary(min_size=12, max_size=12),
    st.fixed_dictionaries({"flags": FLAGS}, optional={"model_version": st.just("3")}),
)


@pytest.mark.parametrize("messages", [oip, service_pb2], ids=["ours", "tritons"])
@given(requests=st.lists(REQUESTS, min_size=20, max_size=60))
def test_what_is_found_is_what_a_parser_finds(messages: Any, requests: list[Any]) -> None:
    plans, answers = RequestCache(), ReplyTemplates()
    seen: set[Any] = set()
    for id_, sequence, steps, step, more in requests:
        message = _request(messages, id_, sequence, step * steps, **more)
        data = message.SerializeToString()
        # Where the sequence's id lies in the message is the library's choice, which may differ from one to the next.
        size = message.parameters["sequence_id"].ByteSize()
        like = (isinstance(sequence, str), size, steps, more.get("flags"), "model_version" in more)
        if _held(plans, answers, data):
            assert like in seen
            continue
        read = _read(data, answers)
        assert read is not None
        plans.keep(data, read[0])
        seen.add(like)


def _request_of(sequence: int | str, payload: bytes = bytes(12), **more: Any) -> bytes:
    data: bytes = _request(oip, "", sequence, payload, **more).SerializeToString()
    return data


def _learnt(*known: bytes) -> tuple[RequestCache, ReplyTemplates]:
    plans, answers = RequestCache(), ReplyTemplates()
    for data in known:
        read = _read(data, answers)
        assert read is not None
        plans.keep(data, read[0])
    return plans, answers


@pytest.mark.parametrize("flags", [None, (True, False), (False, False), (False, True), (True, True)])
@pytest.mark.parametrize("sequences", [(1, 2), (300, 16383), (2**56, 2**63 - 1), ("one", "two")])
def test_a_request_of_another_sequence_is_known_again(
    flags: tuple[bool, bool] | None, sequences: tuple[int | str, int | str]
) -> None:
    first, other = (_request_of(each, flags=flags) for each in sequences)
    plans, answers = _learnt(first)
    assert _held(plans, answers, other)
    assert _held(plans, answers, other)
    found = plans.find(other)
    assert found is not None
    assert found[0].flags.key == ("a_model", sequences[1])
    # Its payload's size is that of the first, or it is parsed.
    for size in (0, 1, 11, 13, 24):
        assert plans.find(other[:-12] + bytes(size)) is None
        assert plans.find(_request_of(sequences[1], bytes(size), flags=flags)) is None


@pytest.mark.parametrize("other", [0, -1, 2**63 - 1, "", "a", "é", "x" * 127])
def test_an_id_of_another_kind_or_size_is_parsed(other: int | str) -> None:
    for known in (1, 300, "ab"):
        plans, _ = _learnt(_request_of(known, flags=(True, False)))
        if (type(other), len(str(other))) != (str, 2):
            assert plans.find(_request_of(other, flags=(True, False))) is None


def test_an_id_whose_bytes_are_no_number_or_no_text_is_parsed() -> None:
    whole = _request_of(2**20, flags=(True, False))  # a number of three bytes
    plans, answers = _learnt(whole, _request_of("abc", flags=(True, False)))
    begin = whole.index(b"sequence_id") + len(b"sequence_id") + 3
    assert whole[begin : begin + 3] == varint(2**20)
    for value in itertools.product((0, 1, 0x7F, 0x80, 0x81, 0xFF), repeat=3):
        _held(plans, answers, whole[:begin] + bytes(value) + whole[begin + 3 :])
    assert _held(plans, answers, whole[:begin] + b"\xff\xff\x7f" + whole[begin + 3 :])
    assert _held(
        plans, answers, whole[:begin] + b"\x81\x80\x00" + whole[begin + 3 :]
    )  # 1, in more bytes than it takes
    assert plans.find(whole[:begin] + b"\x80\x80\x00" + whole[begin + 3 :]) is None  # 0: no sequence
    assert plans.find(whole[:begin] + b"\x01\x80\x01" + whole[begin + 3 :]) is None
    text = _request_of("abc", flags=(True, False))
    for value in ("é1".encode(), b"\xff\xff\xff", b"a\x80b"):
        assert plans.find(text.replace(b"abc", value)) is None


def test_only_the_id_s_own_bytes_may_differ_in_a_form() -> None:
    """The name twice, values twice, and fields round them: whatever a form is made of, it reads as a parser does."""
    key, number = _field(1, b"sequence_id"), _field(2, b"\x10\x05")
    entries = [
        key + number, number + key, key + number + number, number + key + number, key + number + _field(2, b"\x10\x06"),
        key + _field(2, b"\x10\x05\x10\x06"), key + _field(2, b"\x10\x05", 1), key + _field(2, b"\x08\x01\x10\x05"),
        key + number + key, key + number + _field(9, b"\x10\x07"), _field(9, b"\x22\x11") + key + number,
        _field(9, key + number) + key + _field(2, b"\x10\x06"), key + _field(2, _field(3, b"a")),
        key + _field(2, _field(3, b"a") + b"\x10\x05"), key + _field(2, _field(3, b"a", 1)),
        _field(1, b"sequence_id", 1) + number, key + _field(2, b"\x28\x05"), key + _field(2, b"\x10\x85\x00"),
    ]  # fmt: skip
    start = _field(1, b"sequence_start") + _field(2, b"\x08\x01")
    texts = [_field(1, b"p") + _field(2, _field(3, text)) for text in (b"sequence_id", key + number)]
    # Of two parameters with the same name the last counts.
    others = [b"", start, *texts, key + number, number + key]
    answers, known = ReplyTemplates(), 0
    for entry, other, padding in itertools.product(entries, others, (0, 1)):
        parts = [_field(1, b"a_model"), _field(4, entry, padding), _INPUT[0], _field(7, bytes(12))]
        if other:
            parts.insert(1 if padding else 2, _field(4, other))
        data = b"".join(parts)
        read = _read(data, answers)
        if read is None:
            continue
        plans = RequestCache()
        plans.keep(data, read[0])
        for at in range(len(data)):
            for value in (0, 1, 5, 7, 0x10, 0x61, 0x62, 0x7F, 0x80, 0x85):
                known += _held(plans, answers, data[:at] + bytes((value,)) + data[at + 1 :])
    assert known > 10_000


def _known() -> tuple[RequestCache, ReplyTemplates, list[bytes]]:
    """RequestCache that know messages of several sizes, sequences and ids."""
    plans, answers, known = RequestCache(), ReplyTemplates(), []
    for id_, sequence, steps, more in (
        ("", 1, 1, {}), ("", 1, 2, {}), ("17", 1, 3, {}), ("17", "s", 2, {"model_version": "3"}), ("x" * 99, 1, 11, {}),
        ("", 2**30, 1, {"flags": (True, False)}), ("8", "seq", 1, {"flags": (False, True)}),
    ):  # fmt: skip
        data = _request(oip, id_, sequence, bytes(range(12)) * steps, **more).SerializeToString()
        read = _read(data, answers)
        assert read is not None
        plans.keep(data, read[0])
        assert _held(plans, answers, data)
        known.append(data)
    return plans, answers, known


PLANS, ANSWERS, KNOWN = _known()


@pytest.mark.parametrize("by", [-64, -32, -24, -12, -1, 1, 11, 12, 24, 64])
def test_a_payload_that_is_cut_short_or_too_long_is_never_taken_for_a_whole_one(by: int) -> None:
    for whole in KNOWN:
        other = whole[:by] if by < 0 else whole + bytes(by)
        if len(other) > 20:
            assert PLANS.find(other) is None


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.integers(1, 80), st.just(0)),
        st.tuples(st.just("extend"), st.integers(1, 80), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.integers(0, 300), st.integers(0, 7)),
        st.tuples(st.just("set"), st.integers(0, 300), st.sampled_from([0, 1, 12, 24, 36, 0x7F, 0x80, 0x81, 0xFF])),
        st.tuples(st.just("drop"), st.integers(0, 300), st.integers(1, 40)),
        st.tuples(st.just("insert"), st.integers(0, 300), st.integers(0, 255)),
        st.tuples(st.just("behind"), st.integers(0, 4), st.integers(0, 300)),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


def _changed(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for kind, at, what in changes:
        at_ = at % (len(data) or 1)
        if kind == "cut":
            data = data[:-at]
        elif kind == "extend":
            data += bytes((what,)) * at
        elif kind == "flip" and data:
            data = data[:at_] + bytes((data[at_] ^ 1 << what,)) + data[at_ + 1 :]
        elif kind == "set" and data:
            data = data[:at_] + bytes((what,)) + data[at_ + 1 :]
        elif kind == "drop":
            data = data[:at_] + data[at_ + what :]
        elif kind == "insert":
            data = data[:at_] + bytes((what,)) + data[at_:]
        elif kind == "behind":
            data = data[: what % (len(data) or 1)] + KNOWN[at][what % len(KNOWN[at]) :]
    return data


@settings(max_examples=400)
@given(which=st.integers(0, len(KNOWN) - 1), changes=CHANGES)
def test_a_message_that_was_tampered_with_is_parsed_or_read_as_a_parser_reads_it(
    which: int, changes: list[tuple[str, int, int]]
) -> None:
    _held(PLANS, ANSWERS, _changed(KNOWN[which], changes))


def _field(number: int, content: bytes, padding: int = 0) -> bytes:
    """A length-delimited field; its length may be written with more bytes than it takes."""
    size = bytearray(varint(len(content)))
    for _ in range(padding):
        size[-1] |= 0x80
        size.append(0)
    return bytes((number << 3 | 2,)) + bytes(size) + content


_WHOLE = _request(oip, "", 1, bytes(12))
_PARAMETERS = b"".join(
    _field(4, entry)
    for entry in [oip.ModelInferRequest(parameters=_WHOLE.parameters).SerializeToString()[2:]]
)
_X = [oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[steps, 3]) for steps in (1, 2)]
_INPUT = [_field(5, x.SerializeToString()) for x in _X]
_FIELDS = st.sampled_from([
    _field(1, b"a_model"), _field(1, b"a_model", 1), _field(1, b"other"), _field(2, b""), _field(2, b"3"),
    _field(3, b""), _field(3, b"7"), _field(3, b"77"), _field(3, b"\xff"), _field(3, b"7", 1),
    _PARAMETERS, *_INPUT, _field(6, b""),
    _field(7, bytes(12)), _field(7, bytes(24)), _field(7, b""), _field(7, bytes(12), 1), _field(7, b"1" * 12, 4),
    _field(9, _field(7, bytes(12))), _field(9, bytes(3) + _field(7, b"2" * 12)),
    _field(4, _field(1, b"p" + _field(7, bytes(12)))), b"\x48\x01",
])  # fmt: skip
_ODD = st.lists(_FIELDS, min_size=3, max_size=8).map(b"".join)


@settings(max_examples=150)
@given(
    first=st.one_of(
        _ODD, st.permutations([_field(1, b"a_model"), _field(3, b"7"), _PARAMETERS, _INPUT[0]]).map(b"".join)
    ),
    more=st.lists(_FIELDS, max_size=2).map(b"".join),
    changes=CHANGES,
)  # fmt: skip
def test_a_message_that_is_laid_out_oddly_misleads_nobody(
    first: bytes, more: bytes, changes: list[tuple[str, int, int]]
) -> None:
    plans, answers = RequestCache(), ReplyTemplates()
    data = first + more + _field(7, bytes(12))
    read = _read(data, answers)
    assume(read is not None)
    assert read is not None
    plans.keep(data, read[0])
    _held(plans, answers, data)
    # What differs in the id and in the payload alone, and what differs in anything.
    for other in (
        data[:-12] + b"3" * 12,
        data.replace(_field(3, b"7"), _field(3, b"xyz")),
        _changed(data, changes),
    ):
        _held(plans, answers, other)


def test_no_byte_of_a_known_message_can_be_another_unseen() -> None:
    """Every byte of every known message, as any other value, and left out, and there twice."""
    for whole in KNOWN:
        for at in range(len(whole)):
            front, back = whole[:at], whole[at + 1 :]
            for value in range(256):
                changed = front + bytes((value,)) + back
                if PLANS.find(changed) is not None:
                    assert _held(PLANS, ANSWERS, changed)
            for changed in (front + back, front + whole[at : at + 1] * 2 + back):
                if PLANS.find(changed) is not None:
                    assert _held(PLANS, ANSWERS, changed)


def test_an_id_whose_length_takes_two_bytes_is_parsed() -> None:
    whole = KNOWN[0]  # without an id
    front = len(_field(1, b"a_model"))
    for size in (0, 1, 2, 0x7F):
        # As a parser reads it, the id has one byte more than is here: the first of what is behind it.
        data = whole[:front] + bytes((0x1A, 0x80 | size, 1)) + b"a" * (0x7F + size) + whole[front:]
        assert PLANS.find(data) is None
        assert not _held(PLANS, ANSWERS, data)


_EXTRA = [
    b"", _field(1, b"a_model"), _field(1, b"a_model", 1), _field(2, b""), _field(2, b"3"), _field(3, b""),
    _field(3, b"7"),
    _field(3, b"7", 1), _field(3, b"abc"), _PARAMETERS, _field(6, b""), _field(9, _field(7, bytes(12))),
    _field(9, bytes(3) + _field(7, b"2" * 12)), _field(9, b""), b"\x48\x01", _field(1, b"other"),
]  # fmt: skip


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("extra", range(len(_EXTRA)))
def test_a_field_more_anywhere_misleads_nobody(extra: int, padding: int) -> None:
    """Fields in another order, there twice, or unknown: what is kept of such a message is right for all like it."""
    usual = [_field(1, b"a_model"), _field(3, b"7"), _PARAMETERS, _INPUT[0], _field(7, bytes(12), padding)]
    answers = ReplyTemplates()
    for first in range(len(usual) + 1):
        for second, other in itertools.product(range(len(usual) + 2), _EXTRA):
            parts = [*usual]
            parts.insert(first, _EXTRA[extra])
            parts.insert(second, other)
            data = b"".join(parts)
            read = _read(data, answers)
            if read is None:
                continue
            plans = RequestCache()
            plans.keep(data, read[0])
            for like in (
                data, data[:-12] + b"3" * 12, data[:-1], data[:-12], data + b"\x00", data + bytes(12), data[:-1] + b"9",
                data.replace(_field(3, b"7"), _field(3, b"xyz")), data.replace(_field(3, b"7"), b""),
                data.replace(_field(7, bytes(12)), _field(7, bytes(11))), data.replace(bytes(12), b"4" * 12),
                b"".join([usual[0], usual[1], *usual[3:]]), b"".join([usual[0], *usual[3:]]),
            ):  # fmt: skip
                _held(plans, answers, like)


@given(data=st.binary(max_size=200))
def test_other_bytes_are_never_found(data: bytes) -> None:
    assert PLANS.find(data) is None
    for whole in KNOWN:
        for cut in range(len(whole)):
            assert PLANS.find(whole[:cut]) is None


def test_odd_messages_are_parsed_each_time() -> None:
    plans, answers = RequestCache(), ReplyTemplates()
    request = _request(oip, "", 1, bytes(12))
    # Fields in another order than protobuf's libraries write them in are as good a message.
    payload, rest = oip.ModelInferRequest(raw_input_contents=[bytes(12)]), oip.ModelInferRequest()
    rest.CopyFrom(request)
    del rest.raw_input_contents[:]
    data = payload.SerializeToString() + rest.SerializeToString()
    assert oip.ModelInferRequest.FromString(data) == request
    plans.keep(data, plan(request, flags(request), FILE, answers)[0])
    assert plans.find(data) is None


def test_the_plans_that_are_kept_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**19
    monkeypatch.setattr("streamcell.service.protocols.oip.request_cache._MOST_BYTES", most)
    plans, answers = RequestCache(), ReplyTemplates()
    found = 0
    tracemalloc.start()
    try:
        for number in range(4_000):
            # Each with a parameter of its own, of a size that an attacker chooses.
            request = _request(oip, "", 1 + number % 7, bytes(12 * (1 + number % 5)))
            request.parameters[f"p{number}"].string_param = "x" * (
                100_000 if number % 100 == 0 else number % 6000
            )
            data = request.SerializeToString()
            plans.keep(data, plan(request, flags(request), FILE, answers)[0])
            found += plans.find(data) is not None
            assert plans.bytes <= most
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found > 2_000
    assert taken < 2 * most  # with what else the test has left behind
