"""FastAPI and uvicorn by hand: the model in the server's own process, one request at a time.

No batching, because FastAPI has none; the model runs in the event loop, because handing a call of
50 microseconds to a thread costs more than the call. `workers` processes share the port.
"""

import json
import os
from pathlib import Path

import orjson
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))
torch.set_num_threads(1)
MODEL = torch.jit.freeze(torch.jit.load(SETTINGS["model"]).eval())
app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Answer one row: JSON to JSON, raw float32 to raw float32."""
    body = await request.body()
    with torch.inference_mode():
        if SETTINGS["binary"]:
            row = torch.frombuffer(bytearray(body), dtype=torch.float32)
            output = MODEL(row.reshape(1, *SETTINGS["shape"])).numpy()
            return Response(output.tobytes(), media_type="application/octet-stream")
        output = MODEL(torch.tensor(orjson.loads(body)["inputs"]).unsqueeze(0))
    return Response(orjson.dumps({"outputs": output[0].tolist()}), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        "server:app",
        app_dir=str(Path(__file__).parent),
        host="127.0.0.1",
        port=SETTINGS["port"],
        workers=SETTINGS["workers"],
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
