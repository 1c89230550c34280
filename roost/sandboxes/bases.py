"""What `FROM` means on a server that pulls nothing: which local template stands for the name of an image. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from roost.model.errors import NotFound

#: Images of the protocol's own authors, and the built-in templates that offer the same.
_OWN = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter-v1"}
_REGISTRIES = ("docker.io/", "index.docker.io/", "registry-1.docker.io/")


def template_for(image: str, local: Collection[str], configured: Mapping[str, str]) -> str:
    """The local template that stands for an image.

    `configured` maps images, with or without their tag, to templates. Otherwise a template is taken that is named as
    the image: for `ubuntu:24.04` that is `ubuntu-24.04`, or else `ubuntu`. Raises NotFound with what there is.
    """
    plain = image.partition("@")[0]
    for registry in _REGISTRIES:
        plain = plain.removeprefix(registry)
    plain = plain.removeprefix("library/")
    name, tag = _split(plain)
    for candidate in (image, plain, name):
        if candidate in configured:
            return _existing(configured[candidate], image, local)
    if name in _OWN:
        return _existing(_OWN[name], image, local)
    short = name.rpartition("/")[2]
    for candidate in (f"{short}-{tag}", short) if tag else (short,):
        if candidate in local:
            return candidate
    raise _absent(f"no local template stands for the image {image[:128]!r}", local)


def _split(image: str) -> tuple[str, str]:
    """Name and tag; a colon before the last slash belongs to a registry's address."""
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return image, ""
    return name, "" if tag == "latest" else tag


def _existing(template: str, image: str, local: Collection[str]) -> str:
    if template not in local:
        raise _absent(f"the image {image[:128]!r} is mapped to the template {template!r}, which does not exist", local)
    return template


def _absent(what: str, local: Collection[str]) -> NotFound:
    there = ", ".join(sorted(local))
    return NotFound(
        f"This server pulls no images, and {what}; there are: {there}. `roost template build` makes one.",
        code="TemplateNotFound",
    )
