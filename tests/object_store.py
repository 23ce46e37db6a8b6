"""A real S3 server on this machine (moto's server mode), and the settings that find it."""

import socket
from contextlib import contextmanager

import pytest


@contextmanager
def s3_bucket(name="bucket"):
    """Start a server and make a bucket; yields s3://BUCKET. The environment points at it."""
    pytest.importorskip("s3fs", reason="pip install 'cosmos-wds[s3]'")
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    import s3fs

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    patch = pytest.MonkeyPatch()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
    finally:
        patch.undo()
        s3fs.S3FileSystem.clear_instance_cache()
        running.stop()
