"""What is wrong with a request, as a response says it."""

from __future__ import annotations

from typing import Any

from specx.backends.errors import ContextFullError, SpecxError

__all__ = ["RequestError"]

INVALID, BUSY, FAILED = "invalid_request_error", "rate_limit_error", "server_error"


class RequestError(SpecxError):
    """A request cannot be answered.

    Args:
        message: one sentence, what is wrong.
        param: the field of the request that it is about, if it is one.
        code: a word for programs, if there is one for this.
        status: of the HTTP response; from 500 on the fault is not the request's.
        hint: what to do about it.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        code: str | None = None,
        status: int = 400,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.param, self.code, self.status = param, code, status

    @classmethod
    def of(cls, problem: SpecxError, param: str | None = None, *, status: int = 400) -> RequestError:
        """What a request meets with `problem`, if it is about the field `param`."""
        if isinstance(problem, RequestError):
            return problem
        code = "context_length_exceeded" if isinstance(problem, ContextFullError) else None
        return cls(problem.message, param, code=code, status=status, hint=problem.hint)

    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = FAILED if self.status >= 500 else BUSY if self.status == 429 else INVALID
        text = f"{self.message} ({self.hint})" if self.hint else self.message
        return {"error": {"message": text, "type": kind, "param": self.param, "code": self.code}}
