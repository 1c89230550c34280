"""Templates: the root file systems that rooms are made from, and how they are built."""

from roost.isolation.templates.catalog import TemplateInfo, Templates

__all__ = ["TemplateInfo", "Templates"]
