"""Metrics in the text form of Prometheus."""

import re

from experiments.serve.metrics import BUCKETS, Metrics


def test_counters_histograms_and_gauges():
    metrics = Metrics()
    metrics.count("rwkv7_requests_total", route="/v1/x", status="200")
    metrics.count("rwkv7_requests_total", route="/v1/x", status="200")
    metrics.count("rwkv7_requests_total", route='a"\\\n', status="400")
    for seconds in (0.0, BUCKETS[0], 1e9):
        metrics.time("rwkv7_answer_seconds", seconds)
    text = metrics.text({"rwkv7_sessions": 3})
    assert 'rwkv7_requests_total{route="/v1/x",status="200"} 2' in text
    assert r'route="a\"\\\n"' in text
    assert f'rwkv7_answer_seconds_bucket{{le="{BUCKETS[0]:g}"}} 2' in text
    assert 'rwkv7_answer_seconds_bucket{le="+Inf"} 3' in text
    assert "rwkv7_sessions 3" in text


def test_the_server_tells_its_own(served):
    before = count(served, "rwkv7_generated_tokens_total")
    served.post("/v1/completions", prompt="x", max_tokens=3, temperature=0)
    text = served.http.get("/metrics").text
    assert count(served, "rwkv7_generated_tokens_total") - before == 3
    assert 'rwkv7_requests_total{route="/v1/completions",status="200"}' in text
    assert count(served, "process_resident_memory_bytes") > 1e7
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9_]+(\{.*\})? [0-9.e+-]+", line)] == []


def count(served, name: str) -> float:
    text = served.http.get("/metrics").text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
