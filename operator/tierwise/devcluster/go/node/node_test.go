package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestBackOffStartsAtOnceThenDoubles(t *testing.T) {
	delays := backOff{}
	var got []time.Duration
	for range 8 {
		got = append(got, delays.after(time.Second))
	}
	want := []time.Duration{0, 1, 2, 4, 8, 16, 30, 30}
	for i := range want {
		if got[i] != want[i]*time.Second {
			t.Fatalf("delays %v", got)
		}
	}
	if delay := delays.after(backOffReset); delay != 0 {
		t.Errorf("after a long run the delay is %v", delay)
	}
}

func TestTallyReachesItsThresholds(t *testing.T) {
	counts := newTally(&corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3}, false)
	steps := []struct{ result, passed, decided bool }{
		{true, false, false}, {true, true, true}, {false, true, false}, {false, true, false},
		{true, true, false}, {false, true, false}, {false, true, false}, {false, false, true}, {true, false, false},
	}
	for i, step := range steps {
		passed, decided := counts.observe(step.result)
		if passed != step.passed || decided != step.decided {
			t.Errorf("step %d: passed %v, decided %v", i, passed, decided)
		}
	}
}

func TestTallyWithoutThresholdsDecidesAtOnce(t *testing.T) {
	counts := newTally(&corev1.Probe{}, true)
	if passed, decided := counts.observe(false); passed || !decided {
		t.Errorf("passed %v, decided %v", passed, decided)
	}
}

func TestCommandLine(t *testing.T) {
	entry := &image{Entrypoint: []string{"serve", "--fast"}}
	env := map[string]string{"PORT": "80"}
	cases := []struct {
		container corev1.Container
		want      string
	}{
		{corev1.Container{}, "serve --fast"},
		{corev1.Container{Args: []string{"--port=$(PORT)"}}, "serve --fast --port=80"},
		{corev1.Container{Command: []string{"sh", "-c"}, Args: []string{"$(PORT) $(NONE) $$(PORT)"}}, "sh -c 80 $(NONE) $(PORT)"},
	}
	for _, c := range cases {
		if got := strings.Join(commandLine(entry, &c.container, env), " "); got != c.want {
			t.Errorf("%q, wanted %q", got, c.want)
		}
	}
}

func TestProcessEnvironmentPutsTheImagesFoldersInFront(t *testing.T) {
	entry := &image{Path: []string{"/image"}, Env: map[string]string{"A": "image", "B": "image"}}
	got := processEnvironment(entry, map[string]string{"B": "own", "PATH": "/own"})
	if want := []string{"A=image", "B=own", "PATH=/image:/own"}; !slices.Equal(got, want) {
		t.Errorf("%v, wanted %v", got, want)
	}
}

func TestImagesMatchWithOrWithoutRegistryAndTag(t *testing.T) {
	table := imageTable{
		{Image: "envoyproxy/envoy", Entrypoint: []string{"envoy"}}, {Image: "*tierwise*", Entrypoint: []string{"tierwise"}},
	}
	cases := map[string]string{
		"envoyproxy/envoy:v1.40.0": "envoy", "docker.io/envoyproxy/envoy@sha256:00": "envoy",
		"registry:5000/team/tierwise/operator": "tierwise",
	}
	for name, want := range cases {
		entry, err := table.find(name)
		if err != nil || entry.Entrypoint[0] != want {
			t.Errorf("%s: %v %v", name, entry, err)
		}
	}
	if _, err := table.find("nginx"); err == nil || !strings.Contains(err.Error(), "envoyproxy/envoy") {
		t.Errorf("an unknown image must say what is known: %v", err)
	}
}

func TestPhase(t *testing.T) {
	running := corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	waiting := corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}
	good := corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}
	bad := corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1}}}
	again := corev1.ContainerStatus{State: waiting.State, LastTerminationState: bad.State}
	cases := []struct {
		name         string
		policy       corev1.RestartPolicy
		init, failed bool
		done         bool
		statuses     []corev1.ContainerStatus
		want         corev1.PodPhase
	}{
		{"init containers run", "Always", false, false, false, []corev1.ContainerStatus{waiting}, "Pending"},
		{"init failed for good", "Never", false, true, false, []corev1.ContainerStatus{waiting}, "Failed"},
		{"one waits for its image", "Always", true, false, false, []corev1.ContainerStatus{running, waiting}, "Pending"},
		{"running", "Always", true, false, false, []corev1.ContainerStatus{running, running}, "Running"},
		{"crash loop", "Always", true, false, false, []corev1.ContainerStatus{again}, "Running"},
		{"between two runs", "Always", true, false, false, []corev1.ContainerStatus{bad}, "Running"},
		{"job is done", "Never", true, false, false, []corev1.ContainerStatus{good, good}, "Succeeded"},
		{"job failed", "Never", true, false, false, []corev1.ContainerStatus{good, bad}, "Failed"},
		{"deleted", "Always", true, false, true, []corev1.ContainerStatus{bad}, "Failed"},
	}
	for _, c := range cases {
		if got := phase(c.policy, c.init, c.failed, c.done, c.statuses); got != c.want {
			t.Errorf("%s: %s, wanted %s", c.name, got, c.want)
		}
	}
}

func TestInsideRootFollowsLinksWithinTheRoot(t *testing.T) {
	root := t.TempDir()
	for _, folder := range []string{"run", "var"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	got, err := insideRoot(root, "/var/run/secrets")
	if err != nil || got != root+"/run/secrets" {
		t.Errorf("%s %v", got, err)
	}
	if err := os.Symlink("loop", filepath.Join(root, "loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := insideRoot(root, "/loop/x"); err == nil {
		t.Error("a loop of links must be an error")
	}
}

func TestSeekTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 70*1024)
	for _, text := range []string{"a\nb\nc\n", "a\nb\nc", long + "\nb\nc\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for lines, want := range map[int]string{1: "c", 2: "b\nc", 9: strings.TrimSuffix(text, "\n")} {
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := seekTail(file, lines); err != nil {
				t.Fatal(err)
			}
			rest := make([]byte, len(text))
			n, _ := file.Read(rest)
			if got := strings.TrimSuffix(string(rest[:n]), "\n"); got != want {
				t.Errorf("last %d lines of %.20q: %.20q", lines, text, got)
			}
			_ = file.Close()
		}
	}
}

func TestAddressesAreNotReusedAtOnce(t *testing.T) {
	n := newNetwork()
	first := n.allocate()
	n.release(first)
	if second := n.allocate(); second == first {
		t.Error("a neighbour's cache would still lead to the old Pod")
	}
	n.next = 1<<8 + 0xfe - 1
	if last, next := n.allocate(), n.allocate(); last&0xff != 0xfe || next != 2<<8+1 {
		t.Errorf("%x then %x", last, next)
	}
}
