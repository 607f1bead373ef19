"""The server under test: build/wring (or WRING) with a small model, or whatever WRING_TEST_URL points to."""

import os

import pytest
import wire


def _need_binary():
    assert wire.BINARY.exists(), f"{wire.BINARY} is not built"
    if not wire.find_model():
        pytest.skip("no model: run `wring pull smollm2-135m-instruct`, or set WRING_MODELS or WRING_TEST_MODEL")


@pytest.fixture(scope="session")
def server():
    """One server for all tests that leave it as they found it."""
    url = os.environ.get("WRING_TEST_URL")
    if not url:
        _need_binary()
    s = wire.Server("--max-seqs", "300", "--kv-size", "1G", url=url)
    yield s
    if s.proc:
        assert s.stop() == 0


@pytest.fixture
def start():
    """Starts servers with options of their own."""
    _need_binary()
    running = []

    def begin(*options):
        running.append(wire.Server(*options))
        return running[-1]

    yield begin
    for s in running:
        s.stop()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model that needs none to be pulled: stories260K."""
    if not wire.BINARY.exists():
        pytest.skip(f"{wire.BINARY} is not built")
    return wire.import_small(tmp_path_factory.mktemp("models") / "stories260K",
                             "{% for m in messages %}{{ m.content }} {% endfor %}")
