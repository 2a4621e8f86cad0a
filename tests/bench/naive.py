"""What one writes without a tool: workers that POST, parse and print. naive.py URL PROMPT_FILE JOBS

No cache, no retries, no checks, no error handling; with the quick libraries (uvloop, orjson) and aiohttp's
session as it comes, but for the limit of its pool.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def main(url: str, prompt: str, jobs: int) -> None:
    lines, out = iter(sys.stdin.buffer), sys.stdout.buffer
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for line in lines:
                row = orjson.loads(line)
                request = {
                    "model": "m",
                    "messages": [{"role": "user", "content": prompt.replace("{text}", row["text"])}],
                    "temperature": 0,
                    "response_format": {"type": "json_object"},
                }
                body, headers = orjson.dumps(request), {"Content-Type": "application/json"}
                async with session.post(f"{url}/chat/completions", data=body, headers=headers) as response:
                    completion = orjson.loads(await response.read())
                row |= orjson.loads(completion["choices"][0]["message"]["content"])
                out.write(orjson.dumps(row) + b"\n")

        await asyncio.gather(*[work() for _ in range(jobs)])


uvloop.run(main(sys.argv[1], Path(sys.argv[2]).read_text(), int(sys.argv[3])))
