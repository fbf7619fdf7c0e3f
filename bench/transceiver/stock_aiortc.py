"""Stock aiortc that echoes: ``python -m bench.transceiver.stock_aiortc``, WHIP on a port that it prints.

Nothing of this project is imported: aiortc has its own ICE agent and socket a call, decodes what comes and encodes it
again. The echoed track is added as it is, without a task or a queue of ours.
"""

import asyncio
import itertools

import aioice.ice
from aiohttp import web
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)

# Loopback, which aioice leaves out: no packet of a benchmark may take an address of the machine's own network.
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


class EchoServer:
    """Peer connections by number."""

    def __init__(self) -> None:
        self._peers: dict[str, RTCPeerConnection] = {}
        self._numbers = itertools.count(1)

    async def create(self, request: web.Request) -> web.Response:
        """Answer an offer."""
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        number = str(next(self._numbers))
        self._peers[number] = peer

        @peer.on("track")
        def echo(track: MediaStreamTrack) -> None:
            peer.addTrack(track)

        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        return web.Response(
            status=201,
            text=peer.localDescription.sdp,
            content_type="application/sdp",
            headers={"Location": f"/whip/sessions/{number}"},
        )

    async def delete(self, request: web.Request) -> web.Response:
        """End a call."""
        peer = self._peers.pop(request.match_info["number"], None)
        if peer is None:
            return web.Response(status=404)
        await peer.close()
        return web.Response()

    async def count_tasks(self, request: web.Request) -> web.Response:
        """Of asyncio, this one among them."""
        return web.Response(text=str(len(asyncio.all_tasks())))

    async def close(self, app: web.Application) -> None:
        """End all calls."""
        await asyncio.gather(*(peer.close() for peer in self._peers.values()))

    def app(self) -> web.Application:
        """As HTTP."""
        app = web.Application()
        app.router.add_get("/tasks", self.count_tasks)
        app.router.add_post("/whip", self.create)
        app.router.add_delete("/whip/sessions/{number}", self.delete)
        app.on_cleanup.append(self.close)
        return app


async def _main() -> None:
    runner = web.AppRunner(EchoServer().app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
