package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

const (
	imageRetry = 5 * time.Second
	// afterPreStop is what a program gets for its own end when its preStop hook used the whole grace period.
	afterPreStop = 2 * time.Second
	hookTimeout  = time.Minute
)

// container is one container of a Pod over all its starts. The worker's mutex guards what follows it.
type container struct {
	worker *worker
	spec   *corev1.Container
	init   bool

	// guarded by worker.mutex
	status  corev1.ContainerStatus
	process *process
	env     []string // of the present process
}

func newContainer(w *worker, spec *corev1.Container, init bool, waiting string) *container {
	no := false
	return &container{worker: w, spec: spec, init: init, status: corev1.ContainerStatus{
		Name: spec.Name, Image: spec.Image, Started: &no,
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: waiting}},
	}}
}

// sidecar is an init container that keeps running.
func (c *container) sidecar() bool {
	return c.init && c.spec.RestartPolicy != nil && *c.spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// restarts says whether the container is started again after it ended with the code.
func (c *container) restarts(code int32) bool {
	switch policy := c.worker.podNow().Spec.RestartPolicy; {
	case c.sidecar():
		return true
	case c.init:
		return code != 0 && policy != corev1.RestartPolicyNever
	default:
		return policy == corev1.RestartPolicyAlways || (policy == corev1.RestartPolicyOnFailure && code != 0)
	}
}

// set changes the status under the lock and publishes it.
func (c *container) set(change func(*corev1.ContainerStatus)) {
	c.worker.mutex.Lock()
	change(&c.status)
	c.worker.mutex.Unlock()
	c.worker.changed()
}

// remember keeps how the last process ended before another state takes its place.
func remember(status *corev1.ContainerStatus) {
	if status.State.Terminated != nil {
		status.LastTerminationState = status.State
	}
}

func (c *container) waiting(reason, message string) {
	c.set(func(status *corev1.ContainerStatus) {
		status.Ready = false
		remember(status)
		status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	})
}

// run starts the container, again and again as its restart policy says, until it is done or the Pod is to end. Its
// result says whether it ended well.
func (c *container) run(ctx context.Context) bool {
	delays := backOff{}
	for restart := 0; ctx.Err() == nil; {
		began := time.Now()
		current, err := c.start(ctx, restart)
		if err != nil {
			if !c.cannotStart(ctx, err) {
				break
			}
			continue
		}
		code := c.supervise(ctx, current)
		if ctx.Err() != nil || !c.restarts(code) {
			return code == 0
		}
		restart++
		c.backOff(ctx, delays.after(time.Since(began)))
	}
	// The Pod is to end before this container ran (again).
	c.set(func(status *corev1.ContainerStatus) {
		if status.State.Terminated == nil {
			status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "ContainerStatusUnknown", Message: "the Pod ended before the container ran", ExitCode: 137,
			}}
		}
	})
	return false
}

// cannotStart shows why and waits; false when the Pod is to end.
func (c *container) cannotStart(ctx context.Context, err error) bool {
	reason := "RunContainerError"
	var known *startError
	if errors.As(err, &known) {
		reason = known.reason
	}
	c.waiting(reason, err.Error())
	c.worker.event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("container %s: %v", c.spec.Name, err))
	delay := time.Second
	if reason == "ErrImagePull" {
		delay = imageRetry
	}
	return sleep(ctx, delay)
}

func (c *container) backOff(ctx context.Context, delay time.Duration) {
	if delay == 0 {
		return
	}
	message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, c.spec.Name, c.worker.key())
	c.waiting("CrashLoopBackOff", message)
	c.worker.event(corev1.EventTypeWarning, "BackOff", message)
	sleep(ctx, delay)
}

func sleep(ctx context.Context, delay time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}

// startError carries the reason that a container's status shows.
type startError struct {
	reason string
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func (c *container) start(ctx context.Context, restart int) (*process, error) {
	w := c.worker
	table, err := readImages(w.node.images)
	if err != nil {
		return nil, &startError{"ErrImagePull", err}
	}
	entry, err := table.find(c.spec.Image)
	if err != nil {
		return nil, &startError{"ErrImagePull", err}
	}
	pod := w.podNow()
	environment, err := w.node.sources.environment(pod, c.spec, w.address())
	if err != nil {
		return nil, &startError{"CreateContainerConfigError", err}
	}
	mapping := expansion.MappingFuncFor(environment)
	mounts, err := w.volumes.mountsOf(pod, c.spec, func(text string) string { return expansion.Expand(text, mapping) })
	if err != nil {
		return nil, &startError{"CreateContainerConfigError", err}
	}
	log, err := c.openLog(restart)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	mounts = append(mounts, entry.kept(mounts)...)
	root := &rootFS{
		scratch: w.scratch, hostname: pod.Name, address: w.address(), resolv: w.node.resolv(pod), mounts: mounts,
	}
	env := processEnvironment(entry, environment)
	current, err := startProcess(w.networkNow().namespace, root.enter, program{
		argv: commandLine(entry, c.spec, environment), env: env, folder: c.spec.WorkingDir, stdout: log, stderr: log,
	})
	if err != nil {
		return nil, err
	}
	c.set(func(status *corev1.ContainerStatus) {
		started := c.spec.StartupProbe == nil
		remember(status)
		c.process, c.env = current, env
		status.ImageID = "process://" + c.spec.Image
		status.ContainerID = fmt.Sprintf("process://%s/%d", w.id.uid, current.pid)
		status.RestartCount = int32(restart)
		status.Started = &started
		status.Ready = started && c.spec.ReadinessProbe == nil
		status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(current.started)}}
	})
	if hook := c.spec.Lifecycle; hook != nil && hook.PostStart != nil {
		if err := c.hook(ctx, hook.PostStart, hookTimeout); err != nil {
			w.event(corev1.EventTypeWarning, "FailedPostStartHook", fmt.Sprintf("container %s: %v", c.spec.Name, err))
			current.kill()
		}
	}
	return current, nil
}

// supervise watches a process until it has ended, by itself, by a failed liveness probe or with the Pod.
func (c *container) supervise(ctx context.Context, current *process) int32 {
	probing, stopProbes := context.WithCancel(ctx)
	unhealthy := make(chan error, 1)
	go c.probe(probing, unhealthy)
	select {
	case <-current.exited:
	case err := <-unhealthy:
		message := fmt.Sprintf("container %s failed its probe and will be restarted: %v", c.spec.Name, err)
		c.worker.event(corev1.EventTypeNormal, "Killing", message)
		stopProbes()
		c.stop(current, c.graceAfterProbe())
	case <-ctx.Done():
		if c.sidecar() {
			// Sidecars serve until the last of the Pod's own containers has ended.
			<-c.worker.mainsDone
		}
		c.stop(current, time.Until(c.worker.deadline()))
	}
	stopProbes()
	code, signal := current.exitCode()
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	c.set(func(status *corev1.ContainerStatus) {
		no := false
		status.Started = &no
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Signal: signal, Reason: reason, StartedAt: metav1.NewTime(current.started),
			FinishedAt: metav1.NewTime(current.ended), ContainerID: status.ContainerID,
		}}
		// An init container that is through counts as ready.
		status.Ready = c.init && !c.sidecar() && code == 0
		c.process = nil
	})
	return code
}

func (c *container) graceAfterProbe() time.Duration {
	for _, probe := range []*corev1.Probe{c.spec.LivenessProbe, c.spec.StartupProbe} {
		if probe != nil && probe.TerminationGracePeriodSeconds != nil {
			return time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
		}
	}
	if grace := c.worker.podNow().Spec.TerminationGracePeriodSeconds; grace != nil {
		return time.Duration(*grace) * time.Second
	}
	return 30 * time.Second
}

// probe runs the startup probe first, then readiness and liveness beside each other.
func (c *container) probe(ctx context.Context, unhealthy chan<- error) {
	if c.spec.StartupProbe != nil {
		startup, done := context.WithCancel(ctx)
		failed := false
		c.probeLoop(startup, "Startup", c.spec.StartupProbe, func(passed bool, reason error) {
			if !passed {
				failed = true
				unhealthy <- reason
			} else {
				c.set(func(status *corev1.ContainerStatus) {
					status.Started = &passed
					status.Ready = c.spec.ReadinessProbe == nil
				})
			}
			done()
		})
		done()
		if failed || ctx.Err() != nil {
			return
		}
	}
	if c.spec.ReadinessProbe != nil {
		go c.probeLoop(ctx, "Readiness", c.spec.ReadinessProbe, func(passed bool, _ error) {
			c.set(func(status *corev1.ContainerStatus) {
				// The process may have ended since.
				status.Ready = passed && status.State.Running != nil
			})
		})
	}
	if c.spec.LivenessProbe != nil {
		c.probeLoop(ctx, "Liveness", c.spec.LivenessProbe, func(passed bool, reason error) {
			if !passed {
				select {
				case unhealthy <- reason:
				default:
				}
			}
		})
	}
}

// stop ends a process as a runtime does: the preStop hook, SIGTERM to the program, SIGKILL to all of it after the grace.
func (c *container) stop(current *process, grace time.Duration) {
	end := time.Now().Add(grace)
	if hook := c.spec.Lifecycle; hook != nil && hook.PreStop != nil && grace > 0 {
		if err := c.hook(context.Background(), hook.PreStop, grace); err != nil {
			c.worker.event(corev1.EventTypeWarning, "FailedPreStopHook", fmt.Sprintf("container %s: %v", c.spec.Name, err))
		}
		if least := time.Now().Add(afterPreStop); end.Before(least) {
			end = least
		}
	}
	current.terminate()
	ctx, cancel := context.WithDeadline(c.worker.forced, end)
	defer cancel()
	if !current.wait(ctx) {
		current.kill()
	}
	<-current.exited
}

func (c *container) hook(ctx context.Context, action *corev1.LifecycleHandler, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(c.worker.forced, cancel)
	defer stop()
	switch {
	case action.Sleep != nil:
		if !sleep(ctx, time.Duration(action.Sleep.Seconds)*time.Second) {
			return ctx.Err()
		}
		return nil
	case action.HTTPGet != nil:
		return c.httpGet(ctx, action.HTTPGet)
	case action.Exec != nil:
		code, err := c.exec(ctx, program{argv: action.Exec.Command})
		if err == nil && code != 0 {
			err = fmt.Errorf("%s exited with %d", action.Exec.Command[0], code)
		}
		return err
	default:
		return nil
	}
}

// exec runs a program beside the container's, with its file system, network and environment.
func (c *container) exec(ctx context.Context, run program) (int32, error) {
	c.worker.mutex.Lock()
	current, env := c.process, c.env
	c.worker.mutex.Unlock()
	if current == nil {
		return 0, fmt.Errorf("container %s does not run", c.spec.Name)
	}
	run.env = env
	run.folder = c.spec.WorkingDir
	return runToEnd(ctx, c.worker.networkNow().namespace, current.pid, run)
}

func (c *container) logFile(restart int) string {
	return filepath.Join(c.worker.logs, c.spec.Name, strconv.Itoa(restart)+".log")
}

func (c *container) openLog(restart int) (*os.File, error) {
	path := c.logFile(restart)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}
