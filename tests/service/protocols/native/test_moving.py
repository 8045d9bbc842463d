"""Which sessions move to other replicas, in which order and how many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamcell.service.control_errors import StillMoving
from streamcell.service.protocols.native.moving import Moving
from streamcell.service.threads import NoThread
from tests.support.no_threads import no_threads


@dataclass
class Leaver:
    """A session that moves once the test lets it, or at once."""

    name: str
    moved: list[str]
    at_once: bool = True
    leaving: bool = False
    given_away: bool = False
    done: list[Callable[[], None]] = field(default_factory=list)

    def move_away(self, done: Callable[[], None]) -> bool:
        self.moved.append(self.name)
        if self.at_once:
            done()
        else:
            self.leaving = True
            self.done.append(done)
        return True

    def let_go(self) -> None:
        self.given_away, self.leaving = True, False


NAMES_OF_70 = "".join(map(chr, range(0x100, 0x146)))


class Session:
    """As in the table: idle since `used_s`."""

    def __init__(self, listener: object, used_s: float) -> None:
        self.listener, self.session, self._used_s = listener, self, used_s

    def figures(self) -> tuple[int, int, float]:
        return 0, 0, self._used_s


class Rig:
    """A table of sessions, idle for the longer the earlier they stand in `names`, and what has moved."""

    def __init__(self, names: str, *, at_once: bool = True, slow_s: float = 60.0) -> None:
        self.moved: list[str] = []
        self.waits: list[float] = []
        self.refused = threading.Event()
        self.listeners = {name: Leaver(name, self.moved, at_once) for name in names}
        self.table: list[Session] = [
            Session(each, at) for at, each in reversed([*enumerate(self.listeners.values())])
        ]
        self.table.insert(0, Session(object(), -1.0))  # one that is in no store
        self.moving = Moving(
            self,  # type: ignore[arg-type]
            lambda listener: listener if isinstance(listener, Leaver) else None,
            self.refuse,
            wait=self.wait,
            slow_s=slow_s,
        )

    def arrive(self) -> None:
        """Those that are on their way have left."""
        for each in self.listeners.values():
            each.leaving = False
            while each.done:
                each.done.pop()()

    def all(self) -> list[Session]:
        return list(self.table)

    def refuse(self) -> None:
        self.refused.set()

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def part(self, fraction: float, count: int, eventually: Any) -> None:
        assert self.moving.part(fraction) == count
        assert eventually(lambda: len(self.moved) >= count and len(self.waits) >= count)


@pytest.mark.parametrize(
    ("fraction", "gone"), [(0.3, "abc"), (0.25, "abc"), (0.01, "a"), (1.0, "abcdefghij")]
)
def test_a_part_goes_those_first_that_are_idle_longest(fraction: float, gone: str, eventually: Any) -> None:
    rig = Rig("abcdefghij")
    rig.part(fraction, len(gone), eventually)
    assert rig.moved == list(gone)
    assert rig.refused.is_set() == (fraction == 1)


def test_a_part_goes_one_after_the_other_with_a_pause_between(eventually: Any) -> None:
    rig = Rig("abcdefghij")
    rig.part(0.5, 5, eventually)
    assert sum(rig.waits) == pytest.approx(5 / 200)


def held(names: str) -> tuple[Rig, threading.Event]:
    """A rig whose part goes on after each session only once the event is set."""
    rig, goes_on = Rig(names), threading.Event()
    wait = rig.wait
    rig.moving._wait = lambda seconds: (goes_on.wait(60), wait(seconds))
    return rig, goes_on


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_part_that_no_thread_can_move_is_refused_and_the_next_one_goes(
    fraction: float, eventually: Any
) -> None:
    rig = Rig("abcdefghij")
    with no_threads(), pytest.raises(NoThread, match="no thread for 'moves'"):
        rig.moving.part(fraction)
    assert not rig.refused.is_set()
    rig.part(0.2, 2, eventually)
    assert rig.moved == ["a", "b"]
    assert not rig.refused.is_set()


def movers() -> int:
    return sum(each.name == "moves" for each in threading.enumerate())


def test_a_second_part_is_refused_while_one_goes(eventually: Any) -> None:
    rig, goes_on = held("abcdefghij")
    assert rig.moving.part(0.5) == 5
    assert eventually(lambda: rig.moved == ["a"])
    for _ in range(20):
        with pytest.raises(StillMoving, match="4 of them have yet to go") as raised:
            rig.moving.part(0.5)
        assert raised.value.facts == {"left": "4"}
    assert movers() == 1
    goes_on.set()
    assert eventually(lambda: not movers())
    assert rig.moved == list("abcde")
    rig.part(0.1, 1, eventually)


def test_all_take_the_place_of_a_part_that_goes(eventually: Any) -> None:
    rig, goes_on = held("abcdefghij")
    assert rig.moving.part(0.5) == 5
    assert eventually(lambda: rig.moved == ["a"])
    assert [rig.moving.part(1) for _ in range(20)] == [10] * 20
    assert movers() == 1
    goes_on.set()
    assert eventually(lambda: not movers())
    assert rig.refused.is_set()
    # These sessions stay in the table, so the first one is told again.
    assert rig.moved == ["a", *"abcdefghij"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_part_that_fails_is_followed_by_another(eventually: Any) -> None:
    rig = Rig("ab")
    before = rig.moving._refuse

    def fail() -> None:
        raise RuntimeError("a bug")

    rig.moving._refuse = fail
    rig.moving.part(1)
    assert eventually(lambda: not movers())
    rig.moving._refuse = before
    rig.part(0.5, 1, eventually)


class Handing:
    """A lock; the first who lets go of it so that a part may go calls `then`."""

    def __init__(self, moving: Moving, then: Callable[[], object]) -> None:
        self._moving, self._then, self._lock = moving, then, threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        if self._moving._left is None:
            then, self._then = self._then, lambda: None
            then()


def test_a_part_that_begins_as_another_has_gone_is_the_only_one_that_goes(eventually: Any) -> None:
    rig, goes_on = Rig("abcdefghij"), threading.Event()

    def begin_another() -> None:
        rig.moving._wait = lambda seconds: goes_on.wait(60)
        assert rig.moving.part(0.1) == 1

    rig.moving._lock = Handing(rig.moving, begin_another)  # type: ignore[assignment]
    assert rig.moving.part(0.3) == 3
    assert eventually(lambda: len(rig.moved) >= 4 and movers() == 1)
    goes_on.set()
    assert eventually(lambda: not movers())
    assert rig.moved == [*"abc", "a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_all_that_were_to_take_the_place_of_a_part_that_failed_do_not_go_with_the_next(
    eventually: Any,
) -> None:
    rig, wait = Rig("abcdefghij"), threading.Event()

    def fail(seconds: float) -> None:
        wait.wait(60)
        raise RuntimeError("a bug")

    rig.moving._wait = fail
    assert rig.moving.part(0.5) == 5
    assert eventually(lambda: rig.moved == ["a"])
    assert rig.moving.part(1) == 10
    wait.set()
    assert eventually(lambda: not movers())
    rig.moving._wait = rig.wait
    assert rig.moving.part(0.1) == 1
    assert eventually(lambda: len(rig.moved) >= 2 and not movers())
    assert rig.moved == ["a", "a"]
    assert not rig.refused.is_set()


def test_with_all_those_go_that_came_before_the_server_refused_them(eventually: Any) -> None:
    rig = Rig("ab")
    late = Leaver("late", rig.moved)
    rig.refuse = lambda: rig.table.append(Session(late, 9.0))  # type: ignore[method-assign]
    rig.moving = Moving(rig, rig.moving._stored, rig.refuse, wait=rig.wait)  # type: ignore[arg-type]
    assert rig.moving.part(1.0) == 2
    assert eventually(lambda: len(rig.waits) == 3)
    assert rig.moved == ["a", "b", "late"]


def test_only_so_many_are_on_their_way_at_once(eventually: Any) -> None:
    rig = Rig(NAMES_OF_70, at_once=False, slow_s=60)
    thread = threading.Thread(target=rig.moving.all, args=(time.monotonic() + 60,))
    thread.start()
    assert eventually(lambda: len(rig.moved) == 64)
    rig.arrive()
    assert eventually(lambda: len(rig.moved) == 70)
    rig.arrive()
    thread.join(60)
    assert not thread.is_alive()


def test_those_that_take_long_hold_up_no_others(eventually: Any) -> None:
    rig = Rig(NAMES_OF_70, at_once=False, slow_s=0.001)
    rig.moving.all(time.monotonic())
    assert len(rig.moved) == 70


def test_one_that_fails_to_move_holds_up_no_others() -> None:
    rig = Rig("abc")
    bad = rig.listeners["b"]

    def fail(done: Callable[[], None]) -> bool:
        raise RuntimeError("a bug")

    bad.move_away = bad.let_go = fail  # type: ignore[method-assign, assignment]
    bad.leaving = True
    rig.moving.all(time.monotonic())
    assert rig.moved == ["a", "c"]


def test_what_has_not_left_at_the_deadline_is_given_away() -> None:
    rig = Rig("abc", at_once=False)
    rig.listeners["b"].at_once = True
    rig.moving.all(time.monotonic())
    assert [each.given_away for each in rig.listeners.values()] == [True, False, True]
