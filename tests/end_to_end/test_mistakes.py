"""Every protocol tells of the same mistake with the same code and reason, and nobody else notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from streamcell.client import connect
from tests.support import mistakes
from tests.support.mistakes import PROTOCOLS
from tests.support.waiting import waited


@pytest.fixture
def channel(served: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.target) as channel:
        yield channel


@pytest.mark.conformance
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_mistake_has_its_own_error_and_ends_nothing_else(
    served: Any, channel: grpc.Channel, modules: dict[str, torch.nn.Module], protocol: str, eventually: Any
) -> None:
    made = mistakes.mistakes_of(protocol)
    wanted = Counter((mistake.code, mistake.reason) for mistake in made.values())

    def counted() -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(served.metrics("streamcell_errors_total")):
            for sample in family.samples:
                key = sample.labels["code"], sample.labels["reason"]
                if sample.name == "streamcell_errors_total" and key in wanted:
                    found[key] += int(sample.value)
        return found

    before = counted()
    x = np.random.default_rng(3).standard_normal((len(made) + 1, 3)).astype(np.float32)
    with connect(served.target) as client, client.session("lstm") as bystander:
        y = [bystander.step(x[0])]
        for (name, mistake), step in zip(made.items(), x[1:], strict=True):
            told = mistakes.told(protocol, channel, mistake)
            assert told[:2] == (mistake.code, mistake.reason), name
            assert mistakes.says(protocol, mistake) in told.text, name
            y.append(bystander.step(step))
    with torch.no_grad():
        expected = modules["lstm"](torch.from_numpy(x[None]))[0][0].numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert eventually(lambda: served.metric("streamcell_slots_used") == 0)
    assert waited(lambda: served.metric("streamcell_sessions") == 0)
    assert waited(lambda: counted() - before == wanted)
