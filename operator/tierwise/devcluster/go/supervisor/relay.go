package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	dialTimeout = 2 * time.Second
	// endpointWait is how long a connection waits for its Service to have a ready endpoint.
	endpointWait = 5 * time.Second
)

// relay carries connections from sockets that listen anywhere to addresses inside the cluster. A socket keeps the
// network namespace that it was made in: one that was made outside and passed in is the way from the machine's
// loopback into the cluster.
type relay struct {
	factory  informers.SharedInformerFactory
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister

	mutex      sync.Mutex
	forwards   map[serviceTarget]net.Listener
	clusterIPs map[string]clusterIP
}

// clusterIP is a Service's own address and port (the key in the map), and where it leads.
type clusterIP struct {
	net.Listener
	to serviceTarget
}

// target says where a new connection should go, in order of preference.
type target interface {
	addresses(r *relay) ([]string, error)
}

type fixed string

func (f fixed) addresses(*relay) ([]string, error) { return []string{string(f)}, nil }

// serviceTarget is a port of a Service, by number or name.
type serviceTarget struct{ namespace, service, port string }

func newRelay(client kubernetes.Interface) *relay {
	factory := informers.NewSharedInformerFactory(client, 0)
	return &relay{
		factory:    factory,
		services:   factory.Core().V1().Services().Lister(),
		slices:     factory.Discovery().V1().EndpointSlices().Lister(),
		forwards:   map[serviceTarget]net.Listener{},
		clusterIPs: map[string]clusterIP{},
	}
}

func (r *relay) watch(ctx context.Context) {
	r.factory.Core().V1().Services().Informer()
	r.factory.Discovery().V1().EndpointSlices().Informer()
	r.factory.Start(ctx.Done())
	r.factory.WaitForCacheSync(ctx.Done())
}

func (r *relay) forwardAddress(to serviceTarget) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if listener := r.forwards[to]; listener != nil {
		return listener.Addr().String()
	}
	return ""
}

// forward serves the listener and returns its address, or an earlier one's that leads to the same place.
func (r *relay) forward(ctx context.Context, listener net.Listener, to serviceTarget) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if earlier := r.forwards[to]; earlier != nil {
		_ = listener.Close()
		return earlier.Addr().String()
	}
	r.forwards[to] = listener
	go r.serve(ctx, listener, to)
	return listener.Addr().String()
}

func (r *relay) serve(ctx context.Context, listener net.Listener, to target) {
	defer listener.Close()
	for {
		connection, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Print("relay: ", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go r.carry(connection.(*net.TCPConn), to)
	}
}

func (r *relay) carry(client *net.TCPConn, to target) {
	defer client.Close()
	server, err := r.dial(to)
	if err != nil {
		log.Printf("relay to %v: %v", to, err)
		// A reset says "refused" more honestly than an orderly end without an answer.
		_ = client.SetLinger(0)
		return
	}
	defer server.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(client, server)
	_ = client.CloseWrite()
	<-done
}

// dial resolves at the time of the connection, so that a Pod that was replaced is found.
func (r *relay) dial(to target) (*net.TCPConn, error) {
	deadline := time.Now().Add(endpointWait)
	for {
		addresses, err := to.addresses(r)
		for _, address := range addresses {
			var connection net.Conn
			if connection, err = net.DialTimeout("tcp", address, dialTimeout); err == nil {
				return connection.(*net.TCPConn), nil
			}
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (t serviceTarget) addresses(r *relay) ([]string, error) {
	service, err := r.services.Services(t.namespace).Get(t.service)
	if err != nil {
		return nil, err
	}
	name, err := servicePortName(service, t.port)
	if err != nil {
		return nil, err
	}
	selector := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: t.service})
	slices, err := r.slices.EndpointSlices(t.namespace).List(selector)
	if err != nil {
		return nil, err
	}
	addresses := readyAddresses(slices, name)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("service %s/%s has no ready endpoint", t.namespace, t.service)
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses, nil
}

func servicePortName(service *corev1.Service, port string) (string, error) {
	for _, candidate := range service.Spec.Ports {
		if candidate.Name == port || strconv.Itoa(int(candidate.Port)) == port {
			return candidate.Name, nil
		}
	}
	return "", fmt.Errorf("service %s/%s has no port %s", service.Namespace, service.Name, port)
}

func readyAddresses(slices []*discoveryv1.EndpointSlice, portName string) []string {
	var addresses []string
	for _, slice := range slices {
		for _, port := range slice.Ports {
			if port.Port == nil || (port.Name != nil && *port.Name != portName) || (port.Name == nil && portName != "") {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
					continue
				}
				for _, address := range endpoint.Addresses {
					addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return addresses
}

// serveClusterIPs stands in for kube-proxy: the bridge's side owns every Service's address and relays its TCP ports.
func (r *relay) serveClusterIPs(ctx context.Context) {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		log.Print("cluster addresses: ", err)
		return
	}
	sync := func(any) { r.syncClusterIPs(ctx, loopback) }
	_, err = r.factory.Core().V1().Services().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: sync, UpdateFunc: func(_, changed any) { sync(changed) }, DeleteFunc: sync,
	})
	if err != nil {
		log.Print("cluster addresses: ", err)
	}
}

func (r *relay) syncClusterIPs(ctx context.Context, loopback netlink.Link) {
	services, err := r.services.List(labels.Everything())
	if err != nil {
		log.Print("cluster addresses: ", err)
		return
	}
	wanted := map[string]serviceTarget{}
	for _, service := range services {
		if service.Spec.ClusterIP == "" || service.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		for _, port := range service.Spec.Ports {
			if port.Protocol == corev1.ProtocolTCP || port.Protocol == "" {
				number := strconv.Itoa(int(port.Port))
				wanted[net.JoinHostPort(service.Spec.ClusterIP, number)] = serviceTarget{service.Namespace, service.Name, number}
			}
		}
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for address, listener := range r.clusterIPs {
		if to, keep := wanted[address]; !keep || to != listener.to {
			_ = listener.Close()
			delete(r.clusterIPs, address)
		}
	}
	for address, to := range wanted {
		if _, served := r.clusterIPs[address]; served {
			continue
		}
		host, _, _ := net.SplitHostPort(address)
		if own, err := netlink.ParseAddr(host + "/32"); err == nil {
			// It may be there already, from another port of the Service.
			_ = netlink.AddrReplace(loopback, own)
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			log.Printf("cluster address %s: %v", address, err)
			continue
		}
		r.clusterIPs[address] = clusterIP{listener, to}
		go r.serve(ctx, listener, to)
	}
}
