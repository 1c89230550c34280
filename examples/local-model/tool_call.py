"""Make the local model call a tool: with `tool_choice` forced, even a very small model keeps to the tool's schema."""

import json
import os
import urllib.request

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(base_url: str, question: str) -> dict[str, str]:
    """The arguments with which the model calls the tool."""
    request = {
        "model": os.environ.get("OPENAI_MODEL", "smollm2-135m"),
        "messages": [{"role": "user", "content": question}],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 100,
    }
    body = json.dumps(request).encode()
    headers = {"content-type": "application/json"}
    http_request = urllib.request.Request(f"{base_url}/chat/completions", body, headers)
    with urllib.request.urlopen(http_request, timeout=60) as response:
        message = json.load(response)["choices"][0]["message"]
    arguments: dict[str, str] = json.loads(message["tool_calls"][0]["function"]["arguments"])
    return arguments


if __name__ == "__main__":
    print(ask(os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8701/v1"), "What is the weather in Paris?"))
