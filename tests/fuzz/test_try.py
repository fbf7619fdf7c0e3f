import pytest, os
from pathlib import Path
from tests.fuzz.live import Live
C=Path(__file__).parent.parent/"corpus"
def files(k):
    return [pytest.param(p,id=f"{k}-{p.stem}") for p in sorted((C/k).iterdir())]
@pytest.mark.parametrize("p", [f for k in os.environ.get("K","rtp rtcp dtls").split() for f in files(k)])
def test_a(live: Live, p):
    d=p.read_bytes(); k=p.parent.name
    if k=="sctp": live.revive()
    b=live.counters.copy()
    async def s(l):
        for _ in range(3):
            await {"rtp":l.send_rtp,"rtcp":l.send_rtcp,"dtls":l.send_raw,"sctp":l.send_sctp}[k](d)
    live.attack(s)
    try:
        live.require_calls_go_on(data= k!="sctp")
    except BaseException:
        live.redial(); raise
    print(p.stem, live.counted(b))
