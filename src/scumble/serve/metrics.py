"""Prometheus metrics: vLLM's names where it has them, so that its dashboards work; the canvas's own beside them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from scumble.engine.stats import Stats
from scumble.events import Generation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class Metrics:
    """One registry a server; two servers in a process do not share numbers."""

    def __init__(self, model: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.model = model
        self._preempted = 0  # as the engine said when it was last asked

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, labels, registry=registry)

        def one_counter(name: str, help: str) -> Counter:
            return counter(name, help, "model_name").labels(model)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(name, help, ("model_name",), registry=registry).labels(model)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help, ("model_name",), registry=registry, buckets=buckets).labels(model)

        self.running = gauge("vllm:num_requests_running", "Answers in the making.")
        self.waiting = gauge("vllm:num_requests_waiting", "Answers that wait for a place.")
        self.prompt_tokens = one_counter("vllm:prompt_tokens", "Prompt tokens taken in.")
        self.generation_tokens = one_counter("vllm:generation_tokens", "Tokens committed.")
        self.success = counter("vllm:request_success", "Answers finished.", "model_name", "finished_reason")
        self.prefix_queries = one_counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up among cached beginnings."
        )
        self.prefix_hits = one_counter("vllm:prefix_cache_hits", "Prompt tokens found there, and not encoded again.")
        self.cache_usage = gauge(
            "vllm:kv_cache_usage_perc", "Share of the cache budget that running requests have, 0-1."
        )
        self.cache_limit = gauge("scumble:cache_limit_bytes", "Budget for keys and values, cached beginnings included.")
        self.prefix_bytes = gauge(
            "scumble:prefix_cache_bytes", "Keys and values of beginnings kept for later requests."
        )
        self.preempted = one_counter("vllm:num_preemptions", "Times a request made room for an older one.")
        self.first_token = histogram("vllm:time_to_first_token_seconds", "From request to first text.", SECONDS)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From request to the end of its response.", SECONDS)
        self.request_prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens a request.", TOKENS)
        self.request_generation = histogram("vllm:request_generation_tokens", "Tokens committed a request.", TOKENS)
        self.canvas_passes = histogram(
            "scumble:passes_per_canvas", "Denoising passes a canvas took.", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
        )
        self.tokens_per_pass = histogram(
            "scumble:tokens_per_pass", "Tokens committed a pass, by answer.", (0.5, 1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.slots = gauge("scumble:slots_in_use", "Places taken.")
        self.slots_total = gauge("scumble:slots", "Places that there are.")
        self.responses = counter("scumble:http_responses", "HTTP responses.", "route", "status")
        self.refused = counter("scumble:refused", "Requests turned away.", "reason")
        self.cancelled = one_counter("scumble:cancelled", "Requests whose client left.")
        self.restarts = one_counter("scumble:engine_restarts", "Times the engine was started again.")

    def engine(self, stats: Stats) -> None:
        """Take over what the engine says of its cache. An engine that was replaced counts from 0 again."""
        self.cache_usage.set(stats.cache_bytes / max(1, stats.cache_limit))
        self.cache_limit.set(stats.cache_limit)
        self.prefix_bytes.set(stats.prefix_bytes)
        self.preempted.inc(max(0, stats.preempted - self._preempted))
        self._preempted = stats.preempted

    def answer(self, generation: Generation, prompt_tokens: int) -> None:
        tokens, passes = len(generation.token_ids), sum(generation.passes)
        self.prompt_tokens.inc(prompt_tokens)
        self.generation_tokens.inc(tokens)
        self.success.labels(self.model, generation.finish_reason).inc()
        self.prefix_queries.inc(prompt_tokens)
        self.prefix_hits.inc(generation.cached_tokens)
        self.request_prompt.observe(prompt_tokens)
        self.request_generation.observe(tokens)
        for canvas in generation.passes:
            self.canvas_passes.observe(canvas)
        if passes:
            self.tokens_per_pass.observe(tokens / passes)

    def text(self) -> bytes:
        return generate_latest(self.registry)
