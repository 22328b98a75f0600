"""Half-plus-two as a user of FastAPI would serve it: uvicorn, numpy, orjson."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Body, FastAPI
from fastapi.responses import Response
from orjson import OPT_SERIALIZE_NUMPY, dumps

app = FastAPI()


@app.post("/")
async def predict(instances: Annotated[list[Any], Body(embed=True)]) -> Response:
    x = np.array(instances, np.float32)
    reply = dumps({"predictions": x / 2 + 2}, option=OPT_SERIALIZE_NUMPY)
    return Response(reply, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="critical")
