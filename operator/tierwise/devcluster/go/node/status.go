package node

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podStatus puts the containers' states together. The worker's mutex is held.
func (w *worker) podStatus() corev1.PodStatus {
	status := corev1.PodStatus{
		HostIP:    w.node.sources.hostIP,
		HostIPs:   []corev1.HostIP{{IP: w.node.sources.hostIP}},
		StartTime: &w.started,
		QOSClass:  w.pod.Status.QOSClass,
	}
	if w.network != nil {
		status.PodIP = w.network.address.String()
		status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	}
	for _, c := range w.initial {
		status.InitContainerStatuses = append(status.InitContainerStatuses, *c.status.DeepCopy())
	}
	ready := len(w.main) > 0
	for _, c := range w.main {
		status.ContainerStatuses = append(status.ContainerStatuses, *c.status.DeepCopy())
		ready = ready && c.status.Ready
	}
	for _, c := range w.initial {
		// A regular init container counts as ready once it completed; a sidecar by its probes.
		if c.sidecar() {
			ready = ready && c.status.Ready
		}
	}
	status.Phase = phase(w.pod.Spec.RestartPolicy, w.initDone, initFailed(w.initial, w.pod.Spec.RestartPolicy), w.done, status.ContainerStatuses)
	finished := status.Phase == corev1.PodSucceeded || status.Phase == corev1.PodFailed
	reason := ""
	if finished {
		reason = "PodCompleted"
	} else if !ready {
		reason = "ContainersNotReady"
	}
	w.condition(corev1.PodReadyToStartContainers, w.network != nil && !finished, "")
	w.condition(corev1.PodInitialized, w.initDone, "")
	w.condition(corev1.ContainersReady, ready && !finished, reason)
	w.condition(corev1.PodReady, ready && !finished, reason)
	w.condition(corev1.PodScheduled, true, "")
	status.Conditions = append([]corev1.PodCondition{}, w.conditions...)
	return status
}

// condition sets one, keeping the time of its last transition.
func (w *worker) condition(kind corev1.PodConditionType, holds bool, reason string) {
	value := corev1.ConditionFalse
	if holds {
		value = corev1.ConditionTrue
	}
	for i := range w.conditions {
		if w.conditions[i].Type == kind {
			if w.conditions[i].Status != value {
				w.conditions[i].LastTransitionTime = metav1.Now()
			}
			w.conditions[i].Status, w.conditions[i].Reason = value, reason
			return
		}
	}
	w.conditions = append(w.conditions, corev1.PodCondition{
		Type: kind, Status: value, Reason: reason, LastTransitionTime: metav1.Now(),
	})
}

func initFailed(initial []*container, policy corev1.RestartPolicy) bool {
	for _, c := range initial {
		terminated := c.status.State.Terminated
		if policy == corev1.RestartPolicyNever && !c.sidecar() && terminated != nil && terminated.ExitCode != 0 {
			return true
		}
	}
	return false
}

// phase follows the kubelet's rules: a Pod is over when none of its containers runs or will run again.
func phase(
	policy corev1.RestartPolicy, initialized, initFailed, done bool, statuses []corev1.ContainerStatus,
) corev1.PodPhase {
	if initFailed {
		return corev1.PodFailed
	}
	succeeded, over := true, true
	running, waitingAtFirst := false, false
	for _, status := range statuses {
		terminated := status.State.Terminated
		if terminated == nil || terminated.ExitCode != 0 {
			succeeded = false
		}
		if terminated == nil {
			over = false
			if status.State.Running != nil || status.LastTerminationState.Terminated != nil {
				running = true
			} else {
				waitingAtFirst = true
			}
			continue
		}
		if policy == corev1.RestartPolicyAlways || (policy == corev1.RestartPolicyOnFailure && terminated.ExitCode != 0) {
			over = over && done
			running = true
		}
	}
	switch {
	case done || (over && initialized):
		if succeeded {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	case !initialized || waitingAtFirst:
		return corev1.PodPending
	case running:
		return corev1.PodRunning
	default:
		return corev1.PodPending
	}
}
