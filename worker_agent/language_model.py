"""The language model of a handler, `task.llm`; imports are deferred, as every task pays for them."""

from __future__ import annotations

import json
import os

from worker_agent.failures import Permanent, Postponed, Transient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Json = dict[str, Any]

# The worker enforces the time limit of the task; this ends only what it missed.
_TIMEOUT_SECONDS = 3600.0


class Answer:
    """A model's answer; `degraded` names the way in which it falls short of the request, None when it does not."""

    __slots__ = ("completion_tokens", "degraded", "finish_reason", "model", "prompt_tokens", "raw", "text")

    def __init__(self, raw: Json) -> None:
        choice, usage = raw["choices"][0], raw.get("usage") or {}
        self.text: str = choice["message"].get("content") or ""
        self.finish_reason: str = choice.get("finish_reason") or ""
        self.model: str = raw.get("model") or ""
        self.prompt_tokens: int = usage.get("prompt_tokens") or 0
        self.completion_tokens: int = usage.get("completion_tokens") or 0
        self.degraded: str | None = (raw.get("convener") or {}).get("degraded")
        self.raw = raw

    def json(self) -> Any:
        """Parse the text as JSON, without the fence that many models put around it. Raises Transient."""
        text = self.text.strip()
        if text.startswith("```"):
            text = text.partition("\n")[2].rpartition("```")[0]
        try:
            return json.loads(text)
        except ValueError:
            raise Transient(
                "llm_not_json", "the model was to answer in JSON and did not", text=self.text[:500]
            ) from None


class LanguageModel:
    """The language model that the worker of this task may call; every call takes a permit of the control plane.

    The worker waits, retries and falls back to other models: an exception is final for this attempt. Any OpenAI client
    works as well: OPENAI_BASE_URL and OPENAI_API_KEY are set for the task.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._url = url or os.environ.get("OPENAI_BASE_URL", "")
        self._key = key or os.environ.get("OPENAI_API_KEY", "")

    def ask(
        self,
        question: str | Sequence[Json],
        *,
        system: str | None = None,
        schema: Json | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> Answer:
        """Ask with a text or with messages; `schema` is a JSON schema that the answer must fit.

        Raises Postponed when the model's limits leave no room (the task comes back later and no attempt is lost),
        Transient when no model answers, Permanent when the request is refused.
        """
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        body = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "messages": messages, **options}
        if schema is not None:
            shape = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        return Answer(self.chat({name: value for name, value in body.items() if value is not None}))

    def chat(self, body: Json) -> Json:
        """Request a chat completion in the protocol's own shapes. Raises as `ask` does."""
        if not self._url:
            raise Transient("llm_not_configured", "this worker has no language model: set CONVENER_LLM_URL for it")
        status, headers, answer = self._post({**body, "stream": False})
        if status == 200 and answer.get("choices"):
            return answer
        error = answer.get("error")
        message = str(error.get("message") if isinstance(error, dict) else error or answer)[:500]
        if status == 429:
            raise Postponed(float(headers.get("retry-after") or 1), f"the language model has no room: {message}")
        if status >= 500 or status in (401, 408):
            raise Transient("llm_unavailable", message)
        raise Permanent("llm_refused", f"{status}: {message}")

    def _post(self, body: Json) -> tuple[int, Any, Json]:
        from http.client import HTTPConnection, HTTPException
        from urllib.parse import urlsplit

        parts = urlsplit(self._url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        try:
            connection.request("POST", f"{parts.path}/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise Transient("llm_unavailable", f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        return response.status, response.headers, answer if isinstance(answer, dict) else {}
