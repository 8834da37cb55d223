"""An MCP server without the SDK, which says what no SDK would: mcp_by_hand.py '{METHOD: RESULT}'."""

from __future__ import annotations

import json
import sys

INFO = {"capabilities": {"tools": {}}, "serverInfo": {"name": "by hand", "version": "1"}}
UNKNOWN = {"error": {"code": -32601, "message": "no such method"}}


def main(results: dict[str, object]) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["method"] == "initialize":
            body = {"result": {"protocolVersion": asked["params"]["protocolVersion"], **INFO}}
        else:
            body = {"result": results[asked["method"]]} if asked["method"] in results else UNKNOWN
        if "id" in asked:
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **body}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
