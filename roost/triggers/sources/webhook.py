"""Webhooks come in over the control plane (`roost.api.webhooks`): what is kept running for one is its being there."""

from __future__ import annotations

import asyncio

from roost.triggers.ports import Delivery, Report


class Webhook:
    """Implements `Source`."""

    async def run(self, delivery: Delivery, report: Report) -> None:
        report.connected()
        await asyncio.get_running_loop().create_future()
