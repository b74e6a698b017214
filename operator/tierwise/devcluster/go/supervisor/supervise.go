package supervisor

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"devcluster/hostpid"
)

const (
	restartDelay = 500 * time.Millisecond
	pollInterval = 100 * time.Millisecond
	reapInterval = time.Second
	probeTimeout = 2 * time.Second
)

// Supervise is process 1 of the cluster's namespaces: when it ends, the kernel ends everything else in them.
func Supervise(arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("usage: devcluster supervise CONFIG")
	}
	config, err := readConfig(arguments[0])
	if err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return errors.New("the supervisor must be process 1 of its PID namespace: use launch")
	}
	if err := prepareMounts(config); err != nil {
		return err
	}
	if err := prepareNetwork(config); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	restConfig, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return err
	}
	relay := newRelay(client)
	listener, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return err
	}
	go relay.serve(ctx, listener, fixed(config.APIAddress))

	supervisor := &supervisor{config: config, relay: relay, components: map[string]*running{}}
	for _, component := range config.Components {
		supervisor.components[component.Name] = &running{Component: component, once: make(chan struct{})}
	}
	if err := supervisor.serveControl(ctx); err != nil {
		return err
	}
	for _, component := range supervisor.components {
		go supervisor.keep(ctx, component)
		go supervisor.watchStart(ctx, component)
	}
	go supervisor.reap(ctx)
	go func() {
		if supervisor.awaitReady(ctx, "kube-apiserver") {
			relay.watch(ctx)
			relay.serveClusterIPs(ctx)
		}
	}()
	<-ctx.Done()
	log.Print("the supervisor ends, and everything with it")
	return nil
}

type supervisor struct {
	config     *Config
	relay      *relay
	components map[string]*running
}

// running is a component and its present process.
type running struct {
	Component
	once     chan struct{} // closed when it was ready for the first time
	mutex    sync.Mutex
	pid      int // in this namespace; 0 when there is none
	hostPID  int
	restarts int
	started  time.Time
}

// keep starts the component whenever it does not run.
func (s *supervisor) keep(ctx context.Context, component *running) {
	for _, name := range component.Needs {
		if !s.awaitReady(ctx, name) {
			return
		}
	}
	for ctx.Err() == nil {
		err := s.runOnce(component)
		log.Printf("%s ended: %v", component.Name, err)
		component.mutex.Lock()
		component.pid, component.hostPID = 0, 0
		component.restarts++
		component.mutex.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}
}

func (s *supervisor) runOnce(component *running) error {
	file, err := os.OpenFile(s.config.logFile(component.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	command := exec.Command(component.Argv[0], component.Argv[1:]...)
	command.Stdout, command.Stderr = file, file
	command.Dir = s.config.State
	command.Env = os.Environ()
	for name, value := range component.Env {
		command.Env = append(command.Env, name+"="+value)
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	component.mutex.Lock()
	err = command.Start()
	if err == nil {
		component.pid, component.started = command.Process.Pid, time.Now()
		if component.hostPID, err = hostpid.Of(component.pid); err != nil {
			log.Printf("%s: %v", component.Name, err)
		}
		err = writeFile(s.config.pidFile(component.Name), strconv.Itoa(component.hostPID)+"\n")
	}
	component.mutex.Unlock()
	if err != nil {
		return err
	}
	return command.Wait()
}

// watchStart asks a component, one question at a time, until it is ready for the first time.
func (s *supervisor) watchStart(ctx context.Context, component *running) {
	for !s.ready(component) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollInterval):
		}
	}
	close(component.once)
}

// awaitReady waits until a component has been ready once; false when the supervisor ends before.
func (s *supervisor) awaitReady(ctx context.Context, name string) bool {
	component := s.components[name]
	if component == nil {
		log.Printf("there is no component %s to wait for", name)
		return true
	}
	select {
	case <-component.once:
		return true
	case <-ctx.Done():
		return false
	}
}

var readyClient = &http.Client{
	Timeout: probeTimeout,
	// A question to ourselves whether a port serves; nothing secret is sent.
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
}

func (s *supervisor) ready(component *running) bool {
	component.mutex.Lock()
	pid := component.pid
	component.mutex.Unlock()
	if pid == 0 {
		return false
	}
	if component.Ready == "" {
		return true
	}
	response, err := readyClient.Get(component.Ready)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// reap collects orphans: as process 1 the supervisor inherits what its children's children leave behind.
func (s *supervisor) reap(ctx context.Context) {
	ticker := time.NewTicker(reapInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var ours []int
		for _, component := range s.components {
			component.mutex.Lock()
			ours = append(ours, component.pid)
			component.mutex.Unlock()
		}
		folders, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range folders {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			// pid (name, which may hold anything) state parent ...
			pid, _ := strconv.Atoi(strings.Fields(string(text))[0])
			after := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
			if after[0] == "Z" && after[1] == "1" && !slices.Contains(ours, pid) {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}
