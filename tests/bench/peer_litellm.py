"""Rows through litellm, as its users write it. peer_litellm.py URL PROMPT_FILE"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from litellm import acompletion


async def main(url: str, prompt: str) -> None:
    semaphore = asyncio.Semaphore(64)

    async def ask(row: dict[str, Any]) -> None:
        async with semaphore:
            completion = await acompletion(
                model="openai/m",
                api_base=url,
                api_key="none",
                messages=[{"role": "user", "content": prompt.replace("{text}", row["text"])}],
                temperature=0,
                response_format={"type": "json_object"},
            )
        print(json.dumps(row | json.loads(completion.choices[0].message.content)))

    await asyncio.gather(*[ask(json.loads(line)) for line in sys.stdin])


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text()))
