"""Tags on functions and layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from roost.functions.names import OwnerKind
from roost.functions.state import CatalogState
from roost.model.errors import InvalidArgument, NotFound

MAX_TAGS = 20


class Tags:
    def __init__(self, state: CatalogState) -> None:
        self._state = state

    def get(self, account: str, kind: OwnerKind, name: str) -> dict[str, str]:
        """Key -> value, by key; empty for none."""
        return dict(sorted(self._state.tags.get((account, kind, name), {}).items()))

    def list(self, account: str, kind: OwnerKind) -> list[tuple[str, dict[str, str]]]:
        """(name, tags) of every resource of the kind that has any, by name."""
        return sorted(
            (name, self.get(account, kind, name))
            for (owner, of_kind, name), tags in self._state.tags.items()
            if owner == account and of_kind == kind and tags
        )

    async def put(self, account: str, kind: OwnerKind, names: Sequence[str], tags: Mapping[str, str]) -> None:
        """Set them on every named resource, all or nothing. Raises NotFound, InvalidArgument (more than 20)."""
        async with self._state.lock:
            owners = [self._owner(account, kind, name) for name in names]
            for owner in owners:
                if len(self._state.tags.get(owner, {}).keys() | tags.keys()) > MAX_TAGS:
                    raise InvalidArgument(f"Tag: a resource has at most {MAX_TAGS} tags.")
            await self._state.store.tags.change(owners, put=tags)
            for owner in owners:
                self._state.tags.setdefault(owner, {}).update(tags)

    async def remove(self, account: str, kind: OwnerKind, names: Sequence[str], keys: Iterable[str] | None) -> None:
        """Remove `keys`, or all of them for None, from every named resource. Raises NotFound."""
        async with self._state.lock:
            owners = [self._owner(account, kind, name) for name in names]
            for owner in owners:
                present = self._state.tags.get(owner, {})
                doomed = list(present) if keys is None else [key for key in keys if key in present]
                await self._state.store.tags.change([owner], remove=doomed)
                for key in doomed:
                    del present[key]

    def _owner(self, account: str, kind: OwnerKind, name: str) -> tuple[str, str, str]:
        key = (account, name)
        if key not in (self._state.entries if kind == "function" else self._state.layer_names):
            raise NotFound(f"There is no {kind} {name[:80]!r}.", code=f"{kind.capitalize()}NotFound")
        return account, kind, name
