package node

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"devcluster/hostpid"
)

const (
	setUpRetry = time.Second
	volumeSync = 500 * time.Millisecond
)

// identity is what never changes of a Pod.
type identity struct {
	namespace, name string
	uid             types.UID
}

// worker runs one Pod from its arrival on the node to its end.
type worker struct {
	node    *node
	id      identity
	volumes *volumes
	logs    string // folder of the containers' logs, kept when the Pod goes
	folder  string // everything else, removed with the Pod
	scratch string

	ending    context.Context // done when the Pod is to end
	end       context.CancelFunc
	forced    context.Context // done when it is to end at once
	force     context.CancelFunc
	finished  chan struct{} // closed when nothing of it runs any more
	mainsDone chan struct{}
	dirty     chan struct{}

	mutex      sync.Mutex
	network    *podNetwork // nil until it is made
	pod        *corev1.Pod // as the API server has it; its status is ours
	initial    []*container
	main       []*container
	initDone   bool
	deadlineAt time.Time
	started    metav1.Time
	conditions []corev1.PodCondition
	done       bool
}

func newWorker(n *node, pod *corev1.Pod) *worker {
	name := pod.Namespace + "_" + pod.Name + "_" + string(pod.UID)
	w := &worker{
		node: n, pod: pod, started: metav1.Now(), id: identity{pod.Namespace, pod.Name, pod.UID},
		logs:     filepath.Join(n.state, "logs", "pods", name),
		folder:   filepath.Join(n.state, "pods", name),
		finished: make(chan struct{}), mainsDone: make(chan struct{}), dirty: make(chan struct{}, 1),
	}
	w.scratch = filepath.Join(w.folder, "scratch")
	w.volumes = newVolumes(filepath.Join(w.folder, "volumes"), n.sources, n.client)
	w.ending, w.end = context.WithCancel(context.Background())
	w.forced, w.force = context.WithCancel(context.Background())
	waiting := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 {
		waiting = "PodInitializing"
	}
	for i := range pod.Spec.InitContainers {
		w.initial = append(w.initial, newContainer(w, &pod.Spec.InitContainers[i], true, waiting))
	}
	for i := range pod.Spec.Containers {
		w.main = append(w.main, newContainer(w, &pod.Spec.Containers[i], false, waiting))
	}
	return w
}

func (w *worker) key() string { return w.id.namespace + "/" + w.id.name }

func (w *worker) networkNow() *podNetwork {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.network
}

// address is the Pod's, empty until it has one.
func (w *worker) address() string {
	if opened := w.networkNow(); opened != nil {
		return opened.address.String()
	}
	return ""
}

func (w *worker) podNow() *corev1.Pod {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.pod
}

// update takes a newer version of the object: labels and annotations may have changed, and the deletion time.
func (w *worker) update(pod *corev1.Pod) {
	w.mutex.Lock()
	w.pod = pod
	w.mutex.Unlock()
	w.changed()
}

func (w *worker) event(kind, reason, message string) {
	w.node.recorder.Event(w.podNow(), kind, reason, message)
}

func (w *worker) deadline() time.Time {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.deadlineAt
}

// stop lets the Pod end within the grace period; a second call can only hurry it.
func (w *worker) stop(grace time.Duration) {
	w.mutex.Lock()
	end := time.Now().Add(grace)
	if w.deadlineAt.IsZero() || end.Before(w.deadlineAt) {
		w.deadlineAt = end
	}
	w.mutex.Unlock()
	w.end()
	if grace <= 0 {
		w.force()
	}
}

// run is the Pod's life. Everything that it made is gone when it returns.
func (w *worker) run() {
	publishing := make(chan struct{})
	go func() {
		w.publish()
		close(publishing)
	}()
	w.changed()
	syncing, stopSync := context.WithCancel(context.Background())
	var keeper sync.WaitGroup
	if w.setUp() {
		keeper.Go(func() { w.keepVolumes(syncing) })
		w.runContainers()
	}
	stopSync()
	keeper.Wait()
	w.mutex.Lock()
	w.done = true
	w.mutex.Unlock()
	w.changed()
	close(w.finished)
	<-publishing
	if opened := w.networkNow(); opened != nil {
		w.node.network.close(opened)
	}
	if err := os.RemoveAll(w.folder); err != nil {
		log.Printf("%s: %v", w.key(), err)
	}
	_ = os.Remove(w.pidFile())
}

// setUp gives the Pod its network and volumes; it tries until both are there or the Pod is to end.
func (w *worker) setUp() bool {
	for attempt := 0; w.ending.Err() == nil; attempt++ {
		err := w.trySetUp()
		if err == nil {
			return true
		}
		if attempt%10 == 0 {
			w.event(corev1.EventTypeWarning, "FailedMount", err.Error())
		}
		if attempt == 0 && len(w.initial) == 0 {
			for _, c := range w.main {
				c.waiting("ContainerCreating", err.Error())
			}
		}
		sleep(w.ending, setUpRetry/4)
	}
	return false
}

func (w *worker) trySetUp() error {
	if err := os.MkdirAll(w.scratch, 0o755); err != nil {
		return err
	}
	if w.networkNow() == nil {
		opened, err := w.node.network.open()
		if err != nil {
			return err
		}
		w.mutex.Lock()
		w.network = opened
		w.mutex.Unlock()
	}
	return w.volumes.sync(w.ending, w.podNow(), w.address())
}

func (w *worker) keepVolumes(ctx context.Context) {
	for sleep(ctx, volumeSync) {
		if err := w.volumes.sync(ctx, w.podNow(), w.address()); err != nil && ctx.Err() == nil {
			// An object may be gone for a moment; the last good content stays.
			log.Printf("%s: %v", w.key(), err)
		}
	}
}

func (w *worker) runContainers() {
	var mains, sidecars sync.WaitGroup
	good := true
	for _, c := range w.initial {
		if w.ending.Err() != nil {
			good = false
			break
		}
		if c.sidecar() {
			sidecars.Go(func() { c.run(w.ending) })
			good = w.awaitStarted(c)
		} else {
			good = c.run(w.ending)
		}
		if !good {
			break
		}
	}
	if good {
		w.mutex.Lock()
		w.initDone = true
		w.mutex.Unlock()
		w.changed()
		for _, c := range w.main {
			mains.Go(func() { c.run(w.ending) })
		}
	}
	mains.Wait()
	close(w.mainsDone)
	// A Pod whose own containers are done needs its sidecars no more.
	w.stop(gracePeriod(w.podNow()))
	sidecars.Wait()
}

func (w *worker) awaitStarted(c *container) bool {
	for sleep(w.ending, 50*time.Millisecond) {
		w.mutex.Lock()
		started := c.status.State.Running != nil && c.status.Started != nil && *c.status.Started
		w.mutex.Unlock()
		if started {
			return true
		}
	}
	return false
}

func gracePeriod(pod *corev1.Pod) time.Duration {
	switch {
	case pod.DeletionGracePeriodSeconds != nil:
		return time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	default:
		return 30 * time.Second
	}
}

// changed asks for the status to be published; many changes at once make one publication.
func (w *worker) changed() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

func (w *worker) publish() {
	for {
		<-w.dirty
		w.mutex.Lock()
		pod := w.pod.DeepCopy()
		pod.Status = w.podStatus()
		done := w.done
		pids := w.pids()
		w.mutex.Unlock()
		w.writePIDs(pids)
		w.node.notify(pod)
		if done {
			return
		}
	}
}

func (w *worker) container(name string) *container {
	for _, c := range append(append([]*container{}, w.main...), w.initial...) {
		if c.spec.Name == name || name == "" {
			return c
		}
	}
	return nil
}

// pids are the machine's process ids by container. The worker's mutex is held.
func (w *worker) pids() map[string]int {
	pids := map[string]int{}
	for _, c := range append(append([]*container{}, w.initial...), w.main...) {
		if c.process == nil {
			continue
		}
		if pid, err := hostpid.Of(c.process.pid); err == nil {
			pids[c.spec.Name] = pid
		}
	}
	return pids
}

func (w *worker) pidFile() string {
	return filepath.Join(w.node.state, "run", "pods", w.id.namespace+"_"+w.id.name+".json")
}

// writePIDs tells tests outside which process is which container.
func (w *worker) writePIDs(pids map[string]int) {
	text, err := json.Marshal(map[string]any{"uid": w.id.uid, "address": w.address(), "containers": pids})
	if err == nil {
		temporary := w.pidFile() + ".new"
		if err = os.WriteFile(temporary, text, 0o644); err == nil {
			err = os.Rename(temporary, w.pidFile())
		}
	}
	if err != nil {
		log.Printf("%s: %v", w.key(), err)
	}
}
