// Package node is a Kubernetes node whose Pods are processes of this machine: each Pod in a network namespace of its
// own, each container with a root of its own over the machine's file system. Images are names in a table of local
// programs. It is built on virtual-kubelet, which registers the node and speaks with the API server.
//
// Accepted and ignored: security contexts (every process runs as the user of the cluster), CPU and memory limits,
// and readiness gates.
package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	virtualkubelet "github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

const podWorkers = 16

type node struct {
	state    string
	images   string
	dns      string
	client   kubernetes.Interface
	recorder record.EventRecorder
	network  *network
	sources  *sources
	pods     corelisters.PodLister

	mutex      sync.Mutex
	workers    map[string]*worker
	notifyPods func(*corev1.Pod)
}

type options struct {
	name, state, images, kubeconfig string
	address, apiAddress             string
	certificate, key, clientCA      string
	gpus                            int
}

// Run is the node's main program.
func Run(arguments []string) error {
	o := options{}
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	flags.StringVar(&o.name, "name", "process-node", "name of the node")
	flags.StringVar(&o.state, "state", "", "the cluster's folder")
	flags.StringVar(&o.images, "images", "", "the image table, a JSON file")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server")
	flags.StringVar(&o.address, "address", "10.244.0.1", "the node's own address")
	flags.StringVar(&o.apiAddress, "api-port", "6443", "the API server's port at that address, for Pods")
	flags.StringVar(&o.certificate, "tls-cert", "", "certificate of the node's own server")
	flags.StringVar(&o.key, "tls-key", "", "its key")
	flags.StringVar(&o.clientCA, "client-ca", "", "who may ask this node: certificates of this authority")
	flags.IntVar(&o.gpus, "gpus", 64, "how many of nvidia.com/gpu the node says it has")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	// What an earlier process of this node left (its Pods' processes ended with it).
	for _, folder := range []string{"pods", "run/pods"} {
		path := filepath.Join(o.state, folder)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := serve(ctx, &o)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func serve(ctx context.Context, o *options) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	defer broadcaster.Shutdown()
	n := &node{
		state: o.state, images: o.images, dns: o.address, client: client, network: newNetwork(), workers: map[string]*worker{},
		recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "process-node", Host: o.name}),
	}
	serverTLS, err := serverConfig(o)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	capacity := corev1.ResourceList{
		"cpu": resource.MustParse("64"), "memory": resource.MustParse("256Gi"), "ephemeral-storage": resource.MustParse("1Ti"),
		"pods": resource.MustParse("500"), "nvidia.com/gpu": *resource.NewQuantity(int64(o.gpus), resource.DecimalSI),
	}
	built, err := nodeutil.NewNode(o.name,
		func(provider nodeutil.ProviderConfig) (nodeutil.Provider, virtualkubelet.NodeProvider, error) {
			n.sources = &sources{
				configMaps: provider.ConfigMaps, secrets: provider.Secrets, allocatable: capacity,
				nodeName: o.name, hostIP: o.address, apiHost: o.address, apiPort: o.apiAddress,
			}
			n.pods = provider.Pods
			return n, nil, nil
		},
		nodeutil.WithClient(client),
		func(c *nodeutil.NodeConfig) error {
			c.HTTPListenAddr = o.address + ":10250"
			c.TLSConfig = serverTLS
			c.Handler = mux
			c.NumWorkers = podWorkers
			c.EventRecorder = n.recorder
			c.SkipDownwardAPIResolution = true
			describe(&c.NodeSpec, o, capacity)
			return nil
		},
		nodeutil.AttachProviderRoutes(mux),
		nodeutil.WithPodControllerConfigOverrides(patientQueues),
	)
	if err != nil {
		return err
	}
	return built.Run(ctx)
}

// serverConfig lets only holders of the cluster's own client certificates (the API server) ask this node.
func serverConfig(o *options) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(o.clientCA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", o.clientCA)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12,
	}, nil
}

func describe(spec *corev1.Node, o *options, capacity corev1.ResourceList) {
	spec.Labels["type"] = "process-node"
	spec.Labels["kubernetes.io/os"] = "linux"
	spec.Labels["topology.kubernetes.io/zone"] = "local"
	spec.Spec.Taints = nil
	spec.Status.Capacity, spec.Status.Allocatable = capacity, capacity
	spec.Status.NodeInfo.KubeletVersion = "process-node (no containers)"
	spec.Status.NodeInfo.OperatingSystem = "linux"
	spec.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: o.address}, {Type: corev1.NodeHostName, Address: o.name},
	}
	spec.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250
	now := metav1.Now()
	spec.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "Starting"}}
	for _, pressure := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		spec.Status.Conditions = append(spec.Status.Conditions, corev1.NodeCondition{
			Type: pressure, Status: corev1.ConditionFalse, Reason: "NotMeasured", LastHeartbeatTime: now, LastTransitionTime: now,
		})
	}
}

// patientQueues never gives up on a Pod, as long as the API server may be away, and never waits long between attempts.
func patientQueues(config *virtualkubelet.PodControllerConfig) error {
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](5*time.Millisecond, time.Second)
	}
	retry := func(context.Context, string, int, time.Time, error) (*time.Duration, error) { return nil, nil }
	config.SyncPodsFromKubernetesRateLimiter = limiter()
	config.DeletePodsFromKubernetesRateLimiter = limiter()
	config.SyncPodStatusFromProviderRateLimiter = limiter()
	config.SyncPodsFromKubernetesShouldRetryFunc = retry
	config.DeletePodsFromKubernetesShouldRetryFunc = retry
	config.SyncPodStatusFromProviderShouldRetryFunc = retry
	return nil
}

// resolv is a Pod's resolv.conf.
func (n *node) resolv(pod *corev1.Pod) string {
	options := ""
	if pod.Spec.DNSConfig != nil {
		for _, option := range pod.Spec.DNSConfig.Options {
			options += " " + option.Name
			if option.Value != nil {
				options += ":" + *option.Value
			}
		}
	}
	if options == "" {
		options = " ndots:" + strconv.Itoa(5)
	}
	return fmt.Sprintf("nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions%s\n",
		n.dns, pod.Namespace, options)
}
