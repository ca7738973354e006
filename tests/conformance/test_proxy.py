"""The proxy, between real sockets and a server that echoes."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from stroma.testing import TcpProxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while True:
            try:
                data = self.request.recv(65536)
            except OSError:
                return
            if not data:
                return
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with TcpProxy("127.0.0.1", server.server_address[1]) as proxy:
                yield proxy
        finally:
            server.shutdown()
            thread.join()


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=5)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    found = b""
    while len(found) < len(data):
        part = client.recv(65536)
        if not part:
            break
        found += part
    return found


def test_it_forwards_and_counts_round_trips(proxy: TcpProxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        assert [ask(first, b"a"), ask(second, b"b"), ask(first, b"c")] == [b"a", b"b", b"c"]
        assert (proxy.round_trips, proxy.accepted, proxy.open_connections) == (3, 2, 2)


def test_large_data_are_whole_and_one_round_trip_at_least(proxy: TcpProxy) -> None:
    data = bytes(range(256)) * 4000
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        found = b""
        while len(found) < len(data):
            found += client.recv(65536)
        sender.join()
    assert found == data


@pytest.mark.parametrize("number", [1, 2])
def test_a_reply_is_swallowed_and_its_connection_ends(proxy: TcpProxy, number: int) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        ask(client, b"before")
        proxy.drop_reply(number)
        for _ in range(number - 1):
            assert ask(client, b"passed") == b"passed"
        assert ask(client, b"lost") == b""
        assert proxy.dropped == 1
        assert ask(other, b"fine") == b"fine"


def test_a_reply_is_cut(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        proxy.cut_reply(after_bytes=3)
        assert ask(client, b"123456") == b"123"


def test_replies_are_delayed(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        proxy.delay(0.1)
        begin = time.monotonic()
        assert ask(client, b"x") == b"x"
        assert time.monotonic() - begin >= 0.1
        proxy.heal()


def test_a_connection_is_reset(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"x")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as client:
        assert ask(client, b"again") == b"again"


def test_a_connection_is_half_closed(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"x")
        proxy.half_close()
        assert client.recv(1) == b""
        client.sendall(b"still taken")


def test_nothing_is_forwarded_while_paused(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"x")
        proxy.pause()
        client.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(10)
        proxy.resume()
        client.settimeout(5)
        assert client.recv(10) == b"held"


def test_connections_are_refused_until_it_heals(proxy: TcpProxy) -> None:
    with connect(proxy) as before:
        ask(before, b"x")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(before, b"open ones go on") == b"open ones go on"
        proxy.heal()
        with connect(proxy) as client:
            assert ask(client, b"again") == b"again"


def test_a_server_that_is_down_breaks_the_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        # The reset may come before the client has noticed that it is connected.
        with (
            TcpProxy("127.0.0.1", unused.getsockname()[1]) as proxy,
            pytest.raises(ConnectionResetError),
            connect(proxy) as client,
        ):
            client.recv(1)


def test_it_says_where_it_stands_and_is_closed_twice() -> None:
    proxy = TcpProxy("127.0.0.1", 9)
    with pytest.raises(RuntimeError, match="not started"):
        proxy.pause()
    proxy.start()
    assert repr(proxy) == f"TcpProxy(127.0.0.1:{proxy.port} to 127.0.0.1:9)"
    proxy.close()
    proxy.close()
    with pytest.raises(RuntimeError, match="not started"):
        proxy.pause()
    assert not [t for t in threading.enumerate() if t.name == "stroma-proxy"]
