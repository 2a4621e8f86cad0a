"""Stands in for `vllm run-batch`: the same arguments, and results in the same form; the second request fails."""

import argparse
import json

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["run-batch"])
parser.add_argument("-i", required=True)
parser.add_argument("-o", required=True)
parser.add_argument("--model", required=True)
args = parser.parse_args()

with open(args.i) as requests, open(args.o, "w") as results:
    for number, line in enumerate(requests):
        request = json.loads(line)
        prompt = request["body"]["messages"][-1]["content"]
        message = {"role": "assistant", "content": json.dumps({"echo": f"batch {prompt}"})}
        body = {"model": args.model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        failure = {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400}
        response = {"status_code": 200, "request_id": f"vllm-batch-{number}", "body": body}
        if number == 1:
            response |= {"status_code": 400, "body": None}
        result = {"id": f"vllm-{number}", "custom_id": request["custom_id"], "response": response}
        results.write(json.dumps({**result, "error": failure if number == 1 else None}) + "\n")
