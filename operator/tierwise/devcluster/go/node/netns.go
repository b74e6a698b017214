package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network gives out addresses of the Pod network, one network namespace each.
type network struct {
	mutex  sync.Mutex
	next   int // host part of the next address
	used   map[int]bool
	bridge string
}

// podNetwork is a Pod's network namespace. It has no name and no mount: it lives as long as this file or a process
// in it, so nothing is left behind by a crash.
type podNetwork struct {
	namespace *os.File
	address   net.IP
	host      int
	link      string
}

const (
	firstHost = 1 << 8 // 10.244.1.0: the addresses below belong to the cluster itself
	lastHost  = 1<<16 - 2
)

func newNetwork() *network {
	return &network{next: firstHost, used: map[int]bool{}, bridge: "br0"}
}

func (n *network) allocate() int {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for {
		n.next++
		if n.next > lastHost {
			n.next = firstHost + 1
		}
		if low := n.next & 0xff; low != 0 && low != 0xff && !n.used[n.next] {
			n.used[n.next] = true
			return n.next
		}
	}
}

func (n *network) release(host int) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	delete(n.used, host)
}

// open makes a namespace with an address on the bridge and a default route to it.
func (n *network) open() (*podNetwork, error) {
	host := n.allocate()
	address := net.IPv4(10, 244, byte(host>>8), byte(host)).To4()
	pod := &podNetwork{address: address, host: host, link: fmt.Sprintf("v%d-%d", host>>8, host&0xff)}
	if err := n.connect(pod); err != nil {
		n.close(pod)
		return nil, fmt.Errorf("network of the Pod: %w", err)
	}
	return pod, nil
}

func (n *network) connect(pod *podNetwork) (err error) {
	if pod.namespace, err = newNetworkNamespace(); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(n.bridge)
	if err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = pod.link
	attributes.MasterIndex = bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.namespace.Fd())}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(netns.NsHandle(pod.namespace.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			own := &netlink.Addr{IPNet: &net.IPNet{IP: pod.address, Mask: net.CIDRMask(16, 32)}}
			if err := inside.AddrAdd(link, own); err != nil {
				return err
			}
		}
		if err := inside.LinkSetUp(link); err != nil {
			return err
		}
	}
	return inside.RouteAdd(&netlink.Route{Gw: net.IPv4(10, 244, 0, 1)})
}

// close ends whatever still runs in the namespace and lets go of it.
func (n *network) close(pod *podNetwork) {
	if pod.namespace != nil {
		killIn(pod.namespace)
		_ = pod.namespace.Close()
	}
	if link, err := netlink.LinkByName(pod.link); err == nil {
		_ = netlink.LinkDel(link)
	}
	n.release(pod.host)
}

// newNetworkNamespace makes one on a thread that is given up afterwards.
func newNetworkNamespace() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		made <- result{file, err}
	}()
	got := <-made
	return got.file, got.err
}

// killIn kills every process whose network namespace is the given one: what a container left running.
func killIn(namespace *os.File) {
	var wanted unix.Stat_t
	if unix.Fstat(int(namespace.Fd()), &wanted) != nil {
		return
	}
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		var have unix.Stat_t
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err != nil || pid == os.Getpid() || unix.Stat(folder+"/ns/net", &have) != nil {
			continue
		}
		if have.Ino == wanted.Ino && have.Dev == wanted.Dev {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
