"""An agent that works in a sandbox of Berth's, over MCP.

    pip install mcp
    python examples/agent_loop.py

The loop is that of any agent: the model is shown the tools and what was said so far, and answers with calls of tools until it
has nothing more to do. `ScriptedModel` stands in for a model, so that this needs no key and no network: put a call of yours
in its place. It decides by what the tools answered, as a model does: it finds out what is wrong with a program, and mends it.
"""

import asyncio
import os
import shutil
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Union

from mcp import Client, StdioServerParameters

#: Turns after which the agent gives up.
MOST_TURNS = 12
PROGRAM = """\
def mean(numbers):
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    assert mean([1, 2, 3]) == 2
    assert mean([]) == 0, "the mean of nothing is 0"
    print("all tests passed")
"""


class Call(NamedTuple):
    """A tool that the model wants called."""

    tool: str
    arguments: Dict[str, Any]


class Said(NamedTuple):
    """What came of a call."""

    call: Call
    text: str
    structured: Optional[Dict[str, Any]]
    is_error: bool


class ScriptedModel:
    """In place of a model: `answer` gets the tools and all that was said, and says what to call, or its last words."""

    def answer(self, tools: List[str], said: List[Said]) -> Union[Call, str]:
        assert {"fs_write", "run_python", "fs_edit"} <= set(tools), tools
        if not said:
            return Call("fs_write", {"path": "mean.py", "contents": PROGRAM})
        last = said[-1]
        if last.is_error:
            return f"I can't go on: {last.text}"
        if last.call.tool != "run_python":
            return Call("run_python", {"file": "mean.py"})
        assert last.structured is not None
        if last.structured["exit_code"] == 0:
            return f"It works: {last.structured['stdout'].strip()}."
        if "ZeroDivisionError" in last.structured["stderr"]:
            mended = "    return sum(numbers) / len(numbers) if numbers else 0\n"
            return Call("fs_edit", {"path": "mean.py", "old_text": PROGRAM.splitlines(True)[1], "new_text": mended})
        return "I don't understand this error."


async def work(client: Client, model: ScriptedModel) -> str:
    """The loop."""
    tools = [tool.name for tool in (await client.list_tools()).tools]
    said: List[Said] = []
    for _ in range(MOST_TURNS):
        answer = model.answer(tools, said)
        if isinstance(answer, str):
            return answer
        print(f"-> {answer.tool} {', '.join(answer.arguments)}")
        result = await client.call_tool(answer.tool, answer.arguments)
        text = "\n".join(part.text for part in result.content if part.type == "text")
        shown = result.structured_content or {}
        lines = (shown.get("stderr") or shown.get("stdout") or text).strip().splitlines()
        print(f"<- {lines[-1] if lines else 'done'}")
        said.append(Said(answer, text, result.structured_content, bool(result.is_error)))
    return "I gave up."


async def main() -> int:
    berth = os.environ.get("BERTH", "berth")
    if shutil.which(berth) is None:
        print(f"error: there is no {berth}\nhint: put it into PATH, or name it in BERTH", file=sys.stderr)
        return 1
    # It finds its coordinator by these, or starts one of its own; its session ends with it.
    names = ("BERTH_ADDRESS", "BERTH_TOKEN", "BERTH_TLS_CA", "BERTH_STATE_DIR", "HOME", "PATH")
    env = {name: os.environ[name] for name in names if name in os.environ}
    async with Client(StdioServerParameters(command=berth, args=["mcp"], env=env)) as client:
        words = await work(client, ScriptedModel())
    print(words)
    return 0 if words.startswith("It works") else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
