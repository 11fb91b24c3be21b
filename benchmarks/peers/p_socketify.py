"""socketify (uWebSockets, C++). /rpc answers, /fan sends to the others. Argument: PORT."""

import sys

import orjson
from socketify import App, AppListenOptions, OpCode

app = App()


def answer(ws, message, opcode):
    request = orjson.loads(message)
    ws.send(orjson.dumps({"result": request["zHorizontal"], "_requestId": request["_requestId"]}), OpCode.TEXT)


app.ws("/rpc", {"message": answer, "idle_timeout": 120})
app.ws(
    "/fan",
    {
        "open": lambda ws: ws.subscribe("all"),
        "message": lambda ws, message, opcode: ws.publish("all", message, OpCode.TEXT),
        "idle_timeout": 120,
    },
)
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"), lambda config: None)
app.run()
