"""/metrics, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from session_manager.core.errors import SessionManagerError
from session_manager.ledger import Ledger
from session_manager.service import metrics
from session_manager.service.api.common import BUSY, WHO
from session_manager.service.config import Config
from session_manager.settings import Settings

router = APIRouter(tags=["metrics"], responses={**WHO, **BUSY})


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}},
)
async def read_metrics(request: Request) -> Response:
    """Metrics of this process, and the updates pending in the ledger of its agents directory."""
    config: Config = request.app.state.config
    metrics.marks_pending(0 if config.live is None else await asyncio.to_thread(_pending, config.live))
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _pending(settings: Settings) -> float:
    try:
        ledger = Ledger.open_existing(settings, "ro")
        if ledger is None:
            return 0
        with ledger:
            return ledger.pending_count()
    except SessionManagerError:
        return float("nan")
