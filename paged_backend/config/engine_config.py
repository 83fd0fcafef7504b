"""Frozen, validated configuration. Argument names are vLLM's; an unknown one raises with the nearest name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_backend.config.checks import (
    cache_dtype_named,
    check_bool,
    check_choice,
    check_gib,
    check_range,
    check_seconds,
    check_text,
    dtype_named,
    json_object,
    overrides,
    sizes,
    texts,
    unknown_name_message,
)
from paged_backend.errors import ConfigError

BUNDLED_MODEL = "paged-tiny"
"""The model argument that means the model that comes with this package."""

TEMPLATE_ARGUMENTS = frozenset(
    """
    add_generation_prompt chat_template continue_final_message conversation documents max_length
    messages padding processor_kwargs return_assistant_tokens_mask return_dict return_tensors
    sanitize_control_tokens self tokenize tokenizer_kwargs tools truncation
    """.split()
)
"""Arguments of transformers' apply_chat_template: `chat_template_kwargs` may set variables of the template only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is held.

    Attributes:
        model: a local folder, a hub id, or "paged-tiny" for the bundled model.
        tokenizer: folder or hub id of the tokenizer; None means the model's own.
        skip_tokenizer_init: run on token ids alone, without text.
        dtype: what weights are held in: "auto" (as the checkpoint has them), "float32" (or "float"), "bfloat16" or
            "float16" (or "half"). On the CPU everything is computed in float32 all the same.
        quantization: "int8" or "int4" holds the weights of linear layers in so many bits, "fp8" in 8 of floating point
            (the one that makes the logits always in int8); None leaves them as they are. fp8 is for GPUs of compute
            capability 8.9 or more, which multiply it fastest, and for kernel_backend "reference".
        max_model_len: most tokens of prompt plus output; None means what the model's configuration says.
        served_model_name: names that requests may use; empty means the model argument's last part.
        revision: branch, tag or commit on the hub.
        load_format: which files have the weights: "safetensors", or "pt" for a checkpoint that has them as pickles
            only, which are read as tensors alone; "auto" is safetensors, and never falls back to pickles.
        trust_remote_code: run the code that comes with a tokenizer, if it has any. The model's own code is never run.
        seed: requests without a seed of their own draw from this one and their arrival number.
        max_logprobs: most candidates per token that a request may ask for (logprobs, prompt_logprobs); -1 for any
            number.
        generation_config: where the sampling parameters come from that a request leaves out: "auto" (the model's
            generation_config.json), "vllm" (nowhere: vLLM's own defaults), or a folder with such a file.
        override_generation_config: values that go before those: temperature, top_p, top_k, min_p, repetition_penalty,
            max_new_tokens. JSON on the command line.
        logits_processors: what requests may change their logits with: "package.module:name" of functions, or of classes
            of such, that are importable here. Their code runs in the engine's process. None are allowed by default.
    """

    model: str = BUNDLED_MODEL
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    served_model_name: tuple[str, ...] = ()
    revision: str | None = None
    load_format: str = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    max_logprobs: int = 20
    generation_config: str = "auto"
    override_generation_config: Mapping[str, Any] | str = field(default_factory=dict, hash=False)
    logits_processors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.served_model_name
        if isinstance(names, str):
            object.__setattr__(self, "served_model_name", (names,))
        elif isinstance(names, list):
            object.__setattr__(self, "served_model_name", tuple(names))
        check_text("model", self.model)
        for name in ("tokenizer", "revision"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if not self.served_model_name:
            default = self.model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
            object.__setattr__(self, "served_model_name", (default,))
        for name in self.served_model_name:
            check_text("served_model_name", name)
        object.__setattr__(self, "dtype", dtype_named(self.dtype))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        check_choice("load_format", self.load_format, ("auto", "safetensors", "pt"))
        check_bool("trust_remote_code", self.trust_remote_code)
        if self.quantization is not None:
            check_choice("quantization", self.quantization, ("int8", "int4", "fp8"))
        check_range("max_model_len", self.max_model_len, low=1, optional=True)
        check_range("seed", self.seed, low=0)
        check_bool("skip_tokenizer_init", self.skip_tokenizer_init)
        check_range("max_logprobs", self.max_logprobs, low=-1)
        check_text("generation_config", self.generation_config)
        object.__setattr__(self, "override_generation_config", overrides(self.override_generation_config))
        object.__setattr__(self, "logits_processors", texts("logits_processors", self.logits_processors))
        for name in self.logits_processors:
            if not all(part.replace(".", "_").isidentifier() for part in name.partition(":")[::2]):
                raise ConfigError(f"logits_processors must hold names like package.module:name, got {name!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache.

    Attributes:
        block_size: tokens in a block.
        num_gpu_blocks_override: blocks in the pool; None derives them from the memory bound.
        kv_cache_memory_bytes: bytes for the pool, or each rank's part of it; None means gpu_memory_utilization of the
            memory that is free.
        gpu_memory_utilization: fraction of the device's free memory that the pool may take, in (0, 1]. The pool
            never takes more than max_num_seqs sequences of max_model_len tokens need.
        enable_prefix_caching: find full blocks again by their tokens.
        kv_cache_dtype: what keys and values are held in: "auto" (float32 on the CPU), "float32" (or "float"),
            "bfloat16", "float16" (or "half"), or, with a scale for each token's head, "int8" or "fp8_e4m3" (or "fp8":
            on a GPU of compute capability 8.9 or more, or with kernel_backend "reference").
        kv_offloading_size: GiB of host memory for blocks that lose their place in the pool, found again by their
            tokens, and for preempted sequences. None means none, or, with kv_offloading_dir, room for one sequence of
            max_model_len.
        kv_offloading_dir: folder that keeps full blocks on disk, so that prefixes outlive the engine; one engine at a
            time uses it. None means none.
        kv_offloading_disk_size: most GiB that it takes there.
        shared_cache_salts: values of a request's cache_salt under which tenants share prefixes with each other; under
            all others, and without one, each tenant finds only its own.
    """

    block_size: int = 16
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.5
    enable_prefix_caching: bool = True
    kv_cache_dtype: str = "auto"
    kv_offloading_size: float | None = None
    kv_offloading_dir: str | None = None
    kv_offloading_disk_size: float = 4.0
    shared_cache_salts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared_cache_salts", texts("shared_cache_salts", self.shared_cache_salts))
        check_range("block_size", self.block_size, low=1, high=1024)
        check_range("num_gpu_blocks_override", self.num_gpu_blocks_override, low=1, optional=True)
        check_range("kv_cache_memory_bytes", self.kv_cache_memory_bytes, low=1, optional=True)
        value = self.gpu_memory_utilization
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {value!r}.")
        if self.kv_offloading_size is not None:
            check_gib("kv_offloading_size", self.kv_offloading_size)
        check_gib("kv_offloading_disk_size", self.kv_offloading_disk_size)
        if self.kv_offloading_dir is not None:
            check_text("kv_offloading_dir", self.kv_offloading_dir)
            if not self.enable_prefix_caching:
                raise ConfigError(
                    "kv_offloading_dir keeps what enable_prefix_caching finds: turn that on, or leave the folder out."
                )
        check_bool("enable_prefix_caching", self.enable_prefix_caching)
        object.__setattr__(self, "kv_cache_dtype", cache_dtype_named(self.kv_cache_dtype))
        choices = ("auto", "float32", "bfloat16", "float16", "int8", "fp8_e4m3")
        check_choice("kv_cache_dtype", self.kv_cache_dtype, choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What a step may hold.

    Attributes:
        max_num_seqs: most sequences that run at once (a request with n samples counts n).
        max_num_batched_tokens: token budget of a step, over prompt chunks and decodes together.
        scheduling_policy: "fcfs", "priority" (lower values first, then arrival), or "fair" (tenants that keep requests
            waiting get equal shares of the tokens).
        preemption_mode: what a sequence does that had to give its blocks back: "recompute" them, "swap" them out to
            kv_offloading_size and in again (recompute where that is full), or "auto": what measures as cheaper.
        max_num_queued_reqs: requests that may wait; one more is refused with 429. None means no bound.
        max_num_queued_tokens: tokens of prompts that may wait beside those that the next step begins; a request that
            would wait beyond them is refused with 429. None means no bound.
        default_timeout_s: seconds that a request without timeout_s gets, from its arrival to its last token; when they
            are over, it ends with what it has. None means as long as it takes.
        max_timeout_s: most that a request's timeout_s may be, and what one without gets where default_timeout_s is
            not set. None means no bound.
        async_scheduling: plan and launch a step before the one before it has been read, so that the device has work
            while the host makes text; None means on a GPU, and not on the CPU. Nobody's tokens change.
        stream_interval: tokens of a sample that a stream gathers before it gives them out; the first, and those that
            are left at the end, come at once.
    """

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    scheduling_policy: str = "fcfs"
    preemption_mode: str = "auto"
    max_num_queued_reqs: int | None = 1024
    max_num_queued_tokens: int | None = None
    default_timeout_s: float | None = None
    max_timeout_s: float | None = None
    stream_interval: int = 1
    async_scheduling: bool | None = None

    @property
    def max_num_held_reqs(self) -> int | None:
        """Requests that can run or wait at the same time; None means no bound."""
        return None if self.max_num_queued_reqs is None else self.max_num_seqs + self.max_num_queued_reqs

    def __post_init__(self) -> None:
        check_range("max_num_seqs", self.max_num_seqs, low=1)
        check_range("max_num_batched_tokens", self.max_num_batched_tokens, low=1)
        check_range("stream_interval", self.stream_interval, low=1)
        if self.async_scheduling is not None:
            check_bool("async_scheduling", self.async_scheduling)
        check_range("max_num_queued_reqs", self.max_num_queued_reqs, low=0, optional=True)
        check_range("max_num_queued_tokens", self.max_num_queued_tokens, low=0, optional=True)
        check_choice("scheduling_policy", self.scheduling_policy, ("fcfs", "priority", "fair"))
        check_choice("preemption_mode", self.preemption_mode, ("auto", "recompute", "swap"))
        check_seconds("default_timeout_s", self.default_timeout_s, optional=True)
        check_seconds("max_timeout_s", self.max_timeout_s, optional=True)
        default_s, most_s = self.default_timeout_s, self.max_timeout_s
        if default_s is not None and most_s is not None and default_s > most_s:
            raise ConfigError(
                f"default_timeout_s ({default_s:g}) must not exceed max_timeout_s ({most_s:g}): lower the first or "
                "raise the second."
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence can take a token a step: raise the first or "
                "lower the second."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """Where and with what a step is computed.

    Attributes:
        device: "cpu", "cuda" (an NVIDIA GPU), or "auto": a GPU where there is one.
        kernel_backend: "auto" (the fastest that serves the device), "reference" (plain torch), "cpu" (C++) or "triton"
            (NVIDIA GPUs).
        batch_invariant: on a GPU, multiply float and fp8 weights by our own kernel too, so that a request's tokens and
            logprobs are the same to the bit whatever is computed beside it; cuBLAS, which is used otherwise, is faster.
            On a CPU, and with int8 and int4 weights, that is so anyway.
        enforce_eager: on a GPU, launch every kernel of a decode step by itself, in place of one recording (CUDA graph):
            slower steps, a faster start and a little more free memory. On the CPU nothing is recorded.
        cudagraph_capture_sizes: numbers of sequences for which decode steps are recorded; a step with fewer is computed
            as the next larger one. Empty: 1, 2, 4, then by 8 up to 256 and by 16 up to 512, as far as max_num_seqs.
        num_threads: CPU threads for kernels; None means the physical cores that the process may use. With
            tensor_parallel_size they are each rank's; None divides the cores.
        tensor_parallel_size: processes that divide the model among them, each on a GPU of its own, or all on the CPU:
            heads, the feed-forward's width and the vocabulary. Not together with kv_offloading_dir.
        engine_process: step the engine in a process of its own, so that HTTP work does not hold it up.
    """

    device: str = "auto"
    kernel_backend: str = "auto"
    batch_invariant: bool = False
    num_threads: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    cudagraph_capture_sizes: tuple[int, ...] = ()
    engine_process: bool = False

    def __post_init__(self) -> None:
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("kernel_backend", self.kernel_backend, ("auto", "reference", "cpu", "triton"))
        check_bool("batch_invariant", self.batch_invariant)
        if self.device == "cuda" and self.kernel_backend == "cpu":
            raise ConfigError("kernel_backend cpu cannot compute on device cuda: choose kernel_backend auto or triton.")
        check_range("num_threads", self.num_threads, low=1, high=1024, optional=True)
        check_range("tensor_parallel_size", self.tensor_parallel_size, low=1, high=64)
        check_bool("enforce_eager", self.enforce_eager)
        sized = sizes("cudagraph_capture_sizes", self.cudagraph_capture_sizes)
        object.__setattr__(self, "cudagraph_capture_sizes", sized)
        check_bool("engine_process", self.engine_process)
        if self.batch_invariant and self.kernel_backend == "reference":
            raise ConfigError("batch_invariant is not for kernel_backend reference: choose auto, cpu or triton.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """How conversations become prompts, and what the served model's answers are made of.

    Attributes:
        chat_template: file of a Jinja template, or the template itself, in place of the model's own. None means the
            model's.
        default_chat_template_kwargs: variables that templates get where a request's `chat_template_kwargs` does not set
            them, such as `{enable_thinking: false}`; on the command line as JSON.
        trust_request_chat_template: allow requests to bring a `chat_template` of their own. It runs in a sandbox, but
            nothing bounds its time and memory: for clients that you trust only.
        enable_auto_tool_choice: let the model decide whether it calls a tool. Off, `tools` need a `tool_choice` of
            "required", "none", or a function's name.
        tool_call_parser: how the model writes tool calls: "hermes" (Qwen too), "llama3_json" or "mistral". None means
            as its chat template does, where that is clear.
        exclude_tools_when_tool_choice_none: leave `tools` out of the prompt where `tool_choice` is "none".
        reasoning_parser: how the model marks its reasoning: "qwen3", "deepseek_r1" (it begins with it, marker or
            none), "mistral", or "none", which leaves it in the content. None means as its chat template does.
    """

    chat_template: str | None = None
    default_chat_template_kwargs: Mapping[str, Any] | None = None
    trust_request_chat_template: bool = False
    enable_auto_tool_choice: bool = True
    tool_call_parser: str | None = None
    exclude_tools_when_tool_choice_none: bool = False
    reasoning_parser: str | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            check_text("chat_template", self.chat_template)
        kwargs = json_object("default_chat_template_kwargs", self.default_chat_template_kwargs)
        for name in TEMPLATE_ARGUMENTS.intersection(kwargs or {}):
            raise ConfigError(f"default_chat_template_kwargs may set the template's own variables only, not {name!r}.")
        object.__setattr__(self, "default_chat_template_kwargs", kwargs)
        for name in ("trust_request_chat_template", "enable_auto_tool_choice", "exclude_tools_when_tool_choice_none"):
            check_bool(name, getattr(self, name))
        if self.tool_call_parser is not None:
            check_choice("tool_call_parser", self.tool_call_parser, ("hermes", "llama3_json", "mistral"))
        if self.reasoning_parser is not None:
            check_choice("reasoning_parser", self.reasoning_parser, ("qwen3", "deepseek_r1", "mistral", "none"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservabilityConfig:
    """What is told of the engine's work beside what always is.

    Attributes:
        otlp_traces_endpoint: URL to which each request's trace goes as OTLP over HTTP, such as
            "http://127.0.0.1:4318/v1/traces"; needs the extra `otel`. None sends none.
        kv_cache_metrics: measure how long blocks of the KV cache keep their content, and how it is used again.
        kv_cache_metrics_sample: of all blocks, the part that is measured, in (0, 1].
    """

    otlp_traces_endpoint: str | None = None
    kv_cache_metrics: bool = False
    kv_cache_metrics_sample: float = 0.01

    def __post_init__(self) -> None:
        if self.otlp_traces_endpoint is not None:
            check_text("otlp_traces_endpoint", self.otlp_traces_endpoint)
            if not self.otlp_traces_endpoint.startswith(("http://", "https://")):
                raise ConfigError(
                    "otlp_traces_endpoint must be the URL of an OTLP receiver over HTTP, such as "
                    f"http://127.0.0.1:4318/v1/traces, got {self.otlp_traces_endpoint!r}."
                )
        check_bool("kv_cache_metrics", self.kv_cache_metrics)
        part = self.kv_cache_metrics_sample
        if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0 < part <= 1:
            raise ConfigError(f"kv_cache_metrics_sample must be in (0, 1], got {part!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that one engine needs. Derive another with `replace`; it is never rewritten."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)

    def __post_init__(self) -> None:
        cache = self.cache
        if self.scheduler.preemption_mode == "swap" and not (cache.kv_offloading_size or cache.kv_offloading_dir):
            raise ConfigError(
                "preemption_mode swap needs memory to swap to: give kv_offloading_size, or choose auto or recompute."
            )
        if self.executor.tensor_parallel_size > 1 and cache.kv_offloading_dir is not None:
            raise ConfigError(
                "kv_offloading_dir keeps one process's blocks, and tensor_parallel_size divides each among several: "
                "leave one of them out; kv_offloading_size goes with both."
            )

    @classmethod
    def from_args(cls, args: Mapping[str, Any] | None = None, /, **kwargs: Any) -> EngineConfig:
        """Builds a configuration from flat arguments under vLLM's names.

        Raises:
            ConfigError: an argument is unknown (the nearest known one is named) or its value is wrong.
        """
        flat = {**(args or {}), **kwargs}
        known = engine_argument_names()
        for name in flat:
            if name not in known:
                raise ConfigError(unknown_name_message("engine argument", str(name), tuple(known)))
        parts = {}
        for part in dataclasses.fields(cls):
            names = {f.name for f in dataclasses.fields(_PARTS[part.name])}
            parts[part.name] = _PARTS[part.name](**{k: v for k, v in flat.items() if k in names})
        return cls(**parts)

    def to_args(self) -> dict[str, Any]:
        """The flat arguments that give this configuration again."""
        flat: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            flat.update(dataclasses.asdict(getattr(self, part.name)))
        return flat

    def replace(self, **kwargs: Any) -> EngineConfig:
        """Another configuration with some flat arguments changed."""
        return type(self).from_args(self.to_args(), **kwargs)


_PARTS: dict[str, Any] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "executor": ExecutorConfig,
    "chat": ChatConfig,
    "observability": ObservabilityConfig,
}


def engine_argument_names() -> tuple[str, ...]:
    """The flat names that `EngineConfig.from_args` takes."""
    return tuple(f.name for part in _PARTS.values() for f in dataclasses.fields(part))


def is_template_path(chat_template: str) -> bool:
    """Whether the argument names a file: a template itself has braces, or several lines."""
    return not any(character in chat_template for character in "{}\n")
