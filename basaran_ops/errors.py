"""Every error a caller can meet. Each knows the HTTP status and OpenAI error type it becomes."""

from __future__ import annotations

from collections.abc import Mapping


class BasaranError(Exception):
    """Base of all errors raised on purpose; anything else is a defect."""

    status = 500
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(BasaranError):
    """The request can never succeed as it is; `param` names the field at fault."""

    status = 400
    type = "invalid_request_error"

    def rename(self, names: Mapping[str, str]) -> None:
        """Say a field's name as the client knows it."""
        name = names.get(self.param or "")
        if name is not None:
            if self.message.startswith((f"{self.param} ", f"{self.param}: ")):
                self.message = name + self.message.removeprefix(str(self.param))
                self.args = (self.message,)
            self.param = name


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt plus max_tokens, is longer than the context. The message opens as OpenAI's does
    because clients match on it.
    """

    def __init__(self, context_length: int, detail: str, *, param: str) -> None:
        super().__init__(
            f"This model's maximum context length is {context_length} tokens. However, {detail}",
            param=param,
            code="context_length_exceeded",
        )


class ModelNotFound(BasaranError):
    """The request names a model that is not served, or an adapter that the model does not have."""

    status = 404
    type = "invalid_request_error"

    def __init__(self, name: str, *, param: str = "model") -> None:
        super().__init__(f"The model '{name}' does not exist", param=param, code="model_not_found")


class Unauthorized(BasaranError):
    """No API key, or one that is not ours."""

    status = 401
    type = "invalid_request_error"

    def __init__(self, *, missing: bool) -> None:
        # litellm knows a wrong key by these words.
        message = "You did not provide an API key" if missing else "Incorrect API key provided"
        super().__init__(message, code="invalid_api_key")


class Overloaded(BasaranError):
    """All slots are busy and the queue is full. Ask again after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, code="queue_full")
        self.retry_after = retry_after


class NotReady(BasaranError):
    """No replica can take a request now: loading, draining or failed."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, code: str, retry_after: int = 5) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class ModelClosed(BasaranError):
    """The library's model was closed: it takes no more calls, and those that ran have ended."""

    status = 503

    def __init__(self) -> None:
        super().__init__("the model was closed", code="model_closed")


class EngineFailed(BasaranError):
    """The engine that worked on the request died or raised."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="engine_failed")


class DeadlineExceeded(BasaranError):
    """The time that a request had is over: its own, the queue's, or the server's, which is shutting down."""

    status = 503

    def __init__(self, message: str, *, code: str = "shutting_down", retry_after: int = 5) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class StreamClosed(BasaranError):
    """The stream was closed by its owner: the client left. Nobody is there to be told."""

    status = 499

    def __init__(self) -> None:
        super().__init__("the stream was closed before it ended")


class ModelLoadError(BasaranError):
    """The model cannot be loaded. Where `permanent`, trying again cannot help."""

    def __init__(self, message: str, *, permanent: bool = True) -> None:
        super().__init__(message, code="model_load_failed")
        self.permanent = permanent

    def __reduce__(self) -> tuple[object, ...]:
        # The engine process sends this error over its pipe; the default would lose the keyword.
        return (_model_load_error, (self.message, self.permanent))


def _model_load_error(message: str, permanent: bool) -> ModelLoadError:
    return ModelLoadError(message, permanent=permanent)
