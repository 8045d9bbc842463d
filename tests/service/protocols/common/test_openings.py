"""The values that a client gives at an opening are looked at no further than a model's own number of them."""

from __future__ import annotations

import pytest

from streamcell.card import OpenInput, Signature, Tensor
from streamcell.proto import pb
from streamcell.service.errors import MalformedMessage, UnknownOpenInput
from streamcell.service.graph.feeds import kept
from streamcell.service.protocols.common.openings import check_opening, given_in

GIVEN = (OpenInput(name="a", dtype="float32"), OpenInput(name="b", dtype="float32", default=0))
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32"),),
    outputs=(Tensor(name="y", dtype="float32"),),
    open_inputs=GIVEN,
    states=tuple(map(kept, GIVEN)),
)
A = pb.OpenInput(name="a", value=bytes(4))


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ([], UnknownOpenInput),
        ([A, pb.OpenInput(name="b", value=bytes(4))], UnknownOpenInput),
        ([A, A, A], MalformedMessage),
    ],
)
def test_of_a_hundred_thousand_values_few_are_taken_out_of_the_message(
    first: list[pb.OpenInput], error: type[Exception]
) -> None:
    message = pb.OpenSession(inputs=[*first, *[pb.OpenInput()] * 100_000])
    given = given_in(SIGNATURE, message.inputs)
    assert len(given) == 3
    with pytest.raises(error):
        check_opening(SIGNATURE, given, allow_non_finite=False)
