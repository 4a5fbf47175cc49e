"""The newest clients against the running product, each in an environment of its own: `make test-clients`.

Everything that they are answered passes through a recorder, and is then checked against the types of the clients.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from tests.clients.conftest import command
from tests.clients.environments import ROOT, node, python_of
from tests.clients.recorder import Recorder, recording
from tests.e2e.conftest import Served, running
from tests.support.images import draw
from tests.support.strict_answers import problems_of


pytestmark = pytest.mark.clients
SUITES = Path(__file__).parent / "suites"


@pytest.fixture(scope="module")
def recorder(product: Served) -> Iterator[Recorder]:
    with recording(product.http) as made:
        yield made


@pytest.fixture
def environment(recorder: Recorder, product: Served, tmp_path: Path) -> dict[str, str]:
    """What the suites are told; nothing of this project is on their path."""
    picture = tmp_path / "red-circle.png"
    picture.write_bytes(draw("red", "circle").png)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QWENVL_"))}
    return kept | {
        "QWENVL_URL": recorder.url,
        "QWENVL_GRPC_TARGET": product.grpc_target,
        "QWENVL_IMAGE": str(picture),
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "AI_SDK_LOG_WARNINGS": "false",
    }


def run(command: list[str], environment: dict[str, str], **options: Path) -> str:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{done.stdout[-12000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout)


@pytest.mark.parametrize(
    ("place", "suite"),
    [
        ("sdk", "suite_openai.py"),
        ("sdk", "suite_anthropic.py"),
        ("langchain", "suite_langchain.py"),
        ("litellm", "suite_litellm.py"),
        ("dify", "suite_dify.py"),
    ],
)
def test_python(place: str, suite: str, environment: dict[str, str]) -> None:
    python = python_of(place)
    own = SUITES / f"{place}.ini"
    settings = own if own.exists() else SUITES / "pytest.ini"
    command = [str(python), "-m", "pytest", "-c", str(settings), str(SUITES / suite)]
    assert " passed" in run(command, environment)


def test_vercel_ai_sdk(environment: dict[str, str]) -> None:
    program, place = node()
    suite = str(shutil.copy(SUITES / "suite_ai_sdk.mjs", place))
    assert "# fail 0" in run([str(program), "--test", "--test-reporter=tap", suite], environment)


def test_typescript_over_grpc(environment: dict[str, str]) -> None:
    program, place = node()
    stubs = place / "stubs"
    shutil.rmtree(stubs, ignore_errors=True)
    stubs.mkdir()
    protos = ROOT / "protos"
    names = sorted(str(path.relative_to(protos)) for path in protos.glob("qwenvl/**/*.proto"))
    plugin = place / "node_modules" / ".bin" / "protoc-gen-es"
    path = f"{program.parent}{os.pathsep}{environment['PATH']}"
    options = [f"--plugin=protoc-gen-es={plugin}", f"--es_out={stubs}"]
    options += ["--es_opt=target=js,import_extension=js", f"-I{protos}"]
    protoc = str(Path(sys.executable).with_name("protoc"))
    run([protoc, *options, *names], environment | {"PATH": path})
    suite = str(shutil.copy(SUITES / "suite_connect.mjs", place))
    told = environment | {"QWENVL_STUBS": str(stubs)}
    assert "# fail 0" in run([str(program), "--test", "--test-reporter=tap", suite], told)


def test_schemathesis(tmp_path: Path) -> None:
    """No request that the OpenAPI description allows or forbids makes the adapter or the service fail."""
    program = python_of("schemathesis").with_name("schemathesis")
    # A small context window bounds what a request of chance can cost.
    flags = ["--max-model-len", "320", "--max-tokens-default", "8"]
    flags += ["--response-store", str(tmp_path / "responses.sqlite")]
    with running(command(*flags), tmp_path / "log.txt") as product:
        options = ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"]
        options += ["--max-examples", "25", "--seed", "7", "--max-time", "600", "--no-color"]
        options += ["--suppress-health-check", "all", "--warnings", "off"]
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        url = f"{product.http}/openapi.json"
        told = run([str(program), "run", url, *options], environment, cwd=tmp_path)
        assert "No issues found" in told
        assert product.process.poll() is None
        assert product.info().engine_restarts == 0


def documented(pattern: str) -> list[tuple[str, ...]]:
    """Blocks of code in the documentation of clients, and what they print."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    found = re.findall(pattern + r"(.*?)```\n```text\n(.*?)```", text, re.DOTALL)
    assert found
    return found


PYTHON = r"<!-- not run: run in the environment (\w+) by `make test-clients` -->\n```python\n"


@pytest.mark.parametrize(("place", "code", "prints"), documented(PYTHON), ids=lambda text: text[:9])
def test_the_documented_python(
    place: str, code: str, prints: str, environment: dict[str, str], recorder: Recorder
) -> None:
    code = code.replace("http://127.0.0.1:8000", recorder.url)
    assert run([str(python_of(place)), "-c", code], environment, cwd=ROOT) == prints


@pytest.mark.parametrize(("code", "prints"), documented("```js\n"), ids=lambda text: text[:9])
def test_the_documented_javascript(
    code: str, prints: str, environment: dict[str, str], recorder: Recorder
) -> None:
    program, place = node()
    script = place / "documented.mjs"
    script.write_text(code.replace("http://127.0.0.1:8000", recorder.url))
    assert run([str(program), str(script)], environment, cwd=ROOT) == prints


def test_everything_that_was_answered(recorder: Recorder) -> None:
    """Runs last: what the suites were answered has the types of OpenAI, Anthropic and Open Responses."""
    assert recorder.exchanges, "no suite has run"
    assert not [exchange for exchange in recorder.exchanges if exchange.status >= 500]
    found = [
        problem
        for one in recorder.exchanges
        for problem in problems_of(one.path, one.status, one.content_type, one.body)
    ]
    assert not found, "\n".join(found[:20])
