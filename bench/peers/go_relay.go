// bench/peers: a copy of the published design in Go, unchanged in what it does for a packet. Flows are spread over
// several transceivers when they are learned, by the client's port, as the benchmark's sink expects.
// Reference relay: the design of the published post in Go. SO_REUSEPORT workers, one locked OS thread each,
// preallocated buffers, one map lookup per packet, no batching, no kernel bypass.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func listen(addr string) *net.UDPConn {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, 15, 1)
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<20)
		})
	}}
	p, err := lc.ListenPacket(context.Background(), "udp4", addr)
	if err != nil {
		panic(err)
	}
	return p.(*net.UDPConn)
}

func main() {
	pub := flag.String("pub", "192.0.2.1:3478", "")
	up := flag.String("up", "198.51.100.1:6000", "")
	trx := flag.String("trx", "198.51.100.2:5000", "")
	workers := flag.Int("w", 1, "")
	secs := flag.Int("t", 8, "")
	flag.Parse()
	var dsts []netip.AddrPort
	for _, text := range strings.Split(*trx, ",") {
		dsts = append(dsts, netip.MustParseAddrPort(text))
	}
	vip := netip.MustParseAddrPort(*pub)
	for w := 0; w < *workers; w++ {
		go func() {
			runtime.LockOSThread()
			in, out := listen(*pub), listen(*up)
			flows := map[netip.AddrPort]netip.AddrPort{}
			go func() {
				runtime.LockOSThread()
				buf := make([]byte, 2048)
				for {
					n, _, err := out.ReadFromUDPAddrPort(buf)
					if err != nil || n < 38 || binary.BigEndian.Uint16(buf) != 0x56ec {
						continue
					}
					a, _ := netip.AddrFromSlice(buf[2:18])
					in.WriteToUDPAddrPort(buf[38:n], netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(buf[34:])))
				}
			}()
			buf := make([]byte, 2048)
			for {
				n, src, err := in.ReadFromUDPAddrPort(buf[38:])
				if err != nil {
					continue
				}
				src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
				d, ok := flows[src]
				if !ok {
					d = dsts[int(src.Port())%len(dsts)]
					flows[src] = d
				}
				binary.BigEndian.PutUint16(buf, 0x56ec)
				a16 := src.Addr().As16()
				v16 := vip.Addr().As16()
				copy(buf[2:], a16[:])
				copy(buf[18:], v16[:])
				binary.BigEndian.PutUint16(buf[34:], src.Port())
				binary.BigEndian.PutUint16(buf[36:], vip.Port())
				out.WriteToUDPAddrPort(buf[:38+n], d)
			}
		}()
	}
	time.Sleep(time.Duration(*secs) * time.Second)
	fmt.Println("done")
}
