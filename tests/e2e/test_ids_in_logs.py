"""One call can be followed through the logs of all processes by its ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import time
from typing import IO, Any

import pytest
import requests

from inference_service.__main__ import engine_command
from inference_service.settings import ServiceSettings
from qwenvl import Client
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from tests.e2e.conftest import free_port
from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import model_dir  # noqa: F401 - a fixture


ROOT = Path(__file__).parents[2]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
