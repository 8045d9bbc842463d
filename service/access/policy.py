"""The policy file: what each tenant may do, and how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from .access_errors import AccessConfigError, NotPermitted
from .identity import Identity
from .names import Name
from .toml_file import read_toml

FLAG = "--policy-file"

# The kinds of calls that run a model: a session or a sequence, a request without either, and steps by themselves.
Kind: TypeAlias = Literal["step", "predict", "generate"]
_Count = Annotated[int, Field(ge=0)]


class Terms(BaseModel):
    """What a tenant may do, and how much at a time.

    Attributes:
        models: the models that it may use, and sees; None: all.
        calls: the kinds of calls that it may make.
        max_sessions: live sessions, members of frames and sequences together.
        steps_per_s: timesteps a second, on average.
        max_generations: generations and beam searches that run or wait to.
        max_beam_width: hypotheses of a beam search.
        max_bytes_in_flight: bytes of messages that were read and are not answered; each of its streams may be read
            one message further.
        max_queue_s: how long, in seconds, its messages may wait for a run before it gets no new session or request.
        max_batch_steps: while other tenants are busy, a batch takes at most this many of its timesteps, times its
            priority, and one turn more. So many of its messages are read before the server looks for others'.
        priority: its share of each batch and of the reading, beside other tenants'.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: frozenset[str] | None = None
    calls: frozenset[Kind] = frozenset(("step", "predict", "generate"))
    max_sessions: _Count | None = None
    steps_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_generations: _Count | None = None
    max_beam_width: Annotated[int, Field(ge=1)] | None = None
    max_bytes_in_flight: Annotated[int, Field(ge=1)] | None = None
    max_queue_s: Annotated[float, Field(gt=0)] | None = None
    max_batch_steps: Annotated[int, Field(ge=1)] = 64
    priority: Annotated[int, Field(ge=1, le=1000)] = 1

    @property
    def turn(self) -> int:
        """What it may have at once while other tenants are busy: timesteps of a batch, messages that are read."""
        return self.priority * self.max_batch_steps


class _Tenant(Terms):
    subjects: tuple[Name, ...] = ()


class _PolicyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    operators: tuple[Name, ...] = ()
    default: Terms | None = None
    tenants: dict[Name, _Tenant] = {}


class Policy:
    """The file's tenants and operators. Threads use it while one thread reads the file again."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            AccessConfigError: it cannot be used.
        """
        self.path = path
        self.on_change: Callable[[], None] = lambda: None
        self._file, self._tenant_of = self._read()

    def _read(self) -> tuple[_PolicyFile, dict[str, str]]:
        file = read_toml(FLAG, self.path, _PolicyFile)
        tenant_of: dict[str, str] = {}
        for name, tenant in file.tenants.items():
            for subject in tenant.subjects:
                if tenant_of.setdefault(subject, name) != name:
                    raise AccessConfigError(
                        f"{FLAG} {self.path}: subject {subject!r} is in tenants {tenant_of[subject]!r} and {name!r}"
                    )
        return file, tenant_of

    def reload(self) -> None:
        """Read the file again.

        Raises:
            AccessConfigError: it cannot be used; what was read before stays.
        """
        self._file, self._tenant_of = self._read()
        self.on_change()

    def placed(self, caller: Identity) -> Identity:
        """`caller` with the tenant that its subject belongs to, if its credential names none; and if it is an operator.

        Raises:
            NotPermitted: it is no operator, and the file has no terms for its tenant.
        """
        tenant = caller.tenant or self._tenant_of.get(caller.subject, caller.subject)
        placed = Identity(tenant, caller.subject, caller.operator or caller.subject in self._file.operators)
        if not placed.operator:
            self.terms(tenant)
        return placed

    def terms(self, tenant: str) -> Terms:
        """What the file says of a tenant.

        Raises:
            NotPermitted: nothing, and it has no [default].
        """
        terms = self._file.tenants.get(tenant) or self._file.default
        if terms is None:
            raise NotPermitted(
                f"tenant {tenant!r} is not in this server's policy: its operator adds it, or a [default]",
                tenant=tenant,
            )
        return terms
