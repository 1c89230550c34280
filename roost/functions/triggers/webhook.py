"""The settings of webhooks: who may send, how large, and which CloudEvents are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from roost.functions.definition import Shape
from roost.functions.triggers.settings import SourceSettings, wrong

Secret = Annotated[str, Field(min_length=8, max_length=512)]
HeaderName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
Values = Annotated[dict[str, str], Field(min_length=1, max_length=20)]


class Filter(Shape):
    """Conditions on attributes, by their names: all of them have to be met."""

    exact: Values | None = None
    prefix: Values | None = None
    suffix: Values | None = None

    @model_validator(mode="after")
    def _check_any(self) -> Filter:
        if not (self.exact or self.prefix or self.suffix):
            raise wrong("one of exact, prefix and suffix is needed")
        return self

    def admits(self, attributes: Mapping[str, Any]) -> bool:
        def text(name: str) -> str:
            value = attributes.get(name)
            return value if isinstance(value, str) else ""

        return (
            all(text(name) == value for name, value in (self.exact or {}).items())
            and all(text(name).startswith(value) for name, value in (self.prefix or {}).items())
            and all(text(name).endswith(value) for name, value in (self.suffix or {}).items())
        )


class WebhookSettings(SourceSettings):
    SECRETS: ClassVar = ("secret", "token")

    auth_type: Literal["none", "bearer", "hmac"]
    token: Secret | None = None
    secret: Secret | None = None
    signature_header: HeaderName = "X-Hub-Signature-256"
    signature_prefix: Annotated[str, Field(max_length=32)] = "sha256="
    signature_encoding: Literal["hex", "base64"] = "hex"
    id_header: HeaderName | None = None
    max_bytes: Annotated[int, Field(ge=1, le=4 << 20)] = 1 << 20
    filters: Annotated[list[Filter], Field(max_length=20)] | None = None

    @model_validator(mode="after")
    def _check_auth(self) -> WebhookSettings:
        for field, auth_type in (("token", "bearer"), ("secret", "hmac")):
            given = getattr(self, field) is not None
            if given != (self.auth_type == auth_type):
                said = "is of no use without" if given else "is needed with"
                raise wrong(f"{field} {said} authType '{auth_type}'")
        return self

    def admits(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a CloudEvent is wanted."""
        return all(one.admits(attributes) for one in self.filters or ())
