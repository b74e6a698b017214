package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	utilexec "k8s.io/utils/exec"
)

const (
	// objectTimeout bounds how long the node tries to remove a Pod's object; virtual-kubelet tries again later.
	objectTimeout  = time.Minute
	statusPatience = 2 * time.Second
	statusInterval = 20 * time.Millisecond
)

// These methods are what virtual-kubelet asks of a provider. Pods live in workers; the methods return at once.

// CreatePod starts a worker. One that is left of an earlier Pod of that name is ended first.
func (n *node) CreatePod(_ context.Context, pod *corev1.Pod) error {
	key := pod.Namespace + "/" + pod.Name
	n.mutex.Lock()
	earlier := n.workers[key]
	n.mutex.Unlock()
	if earlier != nil {
		if earlier.id.uid == pod.UID {
			return nil
		}
		earlier.stop(0)
		<-earlier.finished
	}
	created := newWorker(n, pod)
	n.mutex.Lock()
	n.workers[key] = created
	n.mutex.Unlock()
	go created.run()
	return nil
}

// UpdatePod takes the newer object, or replaces the Pod if it is another of the same name.
func (n *node) UpdatePod(ctx context.Context, pod *corev1.Pod) error {
	w := n.worker(pod.Namespace, pod.Name)
	if w == nil || w.id.uid != pod.UID {
		return n.CreatePod(ctx, pod)
	}
	w.update(pod)
	return nil
}

// DeletePod lets the Pod end within its grace period and forgets it afterwards.
func (n *node) DeletePod(ctx context.Context, pod *corev1.Pod) error {
	w := n.worker(pod.Namespace, pod.Name)
	if w == nil || w.id.uid != pod.UID {
		return errdefs.NotFound("no such Pod")
	}
	grace := gracePeriod(pod)
	if pod.DeletionTimestamp == nil {
		// The object is gone already: there is nobody to be patient for.
		grace = 0
	} else {
		w.update(pod)
	}
	w.stop(grace)
	go n.forget(w)
	return nil
}

// forget waits for the Pod's end and removes its object at once, as the kubelet does; virtual-kubelet would leave it
// there for the whole grace period.
func (n *node) forget(w *worker) {
	<-w.finished
	pod := w.podNow()
	key := pod.Namespace + "/" + pod.Name
	n.mutex.Lock()
	if n.workers[key] == w {
		delete(n.workers, key)
	}
	n.mutex.Unlock()
	if pod.DeletionTimestamp == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), objectTimeout)
	defer cancel()
	// Controllers should see how it ended before it goes.
	for range int(statusPatience / statusInterval) {
		known, err := n.pods.Pods(pod.Namespace).Get(pod.Name)
		if err != nil || known.UID != pod.UID || known.Status.Phase == corev1.PodSucceeded || known.Status.Phase == corev1.PodFailed {
			break
		}
		sleep(ctx, statusInterval)
	}
	now := metav1.NewDeleteOptions(0)
	now.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
	for {
		err := n.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *now)
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		log.Printf("%s: %v", key, err)
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

// GetPod returns the Pod with its present status.
func (n *node) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	w := n.worker(namespace, name)
	if w == nil {
		return nil, errdefs.NotFound("no such Pod")
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	pod := w.pod.DeepCopy()
	pod.Status = w.podStatus()
	return pod, nil
}

// GetPodStatus returns a Pod's present status.
func (n *node) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := n.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

// GetPods returns all Pods of the node.
func (n *node) GetPods(ctx context.Context) ([]*corev1.Pod, error) {
	n.mutex.Lock()
	var known []identity
	for _, w := range n.workers {
		known = append(known, w.id)
	}
	n.mutex.Unlock()
	var pods []*corev1.Pod
	for _, id := range known {
		if pod, err := n.GetPod(ctx, id.namespace, id.name); err == nil {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// NotifyPods keeps the function that tells virtual-kubelet of a changed status.
func (n *node) NotifyPods(_ context.Context, notify func(*corev1.Pod)) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.notifyPods = notify
}

func (n *node) notify(pod *corev1.Pod) {
	n.mutex.Lock()
	notify := n.notifyPods
	n.mutex.Unlock()
	if notify != nil {
		notify(pod)
	}
}

func (n *node) worker(namespace, name string) *worker {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return n.workers[namespace+"/"+name]
}

func (n *node) find(namespace, pod, name string) (*container, error) {
	w := n.worker(namespace, pod)
	if w == nil {
		return nil, errdefs.NotFoundf("no Pod %s/%s on this node", namespace, pod)
	}
	c := w.container(name)
	if c == nil {
		return nil, errdefs.NotFoundf("no container %s in Pod %s/%s", name, namespace, pod)
	}
	return c, nil
}

// GetContainerLogs serves kubectl logs.
func (n *node) GetContainerLogs(
	ctx context.Context, namespace, pod, name string, options api.ContainerLogOpts,
) (io.ReadCloser, error) {
	c, err := n.find(namespace, pod, name)
	if err != nil {
		return nil, err
	}
	return c.readLog(ctx, options)
}

// RunInContainer serves kubectl exec, without a terminal.
func (n *node) RunInContainer(
	ctx context.Context, namespace, pod, name string, command []string, attach api.AttachIO,
) error {
	c, err := n.find(namespace, pod, name)
	if err != nil {
		return err
	}
	run := program{argv: command, stdin: attach.Stdin()}
	// A nil interface inside an interface is not nil: set only what is there.
	if out := attach.Stdout(); out != nil {
		run.stdout = out
		defer out.Close()
	}
	if out := attach.Stderr(); out != nil {
		run.stderr = out
		defer out.Close()
	}
	code, err := c.exec(ctx, run)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: int(code)}
	}
	return err
}

// AttachToContainer is not supported: containers have no standard input here.
func (n *node) AttachToContainer(context.Context, string, string, string, api.AttachIO) error {
	return errors.New("this node can not attach to a container")
}

// GetStatsSummary returns nothing: this node measures no resources.
func (n *node) GetStatsSummary(context.Context) (*statsv1alpha1.Summary, error) {
	return &statsv1alpha1.Summary{}, nil
}

// GetMetricsResource returns nothing: this node measures no resources.
func (n *node) GetMetricsResource(context.Context) ([]*dto.MetricFamily, error) { return nil, nil }

// PortForward serves kubectl port-forward.
func (n *node) PortForward(ctx context.Context, namespace, name string, port int32, stream io.ReadWriteCloser) error {
	w := n.worker(namespace, name)
	if w == nil || w.address() == "" {
		return errdefs.NotFoundf("no Pod %s/%s on this node", namespace, name)
	}
	address := net.JoinHostPort(w.address(), strconv.Itoa(int(port)))
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, stream)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, server)
	return err
}
