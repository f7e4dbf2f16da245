"""What tells Triton to trace requests: OpenTelemetry, to the collector that TANDEM_TRACE_URL names."""

from __future__ import annotations

from collections.abc import Mapping

URL_VARIABLE = "TANDEM_TRACE_URL"
RATE_VARIABLE = "TANDEM_TRACE_RATE"
DEFAULT_RATE = 100


def trace_arguments(environment: Mapping[str, str]) -> list[str]:
    """Arguments of tritonserver; none where the variable is not set.

    Raises:
        ValueError: the address is none of HTTP, or the rate is no number from 1.
    """
    url = environment.get(URL_VARIABLE, "").strip()
    if not url:
        return []
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{URL_VARIABLE} is {url!r}; it must be like http://127.0.0.1:4318/v1/traces")
    rate = environment.get(RATE_VARIABLE, "").strip() or str(DEFAULT_RATE)
    if not (rate.isascii() and rate.isdigit() and int(rate)):
        raise ValueError(f"{RATE_VARIABLE} is {rate!r}; it must be a number N from 1: one request in N is traced")
    return [
        "--trace-config=mode=opentelemetry",
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=opentelemetry,resource=service.name=triton",
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=rate={rate}",
    ]
