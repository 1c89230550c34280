"""Puts into one room's requests what the room itself never has, and takes it out of the replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from roost.isolation.egress.injection import Injection, bound_places, is_bound
from roost.isolation.egress.placeholders import fill, fill_header, fill_target, names
from roost.isolation.egress.redaction import Redactor, forms
from roost.isolation.egress.refusal import Refused
from roost.model.errors import InvalidArgument
from roost.model.secret import Secret

Field = tuple[bytes, bytes]
#: A secret of the room's account by its name, as it is now.
Vault = Callable[[str], Awaitable[Secret | None]]


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What requests to one place are given. `values` are the secrets that may go there, by their names;
    `replacements` are others, by what stands for them in the room's own headers."""

    fields: Mapping[str, str]
    values: Mapping[str, str]
    replacements: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.fields or self.values or self.replacements)

    def dress(self, target: str, headers: list[Field]) -> tuple[str, list[Field], frozenset[str]]:
        """The request as it is sent, and the secrets that are in it. Raises Refused."""
        used: set[str] = set()

        def lookup(name: str) -> str | None:
            if name in self.values:
                used.add(name)
            return self.values.get(name)

        def replaced(value: bytes) -> bytes:
            for placeholder, real in self.replacements.items():
                if (text := placeholder.encode()) in value:
                    used.add(placeholder)
                    value = value.replace(text, fill(real, lookup).encode())
            return value

        own = {name.encode() for name in self.fields}
        filled = [(name, replaced(fill_header(value, lookup))) for name, value in headers if name not in own]
        filled += [(name.encode(), fill(value, lookup).encode()) for name, value in self.fields.items()]
        if self.values or self.replacements:  # what is compressed can't be looked through
            filled = [field for field in filled if field[0] != b"accept-encoding"]
            filled.append((b"accept-encoding", b"identity"))
        for name, value in filled:
            if any(byte in value for byte in b"\r\n\0"):
                raise Refused(502, f"A secret that the header {name.decode('latin-1')} asks for can't be in a header.")
        return fill_target(target, lookup), filled, frozenset(used)

    def redactor(self) -> Redactor | None:
        """For the reply; None where there is nothing to look for."""
        hidden = [*self.values.values(), *self.replacements.values()]
        return Redactor(form for value in hidden for form in forms(value)) if hidden else None


class Injector:
    """One room's. `on_use` is told of each secret that goes out, and where to."""

    def __init__(
        self,
        injection: Injection,
        vault: Vault,
        on_use: Callable[[str, str], None] = lambda secret, place: None,
    ) -> None:
        self.injection = injection
        self.on_use = on_use
        self._vault = vault

    async def additions(self, name: str, port: int, *, tls: bool) -> Additions:
        """For requests to there. Raises Refused when a rule asks for a secret that can't be sent."""
        if not self.injection:
            return Additions(fields={}, values={}, replacements={})
        try:
            fields = self.injection.fields(name, port, tls=tls)
        except InvalidArgument as error:
            raise Refused(403, error.message) from None
        replacements = self.injection.replacements(name, port, tls=tls)
        values = {}
        for wanted in sorted(names([*fields.values(), *replacements.values()])):
            secret = await self._vault(wanted)
            if secret is None:
                raise Refused(502, f"The secret {wanted}, which a rule for {name} names, does not exist.")
            values[wanted] = secret.value
        for granted in sorted(self.injection.granted - values.keys()):
            secret = await self._vault(granted)
            if secret is not None and _may_go(secret, name, port, tls=tls):
                values[granted] = secret.value
        return Additions(fields=fields, values=values, replacements=replacements)


def _may_go(secret: Secret, name: str, port: int, *, tls: bool) -> bool:
    try:
        return is_bound(bound_places(secret.metadata), name, port, tls=tls)
    except InvalidArgument:  # of before hosts were looked at
        return False


async def fill_for(text: str, vault: Vault, name: str, port: int, *, tls: bool) -> str:
    """A setting of the server's own, as a request to there needs it. Raises Refused."""
    values: dict[str, str] = {}
    for wanted in names([text]):
        secret = await vault(wanted)
        if secret is None or not _may_go(secret, name, port, tls=tls):
            raise Refused(502, f"The secret {wanted} does not exist, or is not for {name}:{port}.")
        values[wanted] = secret.value
    return fill(text, values.get)
