"""Every setting, read once from environment variables. The variable is the field's name in capitals."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PREFIXES = ("MODEL_", "SERVER_", "COMPLETION_", "ENGINE_", "MANAGEMENT_", "LOG_")
"""A variable with one of these that we do not know is probably a typing mistake."""

RETIRED = {
    "COMPLETION_MAX_INTERVAL": "tokens are sent as soon as they are there",
}
"""Basaran's names that have no effect here, and why."""

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"
"""What is served where MODEL is empty."""

HEADROOM = 16
"""Request threads beyond slots and queue: health checks, refusals, requests that are being parsed."""

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class InvalidSettings(Exception):
    """One line for each fault, each naming its variable."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Settings(BaseModel):
    """All settings, frozen. Basaran's names keep Basaran's meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # The model
    model: str = Field("", description=f"Hub id, directory or .gguf file. Empty: {DEFAULT_MODEL_NAME}.")
    model_revision: str = Field("", description="Branch, tag or commit of a hub id.")
    model_cache_dir: str = Field("", description="Where downloads, conversions and recordings are kept.")
    model_local_files_only: bool = Field(False, description="Never download.")
    model_trust_remote_code: bool = Field(False, description="Run code that comes with the model.")
    model_allow_pickle: bool = Field(
        False, description="Load pickled weights where a model has no others; safetensors cannot carry code."
    )
    model_half_precision: bool = Field(False, description="float16 weights, as Basaran.")
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Weights' type. auto: the checkpoint's on a GPU, bfloat16 on a CPU that computes in it, "
        "else float32.",
    )
    model_load_in_8bit: bool = Field(False, description="8-bit weights by bitsandbytes.")
    model_load_in_4bit: bool = Field(False, description="4-bit weights by bitsandbytes.")

    model_adapters: str = Field(
        "",
        description="LoRA adapters served beside the model: name=directory or name=hub id, separated by "
        "commas.",
    )
    model_chat_template: str = Field(
        "", description="File with a chat template to use instead of the tokenizer's."
    )

    # The engine
    engine_slots: Positive = Field(32, description="Sequences generated at the same time, per replica.")
    engine_context_length: Positive | None = Field(
        None, description="Tokens of prompt and completion. Unset: as the model and memory allow."
    )
    engine_token_budget: Positive = Field(
        512, description="Tokens of one step; a longer prompt is read in chunks."
    )
    engine_prefill_stretch: float = Field(
        2.0,
        ge=1.1,
        description="How many times longer a step may take for the prompts that it reads while streams run: "
        "higher for throughput, lower for steady streams.",
    )
    engine_prefix_cache: bool = Field(
        True, description="Keep what finished sequences computed, for prompts that begin alike."
    )
    engine_speculate: bool = Field(
        True,
        description="Guess what greedy sequences say next from what they have said, where few run, and check "
        "it in the same step: the same tokens, several a step.",
    )
    engine_runner: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="How the model is run. auto: packed, which is faster, where the model's own logits come "
        "out, else padded, as generate() runs it.",
    )
    engine_compile: bool = Field(
        True,
        description="Record a packed model's forward when it is loaded and run it as fused operations, on a "
        "CPU. The first start takes seconds longer; later ones find the recording in the cache.",
    )
    engine_cuda_graphs: bool = Field(
        True,
        description="On a GPU: capture a packed model's decode steps as CUDA graphs when it is loaded, and "
        "replay them.",
    )
    engine_int8: bool = Field(
        False,
        description="On a CPU that can: a packed model's linear layers in 8-bit integers, with a scale for "
        "each 64 inputs. Half the memory to read, faster, and a little less exact.",
    )
    engine_replicas: Positive = Field(
        1, description="Engines, each on GPUs of its own or on its share of the cores."
    )
    gpus_per_replica: Positive = Field(
        1,
        description="GPUs of one engine; over several its layers are spread, for a model too large for one.",
    )
    engine_device: str = Field("auto", description="auto, cpu, cuda or mps.")
    engine_threads: Positive | None = Field(
        None, description="Threads of one engine on a CPU. Unset: the cores, shared among replicas."
    )
    engine_stall_timeout: int = Field(
        120,
        ge=0,
        description="Seconds after which an engine that has work and does no step is replaced. 0: never.",
    )
    engine_kv_fraction: Fraction | None = Field(
        None,
        description="Share of the memory left after loading that keys and values may take. Unset: 0.5 on a "
        "CPU, 0.9 on a GPU.",
    )
    cuda_memory_fraction: Fraction = Field(1.0, description="Share of each GPU's memory that may be used.")

    # The server
    host: str = Field("0.0.0.0", description="Address to listen on; :: takes IPv6 and IPv4.")  # noqa: S104
    port: int = Field(8000, ge=0, le=65535, description="Port of the API.")
    server_model_name: str = Field("", description="Name of the model in the API. Empty: MODEL.")
    server_strict_model: bool = Field(
        False, description="Refuse requests that name another model. Otherwise any name is served."
    )
    server_api_keys: str = Field("", description="Keys that clients must send, separated by commas.")
    server_api_keys_file: str = Field(
        "", description="File with one key a line, read again whenever it changes."
    )
    server_cors_origins: str = Field(
        "", description="Origins whose pages may call the API, separated by commas; * for all."
    )
    server_no_playground: bool = Field(False, description="Serve no page at /.")
    server_identity: str = Field("basaran_ops", description="The Server response header.")
    server_queue_limit: int = Field(64, ge=0, description="Sequences that may wait for a slot; more get 429.")
    server_threads: Positive | None = Field(
        None, description="Request threads. Unset: slots + queue + 16, which is also the least allowed."
    )
    server_connection_limit: Positive = Field(1000, description="Connections open at the same time.")
    server_channel_timeout: Positive = Field(
        300, description="Seconds after which a client that does not read is cut off."
    )
    server_keepalive: int = Field(75, ge=0, description="Seconds an idle connection is kept.")
    server_head_timeout: Positive = Field(10, description="Seconds a client has for a request's head.")
    server_body_timeout: Positive = Field(60, description="Seconds a client has for a request's body.")
    server_max_body: Positive = Field(16 * 2**20, description="Bytes of a request's body; more get 413.")
    server_body_memory: Positive | None = Field(
        None,
        description="Bytes of all bodies together, of requests that arrive or run; the slowest to arrive get "
        "429. Unset: 16 of the largest size, at least 256 MiB.",
    )
    server_drain_timeout: int = Field(
        90, ge=0, description="Seconds that running requests have to finish after SIGTERM."
    )

    server_request_timeout: Positive | None = Field(
        None, description="Seconds a request may take; then it ends with an error. Unset: no limit."
    )
    server_queue_timeout: Positive | None = Field(
        None, description="Seconds a request may wait for its first token. Unset: no limit."
    )
    management_port: int = Field(
        9000, ge=0, le=65535, description="Port of /livez, /readyz, /metrics, /drain and /state."
    )
    management_vllm_aliases: bool = Field(
        False, description="Tell metrics under vLLM's names too, for gateways that know only those."
    )

    # Completions
    completion_max_prompt: Positive | None = Field(
        None, description="Characters of a prompt; more get 400. Unset: the context decides."
    )
    completion_max_tokens: Positive | None = Field(
        None, description="The largest max_tokens. Unset: the context decides."
    )
    completion_max_logprobs: int = Field(
        20, ge=0, description="The largest logprobs, and top_logprobs of chat."
    )
    completion_max_n: Positive = Field(16, description="The largest n.")
    completion_max_prompts: Positive = Field(1024, description="Prompts of one request.")

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_prompts: bool = Field(False, description="Log the text of prompts and completions.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else JSON."
    )

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        """An IPv6 address may be written as in a URL."""
        address = host.removeprefix("[").removesuffix("]")
        if not address:
            raise ValueError("there is no address in it")
        return address

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        faults = []
        if self.model_load_in_8bit and self.model_load_in_4bit:
            faults.append("MODEL_LOAD_IN_8BIT and MODEL_LOAD_IN_4BIT exclude each other")
        if self.model_half_precision and self.model_dtype not in ("auto", "float16"):
            faults.append(f"MODEL_HALF_PRECISION is float16, but MODEL_DTYPE is {self.model_dtype}")
        faults += self._faulty_adapters() + self._faulty_int8()
        if self.engine_token_budget < self.engine_slots:
            faults.append(
                f"ENGINE_TOKEN_BUDGET={self.engine_token_budget} must be at least "
                f"ENGINE_SLOTS={self.engine_slots}"
            )
        if self.threads < self.capacity + HEADROOM:
            faults.append(
                f"SERVER_THREADS={self.threads} must be at least ENGINE_SLOTS x ENGINE_REPLICAS + "
                f"SERVER_QUEUE_LIMIT + {HEADROOM} = {self.capacity + HEADROOM}, or waiting requests block "
                "all others"
            )
        if self.management_port == self.port and self.port:
            faults.append(f"MANAGEMENT_PORT={self.management_port} must not be PORT's")
        if self.server_connection_limit <= self.threads:
            faults.append(
                f"SERVER_CONNECTION_LIMIT={self.server_connection_limit} must be above the "
                f"{self.threads} threads"
            )
        if self.body_memory < self.server_max_body:
            faults.append(
                f"SERVER_BODY_MEMORY={self.server_body_memory} must be at least "
                f"SERVER_MAX_BODY={self.server_max_body}"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def served_name(self) -> str:
        """The model's name in the API."""
        return self.server_model_name or self.model or DEFAULT_MODEL_NAME

    @property
    def adapters(self) -> dict[str, str]:
        """Directory or hub id of each adapter by its name."""
        return {name: source for name, source, _ in _split_adapters(self.model_adapters)}

    @property
    def asks_for_key(self) -> bool:
        """Whether clients must send a key. A file that is named and empty locks everybody out."""
        return bool(self.server_api_keys.replace(",", " ").strip()) or bool(self.server_api_keys_file)

    def _faulty_int8(self) -> list[str]:
        if not self.engine_int8:
            return []
        faults = []
        if self.model_load_in_8bit or self.model_load_in_4bit:
            faults.append("ENGINE_INT8 excludes MODEL_LOAD_IN_8BIT and MODEL_LOAD_IN_4BIT")
        if not self.engine_compile or self.engine_runner == "padded":
            faults.append("ENGINE_INT8 needs ENGINE_COMPILE=true and ENGINE_RUNNER=auto or packed")
        if self.model_adapters:
            faults.append("ENGINE_INT8 excludes MODEL_ADAPTERS, which change the layers that it rounds")
        return faults

    def _faulty_adapters(self) -> list[str]:
        faults = []
        seen = {self.served_name: "is the model's own name"}
        for name, source, entry in _split_adapters(self.model_adapters):
            if not name or not source:
                faults.append(f"MODEL_ADAPTERS: {entry!r} is not of the form name=directory")
            elif name in seen:
                faults.append(f"MODEL_ADAPTERS: {name!r} {seen[name]}")
            seen.setdefault(name, "is there twice")
        return faults

    @property
    def slots(self) -> int:
        """Sequences that can run at once, on all replicas."""
        return self.engine_slots * self.engine_replicas

    @property
    def capacity(self) -> int:
        """Sequences that can be admitted: running and waiting."""
        return self.slots + self.server_queue_limit

    @property
    def threads(self) -> int:
        """Request threads: each admitted request holds one, and none may wait for another's."""
        return self.server_threads or self.capacity + HEADROOM

    @property
    def body_memory(self) -> int:
        """Bytes that all requests' bodies may take together."""
        return self.server_body_memory or max(16 * self.server_max_body, 2**28)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; an empty variable counts as unset.

        Raises InvalidSettings with every fault at once.
        """
        return cls.of({name: environ[name.upper()] for name in cls.model_fields if environ.get(name.upper())})

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Settings:
        """Settings by the names of fields. Raises InvalidSettings with every fault at once."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidSettings(_faults(error)) from None


def _split_adapters(text: str) -> Iterator[tuple[str, str, str]]:
    """Name and source of each entry, and the entry itself."""
    for entry in (part.strip() for part in text.split(",")):
        if entry:
            name, _, source = entry.partition("=")
            yield name.strip(), source.strip(), entry


def _faults(error: ValidationError) -> list[str]:
    faults = []
    for detail in error.errors(include_url=False):
        if detail["loc"]:
            name = str(detail["loc"][0]).upper()
            faults.append(f"{name}={detail['input']!r}: {detail['msg']}")
        else:
            faults.extend(detail["msg"].removeprefix("Value error, ").splitlines())
    return faults


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A warning for each variable that looks like ours and is not, with the nearest known name."""
    known = {name.upper() for name in Settings.model_fields}
    warnings = []
    for name in sorted(environ):
        if name in RETIRED:
            warnings.append(f"{name} has no effect: {RETIRED[name]}")
        elif name.startswith(PREFIXES) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting{hint}")
    return warnings
